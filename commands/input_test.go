package commands

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadInputEndsWithItsContext(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // lets the open that was given up end
		if f, err := os.OpenFile(fifo, os.O_RDWR, 0); err == nil {
			f.Close()
		}
	})
	terminal, w := io.Pipe()
	defer w.Close()
	for _, file := range []string{"-", fifo} {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := readInput(ctx, terminal, file, 10); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestReadInputIsBounded(t *testing.T) {
	if _, err := readInput(t.Context(), nil, "/dev/zero", 1000); err == nil || err.Error() != "/dev/zero: larger than 1000 bytes" {
		t.Errorf("/dev/zero: %v", err)
	}
	raw, err := readInput(t.Context(), strings.NewReader("abc"), "-", 3)
	if err != nil || string(raw) != "abc" {
		t.Errorf("stdin: %q, %v", raw, err)
	}
}
