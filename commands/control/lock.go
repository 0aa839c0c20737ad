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
)

// Lock makes the calling process the only one of its role in the state folder
// dir until the returned file is closed or the process ends. If another process
// is, the error says which (PID). dir is made (0700) if it does not exist.
func Lock(dir, role string) (io.Closer, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("%s: state folder: %w", role, err)
	}
	path := filepath.Join(dir, role+".lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: state folder: %w", role, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: lock %s: %w", role, path, err)
		}
		holder := "another process"
		if text, err := io.ReadAll(io.LimitReader(f, 32)); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
				holder = fmt.Sprintf("PID %d", pid)
			}
		}
		return nil, fmt.Errorf("%s runs already: %s holds %s", role, holder, path)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: lock %s: %w", role, path, err)
	}
	return f, nil
}
