package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// SupervisorVariable is the environment variable in which netctl node tells a
// role its process ID.
const SupervisorVariable = "NETCTL_SUPERVISOR"

// Held is a lock that Lock took.
type Held struct {
	path, role string

	mu     sync.Mutex
	file   *os.File
	closed bool
}

// Lock makes the calling process the only one of its role in the state folder
// dir until what it returns is closed or the process ends. If another process
// is, the error says which (PID). dir is made (0700) if it does not exist.
func Lock(dir, role string) (*Held, error) {
	h := &Held{path: filepath.Join(dir, role+".lock"), role: role}
	var err error
	if h.file, err = h.open(); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *Held) open() (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(h.path), 0o700); err != nil {
		return nil, fmt.Errorf("%s: state folder: %w", h.role, err)
	}
	f, err := os.OpenFile(h.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: state folder: %w", h.role, err)
	}
	if err := take(f, h.role); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// Folder is where the lock is: it is made again when it goes. That another process
// was faster ends the watch.
func (h *Held) Folder() Folder {
	return Folder{Dir: filepath.Dir(h.path), Look: func(name string) error {
		if name != "" && name != filepath.Base(h.path) {
			return nil
		}
		return h.renew()
	}}
}

// renew takes the lock again if its file is not the one that is held.
func (h *Held) renew() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	have, err := h.file.Stat()
	if err != nil {
		return fmt.Errorf("%s: lock: %w", h.role, err)
	}
	if st, err := os.Stat(h.path); err == nil && os.SameFile(st, have) {
		if holder(h.file) == os.Getpid() {
			return nil
		}
		return sign(h.file, h.role)
	}
	f, err := h.open()
	if err != nil {
		return err
	}
	_ = h.file.Close()
	h.file = f
	return nil
}

// Close lets the lock go.
func (h *Held) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	return h.file.Close()
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
	return sign(f, role)
}

// sign writes who holds a lock into its file.
func sign(f *os.File, role string) error {
	err := f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
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
