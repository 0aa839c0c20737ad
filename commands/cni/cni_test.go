package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/rogpeppe/go-internal/txtar"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// fake is an agent that keeps what it was asked, wires nothing, and answers
// like the real one.
type fake struct {
	warning string
	t       *testing.T
	program string // executed in the place of Run; "": Run
	socket  string
	asked   map[string]any // the last request by verb
	runtime string         // who asked for the last attach
	err     error          // what every call fails with
	taken   error          // what publishing fails with
	status  control.AgentStatus
	// collected is what a collection releases.
	collected control.Collected
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock"), asked: map[string]any{}}
	f.serve()
	return f
}

// serve runs until the test ends.
func (f *fake) serve() {
	f.t.Helper()
	l, err := control.Listen(f.socket, slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/attach", serve.Call(f.attach))
	mux.Handle("POST /v1/ports", serve.Call(f.ports))
	mux.Handle("POST /v1/detach", serve.Call(func(_ context.Context, r control.DetachRequest) (struct{}, error) {
		f.asked["detach"] = r
		return struct{}{}, f.err
	}))
	mux.Handle("POST /v1/check", serve.Call(func(ctx context.Context, r control.CheckRequest) (struct{}, error) {
		f.opened(ctx, r.NetnsFD)
		r.NetnsFD = 0
		f.asked["check"] = r
		return struct{}{}, f.err
	}))
	mux.Handle("POST /v1/collect", serve.Call(func(_ context.Context, r control.CollectRequest) (control.Collected, error) {
		f.runtime, r.Runtime = r.Runtime, ""
		f.asked["collect"] = r
		return f.collected, f.err
	}))
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.AgentStatus, error) {
		f.asked["status"] = struct{}{}
		return f.status, f.err
	}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- serve.Serve(ctx, l, mux) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			f.t.Error(err)
		}
	})
}

// opened checks that the number is of a descriptor of the caller's on the file
// that stands for the namespace.
func (f *fake) opened(ctx context.Context, fd int) {
	st, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", serve.PeerPID(ctx), fd))
	want, e := os.Stat(f.netns())
	if err != nil || e != nil || !os.SameFile(st, want) {
		f.t.Errorf("descriptor %d: not the namespace: %v, %v", fd, err, e)
	}
}

func (f *fake) attach(ctx context.Context, r control.AttachRequest) (control.Attachment, error) {
	f.opened(ctx, r.NetnsFD)
	f.runtime, r.Runtime, r.NetnsFD = r.Runtime, "", 0
	f.asked["attach"] = r
	a := control.Attachment{Link: "nc0123456789a", LinkMAC: "ee:ee:ee:ee:ee:ee", Interface: r.Interface, MAC: r.MAC, MTU: 1500, Addresses: r.Addresses}
	if a.MAC == "" {
		a.MAC = "02:00:00:00:00:01"
	}
	if len(a.Addresses) == 0 {
		a.Addresses = append(a.Addresses, netip.MustParseAddr("10.0.0.1"))
		if r.IPv6 {
			a.Addresses = append(a.Addresses, netip.MustParseAddr("fd00::1"))
		}
	}
	for _, addr := range a.Addresses {
		gw := "169.254.1.1"
		if addr.Is6() {
			gw = "fe80::ecee:eeff:feee:eeee"
		}
		a.Gateways = append(a.Gateways, netip.MustParseAddr(gw))
	}
	a.Warning = f.warning
	return a, f.err
}

// netns is a file that stands for a network namespace, which the plugin only
// opens.
func (f *fake) netns() string { return filepath.Join(filepath.Dir(f.socket), "netns") }

func (f *fake) pending() string { return filepath.Join(filepath.Dir(f.socket), "pending") }

// run makes one call; "$NETNS" in env and stdin is a namespace.
func (f *fake) run(env []string, stdin string) (code int, stdout, stderr string) {
	f.t.Helper()
	if err := os.WriteFile(f.netns(), nil, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Link(f.netns(), f.netns()+"-podman"); err != nil && !errors.Is(err, os.ErrExist) {
		f.t.Fatal(err)
	}
	var out, diag bytes.Buffer
	all := []string{"NETCTL_AGENT_SOCKET=" + f.socket}
	for _, e := range env {
		all = append(all, f.fill(e))
	}
	if f.program != "" {
		return f.execute(all, f.fill(stdin))
	}
	code = Run(f.t.Context(), "1.2.3", all, strings.NewReader(f.fill(stdin)), &out, &diag)
	return code, out.String(), diag.String()
}

// execute is run by the program, as a runtime does it.
func (f *fake) execute(env []string, stdin string) (code int, stdout, stderr string) {
	f.t.Helper()
	var out, diag bytes.Buffer
	cmd := exec.CommandContext(f.t.Context(), f.program)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, strings.NewReader(stdin), &out, &diag
	var failed *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &failed) {
		f.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), diag.String()
}

func (f *fake) fill(s string) string { return strings.ReplaceAll(s, "$NETNS", f.netns()) }

// TestCalls replays what runtimes really send.
func TestCalls(t *testing.T) { calls(t, "") }

// TestPrograms replays it to what is installed for runtimes, and to a link to the whole
// program: both answer as Run does.
func TestPrograms(t *testing.T) {
	link := filepath.Join(t.TempDir(), "netctl")
	if err := os.Symlink(netlab.Binary(t), link); err != nil {
		t.Fatal(err)
	}
	for name, program := range map[string]string{"plugin": netlab.Plugin(t), "link": link} {
		t.Run(name, func(t *testing.T) { calls(t, program) })
		for env, want := range map[string]string{"CNI_COMMAND=VERSION": `"supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]`, "X=Y": "CNI netctl plugin v"} {
			f := newFake(t)
			f.program = program
			if code, stdout, _ := f.run([]string{env}, `{"cniVersion":"1.0.0"}`); code != 0 || !strings.Contains(stdout, want) {
				t.Errorf("%s %s: exit %d, %s", name, env, code, stdout)
			}
		}
		for args, want := range map[string]string{"info": `"api_version":"1.0.0"`, "create": `"error":`} {
			cmd := exec.CommandContext(t.Context(), program, args)
			cmd.Stdin = strings.NewReader("nothing")
			if out, err := cmd.Output(); !strings.Contains(string(out), want) {
				t.Errorf("%s %s: %s, %v", name, args, out, err)
			}
		}
	}
	var failed *exec.ExitError
	out, err := exec.CommandContext(t.Context(), netlab.Plugin(t), "status").CombinedOutput()
	if !errors.As(err, &failed) || failed.ExitCode() != 2 || !strings.Contains(string(out), "plugin for container runtimes alone") {
		t.Errorf("the plugin as a command: %v, %s", err, out)
	}
}

func calls(t *testing.T, program string) {
	files, err := filepath.Glob("testdata/calls/*.txtar")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			part := map[string]string{}
			for _, file := range archive.Files {
				part[file.Name] = string(file.Data)
			}
			f := newFake(t)
			f.program = program
			code, stdout, stderr := f.run(strings.Split(strings.TrimSpace(part["env"]), "\n"), part["stdin"])
			if code != 0 || stdout != f.fill(part["stdout"]) {
				t.Errorf("exit %d\n got %s\nwant %s", code, stdout, f.fill(part["stdout"]))
			}
			if want := strings.TrimSpace(part["stderr"]); !strings.Contains(stderr, want) || want == "" && stderr != "" {
				t.Errorf("stderr %q, want %q", stderr, want)
			}
			for verb, got := range f.asked {
				if have := toJSON(t, got) + "\n"; have != f.fill(part[verb]) {
					t.Errorf("%s\n got %s\nwant %s", verb, have, f.fill(part[verb]))
				}
				delete(part, verb)
			}
			for _, verb := range []string{"attach", "ports", "detach", "check", "collect", "status"} {
				if _, left := part[verb]; left {
					t.Errorf("the agent was not asked to %s", verb)
				}
			}
			if strings.Contains(part["env"], "=ADD") {
				likeReference(t, stdout)
			}
		})
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// likeReference holds a result against the types of the reference
// implementation: parsed into them and printed again it says the same.
func likeReference(t *testing.T, stdout string) {
	t.Helper()
	r, err := create.CreateFromBytes([]byte(stdout))
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs map[string]any
	if err := json.Unmarshal([]byte(stdout), &ours); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(toJSON(t, r)), &theirs); err != nil {
		t.Fatal(err)
	}
	for _, m := range []map[string]any{ours, theirs} {
		if d, ok := m["dns"].(map[string]any); ok && len(d) == 0 {
			delete(m, "dns")
		}
	}
	if !reflect.DeepEqual(ours, theirs) {
		t.Errorf("the reference reads\n%v\nof\n%v", theirs, ours)
	}
}

// addEnv is a complete environment of an ADD or CHECK.
func addEnv(command string, more ...string) []string {
	return append([]string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=c1", "CNI_NETNS=$NETNS", "CNI_IFNAME=eth0", "CNI_PATH=/x"}, more...)
}

const plain = `{"cniVersion":"1.0.0","name":"net1","type":"netctl"}`

func TestRefusals(t *testing.T) {
	conf := func(more string) string { return strings.TrimSuffix(plain, "}") + "," + more + "}" }
	newest := func(more string) string {
		return `{"cniVersion":"1.1.0","name":"net1","type":"netctl"` + more + `}`
	}
	prev := func(r string) string { return conf(`"prevResult":` + r) }
	tests := []struct {
		name  string
		env   []string
		stdin string
		code  int
		says  string
	}{
		{"command", addEnv("FROB"), plain, 4, "CNI_COMMAND"},
		{"gc too old", addEnv("GC"), plain, 1, "GC"},
		{"gc of no list", addEnv("GC"), newest(`,"cni.dev/valid-attachments":{}`), 6, "must be a list"},
		{"gc of a wrong list", addEnv("GC"), newest(`,"cni.dev/valid-attachments":[{"containerID":"a/b","ifname":"eth0"}]`), 7, `"a/b"`},
		{"gc without path", addEnv("GC", "CNI_PATH="), newest(`,"cni.dev/valid-attachments":[]`), 4, "CNI_PATH"},
		{"container missing", addEnv("ADD", "CNI_CONTAINERID="), plain, 4, "CNI_CONTAINERID is not set"},
		{"container", addEnv("ADD", "CNI_CONTAINERID=a/b"), plain, 4, "CNI_CONTAINERID"},
		{"container for del", addEnv("DEL", "CNI_CONTAINERID="), plain, 4, "CNI_CONTAINERID"},
		{"interface", addEnv("ADD", "CNI_IFNAME=sixteen-letters-"), plain, 4, "CNI_IFNAME"},
		{"interface dots", addEnv("ADD", "CNI_IFNAME=.."), plain, 4, "CNI_IFNAME"},
		{"interface colon", addEnv("DEL", "CNI_IFNAME=e:0"), plain, 4, "CNI_IFNAME"},
		{"namespace missing", addEnv("ADD", "CNI_NETNS="), plain, 4, "CNI_NETNS"},
		{"namespace gone", addEnv("ADD", "CNI_NETNS=/proc/0/ns/net"), plain, 8, "gone"},
		{"namespace own", addEnv("ADD", "CNI_NETNS=/proc/self/ns/net"), plain, 8, "the host's own"},
		{"namespace own for check", addEnv("CHECK", "CNI_NETNS=/proc/self/ns/net"), prev(`{"interfaces":[{"name":"eth0","sandbox":"x"}]}`), 8, "own"},
		{"no json", addEnv("ADD"), `{`, 6, "network configuration"},
		{"two json values", addEnv("ADD"), plain + plain, 6, "network configuration"},
		{"empty", addEnv("ADD"), ``, 6, "network configuration"},
		{"huge", addEnv("ADD"), plain + strings.Repeat(" ", maxConfig), 7, "bytes"},
		{"version", addEnv("ADD"), `{"cniVersion":"0.2.0","name":"n"}`, 1, "0.3.1, 0.4.0, 1.0.0, 1.1.0"},
		{"no version", addEnv("ADD"), `{"name":"n"}`, 1, "cniVersion"},
		{"check too old", addEnv("CHECK"), `{"cniVersion":"0.3.1","name":"n"}`, 1, "CHECK"},
		{"status too old", addEnv("STATUS"), plain, 1, "STATUS"},
		{"name", addEnv("ADD"), `{"cniVersion":"1.0.0","name":"../x"}`, 7, `"../x"`},
		{"no name", addEnv("ADD"), `{"cniVersion":"1.0.0"}`, 7, "name"},
		{"ipam", addEnv("ADD"), conf(`"ipam":{"type":"host-local"}`), 7, "no such plugin in /x"},
		{"ipam path", addEnv("ADD"), conf(`"ipam":{"type":"../sh"}`), 7, "../sh"},
		{"ipam nowhere", addEnv("ADD", "CNI_PATH="), conf(`"ipam":{"type":"host-local"}`), 4, "CNI_PATH"},
		{"rate", addEnv("ADD"), conf(`"runtimeConfig":{"bandwidth":{"ingressRate":7999}}`), 7, "runtimeConfig.bandwidth.ingress.bits \"7999\": must be"},
		{"negative rate", addEnv("ADD"), conf(`"runtimeConfig":{"bandwidth":{"egressRate":-1}}`), 6, "runtimeConfig.bandwidth.egressRate"},
		{"aliases", addEnv("ADD"), conf(`"runtimeConfig":{"aliases":"a"}`), 6, "runtimeConfig.aliases"},
		{"range", addEnv("ADD"), conf(`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0"}]]}`), 7, "ipRanges: subnet"},
		{"range outside", addEnv("ADD"), conf(`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.1.0"}]]}`), 7, "10.0.1.0"},
		{"range backwards", addEnv("ADD"), conf(`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24","rangeStart":"10.0.0.9","rangeEnd":"10.0.0.8"}]]}`), 7, "after"},
		{"two ranges", addEnv("ADD"), conf(`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.1.0/24"}]]}`), 7, "one set"},
		{"mixed range", addEnv("ADD"), conf(`"runtimeConfig":{"ipRanges":[[{"subnet":"10.0.0.0/24"},{"subnet":"fd00::/64"}]]}`), 7, "family"},
		{"mtu", addEnv("ADD"), conf(`"mtu":3`), 7, "mtu 3"},
		{"wait", addEnv("ADD"), conf(`"agentWait":"10"`), 7, "agentWait"},
		{"pool", addEnv("ADD"), conf(`"pools":["10.0.0.0/33"]`), 7, "10.0.0.0/33"},
		{"args", addEnv("ADD", "CNI_ARGS=FOO=1;IP=10.0.0.1"), plain, 4, "FOO"},
		{"args no pair", addEnv("ADD", "CNI_ARGS=IgnoreUnknown=1;FOO"), plain, 4, `"FOO"`},
		{"args ignore", addEnv("ADD", "CNI_ARGS=IgnoreUnknown=maybe"), plain, 4, "maybe"},
		{"address", addEnv("ADD", "CNI_ARGS=IP=10.0.0"), plain, 7, "CNI_ARGS IP"},
		{"two addresses", addEnv("ADD"), conf(`"runtimeConfig":{"ips":["10.0.0.1","10.0.0.2"]}`), 7, "runtimeConfig.ips"},
		{"mac", addEnv("ADD", "CNI_ARGS=MAC=01:00:00:00:00:00"), plain, 7, "CNI_ARGS MAC"},
		{"check without prevResult", addEnv("CHECK"), plain, 7, "prevResult"},
		{"check of another", addEnv("CHECK"), prev(`{"interfaces":[{"name":"eth1","sandbox":"x"}]}`), 7, "eth0"},
		{"check of the host's", addEnv("CHECK"), prev(`{"interfaces":[{"name":"eth0"}],"ips":[{"interface":0,"address":"10.0.0.1/32"}]}`), 7, "eth0"},
		{"prevResult index", addEnv("ADD"), prev(`{"ips":[{"interface":1,"address":"10.0.0.1/32"}]}`), 6, "interface 1"},
		{"prevResult address", addEnv("ADD"), prev(`{"ips":[{"address":"10.0.0.1"}]}`), 6, "10.0.0.1"},
	}
	f := newFake(t)
	for _, tt := range tests {
		code, stdout, _ := f.run(tt.env, tt.stdin)
		refused(t, tt.name, code, stdout, tt.code, tt.says)
	}
	if len(f.asked) > 0 {
		t.Errorf("the agent was asked %v", f.asked)
	}
}

func refused(t *testing.T, name string, code int, stdout string, want int, says string) {
	t.Helper()
	var e struct {
		types.Error
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal([]byte(stdout), &e); err != nil {
		t.Errorf("%s: stdout %q: %v", name, stdout, err)
		return
	}
	if code == 0 || e.Code != uint(want) || !strings.Contains(e.Msg, says) || strings.Contains(e.Msg, "\n") {
		t.Errorf("%s: exit %d, code %d, want %d: %q, want %q in it", name, code, e.Code, want, e.Msg, says)
	}
	if e.CNIVersion == "" {
		t.Errorf("%s: no cniVersion: %s", name, stdout)
	}
}

// TestAgentErrors: every code of the agent's has one of CNI's.
func TestAgentErrors(t *testing.T) {
	f := newFake(t)
	for err, want := range map[error]int{
		datastore.ErrInvalid: 7, datastore.ErrNotFound: 3, datastore.ErrExists: 101, datastore.ErrInUse: 102,
		datastore.ErrExhausted: 103, datastore.ErrUnavailable: 11, datastore.ErrFull: 11, datastore.ErrDetached: 11, control.ErrNamespace: 8, os.ErrClosed: 100,
	} {
		f.err = fmt.Errorf("attach x: %w", err)
		code, stdout, _ := f.run(addEnv("ADD"), plain)
		refused(t, err.Error(), code, stdout, want, datastore.Said(f.err))
	}
	for _, code := range []string{control.CodeInvalid, control.CodeNotFound, control.CodeExists, control.CodeConflict, control.CodeExhausted,
		control.CodeUnavailable, control.CodeDetached, control.CodeNamespace, control.CodeInternal} {
		if codes()[code] == 0 {
			t.Errorf("code %s of the agent has none of CNI's", code)
		}
	}
}

// TestAway: without an agent, or with one that is detached, ADD can be tried
// again and DEL is kept for later.
func TestAway(t *testing.T) {
	away := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock")}
	detached := newFake(t)
	detached.err = fmt.Errorf("the store's cluster is another: %w", datastore.ErrDetached)
	detached.status.Detached = "the store's cluster is another"
	for name, f := range map[string]*fake{"not running": away, "detached": detached} {
		says := map[string]string{"not running": "agent not running", "detached": "cluster is another"}[name]
		code, stdout, _ := f.run(addEnv("ADD"), plain)
		refused(t, name, code, stdout, 11, says)
		code, stdout, _ = f.run(addEnv("STATUS"), strings.Replace(plain, "1.0.0", "1.1.0", 1))
		refused(t, name, code, stdout, 50, says)
		for range 2 {
			code, stdout, stderr := f.run(addEnv("DEL", "CNI_NETNS="), plain)
			if code != 0 || stdout != "" || !strings.Contains(stderr, says) {
				t.Errorf("%s: DEL: exit %d, %q, %q", name, code, stdout, stderr)
			}
		}
		kept, err := control.ReadPending(f.pending())
		want := control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}, Network: "net1"}
		if err != nil || len(kept) != 1 || kept[0].Request != want {
			t.Errorf("%s: kept %+v, %v", name, kept, err)
		}
		// The network's word on the socket counts more than the environment's.
		code, stdout, _ = f.run(addEnv("ADD"), strings.TrimSuffix(plain, "}")+`,"agentSocket":"/nonexistent/a.sock"}`)
		refused(t, name, code, stdout, 11, "/nonexistent/a.sock")
	}
}

// TestHungAgent: one that takes the connection and never answers.
func TestHungAgent(t *testing.T) {
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock")}
	l, err := control.Listen(f.socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // sooner than the plugin's own
	defer cancel()
	var out, diag bytes.Buffer
	code := Run(ctx, "1", []string{"CNI_COMMAND=DEL", "CNI_CONTAINERID=c", "CNI_IFNAME=e", "NETCTL_AGENT_SOCKET=" + f.socket}, strings.NewReader(plain), &out, &diag)
	kept, err := control.ReadPending(f.pending())
	if code != 0 || out.Len() > 0 || len(kept) != 1 || err != nil {
		t.Errorf("exit %d, %s, kept %v, %v", code, out.String(), kept, err)
	}
}

// TestAgentStartsAgain: an ADD and a CHECK wait for an agent that was there; a DEL
// does not, it is kept.
func TestAgentStartsAgain(t *testing.T) {
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock"), asked: map[string]any{}}
	gone, err := control.Listen(f.socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	gone.Close() // as after kill -9
	wait := func(d string) string { return strings.TrimSuffix(plain, "}") + `,"agentWait":"` + d + `"}` }
	code, stdout, _ := f.run(addEnv("ADD"), wait("100ms"))
	refused(t, "not back in time", code, stdout, 11, "(waited ")
	if code, _, stderr := f.run(addEnv("DEL"), plain); code != 0 || !strings.Contains(stderr, "is released once that is over") {
		t.Errorf("DEL: exit %d, %q", code, stderr)
	}
	added := make(chan string)
	go func() {
		_, stdout, _ := f.run(addEnv("ADD"), wait("1h"))
		added <- stdout
	}()
	f.serve()
	if stdout := <-added; !strings.Contains(stdout, "10.0.0.1/32") {
		t.Errorf("ADD: %s", stdout)
	}
}

func TestDelOfNothing(t *testing.T) {
	f := newFake(t)
	f.err = datastore.ErrNotFound
	if code, stdout, stderr := f.run(addEnv("DEL"), plain); code != 0 || stdout+stderr != "" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

func TestVersion(t *testing.T) {
	const newest = `{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}` + "\n"
	for stdin, want := range map[string]string{
		"": newest, "nonsense": newest, `{"cniVersion":""}`: newest, "[]": newest,
		`{"cniVersion":"0.4.0"}`: strings.Replace(newest, "1.1.0", "0.4.0", 1),
		`{"cniVersion":"9.9.9"}`: strings.Replace(newest, "1.1.0", "9.9.9", 1),
	} {
		var out, diag bytes.Buffer
		code := Run(t.Context(), "1", []string{"CNI_COMMAND=VERSION", "CNI_ARGS=;;", "CNI_NETNS=dummy", "CNI_IFNAME=dummy/"}, strings.NewReader(stdin), &out, &diag)
		if code != 0 || out.String() != want || diag.Len() > 0 {
			t.Errorf("%q: exit %d, %q, %q", stdin, code, out.String(), diag.String())
		}
	}
}
