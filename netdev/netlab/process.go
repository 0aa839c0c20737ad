package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Place is somewhere to run things: a Host or a Container.
type Place interface {
	// Do runs fn on a thread in the place's namespaces.
	Do(fn func() error) error
	// Exec runs a command to its end and returns what it wrote to stdout.
	Exec(ctx context.Context, c Cmd) (string, error)
}

// Cmd is a command in a place.
type Cmd struct {
	Args  []string
	Env   []string // added to this process's
	Stdin string
}

// command builds a Cmd; it must be called on a thread in the place, where the
// program is looked for.
func (c Cmd) command() (*exec.Cmd, error) {
	if len(c.Args) == 0 {
		return nil, fmt.Errorf("no command")
	}
	cmd := exec.Command(program(c.Args[0]), c.Args[1:]...)
	cmd.Args[0] = c.Args[0]
	cmd.Env = append(environ(), c.Env...)
	cmd.Dir = "/"
	if c.Stdin != "" {
		cmd.Stdin = strings.NewReader(c.Stdin)
	}
	return cmd, nil
}

// program is where a command is found in a host; netctl is the lab's own.
func program(name string) string {
	own := toolFolder + "/" + name
	if _, err := os.Stat(own); err == nil && !strings.Contains(name, "/") {
		return own
	}
	return name
}

// environ is this process's environment with the lab's netctl first in PATH, and
// without what would change the configuration of a host's netctl.
func environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "NETCTL_") || strings.HasPrefix(kv, "PATH=")
	})
	return append(env, "PATH="+toolFolder+":"+os.Getenv("PATH"))
}

// ExecError is a command that failed.
type ExecError struct {
	Args           []string
	Code           int // exit code, -1: ended by a signal
	Stdout, Stderr string
}

// Error implements error.
func (e *ExecError) Error() string {
	text := strings.TrimSpace(e.Stderr)
	if text == "" {
		text = strings.TrimSpace(e.Stdout)
	}
	return fmt.Sprintf("%s: exit code %d: %s", strings.Join(e.Args, " "), e.Code, text)
}

// execIn runs c to its end in a place; a command that fails is an *ExecError.
func execIn(ctx context.Context, p Place, c Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	var cmd *exec.Cmd
	err := p.Do(func() (err error) {
		if cmd, err = c.command(); err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		const grace = 5 * time.Second
		cmd.WaitDelay = grace // a daemon left behind may hold the pipes
		return cmd.Start()
	})
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	err = cmd.Wait()
	stop()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return stdout.String(), fmt.Errorf("%s: %w", strings.Join(c.Args, " "), ctx.Err())
	case errors.As(err, &exit):
		return stdout.String(), &ExecError{c.Args, exit.ExitCode(), stdout.String(), stderr.String()}
	case err != nil:
		return stdout.String(), fmt.Errorf("%s: %w", strings.Join(c.Args, " "), err)
	}
	return stdout.String(), nil
}

// Exec implements Place.
func (h *Host) Exec(ctx context.Context, c Cmd) (string, error) { return execIn(ctx, h, c) }

// Replace makes this process the command, in the host: it returns only if that
// fails.
func (h *Host) Replace(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("no command")
	}
	return h.Do(func() error {
		path, err := exec.LookPath(program(args[0]))
		if err != nil {
			return err
		}
		return fmt.Errorf("%s: %w", args[0], unix.Exec(path, args, environ()))
	})
}

// Process is a command that was started in a host.
type Process struct {
	PID int
	// Log is the file that its output goes to.
	Log  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Start starts a command in the host; its output goes to log/<name>.log in the
// host's folder, and it is killed when the lab is removed. In a lab that does not
// persist it dies with this process too.
func (h *Host) Start(name string, c Cmd) (*Process, error) {
	p := &Process{Log: filepath.Join(h.Dir(), "log", name+".log"), done: make(chan struct{})}
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o700); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	err = h.Do(func() (err error) {
		if p.cmd, err = c.command(); err != nil {
			return err
		}
		p.cmd.Stdout, p.cmd.Stderr = out, out
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if !h.lab.persist {
			p.cmd.SysProcAttr.Pdeathsig = unix.SIGKILL // of the host's thread, which lives as long as the lab
		}
		return p.cmd.Start()
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(c.Args, " "), err)
	}
	p.PID = p.cmd.Process.Pid
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end; a process that was ended by a signal or with another
// code than 0 is an error.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal; to a process that has ended it is an error.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill kills the process and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end, kills it after ten seconds, and waits.
func (p *Process) Stop() error {
	_ = p.Signal(unix.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(10 * time.Second):
		p.Kill()
		return fmt.Errorf("process %d: did not end on SIGTERM", p.PID)
	}
}

// Output is everything the process wrote so far.
func (p *Process) Output() string {
	b, _ := os.ReadFile(p.Log)
	return string(b)
}
