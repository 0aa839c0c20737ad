package control

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// SupervisorVariable is the environment variable in which netctl node tells a
// role its process ID.
const SupervisorVariable = "NETCTL_SUPERVISOR"

// Lock makes the calling process the only one of its role in the state folder
// dir until the returned file is closed or the process ends. If another process
// is, the error says which (PID). dir is made (0700) if it does not exist.
func Lock(dir, role string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%s: state folder: %w", role, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, role+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: state folder: %w", role, err)
	}
	if err := take(f, role); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// A process that was killed while it started a child leaves the lock to the child
// until that executes its program.
const (
	lockWait  = 2 * time.Second
	lockPause = 5 * time.Millisecond
)

func take(f *os.File, role string) error {
	for end := time.Now().Add(lockWait); ; time.Sleep(lockPause) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("%s: lock %s: %w", role, f.Name(), err)
		}
		pid := holder(f)
		switch {
		case pid == 0:
			return fmt.Errorf("%s runs already: another process holds %s", role, f.Name())
		case time.Now().After(end), !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH):
			return fmt.Errorf("%s runs already: PID %d holds %s", role, pid, f.Name())
		}
	}
	err := f.Truncate(0)
	if err == nil {
		_, err = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	if err != nil {
		return fmt.Errorf("%s: lock %s: %w", role, f.Name(), err)
	}
	return nil
}

// holder is the PID in a lock's file; 0: there is none.
func holder(f *os.File) int {
	text := make([]byte, 32)
	n, _ := f.ReadAt(text, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text[:n])))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}
