package control

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// SyncedVariable is the environment variable in which netctl node gives a role the
// number of the descriptor on which it says that it is in sync, and that it lives.
const SyncedVariable = "NETCTL_SYNCED"

// What a role writes to netctl node.
const (
	SaysSynced = 1
	SaysAlive  = 2
)

// RoleWatchdog is how long netctl node waits for a sign of life of a role that has
// given one.
const RoleWatchdog = time.Minute

// syncPatience is how long the service manager waits for a role to be in sync before
// what is ordered after it starts all the same: with the datastore away nothing else of
// the host is held up.
const syncPatience = 30 * time.Second

// Service is who started this process and waits for it to be ready: systemd
// (sd_notify(3)), netctl node, or nobody.
type Service struct {
	log    *slog.Logger
	socket string // of systemd; "": it did not start this process
	node   *os.File
	limit  time.Duration // between two signs of life; 0: nobody waits for them
	// patience is syncPatience but in tests.
	patience time.Duration

	mu    sync.Mutex
	ready bool
	done  chan struct{}
}

// NewService reads who started this process from its environment. It may be made once
// in a process.
func NewService(log *slog.Logger) *Service {
	s := &Service{log: log, socket: os.Getenv("NOTIFY_SOCKET"), patience: syncPatience, done: make(chan struct{})}
	if fd, err := strconv.Atoi(os.Getenv(SyncedVariable)); err == nil && os.Getenv(SupervisorVariable) == strconv.Itoa(os.Getppid()) {
		syscall.CloseOnExec(fd)
		s.node, s.limit, s.socket = os.NewFile(uintptr(fd), "supervisor"), RoleWatchdog, ""
		return s
	}
	usec, err := strconv.ParseUint(os.Getenv("WATCHDOG_USEC"), 10, 40)
	if pid := os.Getenv("WATCHDOG_PID"); err == nil && s.socket != "" && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		s.limit = time.Duration(usec) * time.Microsecond
	}
	return s
}

// Synced says that the process is in sync. It may be said again.
func (s *Service) Synced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready {
		return
	}
	s.ready = true
	close(s.done)
	s.tell(SaysSynced, "READY=1\nSTATUS=in sync")
}

// tell says the same to netctl node and to systemd; that nobody listens is their affair.
func (s *Service) tell(node byte, systemd string) {
	if s.node != nil && node != 0 {
		_, _ = s.node.Write([]byte{node})
	}
	if s.socket == "" {
		return
	}
	name := s.socket
	if rest, abstract := strings.CutPrefix(name, "@"); abstract {
		name = "\x00" + rest
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(systemd))
		_ = conn.Close()
	}
	if err != nil {
		s.log.Warn("service manager not told", "socket", s.socket, "error", err)
	}
}

// Run gives signs of life until ctx ends, each only if alive returns nil in time; nil
// stands for a process whose goroutines run. Its last word is that the process ends.
func (s *Service) Run(ctx context.Context, alive func(context.Context) error) error {
	defer s.tell(0, "STOPPING=1")
	late := time.NewTimer(s.patience)
	defer late.Stop()
	done := s.done
	var beat <-chan time.Time
	if s.limit > 0 {
		ticker := time.NewTicker(s.limit / 4)
		defer ticker.Stop()
		beat = ticker.C
		s.beat(ctx, alive)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat:
			s.beat(ctx, alive)
		case <-done:
			late.Stop()
			done = nil
		case <-late.C:
			s.mu.Lock()
			if !s.ready {
				s.tell(0, "READY=1\nSTATUS=not in sync yet: see netctl status")
			}
			s.mu.Unlock()
		}
	}
}

func (s *Service) beat(ctx context.Context, alive func(context.Context) error) {
	if alive != nil {
		limited, cancel := context.WithTimeout(ctx, s.limit/2)
		defer cancel()
		if err := alive(limited); err != nil {
			if ctx.Err() == nil {
				s.log.Warn("no sign of life given", "error", err)
			}
			return
		}
	}
	s.tell(SaysAlive, "WATCHDOG=1")
}
