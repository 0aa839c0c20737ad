package commands

import (
	"bytes"
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
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"netctl/datastore/embed"
	"netctl/datastore/pki"
)

// TestMain makes the test binary netctl under each of the names; the last ones are
// no role's.
func TestMain(m *testing.M) {
	named := map[string]func(){}
	for _, name := range append(roleNames(), "netctl", "netctl-nothing", "netctl-1.2", "bridge-7") {
		named[name] = func() { os.Exit(Main(os.Args, os.Stdin, os.Stdout, os.Stderr)) }
	}
	testscript.Main(m, named)
}

// TestScripts runs testdata/script/*.txtar, each against an etcd of its own. The
// environment UPDATE_SCRIPTS=1 writes what commands print into cmp files.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: false,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Setup:               setupScript,
		Cmds:                map[string]func(ts *testscript.TestScript, neg bool, args []string){"exits": exits, "answers": answers, "stores": stores},
	})
}

// TestScriptsByAPI runs scripts again, each command done by an API on a unix socket.
func TestScriptsByAPI(t *testing.T) {
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Files: slices.DeleteFunc(files, func(f string) bool { return !slices.Contains(byAPI(), filepath.Base(f)) }),
		Setup: func(env *testscript.Env) error {
			if err := setupScript(env); err != nil {
				return err
			}
			return startAPI(env)
		},
		RequireUniqueNames: true,
		Cmds:               map[string]func(ts *testscript.TestScript, neg bool, args []string){"exits": exits, "answers": answers, "stores": stores},
	})
}

// byAPI are the scripts of commands that go to the datastore. Others take it away from the
// command line alone (backup, complete, datastore, status), or have nothing of it.
func byAPI() []string {
	return []string{"cluster.txtar", "pool.txtar", "profile.txtar"}
}

// startAPI starts the role as a process of its own, which knows the script's folders, and
// has the script's commands go there.
func startAPI(env *testscript.Env) error {
	socket := filepath.Join(env.Getenv("NETCTL_RUN_DIR"), "api.sock")
	dirs := filepath.SplitList(env.Getenv("PATH"))
	i := slices.IndexFunc(dirs, func(dir string) bool { _, err := os.Stat(filepath.Join(dir, "netctl-api")); return err == nil })
	if i < 0 {
		return errors.New("no netctl-api in PATH")
	}
	stop, err := apiProcess(filepath.Join(dirs[i], "netctl-api"), env.Getenv("NETCTL_CONFIG"), socket, slices.Clone(env.Vars))
	if err != nil {
		return err
	}
	env.Defer(stop)
	env.Setenv("NETCTL_SERVER", "unix://"+socket)
	return nil
}

// apiProcess starts the role and waits for its socket.
func apiProcess(binary, config, socket string, env []string) (stop func(), err error) {
	cmd := exec.Command(binary, "--config", config)
	var said bytes.Buffer
	cmd.Env, cmd.Stderr = env, &said
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			return func() { _ = cmd.Process.Signal(os.Interrupt); <-ended }, nil
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("%w: %s", err, said.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// setupScript starts an etcd and points netctl at it. Nothing of the machine's
// own netctl is seen: folders and node name are the script's.
func setupScript(env *testscript.Env) error {
	run := filepath.Join(env.WorkDir, "run")
	stop, err := startEtcd(filepath.Join(env.WorkDir, "etcd"), filepath.Join(run, "etcd.sock"))
	if err != nil {
		return err
	}
	env.Defer(stop)
	config := filepath.Join(env.WorkDir, "netctl.yaml")
	if err := os.WriteFile(config, []byte("node: slave\n"), 0o600); err != nil {
		return err
	}
	env.Setenv("NETCTL_CONFIG", config)
	env.Setenv("NETCTL_RUN_DIR", run)
	env.Setenv("NETCTL_STATE_DIR", filepath.Join(env.WorkDir, "state"))
	env.Setenv("TZ", "UTC")
	return nil
}

func startEtcd(dir, socket string) (stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	peer := "https://" + l.Addr().String()
	l.Close()
	tls := filepath.Join(dir, "tls")
	ca, err := pki.Create(tls)
	if err != nil {
		return nil, err
	}
	files, err := ca.Issue(tls, pki.Node{Name: "slave", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- embed.Run(ctx, embed.Config{Name: "slave", Dir: filepath.Join(dir, "data"), Socket: socket, PeerURL: peer,
			CA: files.CA, Cert: files.Cert, Key: files.Key, Log: slog.New(slog.DiscardHandler)},
			func() { close(ready) })
	}()
	stop = func() { cancel(); <-ended }
	select {
	case <-ready:
		return stop, nil
	case err := <-ended:
		cancel()
		return nil, err
	case <-time.After(time.Minute):
		stop()
		return nil, context.DeadlineExceeded
	}
}

// exits runs a command that must end with the code: exits CODE COMMAND…
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND…")
	}
	code := "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		code = exitCodeOf(err)
	}
	if code != args[0] {
		ts.Fatalf("exit code %s, want %s", code, args[0])
	}
}

// answers makes a socket that answers every request with the content of a file:
// answers SOCKET FILE.
func answers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: answers SOCKET FILE")
	}
	body := ts.ReadFile(args[1])
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) })}
	go func() { _ = server.Serve(l) }()
	ts.Defer(func() { _ = server.Close() })
}

func exitCodeOf(err error) string {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return strconv.Itoa(exit.ExitCode())
	}
	return err.Error()
}
