// Package node owns the supervisor behind `netctl node`: it runs each role of
// this node as a child process of the same file and starts it again when it ends.
//
// It does no role's work, never kills what it did not start, and no two
// roles share a process. Every child ends with the supervisor (PDEATHSIG).
package node

import (
	"cmp"
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
	"netctl/datastore"
)

// The back-off of a role that ends: none once the role has run backoffReset, or
// syncedReset if it was in sync; else doubled from backoffMin each time.
const (
	backoffMin   = 10 * time.Millisecond
	backoffMax   = 30 * time.Second
	backoffReset = 10 * time.Second
	// syncedReset is backoffReset of who was in sync: it was ended rather than that it
	// cannot run.
	syncedReset = time.Second
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
	// Ready is called once, when each role has been in sync; it may be nil.
	Ready func()
	// Watchdog is how long a role that has given a sign of life may be without one; 0 is
	// control.RoleWatchdog.
	Watchdog time.Duration
}

// Run supervises the roles until ctx ends, then ends them.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if len(cfg.Roles) == 0 {
		return errors.New("node: no roles: set `roles: [datastore, agent, speaker]` in the configuration")
	}
	stop := make([]chan struct{}, len(cfg.Roles))
	done := make([]chan struct{}, len(cfg.Roles))
	var all, unready sync.WaitGroup
	unready.Add(len(cfg.Roles))
	go func() { // for good if a role never is in sync
		unready.Wait()
		if cfg.Ready != nil {
			cfg.Ready()
		}
	}()
	for i, role := range cfg.Roles {
		stop[i], done[i] = make(chan struct{}), make(chan struct{})
		all.Go(func() {
			defer close(done[i])
			s := supervisor{cfg: cfg, role: role, stop: stop[i], log: log.With("child", role), synced: sync.OnceFunc(unready.Done)}
			s.run()
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

// supervisor keeps one role running.
type supervisor struct {
	cfg    Config
	role   string
	stop   <-chan struct{}
	log    *slog.Logger
	synced func()
}

// run keeps the role running until stop is closed. PDEATHSIG is sent when the thread
// that started the child ends, so this goroutine keeps its thread.
func (s *supervisor) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pace := newBackoff(s.role)
	for {
		began := time.Now()
		synced, err := s.once()
		select {
		case <-s.stop:
			s.log.Info("role ended")
			return
		default:
		}
		wait := pace.after(time.Since(began), synced)
		s.log.Warn("role ended, starting it again", "cause", err, "after", wait, datastore.EventRole.Mark())
		select {
		case <-s.stop:
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

// after is the wait after a run of the given length, in which the role was in sync or not.
func (b *backoff) after(ran time.Duration, synced bool) time.Duration {
	if synced {
		b.limit = soonMax
	}
	if ran >= backoffReset || synced && ran >= syncedReset {
		b.next = 0
	}
	wait := min(b.next, b.limit)
	b.next = min(max(2*wait, backoffMin), b.limit)
	return wait
}

// once runs the role until it ends by itself, gives no sign of life any more or stop is
// closed. synced: it said that it was in sync.
func (s *supervisor) once() (synced bool, err error) {
	hear, tell, err := os.Pipe()
	if err != nil {
		return false, fmt.Errorf("start %s: %w", s.role, err)
	}
	defer hear.Close()
	cmd := &exec.Cmd{
		Path:        s.cfg.Executable,
		Args:        append([]string{"netctl-" + s.role}, s.cfg.Args...),
		Env:         append(slices.Clone(s.cfg.Env), control.SyncedVariable+"=3"), // the first of ExtraFiles
		Stdout:      io.Writer(s.cfg.Output),
		Stderr:      s.cfg.Output,
		ExtraFiles:  []*os.File{tell},
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM, Setpgid: true},
	}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return false, fmt.Errorf("start %s: %w", s.role, err)
	}
	s.log.Info("role started", "pid", cmd.Process.Pid)
	ended, signs, heard := make(chan error, 1), make(chan struct{}, 1), make(chan struct{})
	go func() { ended <- cmd.Wait() }()
	go func() {
		defer close(heard)
		synced = s.listen(hear, signs)
	}()
	err = s.watch(cmd.Process, ended, signs)
	// What it wrote last is heard; somebody else may have the pipe still.
	_ = hear.SetReadDeadline(time.Now())
	<-heard
	_ = hear.SetReadDeadline(time.Time{})
	return synced || slices.Contains(rest(hear), control.SaysSynced), exitCause(err)
}

// listen hears what the role says until its pipe ends; signs gets its signs of life.
func (s *supervisor) listen(hear io.Reader, signs chan<- struct{}) (synced bool) {
	said := make([]byte, 64)
	for {
		n, err := hear.Read(said)
		for _, b := range said[:n] {
			switch b {
			case control.SaysSynced:
				synced = true
				s.synced()
			case control.SaysAlive:
				select {
				case signs <- struct{}{}:
				default:
				}
			}
		}
		if err != nil {
			return synced
		}
	}
}

// watch waits for the end of a process, which it ends when stop is closed, or when signs
// of life stay away: then by SIGQUIT, for which it writes where it hangs.
func (s *supervisor) watch(p *os.Process, ended <-chan error, signs <-chan struct{}) error {
	limit := cmp.Or(s.cfg.Watchdog, control.RoleWatchdog)
	silent := time.NewTimer(limit)
	defer silent.Stop()
	silent.Stop() // the first sign starts it
	last := unix.SIGTERM
	for waiting := true; waiting; {
		select {
		case err := <-ended:
			return err
		case <-signs:
			silent.Reset(limit)
		case <-silent.C:
			s.log.Warn("role gives no sign of life, ending it", "timeout", limit, datastore.EventRole.Mark())
			last, waiting = unix.SIGQUIT, false
		case <-s.stop:
			waiting = false
		}
	}
	_ = p.Signal(last)
	select {
	case err := <-ended:
		return err
	case <-time.After(stopTimeout):
		s.log.Warn("role does not end, killing it", "timeout", stopTimeout)
		_ = p.Kill()
		return <-ended
	}
}

// rest is what is left in the pipe of a role that ended.
func rest(hear *os.File) []byte {
	said, n := make([]byte, 64), 0
	if raw, err := hear.SyscallConn(); err == nil {
		_ = raw.Read(func(fd uintptr) bool {
			n, _ = unix.Read(int(fd), said) // does not wait
			return true
		})
	}
	return said[:max(n, 0)]
}

func exitCause(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}
