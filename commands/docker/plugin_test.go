package docker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/commands/engine"
)

// TestRecorded replays what Docker sends. Each request comes twice, as after a timeout,
// and gets the same answer; the plugin is another process before each.
func TestRecorded(t *testing.T) {
	text, err := os.ReadFile("testdata/docker-20.10.txt")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	chosen := map[string]string{}
	fill := func(s string) string {
		for name, value := range chosen {
			s = strings.ReplaceAll(s, name, value)
		}
		return s
	}
	variable := regexp.MustCompile(`\\\$([A-Z]+)`)
	var path, body, got string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "> "):
			path, body, _ = strings.Cut(line[2:], " ")
			r.start()
			if strings.HasSuffix(path, "RequestAddress") {
				r.named()
			}
			got = r.call(path, fill(body))
			if again := r.call(path, fill(body)); again != got && !strings.HasSuffix(path, "RequestPool") && !strings.HasSuffix(path, "RequestAddress") {
				t.Errorf("%s, said again: %s, not %s", path, again, got)
			}
			if strings.HasSuffix(path, "Join") {
				r.until(`labels {"orchestrator":"docker"`)
			}
			if strings.HasSuffix(path, "RequestAddress") {
				r.mu.Lock()
				r.next = 0
				r.mu.Unlock()
			}
		case strings.HasPrefix(line, "< "):
			want := variable.ReplaceAllString(regexp.QuoteMeta(fill(line[2:])), `(?P<$1>[^"]+)`)
			re := regexp.MustCompile("^" + want + "$")
			m := re.FindStringSubmatch(got)
			if m == nil {
				t.Errorf("%s %s\n is answered %s\n instead of   %s", path, body, got, line[2:])
			}
			for i, name := range re.SubexpNames() {
				if name != "" && m != nil {
					chosen["$"+name] = m[i]
				}
			}
		}
	}
	r.until(
		`hold {"network":"web","pools":["10.0.0.0/26"]}`, `"within":["10.77.128.0/24"],"address":"10.77.128.99"`,
		`"network":"web","netnsFD":0,"loose":true,"gateway":"169.254.1.1"`, `"held":true`, `"mac":"02:42:aa:bb:cc:dd"`, `"destinations":["10.77.128.0/24"]`,
		`ports {"orchestrator":"docker","workload":"a4e0f18fade1","interface":"eth","ports":[{"protocol":"tcp","hostPort":18080,"port":80}]}`,
		`"labels":{"com.docker.compose.project":"shop","com.docker.compose.service":"db","docker.id":"0b9f","docker.image":"bb:1","docker.name":"shop_db_1","docker.project":"shop","docker.service":"db","tier":"data"}`,
		`detach {"orchestrator":"docker","workload":"c8bc77f3abdb","interface":"eth"}`,
		`network {"name":"web","spec":{"pools":["10.0.0.0/26"]}}`, `network {"name":"net2","spec":{"pools":["10.77.0.0/16"]}}`,
	)
	for _, dir := range []string{r.cfg.StateDir, r.cfg.RunDir} {
		if left, _ := filepath.Glob(filepath.Join(dir, "docker", "*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	}
}

// TestRefused is bad input: a word that says what is wrong, in the driver's own form.
func TestRefused(t *testing.T) {
	r := newRig(t)
	const (
		create = `{"NetworkID":"6a2b7979b2de","Options":{"com.docker.network.generic":{%s}},"IPv4Data":[{"AddressSpace":"%s","Gateway":"0.0.0.0/0","Pool":"10.77.0.0/16"}]}`
		pool   = `{"AddressSpace":"netctl-local","Pool":"%s","SubPool":"%s","V6":%v}`
	)
	for _, c := range []struct{ path, body, want string }{
		{"/IpamDriver.RequestPool", fmt.Sprintf(pool, "10.99.0.0/16", "", false), `{"Error":"netctl: --subnet 10.99.0.0/16: is in no pool: make one with`},
		{"/IpamDriver.RequestPool", fmt.Sprintf(pool, "10.88.1.0/24", "", false), `gives out no addresses: it is disabled`},
		{"/IpamDriver.RequestPool", fmt.Sprintf(pool, "10.77.0.0/24", "10.77.1.0/24", false), `--ip-range 10.77.1.0/24: is not in --subnet 10.77.0.0/24`},
		{"/IpamDriver.RequestPool", fmt.Sprintf(pool, "", "10.77.1.0/24", false), `needs a --subnet`},
		{"/IpamDriver.RequestPool", fmt.Sprintf(pool, "10.77.0.0/24", "", true), `is of the other family`},
		{"/IpamDriver.RequestPool", fmt.Sprintf(pool, "all", "", false), `is no CIDR`},
		{"/IpamDriver.RequestPool", `{"Pool":7}`, `{"Error":"netctl: request: `},
		{"/IpamDriver.RequestPool", `{"Pool":`, `{"Error":"netctl: request: `},
		{"/IpamDriver.RequestAddress", `{"PoolID":"LocalDefault/10.0.0.0/8"}`, `is none of netctl's`},
		{"/IpamDriver.RequestAddress", `{"PoolID":"netctl|4|||","Address":"ten"}`, `\"ten\": is none`},
		{"/NetworkDriver.CreateNetwork", fmt.Sprintf(create, "", "LocalDefault"), `{"Err":"netctl: network: its addresses (10.77.0.0/16) are not netctl's: say`},
		{"/NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"nat-outgoing":"true"`, localSpace), "`netctl pool add CIDR --nat-outgoing`"},
		{"/NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"parent":"eth0"`, localSpace), `there is no such option`},
		{"/NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"mtu":"9"`, localSpace), `must be 68 to 65535 bytes`},
		{"/NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"pool":"x"`, localSpace), `is no CIDR of a pool`},
		{"/NetworkDriver.CreateNetwork", fmt.Sprintf(create, `"profile":"../x"`, localSpace), `-o profile: `},
		{"/NetworkDriver.CreateNetwork", `{"NetworkID":"../../etc/passwd"}`, `is none of Docker's`},
		{"/NetworkDriver.CreateEndpoint", `{"NetworkID":"6a2b7979b2de","EndpointID":"../x"}`, `is none of Docker's`},
		{"/NetworkDriver.CreateEndpoint", `{"NetworkID":"6a2b7979b2de","EndpointID":"e1","Interface":{}}`, `has no address`},
		{"/NetworkDriver.Join", `{"NetworkID":"6a2b7979b2de","EndpointID":"e2"}`, `endpoint e2: is not known`},
		{"/NetworkDriver.ProgramExternalConnectivity", `{"EndpointID":"e2","Options":{"com.docker.network.portmap":[{"Proto":6,"Port":80,"HostIP":"127.0.0.1","HostPort":18081}]}}`, `cannot lead to a container`},
		{"/NetworkDriver.ProgramExternalConnectivity", `{"EndpointID":"e2","Options":{"com.docker.network.portmap":"x"}}`, `published ports: `},
		{"/NetworkDriver.CreateNetwork", strings.Repeat("x", maxBody+1), `request body too large`},
	} {
		if got := r.call(c.path, c.body); !strings.Contains(strings.ReplaceAll(got, `\u0026`, "&"), c.want) {
			t.Errorf("%s %.120s:\n %s\n does not say %s", c.path, c.body, got, c.want)
		}
	}
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/VolumeDriver.Create", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("an unknown call is answered %d", w.Code)
	}
}

// TestAway: calls are answered in words and in time while nobody is there who could do
// what they ask; what is to be released is released later.
func TestAway(t *testing.T) {
	r := newRig(t)
	const join = `{"NetworkID":"6a2b7979b2de","EndpointID":"a4e0f18fade1","SandboxKey":"/run/docker/netns/1"}`
	inTime := func(what, path, body, want string) {
		t.Helper()
		began := time.Now()
		got := r.call(path, body)
		if took := time.Since(began); !strings.Contains(got, want) || took > callTimeout+time.Second {
			t.Errorf("%s: %s after %s: %s", what, path, took, got)
		}
	}
	create := func() {
		t.Helper()
		inTime("create", "/NetworkDriver.CreateNetwork", `{"NetworkID":"6a2b7979b2de","IPv4Data":[{"AddressSpace":"netctl-local","Gateway":"0.1.2.3/0","Pool":"0.0.0.0/0"}]}`, "{}")
		inTime("create", "/NetworkDriver.CreateEndpoint", `{"NetworkID":"6a2b7979b2de","EndpointID":"a4e0f18fade1","Interface":{"Address":"10.0.0.1/32"}}`, "MacAddress")
	}
	set := func(away string, stuck bool) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.away, r.stuck = away, stuck
	}
	create()
	set("the datastore does not answer", false)
	inTime("datastore away", "/IpamDriver.RequestAddress", `{"PoolID":"netctl|4|||010203"}`, "the datastore does not answer")
	inTime("datastore away", "/IpamDriver.RequestPool", `{"Pool":"10.77.0.0/16"}`, "the datastore does not answer")
	inTime("datastore away", "/NetworkDriver.Join", join, "the datastore does not answer")
	set("it hangs", true)
	inTime("datastore hangs", "/NetworkDriver.Join", join, "agent of node n1: it hangs")
	inTime("datastore hangs", "/NetworkDriver.DeleteEndpoint", `{"EndpointID":"a4e0f18fade1"}`, "{}")
	if kept, err := control.ReadPending(filepath.Join(r.cfg.RunDir, "pending")); err != nil || len(kept) != 1 {
		t.Errorf("detaches for later: %v, %v", kept, err)
	}
	set("", false)
	create()
	inTime("back", "/NetworkDriver.Join", join, "np-a4e0f18fade1")
	r.until(`network {"name":"web"`)

	none := *r.plugin
	none.agent = control.NewAgentClient(filepath.Join(t.TempDir(), "agent.sock"))
	r.handler = none.handler()
	inTime("no agent", "/IpamDriver.RequestAddress", `{"PoolID":"netctl|4|||010203"}`, "agent not running")
	inTime("no agent", "/NetworkDriver.Join", join, "agent not running")
}

// TestNotMade: before the cluster has a network as it was asked for nothing is attached to
// it, since an attach would make one by default; why is said, also in the log.
func TestNotMade(t *testing.T) {
	r := newRig(t)
	log := &lockedBuffer{}
	r.cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	r.start()
	r.mu.Lock()
	r.away = "the datastore does not answer"
	r.mu.Unlock()
	const (
		create = `{"NetworkID":"6a2b7979b2de","Options":{"com.docker.network.internal":true},"IPv4Data":[{"AddressSpace":"netctl-local","Gateway":"0.1.2.3/0","Pool":"0.0.0.0/0"}]}`
		added  = `{"NetworkID":"6a2b7979b2de","EndpointID":"a4e0f18fade1","Interface":{"Address":"10.0.0.1/32"}}`
		join   = `{"NetworkID":"6a2b7979b2de","EndpointID":"a4e0f18fade1","SandboxKey":"/run/docker/netns/1"}`
		why    = "the cluster has no such network yet: network web: the datastore does not answer"
	)
	if got := r.call("/NetworkDriver.CreateNetwork", create); got != "{}" {
		t.Error(got)
	}
	if got := r.call("/NetworkDriver.CreateEndpoint", added); !strings.Contains(got, why) {
		t.Errorf("an endpoint: %s", got)
	}
	if err := r.plugin.state.putEndpoint(endpoint{ID: "a4e0f18fade1", Network: "6a2b7979b2de", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}); err != nil {
		t.Fatal(err)
	}
	if got := r.call("/NetworkDriver.Join", join); !strings.Contains(got, why) {
		t.Errorf("a container: %s", got)
	}
	if got := log.String(); strings.Count(got, "network not made yet") != 1 || !strings.Contains(got, "network web: the datastore does not answer") {
		t.Errorf("in the log:\n%s", got)
	}
	r.mu.Lock()
	if all := strings.Join(r.asked, "\n"); strings.Contains(all, "attach") {
		t.Errorf("attached all the same:\n%s", all)
	}
	r.away = ""
	r.mu.Unlock()
	// No new try but that of the call itself: it does not wait for the back-off.
	if got := r.call("/NetworkDriver.Join", join); !strings.Contains(got, "np-a4e0f18fade1") {
		t.Errorf("afterwards: %s", got)
	}
	r.until(`"outbound":["allow to tag web"]`)
}

// lockedBuffer is a log that may be read while it is written.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestForgotten: networks that nothing is remembered of are looked up, and those that
// Docker does not have are no networks.
func TestForgotten(t *testing.T) {
	r := newRig(t)
	const endpoint = `{"NetworkID":"%s","EndpointID":"a4e0f18fade1","Interface":{"Address":"10.77.0.1/32"}}`
	if got := r.call("/NetworkDriver.CreateEndpoint", fmt.Sprintf(endpoint, "23e7aa6f4a97")); !strings.Contains(got, "MacAddress") {
		t.Error(got)
	}
	if n, ok := r.plugin.state.network("23e7aa6f4a97"); !ok || n.Name != "net2" || fmt.Sprint(n.Subnets) != "[10.77.0.0/16]" {
		t.Errorf("looked up: %+v", n)
	}
	if got := r.call("/NetworkDriver.CreateEndpoint", fmt.Sprintf(endpoint, "000000000000")); !strings.Contains(got, "its name is not known, since Docker's API") {
		t.Error(got)
	}
}

// TestGateways: the interfaces of one container have different ones, those of two may
// have the same, and there is an end to them.
func TestGateways(t *testing.T) {
	s, err := openState(t.TempDir(), t.TempDir(), folder(ScopeLocal))
	if err != nil {
		t.Fatal(err)
	}
	first := netip.MustParseAddr("169.254.1.1")
	enter := func(id, sandbox string) (netip.Addr, error) {
		if err := s.putEndpoint(endpoint{ID: id, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}); err != nil {
			t.Fatal(err)
		}
		e, err := s.enter(id, sandbox, first)
		return e.Gateway, err
	}
	seen := map[netip.Addr]bool{}
	for i := range 16 {
		gw, err := enter(fmt.Sprint("e", i), "a")
		if err != nil || seen[gw] {
			t.Fatalf("interface %d: %s, %v", i, gw, err)
		}
		seen[gw] = true
	}
	if gw, err := enter("f", "a"); err == nil {
		t.Errorf("the 17th interface has %s", gw)
	}
	if gw, err := enter("g", "b"); err != nil || gw != first {
		t.Errorf("another container has %s, %v", gw, err)
	}
	if err := s.quit("e3"); err != nil {
		t.Fatal(err)
	}
	if gw, err := enter("f", "a"); err != nil || gw.String() != "169.254.1.4" {
		t.Errorf("after one is free: %s, %v", gw, err)
	}
}

// TestPoolID: what an ID says comes back from it, and from the gateway the token.
func TestPoolID(t *testing.T) {
	for range 1000 {
		id := poolID{v6: time.Now().Nanosecond()%2 == 0, token: newToken()}
		back, err := parsePoolID(id.String())
		if err != nil || back != id || tokenOf(id.gateway().String()) != id.token {
			t.Fatalf("%+v is %+v (%v), its gateway %s", id, back, err, id.gateway())
		}
	}
	for _, other := range []string{"0.0.0.0/0", "::/0", "172.17.0.1/16", "fe80::1/64", "x"} {
		if got := tokenOf(other); got != "" {
			t.Errorf("gateway %s has the token %s", other, got)
		}
	}
}

// TestSlowClient: who sends half a request, or reads no answer, holds up nobody.
func TestSlowClient(t *testing.T) {
	r := newRig(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "p.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r.handler}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	for range 100 {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprint(c, "POST /NetworkDriver.CreateNetwork HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", l.Addr().String())
	}}}
	resp, err := client.Post("http://x/NetworkDriver.GetCapabilities", "", &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if !strings.Contains(string(text), "local") {
		t.Errorf("%s", text)
	}
}

// TestTidy: what Docker does not know of any more is released, once that is sure; what
// it knows of, or just begins, is not, nor is anything while it does not answer.
func TestTidy(t *testing.T) {
	r := newRig(t)
	for id, network := range map[string]string{"a4e0f18fade1": "6a2b7979b2de", "c8bc77f3abdb": "23e7aa6f4a97", "0000000000aa": "ffffffffffff", "0000000000bb": "eeeeeeeeeeee"} {
		if err := r.plugin.state.putEndpoint(endpoint{ID: id, Network: network, Named: true}); err != nil {
			t.Fatal(err)
		}
		name := r.names[network]
		if network == "ffffffffffff" {
			name = "removed"
		}
		if err := r.plugin.state.putNetwork(known(network, name)); err != nil {
			t.Fatal(err)
		}
	}
	r.mu.Lock()
	r.gone["c8bc77f3abdb"] = true
	r.mu.Unlock()
	tidy := &tidier{p: r.plugin}
	has := func(id string) bool { _, ok := r.plugin.state.endpoint(id); return ok }
	tidy.once(t.Context(), nil)
	if !has("a4e0f18fade1") || !has("c8bc77f3abdb") || !has("0000000000aa") {
		t.Error("released at first sight")
	}
	silent := *r.plugin
	silent.names = &names{p: &silent, api: engine.New(filepath.Join(t.TempDir(), "none.sock"))}
	(&tidier{p: &silent, doubted: tidy.doubted}).once(t.Context(), nil)
	if !has("c8bc77f3abdb") {
		t.Error("released while Docker does not answer")
	}
	tidy.once(t.Context(), nil)
	if has("c8bc77f3abdb") || has("0000000000aa") || !has("a4e0f18fade1") {
		t.Error("after two looks the wrong ones are there")
	}
	for _, id := range []string{"ffffffffffff", "eeeeeeeeeeee"} {
		if _, ok := r.plugin.state.network(id); ok {
			t.Errorf("network %s, which is not there, is remembered", id)
		}
	}
	r.until(`detach {"orchestrator":"docker","workload":"c8bc77f3abdb"`, `detach {"orchestrator":"docker","workload":"0000000000aa"`)
}

// TestTidySoon: what Docker forgot when it ended is released soon after the plugin's start, and
// of what began since nothing is then.
func TestTidySoon(t *testing.T) {
	r := newRig(t)
	put := func(id string) {
		t.Helper()
		if err := r.plugin.state.putEndpoint(endpoint{ID: id, Network: "6a2b7979b2de", Named: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.plugin.state.putNetwork(known("6a2b7979b2de", "web")); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a4e0f18fade1", "0000000000aa"} {
		put(id)
	}
	r.start()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- (&tidier{p: r.plugin, soon: time.Millisecond}).run(ctx) }()
	r.until(`detach {"orchestrator":"docker","workload":"0000000000aa"`)
	cancel()
	<-done
	if _, ok := r.plugin.state.endpoint("a4e0f18fade1"); !ok {
		t.Error("an endpoint that Docker has was released")
	}
	put("0000000000bb")
	tidy := &tidier{p: r.plugin}
	for range 3 {
		tidy.once(t.Context(), map[string]bool{"a4e0f18fade1": true})
	}
	if _, ok := r.plugin.state.endpoint("0000000000bb"); !ok {
		t.Error("an endpoint that began since was released")
	}
}

func known(id, name string) network { return network{ID: id, Name: name, Made: true} }

// TestSwarmCalls: a manager's choice is answered again and again, whoever holds it, and a
// network that no subnet ties managers and workers of is refused.
func TestSwarmCalls(t *testing.T) {
	r := newRig(t)
	r.cfg.Scope = ScopeGlobal
	r.start()
	const pool = `{"PoolID":"netctl|4|10.77.0.0/16|10.77.0.0/16|",`
	for _, c := range []struct{ path, body, want string }{
		{"/NetworkDriver.GetCapabilities", `{}`, `"Scope":"global"`},
		{"/IpamDriver.RequestPool", `{"AddressSpace":"netctl-global"}`, `one of a swarm needs a --subnet`},
		{"/IpamDriver.RequestAddress", pool + `"Address":"10.77.3.4"}`, `"Address":"10.77.3.4/32"`},
		{"/IpamDriver.RequestAddress", pool + `"Address":"10.78.3.4"}`, `10.78.3.4: is not in --subnet 10.77.0.0/16`},
		{"/IpamDriver.RequestAddress", `{"PoolID":"netctl|4|10.99.0.0/16|10.99.0.0/16|","Address":"10.99.3.4"}`, `is in no pool`},
		{"/IpamDriver.RequestAddress", pool + `"Address":""}`, `"Address":"10.0.0.1/32"`},
	} {
		if got := r.call(c.path, c.body); !strings.Contains(got, c.want) {
			t.Errorf("%s %s: %s", c.path, c.body, got)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if text := strings.Join(r.asked, "\n"); strings.Contains(text, `"address":"10.77.3.4"`) || !strings.Contains(text, "hold ") {
		t.Errorf("the agent was asked:\n%s", text)
	}
}
