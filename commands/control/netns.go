package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// OpenNetns opens the file of a network namespace, whose descriptor an AttachRequest
// names. Nothing is opened that could wait for somebody, or do something by being opened:
// a FIFO, a device. That it is a network namespace, and not the host's own, is for the
// agent to see.
func OpenNetns(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("network namespace %s: not a namespace, as /run/netns/NAME and /proc/PID/ns/net are", path)
	}
	var f *os.File
	if err == nil {
		f, err = os.Open(path) // O_RDONLY|O_CLOEXEC
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s is gone, or never was", path)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return f, nil
}
