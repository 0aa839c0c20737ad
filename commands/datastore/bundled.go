//go:build bundled

package datastore

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// plain is the plain build of this program, written by make build.
//
//go:embed netctl.gz
var plain []byte

// Run turns this process into the plain build, with the same arguments and
// environment, whose Run serves. It returns only if that fails.
func Run(_ context.Context, _ Config, _ *slog.Logger) error {
	packed, err := gzip.NewReader(bytes.NewReader(plain))
	if err != nil {
		return fmt.Errorf("datastore: unpack the server: %w", err)
	}
	fd, err := unix.MemfdCreate("netctl", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 it is executable without asking
		fd, err = unix.MemfdCreate("netctl", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("datastore: memory for the server: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netctl")
	defer file.Close()
	if _, err := io.Copy(file, packed); err != nil {
		return fmt.Errorf("datastore: unpack the server: %w", err)
	}
	err = become(fmt.Sprintf("/proc/self/fd/%d", fd))
	return fmt.Errorf("datastore: start the server: %w", err)
}
