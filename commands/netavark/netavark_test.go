package netavark

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore"
)

// fake is an agent that keeps what it was asked, wires nothing, and answers like the
// real one.
type fake struct {
	t       *testing.T
	socket  string
	asked   map[string]any // the last request by verb
	err     error          // what every call fails with
	taken   error          // what publishing fails with
	unable  error          // what detaching fails with
	warning string
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
		return struct{}{}, cmp.Or(f.unable, f.err)
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

func (f *fake) attach(ctx context.Context, r control.AttachRequest) (control.Attachment, error) {
	st, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", serve.PeerPID(ctx), r.NetnsFD))
	want, e := os.Stat(f.netns())
	if err != nil || e != nil || !os.SameFile(st, want) {
		f.t.Errorf("descriptor %d: not the namespace: %v, %v", r.NetnsFD, err, e)
	}
	r.NetnsFD = 0
	f.asked["attach"] = r
	a := control.Attachment{Link: "nc0123456789a", Interface: r.Interface, MAC: r.MAC, MTU: 1500, Addresses: r.Addresses, Warning: f.warning}
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
			gw = "fe80::ecee:eeff:feee:eeee%eth0"
		}
		a.Gateways = append(a.Gateways, netip.MustParseAddr(gw))
	}
	return a, f.err
}

// netns is a file that stands for a network namespace, which the plugin only opens.
func (f *fake) netns() string { return filepath.Join(filepath.Dir(f.socket), "netns") }

func (f *fake) pending() string { return filepath.Join(filepath.Dir(f.socket), "pending") }

func (f *fake) fill(s string) string { return strings.ReplaceAll(s, "$NETNS", f.netns()) }

// run makes one call; "$NETNS" in args is a namespace.
func (f *fake) run(args, stdin string) (code int, stdout, stderr string) {
	f.t.Helper()
	if err := os.WriteFile(f.netns(), nil, 0o600); err != nil {
		f.t.Fatal(err)
	}
	list := strings.Fields(f.fill(args))
	if !Called(list) {
		f.t.Fatalf("%q is no call", args)
	}
	var out, diag bytes.Buffer
	code = Run(f.t.Context(), "1.2.3", list, []string{"NETCTL_AGENT_SOCKET=" + f.socket}, strings.NewReader(stdin), &out, &diag)
	return code, out.String(), diag.String()
}

// refused is a call that must fail with a line that has says in it, as Podman reads it.
func (f *fake) refused(args, stdin, says string) {
	f.t.Helper()
	code, stdout, _ := f.run(args, stdin)
	if line := refusal(f.t, stdout); code != 1 || !strings.Contains(line, says) || strings.Contains(line, "\n") {
		f.t.Errorf("%s %s\nexit %d, %q, want %q in it", args, stdin, code, line, says)
	}
}

// refusal reads an error as Podman does: no other key is allowed.
func refusal(t *testing.T, stdout string) string {
	t.Helper()
	var e struct {
		Error string `json:"error"`
	}
	d := json.NewDecoder(strings.NewReader(stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || e.Error == "" {
		t.Errorf("no error object: %q: %v", stdout, err)
	}
	return e.Error
}

// TestCalls replays what Podman 5.4 and netavark 1.14 really send. The environment
// UPDATE_CALLS=1 writes what comes of it into the files.
func TestCalls(t *testing.T) {
	files, err := filepath.Glob("testdata/calls/*.txtar")
	if err != nil || len(files) < 20 {
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
			code, stdout, stderr := f.run(part["args"], part["stdin"])
			got := map[string]string{"stdout": stdout, "stderr": stderr}
			for verb, req := range f.asked {
				got[verb] = toJSON(t, req) + "\n"
			}
			if os.Getenv("UPDATE_CALLS") != "" {
				update(t, name, archive, f, got)
				return
			}
			for _, p := range []string{"stdout", "stderr", "attach", "ports", "detach"} {
				if want := f.fill(part[p]); got[p] != want {
					t.Errorf("%s\n got %swant %s", p, got[p], want)
				}
			}
			switch {
			case strings.HasPrefix(stdout, `{"error":`):
				if refusal(t, stdout); code != 1 {
					t.Errorf("exit %d with an error", code)
				}
			case code != 0:
				t.Errorf("exit %d", code)
			case strings.HasPrefix(part["args"], "setup"):
				validStatus(t, stdout)
			case strings.HasPrefix(part["args"], "create"):
				validNetwork(t, part["stdin"], stdout)
			}
		})
	}
}

func update(t *testing.T, name string, archive *txtar.Archive, f *fake, got map[string]string) {
	t.Helper()
	archive.Files = archive.Files[:2]
	for _, p := range []string{"attach", "ports", "detach", "stderr", "stdout"} {
		if got[p] != "" {
			archive.Files = append(archive.Files, txtar.File{Name: p, Data: []byte(strings.ReplaceAll(got[p], f.netns(), "$NETNS"))})
		}
	}
	if err := os.WriteFile(name, txtar.Format(archive), 0o644); err != nil {
		t.Fatal(err)
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

// validStatus holds an answer against netavark's StatusBlock: what is no Option there
// must be set, and of the type that it parses to.
func validStatus(t *testing.T, stdout string) {
	t.Helper()
	var s struct {
		Search     []string     `json:"dns_search_domains"`
		Servers    []netip.Addr `json:"dns_server_ips"`
		Interfaces map[string]struct {
			MAC     string `json:"mac_address"`
			Subnets []struct {
				Gateway *netip.Addr  `json:"gateway"`
				IPNet   netip.Prefix `json:"ipnet"`
			} `json:"subnets"`
		} `json:"interfaces"`
	}
	d := json.NewDecoder(strings.NewReader(stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		t.Fatalf("%s: %v", stdout, err)
	}
	if len(s.Interfaces) != 1 || s.Search == nil || s.Servers == nil {
		t.Errorf("%s", stdout)
	}
	for name, i := range s.Interfaces {
		if _, err := net.ParseMAC(i.MAC); err != nil || name == "" || len(i.Subnets) == 0 {
			t.Errorf("interface %q: %+v", name, i)
		}
		for _, a := range i.Subnets {
			if !a.IPNet.IsSingleIP() || a.Gateway == nil || a.Gateway.Is4() != a.IPNet.Addr().Is4() || a.Gateway.Zone() != "" {
				t.Errorf("address %+v", a)
			}
		}
	}
}

// validNetwork holds an answer to create against what Podman asks of it: name, id and
// driver are as they were, and so is what netctl has no business with; with the IPAM
// driver none there are no subnets and no resolver.
func validNetwork(t *testing.T, stdin, stdout string) {
	t.Helper()
	var before, after map[string]any
	if err := errors.Join(json.Unmarshal([]byte(stdin), &before), json.Unmarshal([]byte(stdout), &after)); err != nil {
		t.Fatal(err)
	}
	ours := map[string]bool{"subnets": true, "options": true, "ipam_options": true, "dns_enabled": true, "ipv6_enabled": true}
	for key, was := range before {
		if !ours[key] && !reflect.DeepEqual(after[key], was) {
			t.Errorf("%s: %v became %v", key, was, after[key])
		}
	}
	if ipam, _ := after["ipam_options"].(map[string]any); ipam["driver"] != "none" || after["dns_enabled"] != false {
		t.Errorf("%s", stdout)
	}
	if subnets, is := after["subnets"].([]any); !is || len(subnets) > 0 {
		t.Errorf("subnets: %s", stdout)
	}
}

// plain is a setup of a container in a network without any wish.
const plain = `{"container_id":"c1","container_name":"web","network":{"name":"net1","driver":"netctl"},"network_options":{"interface_name":"eth0"}}`

// with is plain with another text for a part of it.
func with(old, text string) string { return strings.Replace(plain, old, text, 1) }

func TestRefusals(t *testing.T) {
	f := newFake(t)
	network := func(more string) string { return with(`"driver":"netctl"`, `"driver":"netctl",`+more) }
	option := func(more string) string { return with(`"interface_name":"eth0"`, `"interface_name":"eth0",`+more) }
	for _, c := range []struct{ args, stdin, says string }{
		{"setup $NETNS", ``, "is no JSON"},
		{"setup $NETNS", plain + plain, "is no JSON"},
		{"setup $NETNS", `[]`, "must be an object (it is of the type array)"},
		{"setup $NETNS", with(`"c1"`, `1`), "container_id: is of the wrong type (number)"},
		{"setup $NETNS", plain + strings.Repeat(" ", maxInput), "more than 1048576 bytes"},
		{"setup $NETNS", with(`"c1"`, `""`), "container_id is not set"},
		{"setup $NETNS", with(`"eth0"`, `""`), "interface_name is not set"},
		{"setup $NETNS", with(`"eth0"`, `"sixteen-letters-"`), "no interface name"},
		{"setup $NETNS", with(`"eth0"`, `".."`), "no interface name"},
		{"setup $NETNS", with(`"eth0"`, `"e:0"`), "no interface name"},
		{"setup $NETNS", with(`"net1"`, `""`), "has no name"},
		{"setup $NETNS", option(`"static_ips":["10.0.0"]`), `"10.0.0" is no IP address`},
		{"setup $NETNS", option(`"static_ips":["fe80::1%eth0"]`), "is no IP address"},
		{"setup $NETNS", option(`"static_ips":["10.0.0.1","fd00::1","10.0.0.2"]`), "10.0.0.2: only one address of a family"},
		{"setup $NETNS", option(`"static_mac":"01:00:00:00:00:00"`), "no unicast MAC"},
		{"setup $NETNS", option(`"static_mac":"02:00:00:00:00:00:00:01"`), "no unicast MAC"},
		{"setup $NETNS", option(`"options":{"mtu":"3"}`), "of this container: -o mtu"},
		{"setup $NETNS", network(`"options":{"pool":"10.0.0.0/33"}`), "10.0.0.0/33"},
		{"setup $NETNS", network(`"options":{"profile":"a,../b"}`), "-o profile"},
		{"setup $NETNS", network(`"options":{"publish":"yes"}`), "-o publish"},
		{"setup $NETNS", network(`"internal":true`), "--internal"},
		{"setup $NETNS", network(`"subnets":[{}]`), "without CIDR"},
		{"setup /proc/0/ns/net", plain, "network namespace /proc/0/ns/net is gone"},
		{"setup /etc/hostname/x", plain, "not a directory"},
		{"teardown $NETNS", `{`, "is no JSON"},
		{"teardown $NETNS", with(`"c1"`, `1`), "container_id: is of the wrong type"},
		{"teardown $NETNS", with(`"c1"`, `""`), "container_id is not set"},
		{"teardown $NETNS", with(`"eth0"`, `""`), "interface_name is not set"},
		{"create", `null`, "has no name"},
		{"create", `{"name":"n","subnets":[{"subnet":"10.0.0.0"}]}`, "stdin"},
		{"create", `{"name":"n","subnets":[{"subnet":"10.0.0.0/8"}],"options":{"pool":"10.0.0.0/8"}}`, "leave one out"},
		{"create", `{"name":"n","ipam_options":{"driver":"dhcp"}}`, "--ipam-driver dhcp"},
	} {
		f.refused(c.args, c.stdin, c.says)
	}
	if len(f.asked) > 0 {
		t.Errorf("the agent was asked %v", f.asked)
	}
}

// TestForeignNames: what is no name of the model is called otherwise, and kept.
func TestForeignNames(t *testing.T) {
	f := newFake(t)
	code, stdout, _ := f.run("setup $NETNS", with(`"net1"`, `"-my net"`))
	r, _ := f.asked["attach"].(control.AttachRequest)
	if code != 0 || r.Network != datastore.ForeignName("-my net") || r.Labels[datastore.LabelNetwork] != "-my net" {
		t.Errorf("exit %d, %s, asked %+v", code, stdout, r)
	}
}

// TestNetworkWithoutCreate is of one that has subnets and leaves addresses to Podman:
// its subnets are pools, and a clash between nodes is told for what it is.
func TestNetworkWithoutCreate(t *testing.T) {
	f := newFake(t)
	stdin := with(`"driver":"netctl"`, `"subnets":[{"subnet":"10.65.0.0/16","gateway":"10.65.0.1"},{"subnet":"fd00::/64"}]`)
	code, stdout, _ := f.run("setup $NETNS", stdin)
	if code != 0 || !strings.Contains(stdout, `"fd00::1/128"`) {
		t.Errorf("exit %d, %s", code, stdout)
	}
	validStatus(t, stdout)
	r, _ := f.asked["attach"].(control.AttachRequest)
	if want := []netip.Prefix{netip.MustParsePrefix("10.65.0.0/16"), netip.MustParsePrefix("fd00::/64")}; !reflect.DeepEqual(r.Pools, want) || !r.IPv6 {
		t.Errorf("asked %+v", r)
	}
	f.err = fmt.Errorf("address 10.65.0.2: %w", datastore.ErrInUse)
	f.refused("setup $NETNS", stdin, "make the network again")
	f.refused("setup $NETNS", plain, "address 10.65.0.2: in use")
	if _, stdout, _ := f.run("setup $NETNS", plain); strings.Contains(stdout, "make the network again") {
		t.Errorf("%s", stdout)
	}
}

// TestAway: without an agent, or with one that is detached, setup says so and teardown
// is kept for later.
func TestAway(t *testing.T) {
	away := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock")}
	detached := newFake(t)
	detached.err = fmt.Errorf("the store's cluster is another: %w", datastore.ErrDetached)
	for says, f := range map[string]*fake{"agent not running": away, "cluster is another": detached} {
		f.refused("setup $NETNS", plain, says)
		for range 2 {
			code, stdout, stderr := f.run("teardown /nonexistent", plain)
			if code != 0 || stdout != "" || !strings.Contains(stderr, says) || !strings.Contains(stderr, "is released once that is over") {
				t.Errorf("teardown: exit %d, %q, %q", code, stdout, stderr)
			}
		}
		kept, err := control.ReadPending(f.pending())
		want := control.DetachRequest{Target: control.Target{Orchestrator: "podman", Workload: "c1", Interface: "eth0"}, Network: "net1"}
		if err != nil || len(kept) != 1 || kept[0].Request != want {
			t.Errorf("%s: kept %+v, %v", says, kept, err)
		}
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
	code := Run(ctx, "1", []string{"teardown", "/x"}, []string{"NETCTL_AGENT_SOCKET=" + f.socket}, strings.NewReader(plain), &out, &diag)
	kept, err := control.ReadPending(f.pending())
	if code != 0 || out.Len() > 0 || len(kept) != 1 || err != nil {
		t.Errorf("exit %d, %s, kept %v, %v", code, out.String(), kept, err)
	}
}

// TestTeardownOfWrongNetwork: what has become wrong since the setup does not keep
// Podman from cleaning up; nor does that there is nothing.
func TestTeardownOfWrongNetwork(t *testing.T) {
	want := control.DetachRequest{Target: control.Target{Orchestrator: "podman", Workload: "c1", Interface: "eth0"}, Network: "net1"}
	for stdin, says := range map[string]string{
		plain: "",
		with(`"driver":"netctl"`, `"options":7,"internal":true,"subnets":"x"`):      "",
		with(`"container_name":"web"`, `"port_mappings":3`):                         "",
		with(`{"name":"net1","driver":"netctl"}`, `[]`):                             "network: is of the wrong type (array); released all the same",
		with(`"interface_name":"eth0"`, `"interface_name":"eth0","static_ips":"x"`): "",
	} {
		f := newFake(t)
		f.err = datastore.ErrNotFound
		code, stdout, stderr := f.run("teardown /nonexistent", stdin)
		if code != 0 || stdout != "" || !strings.Contains(stderr, says) || says == "" && stderr != "" {
			t.Errorf("%s: exit %d, %q, %q", stdin, code, stdout, stderr)
		}
		want := want
		if says != "" {
			want.Network = ""
		}
		if f.asked["detach"] != want {
			t.Errorf("%s: asked %+v", stdin, f.asked["detach"])
		}
	}
}

// TestAgentStartsAgain: a setup waits for an agent that was there.
func TestAgentStartsAgain(t *testing.T) {
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock"), asked: map[string]any{}}
	gone, err := control.Listen(f.socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	gone.Close() // as after kill -9
	answer := make(chan string)
	go func() {
		_, stdout, _ := f.run("setup $NETNS", plain)
		answer <- stdout
	}()
	f.serve()
	if stdout := <-answer; !strings.Contains(stdout, "10.0.0.1/32") {
		t.Errorf("setup: %s", stdout)
	}
}

// TestWarningOfAnAttach goes to Podman's log and not into the answer.
func TestWarningOfAnAttach(t *testing.T) {
	f := newFake(t)
	f.warning = "too large"
	code, stdout, stderr := f.run("setup $NETNS", plain)
	if code != 0 || strings.Contains(stdout, f.warning) || stderr != "netctl 1.2.3: too large\n" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

func TestInfo(t *testing.T) {
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock")}
	if code, stdout, stderr := f.run("info", ""); code != 0 || stdout != `{"version":"1.2.3","api_version":"1.0.0"}`+"\n" || stderr != "" {
		t.Errorf("exit %d, %s, %s", code, stdout, stderr)
	}
}

func FuzzSetup(f *testing.F) {
	f.Add([]byte(plain))
	f.Add([]byte(with(`"driver":"netctl"`, `"options":{"pool":"10.0.0.0/8 fd00::/64","mtu":"1400","profile":"a,b","publish":"no"},"subnets":[{"subnet":"10.0.0.1/8"}]`)))
	f.Add([]byte(with(`"container_name":"web"`, `"port_mappings":[{"container_port":53,"host_ip":"::","host_port":53,"protocol":"udp,TCP","range":3}]`)))
	f.Add([]byte(with(`"interface_name":"eth0"`, `"interface_name":"eth0","static_ips":["10.0.0.1","fd00::1"],"static_mac":"02:00:00:00:00:01","options":{"profile":""}`)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var s setup
		if decode(raw, &s) == nil {
			if r, ports, err := s.request("/x"); err == nil && (len(ports) > control.MaxHostPorts || len(r.Addresses) > 2 || datastore.CheckName(r.Workload) != nil || datastore.CheckName(r.Network) != nil || r.Interface == "") {
				t.Fatalf("request %+v", r)
			}
		}
	})
}

// FuzzCreate: what create has answered it takes again, and then changes nothing.
func FuzzCreate(f *testing.F) {
	f.Add([]byte(`{"name":"n","subnets":[{"subnet":"10.0.0.1/8"}],"dns_enabled":true,"options":{"mtu":"1400"},"x":{"y":[1]}}`))
	f.Add([]byte(`{"Name":"n","SUBNETS":[{"subnet":"fd00::/64"}],"ipam_options":{"driver":"none"},"options":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		once, err := create(raw)
		if err != nil {
			return
		}
		if twice, err := create(once); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s\n%s\n%v", once, twice, err)
		}
	})
}
