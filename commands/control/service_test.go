package control

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// manager is a service manager: what it is told.
func manager(t *testing.T) (said func() string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	t.Setenv("NOTIFY_SOCKET", socket)
	return func() string {
		_ = l.SetReadDeadline(time.Now().Add(30 * time.Second))
		text := make([]byte, 1024)
		n, err := l.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(text[:n])
	}
}

// TestService: a sign of life for each that the role gives and no other, ready once it is
// in sync, and a word at the end.
func TestService(t *testing.T) {
	said := manager(t)
	t.Setenv("WATCHDOG_USEC", "40000")
	s := NewService(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var hangs atomic.Bool
	lived, hung := 0, 0
	go func() {
		ended <- s.Run(ctx, func(context.Context) error {
			if !hangs.Load() {
				lived++
				return nil
			}
			if hung++; hung == 3 {
				cancel()
			}
			return errors.New("hangs")
		})
	}()
	told := map[string]int{}
	for told["STOPPING=1"] == 0 {
		got := said()
		if told[got]++; told["WATCHDOG=1"] == 3 && got == "WATCHDOG=1" {
			s.Synced()
			s.Synced()
			hangs.Store(true)
		}
	}
	if err := <-ended; err != nil || len(told) != 3 || told["READY=1\nSTATUS=in sync"] != 1 || told["WATCHDOG=1"] != lived || hung < 3 {
		t.Errorf("%v, told %v of a role that lived %d times and hung %d", err, told, lived, hung)
	}
}

// TestServiceWithoutTheStore: what is ordered after a role that is not in sync starts all
// the same after some time, and hears why.
func TestServiceWithoutTheStore(t *testing.T) {
	said := manager(t)
	s := NewService(slog.New(slog.DiscardHandler))
	s.patience = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, nil) }()
	if got := said(); got != "READY=1\nSTATUS=not in sync yet: see netctl status" {
		t.Errorf("said %q", got)
	}
	s.Synced()
	if got := said(); got != "READY=1\nSTATUS=in sync" {
		t.Errorf("said %q", got)
	}
	cancel()
	if got := said(); got != "STOPPING=1" || <-ended != nil {
		t.Errorf("said %q", got)
	}
}

// TestServiceOfNobody: started by hand nothing is said, and a watchdog that is another
// process's is none.
func TestServiceOfNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/nobody")
	t.Setenv("WATCHDOG_USEC", "1000")
	t.Setenv("WATCHDOG_PID", "1")
	if s := NewService(slog.New(slog.DiscardHandler)); s.limit != 0 {
		t.Errorf("signs of life every %s", s.limit)
	}
}
