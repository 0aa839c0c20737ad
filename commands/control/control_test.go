package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore"
)

// served runs an agent-like server in a folder of the test's own and returns its
// socket.
func served(t *testing.T, mux *http.ServeMux) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "run", "agent.sock")
	l, err := control.Listen(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve.Serve(ctx, l, mux) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return socket
}

func TestAttachGoesThereAndBack(t *testing.T) {
	var peer int
	mux := http.NewServeMux()
	mux.Handle("POST /v1/attach", serve.Call(func(ctx context.Context, r control.AttachRequest) (control.Attachment, error) {
		peer = serve.PeerPID(ctx)
		return control.Attachment{Endpoint: "n1/" + r.Orchestrator + "/" + r.Workload + "/" + r.Interface, Addresses: r.Addresses}, nil
	}))
	c := control.NewAgentClient(served(t, mux))
	ip := netip.MustParseAddr("10.0.0.48")
	a, err := c.Attach(t.Context(), control.AttachRequest{Target: control.Target{Orchestrator: "cni", Workload: "w", Interface: "eth0"}, Addresses: []netip.Addr{ip}})
	if err != nil || a.Endpoint != "n1/cni/w/eth0" || len(a.Addresses) != 1 || a.Addresses[0] != ip {
		t.Fatalf("Attach = %+v, %v", a, err)
	}
	if peer != os.Getpid() {
		t.Errorf("peer's PID = %d, want %d", peer, os.Getpid())
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	for _, outcome := range control.Outcomes() {
		mux := http.NewServeMux()
		mux.Handle("POST /v1/detach", serve.Call(func(context.Context, control.DetachRequest) (struct{}, error) {
			return struct{}{}, fmt.Errorf("detach cni/w: %w: so it is", outcome)
		}))
		err := control.NewAgentClient(served(t, mux)).Detach(t.Context(), control.DetachRequest{})
		var e *control.Error
		if !errors.As(err, &e) || !errors.Is(err, outcome) || e.Message != "detach cni/w: "+outcome.Error()+": so it is" {
			t.Errorf("%v came back as %v", outcome, err)
		}
	}
}

// TestUnread: what is no JSON is said in words of the input.
func TestUnread(t *testing.T) {
	for body, says := range map[string]string{
		"[]":                  "request: must be an object (it is of the type array)",
		`{"network":7}`:       "request: network: is of the wrong type (number)",
		`{,}`:                 "request: is no JSON: invalid character ',' looking for beginning of object key string",
		`{"workload":"w`:      "request: is no JSON: unexpected end of JSON input",
		`{"nonsense":1}`:      `request: unknown field "nonsense"`,
		`{"workload":"w"} {}`: "request: more than one JSON value",
	} {
		err := control.Decode(strings.NewReader(body), new(control.AttachRequest))
		if err == nil || err.Error() != says || !errors.Is(err, datastore.ErrInvalid) {
			t.Errorf("%s: %v, want %q", body, err, says)
		}
	}
}

func TestStrictRequests(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/check", serve.Call(func(context.Context, control.CheckRequest) (struct{}, error) { return struct{}{}, nil }))
	socket := served(t, mux)
	for _, body := range []string{`{"workloat":"x"}`, `{} {}`, `{"workload":1}`, `{`} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		answer, status, err := control.Exchange(conn, fmt.Appendf(nil, "POST /v1/check HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		conn.Close()
		if err != nil || status != http.StatusBadRequest || !strings.Contains(string(answer), control.CodeInvalid) {
			t.Errorf("%s: status %d, %s, %v", body, status, answer, err)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	_, err := control.NewAgentClient(socket).Status(t.Context())
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "not running") {
		t.Errorf("Status without an agent: %v", err)
	}
	mux, block := http.NewServeMux(), make(chan struct{})
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.AgentStatus, error) {
		<-block
		return control.AgentStatus{}, nil
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = control.NewAgentClient(served(t, mux)).Status(ctx)
	close(block)
	if !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "in time") {
		t.Errorf("Status of a stuck agent: %v", err)
	}
}

func TestListen(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	socket := filepath.Join(t.TempDir(), "run", "agent.sock")
	l, err := control.Listen(socket, log)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{socket: 0o600, filepath.Dir(socket): 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, st.Mode(), err, want)
		}
	}
	if _, err := control.Listen(socket, log); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("second Listen: %v", err)
	}
	l.Close() // the socket stays, as after kill -9
	again, err := control.Listen(socket, log)
	if err != nil {
		t.Fatalf("Listen on a stale socket: %v", err)
	}
	again.Close()
	if err := errors.Join(os.Remove(socket), os.WriteFile(socket, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Listen(socket, log); err == nil {
		t.Error("Listen replaced a plain file")
	}
}

// TestOtherUsersAreRefused connects as nobody through a folder that would let it.
func TestOtherUsersAreRefused(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.AgentStatus, error) {
		return control.AgentStatus{Node: "n1"}, nil
	}))
	dir, err := os.MkdirTemp("/tmp", "control")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "agent.sock")
	l, err := control.Listen(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- serve.Serve(ctx, l, mux) }()
	defer func() { cancel(); <-done }()
	for path, mode := range map[string]os.FileMode{dir: 0o755, socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(uid int) (answer string) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // never unlocked: the thread ends with its uid
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				t.Error(errno)
				return
			}
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			conn := os.NewFile(uintptr(fd), socket)
			defer conn.Close()
			if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.WriteString("GET /v1/status HTTP/1.0\r\n\r\n")
			text, _ := io.ReadAll(conn)
			answer = string(text)
		}()
		<-done
		return answer
	}
	if got := ask(0); !strings.Contains(got, `"node":"n1"`) {
		t.Fatalf("root got %q", got)
	}
	if got := ask(65534); got != "" {
		t.Errorf("uid 65534 got %q", got)
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	held, err := control.Lock(dir, "agent")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := control.Lock(dir, "agent"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("PID %d ", os.Getpid())) {
		t.Errorf("second Lock: %v", err)
	}
	other, err := control.Lock(dir, "speaker")
	if err != nil {
		t.Fatal(err)
	}
	other.Close()
	held.Close()
	again, err := control.Lock(dir, "agent")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// TestLockOfTheDead: the lock of a process that is gone, still held by a child it
// was about to start, is waited for.
func TestLockOfTheDead(t *testing.T) {
	dir := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	left, err := os.Create(filepath.Join(dir, "agent.lock"))
	if err == nil {
		_, err = fmt.Fprintln(left, dead.Process.Pid)
	}
	if err == nil {
		err = syscall.Flock(int(left.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { left.Close() })
	held, err := control.Lock(dir, "agent")
	if err != nil {
		t.Fatal(err)
	}
	held.Close()
}

func TestPending(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pending")
	if all, err := control.ReadPending(dir); err != nil || len(all) != 0 {
		t.Fatalf("ReadPending of no folder = %v, %v", all, err)
	}
	r := control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "w", Interface: "eth0"}}
	for _, r.Network = range []string{"", "net"} { // of netctl endpoint remove, and of a runtime
		if err := control.StorePending(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"bad.json": "{", "empty.json": "{}", ".new-1": "{"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := control.ReadPending(dir)
	if len(all) != 1 || all[0].Request != r {
		t.Errorf("ReadPending = %+v", all)
	}
	if err == nil || !strings.Contains(err.Error(), "bad.json") || !strings.Contains(err.Error(), "empty.json") {
		t.Errorf("bad files: %v", err)
	}
	if st, err := os.Stat(all[0].Path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(`{"orchestrator":"cni","workload":"w","interface":"eth0","addresses":["10.0.0.1"],"pools":["10.0.0.0/24"],"netnsFD":3}`)
	f.Add(`{"ports":[{"name":"http","protocol":"tcp","port":80}],"labels":{"a":"b"}}`)
	f.Add(`{}{}`)
	f.Fuzz(func(t *testing.T, text string) {
		var r control.AttachRequest
		if err := control.Decode(strings.NewReader(text), &r); err != nil && !errors.Is(err, datastore.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	})
}
