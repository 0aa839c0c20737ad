package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore"
)

// role is a server with its lock, both watched, in a folder of the test's.
type role struct {
	dir, socket string
	held        *control.Held
	ended       chan error // of the watch
}

func startRole(t *testing.T) *role {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	r := &role{dir: dir, socket: filepath.Join(dir, "agent.sock"), ended: make(chan error, 1)}
	log := slog.New(slog.DiscardHandler)
	var err error
	if r.held, err = control.Lock(dir, "agent"); err != nil {
		t.Fatal(err)
	}
	l, err := control.Listen(r.socket, log)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.AgentStatus, error) {
		return control.AgentStatus{Node: "n1"}, nil
	}))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve.Serve(ctx, l, mux) }()
	go func() { r.ended <- control.WatchFolders(ctx, log, l.Folder(), r.held.Folder()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		r.held.Close()
	})
	return r
}

// until waits until ok returns nil.
func until(t *testing.T, ok func() error) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(time.Millisecond) {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %v", err)
		}
	}
}

// whole says what is not as it was after the start.
func (r *role) whole() error {
	if _, err := control.NewAgentClient(r.socket).Status(context.Background()); err != nil {
		return err
	}
	for path, want := range map[string]os.FileMode{r.dir: os.ModeDir | 0o700, r.socket: os.ModeSocket | 0o600, filepath.Join(r.dir, "agent.lock"): 0o600} {
		st, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if st.Mode() != want {
			return fmt.Errorf("%s: %s, want %s", path, st.Mode(), want)
		}
	}
	f, err := os.Open(filepath.Join(r.dir, "agent.lock"))
	if err != nil {
		return err
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return errors.New("the lock is not held")
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	return err
}

// TestTheHolderOfALock: who holds a lock stands in its file again when somebody writes into
// it.
func TestTheHolderOfALock(t *testing.T) {
	r := startRole(t)
	path := filepath.Join(r.dir, "agent.lock")
	want := strconv.Itoa(os.Getpid()) + "\n"
	if err := os.WriteFile(path, []byte("none"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, func() error {
		text, err := os.ReadFile(path)
		if err == nil && string(text) != want {
			err = fmt.Errorf("%q", text)
		}
		return err
	})
}

// TestMadeAgain takes from a running role what it needs, in every way there is.
func TestMadeAgain(t *testing.T) {
	removals := map[string]func(r *role) error{
		"socket": func(r *role) error { return os.Remove(r.socket) },
		"lock":   func(r *role) error { return os.Remove(filepath.Join(r.dir, "agent.lock")) },
		"both": func(r *role) error {
			return errors.Join(os.Remove(filepath.Join(r.dir, "agent.lock")), os.Remove(r.socket))
		},
		"moved":        func(r *role) error { return os.Rename(r.socket, r.socket+".old") },
		"folder":       func(r *role) error { return os.RemoveAll(r.dir) },
		"folder moved": func(r *role) error { return os.Rename(r.dir, r.dir+".old") },
		"folder open": func(r *role) error { // its end is told late: somebody has it open
			f, err := os.Open(r.dir)
			if err != nil {
				return err
			}
			err = os.RemoveAll(r.dir)
			time.AfterFunc(time.Minute, func() { f.Close() })
			return err
		},
	}
	for name, remove := range removals {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := startRole(t)
			until(t, r.whole)
			for range 3 {
				if err := remove(r); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
					t.Fatal(err)
				}
				until(t, r.whole)
				os.RemoveAll(r.dir + ".old")
			}
		})
	}
}

// TestLockedByAnother: who took the lock while its file was gone has it, and the
// role ends.
func TestLockedByAnother(t *testing.T) {
	dir := t.TempDir()
	held, err := control.Lock(dir, "agent")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := os.Remove(held.Path()); err != nil {
		t.Fatal(err)
	}
	other, err := control.Lock(dir, "agent")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	err = control.WatchFolders(t.Context(), slog.New(slog.DiscardHandler), held.Folder())
	if err == nil || !strings.Contains(err.Error(), "agent runs already") {
		t.Errorf("watch ended with %v", err)
	}
}

// TestLookedAtRegularly is what happens where nothing can be watched.
func TestLookedAtRegularly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	looks, enough := 0, errors.New("enough")
	err := control.LookRegularly(t.Context(), slog.New(slog.DiscardHandler), syscall.EMFILE, []control.Folder{{Dir: dir, Look: func(name string) error {
		if looks++; looks == 2 {
			return enough
		}
		return os.RemoveAll(dir)
	}}})
	if _, e := os.Stat(dir); !errors.Is(err, enough) || e != nil {
		t.Errorf("ended with %v, folder %v", err, e)
	}
}

// attachServer answers attaches as long as it lives; the first cut of them find it
// ending instead.
func attachServer(t *testing.T, socket string, cut int) (stop func()) {
	t.Helper()
	l, err := control.Listen(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/attach", serve.Call(func(_ context.Context, r control.AttachRequest) (control.Attachment, error) {
		if cut--; cut >= 0 {
			panic(http.ErrAbortHandler)
		}
		return control.Attachment{Interface: r.Interface}, nil
	}))
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve.Serve(ctx, l, mux) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestWaiting: an attach outlives the agent's absence, and its end during the call.
func TestWaiting(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	request := control.AttachRequest{Target: control.Target{Interface: "eth0"}}
	attach := func(c *control.AgentClient) error {
		a, err := c.Attach(t.Context(), request)
		if err == nil && a.Interface != "eth0" {
			err = fmt.Errorf("attached %+v", a)
		}
		return err
	}
	// One that never was is not waited for.
	if err := attach(control.NewAgentClient(socket).Waiting(time.Hour)); err == nil || strings.Contains(err.Error(), "waited") {
		t.Errorf("no agent: %v", err)
	}
	attachServer(t, socket, 0)()
	// One that was is, and what it took is told.
	err := attach(control.NewAgentClient(socket).Waiting(100 * time.Millisecond))
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "(waited ") {
		t.Errorf("an agent that does not come back: %v", err)
	}
	if err := attach(control.NewAgentClient(socket)); err == nil || strings.Contains(err.Error(), "waited") {
		t.Errorf("who does not wait: %v", err)
	}
	stop := attachServer(t, socket, 1)
	if err := attach(control.NewAgentClient(socket).Waiting(time.Minute)); err != nil {
		t.Errorf("cut off: %v", err)
	}
	stop()
	for what, before := range map[string]func() error{
		"killed": func() error { return nil },
		"removed": func() error {
			return errors.Join(os.Remove(socket), os.WriteFile(filepath.Join(filepath.Dir(socket), "etcd.sock"), nil, 0o600))
		},
	} {
		if err := before(); err != nil {
			t.Fatal(err)
		}
		attached := make(chan error)
		go func() { attached <- attach(control.NewAgentClient(socket).Waiting(time.Minute)) }()
		stop := attachServer(t, socket, 2)
		if err := <-attached; err != nil {
			t.Errorf("%s: %v", what, err)
		}
		stop()
	}
}

// TestAnswerWithinTheCallersTime: the other side ends sooner than the caller gives up.
func TestAnswerWithinTheCallersTime(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/detach", serve.Call(func(ctx context.Context, _ control.DetachRequest) (struct{}, error) {
		<-ctx.Done()
		return struct{}{}, fmt.Errorf("write x: %w", ctx.Err())
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := control.NewAgentClient(served(t, mux)).Detach(ctx, control.DetachRequest{})
	if !errors.Is(err, datastore.ErrUnavailable) || err.Error() != "write x: not done in time" || ctx.Err() != nil {
		t.Errorf("got %v, %v", err, ctx.Err())
	}
}

// TestForeignFolder: somebody else's folder is watched while it is there, and not made.
func TestForeignFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "theirs")
	looks := make(chan string, 100)
	watch := func() error {
		return control.WatchFolders(t.Context(), slog.New(slog.DiscardHandler), control.Folder{Dir: dir, Foreign: true, Look: func(name string) error { looks <- name; return nil }})
	}
	if err := watch(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without the folder: %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- watch() }()
	<-looks
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if name := <-looks; name != "x" {
		t.Errorf("looked at %q", name)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("when it is gone: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}
