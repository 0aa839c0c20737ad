// Package node owns the supervisor behind `netctl node`: it runs each role of
// this node as a child process of the same file and starts it again when it ends.
//
// It never does a role's work, never kills what it did not start, and no two
// roles share a process. Every child ends with the supervisor (PDEATHSIG).
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
)

// The back-off of a role that ends: none once the role has run backoffReset, then
// doubled from backoffMin each time.
const (
	backoffMin   = 10 * time.Millisecond
	backoffMax   = 30 * time.Second
	backoffReset = 10 * time.Second
	// soonMax bounds that of a role that is missed: the speaker's, since peers keep its
	// routes only so long, and of who was in sync, since containers wait for it.
	soonMax = 2 * time.Second
	// stopTimeout is how long a role may take to end before it is killed.
	stopTimeout = 10 * time.Second
)

// Config is what the supervisor runs.
type Config struct {
	// Roles in the order of their start; they end in the reverse order.
	Roles []string
	// Executable is the file to run, as netctl-<role>.
	Executable string
	// Args and Env are given to every role.
	Args, Env []string
	// Output takes what the roles write.
	Output *os.File
}

// Run supervises the roles until ctx ends, then ends them.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if len(cfg.Roles) == 0 {
		return errors.New("node: no roles: set `roles: [datastore, agent, speaker]` in the configuration")
	}
	stop := make([]chan struct{}, len(cfg.Roles))
	done := make([]chan struct{}, len(cfg.Roles))
	var all sync.WaitGroup
	for i, role := range cfg.Roles {
		stop[i], done[i] = make(chan struct{}), make(chan struct{})
		all.Go(func() {
			defer close(done[i])
			supervise(cfg, role, stop[i], log.With("child", role))
		})
	}
	<-ctx.Done()
	for i := len(cfg.Roles) - 1; i >= 0; i-- {
		close(stop[i])
		<-done[i]
	}
	all.Wait()
	return nil
}

// supervise keeps one role running until stop is closed. PDEATHSIG is sent when
// the thread that started the child ends, so this goroutine keeps its thread.
func supervise(cfg Config, role string, stop <-chan struct{}, log *slog.Logger) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pace := newBackoff(role)
	for {
		began := time.Now()
		synced, err := runOnce(cfg, role, stop, log)
		if synced {
			pace.synced()
		}
		select {
		case <-stop:
			log.Info("role ended")
			return
		default:
		}
		wait := pace.after(time.Since(began))
		log.Warn("role ended, starting it again", "cause", err, "after", wait)
		select {
		case <-stop:
			return
		case <-time.After(wait):
		}
	}
}

// backoff is how long a role that ended waits for its next start.
type backoff struct{ next, limit time.Duration }

func newBackoff(role string) backoff {
	if role == "speaker" || role == "reflector" {
		return backoff{0, soonMax}
	}
	return backoff{0, backoffMax}
}

// synced says that the role was in sync.
func (b *backoff) synced() { b.limit = soonMax }

// after is the wait after a run of the given length.
func (b *backoff) after(ran time.Duration) time.Duration {
	if ran >= backoffReset {
		b.next = 0
	}
	wait := min(b.next, b.limit)
	b.next = min(max(2*wait, backoffMin), b.limit)
	return wait
}

// runOnce runs the role until it ends by itself or stop is closed. synced: it said
// that it was in sync.
func runOnce(cfg Config, role string, stop <-chan struct{}, log *slog.Logger) (synced bool, err error) {
	hear, tell, err := os.Pipe()
	if err != nil {
		return false, fmt.Errorf("start %s: %w", role, err)
	}
	defer hear.Close()
	cmd := &exec.Cmd{
		Path:        cfg.Executable,
		Args:        append([]string{"netctl-" + role}, cfg.Args...),
		Env:         append(slices.Clone(cfg.Env), control.SyncedVariable+"=3"), // the first of ExtraFiles
		Stdout:      io.Writer(cfg.Output),
		Stderr:      cfg.Output,
		ExtraFiles:  []*os.File{tell},
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM, Setpgid: true},
	}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return false, fmt.Errorf("start %s: %w", role, err)
	}
	log.Info("role started", "pid", cmd.Process.Pid)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return told(hear), exitCause(err)
	case <-stop:
	}
	_ = cmd.Process.Signal(unix.SIGTERM)
	select {
	case err := <-ended:
		return told(hear), exitCause(err)
	case <-time.After(stopTimeout):
		log.Warn("role does not end, killing it", "timeout", stopTimeout)
		_ = cmd.Process.Kill()
		return told(hear), exitCause(<-ended)
	}
}

// told says whether a role that ended wrote into the pipe.
func told(hear *os.File) bool {
	n := 0
	if raw, err := hear.SyscallConn(); err == nil {
		_ = raw.Read(func(fd uintptr) bool {
			n, _ = unix.Read(int(fd), make([]byte, 1)) // does not wait: somebody else may have the pipe still
			return true
		})
	}
	return n > 0
}

func exitCause(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}
