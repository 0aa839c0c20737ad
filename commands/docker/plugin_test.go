package docker

import (
	"bytes"
	"context"
	"encoding/json"
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
	"netctl/datastore"
)

// rig is the plugin between an agent and a Docker that answer what a test says.
type rig struct {
	*testing.T
	cfg     Config
	plugin  *plugin
	handler http.Handler

	mu    sync.Mutex
	asked []string // of the agent, in order
	away  string   // why the agent's datastore is
	stuck bool     // the agent takes attaches and does not answer
	next  int      // address
	names map[string]string
	gone  map[string]bool // endpoints that Docker does not have
	stop  func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{T: t, stop: func() {}, gone: map[string]bool{}, names: map[string]string{"6a2b7979b2de": "web", "23e7aa6f4a97": "net2"}}
	r.cfg = Config{
		StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), AgentSocket: filepath.Join(dir, "run", "agent.sock"),
		API: filepath.Join(dir, "api.sock"), Log: slog.New(slog.DiscardHandler),
	}
	l, err := control.Listen(r.cfg.AgentSocket, r.cfg.Log)
	if err != nil {
		t.Fatal(err)
	}
	api, err := net.Listen("unix", r.cfg.API)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	srv := &http.Server{Handler: http.HandlerFunc(r.api)}
	all.Go(func() { _ = control.Serve(ctx, l, r.agent()) })
	all.Go(func() { _ = srv.Serve(api) })
	t.Cleanup(func() {
		r.stop()
		cancel()
		_ = srv.Close()
		all.Wait()
	})
	r.start()
	return r
}

// start makes the plugin, as another process would that comes after it.
func (r *rig) start() {
	r.Helper()
	r.stop()
	var err error
	if r.plugin, err = open(r.cfg); err != nil {
		r.Fatal(err)
	}
	r.handler = r.plugin.handler()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = r.plugin.names.run(ctx) }()
	r.stop = func() { cancel(); <-done }
}

func (r *rig) note(what string, q any) {
	text, _ := json.Marshal(q)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, what+" "+string(text))
}

func (r *rig) unavailable() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.away != "" {
		return fmt.Errorf("%s: %w", r.away, datastore.ErrUnavailable)
	}
	return nil
}

// agent answers on the control socket.
func (r *rig) agent() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/hold", control.Call(func(_ context.Context, q control.HoldRequest) (control.HeldAddress, error) {
		r.note("hold", q)
		r.mu.Lock()
		r.next++
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.next)})
		r.mu.Unlock()
		if q.Address.IsValid() {
			a = q.Address
		}
		return control.HeldAddress{Address: a}, r.unavailable()
	}))
	mux.Handle("POST /v1/letgo", control.Call(func(_ context.Context, q control.HeldAddress) (nothing, error) { return nothing{}, nil }))
	mux.Handle("GET /v1/pools", control.Call(func(_ context.Context, _ struct{}) (control.PoolAnswer, error) {
		list := []control.PoolEntry{{CIDR: netip.MustParsePrefix("10.77.0.0/16")}, {CIDR: netip.MustParsePrefix("10.0.0.0/26")}, {CIDR: netip.MustParsePrefix("10.88.0.0/16"), Closed: "it is disabled"}}
		return control.PoolAnswer{Pools: list}, r.unavailable()
	}))
	mux.Handle("POST /v1/network", control.Call(func(_ context.Context, q control.NetworkRequest) (control.NetworkAnswer, error) {
		r.note("network", q)
		return control.NetworkAnswer{Spec: q.Spec, Created: true}, r.unavailable()
	}))
	mux.Handle("POST /v1/attach", control.Call(func(ctx context.Context, q control.AttachRequest) (a control.Attachment, err error) {
		r.note("attach", q)
		r.mu.Lock()
		stuck := r.stuck
		r.mu.Unlock()
		if stuck {
			<-ctx.Done()
			return a, ctx.Err()
		}
		a = control.Attachment{Peer: "np-" + q.Workload, Addresses: q.Addresses}
		for range q.Addresses {
			a.Gateways = append(a.Gateways, q.Gateway)
		}
		return a, r.unavailable()
	}))
	mux.Handle("POST /v1/detach", control.Call(func(_ context.Context, q control.DetachRequest) (nothing, error) {
		r.note("detach", q)
		return nothing{}, r.unavailable()
	}))
	mux.Handle("POST /v1/ports", control.Call(func(_ context.Context, q control.PortRequest) (nothing, error) {
		r.note("ports", q)
		return nothing{}, r.unavailable()
	}))
	mux.Handle("POST /v1/labels", control.Call(func(_ context.Context, q control.LabelRequest) (nothing, error) {
		r.note("labels", q)
		return nothing{}, r.unavailable()
	}))
	mux.Handle("GET /v1/status", control.Call(func(_ context.Context, _ struct{}) (control.AgentStatus, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return control.AgentStatus{Node: "n1", Store: r.away}, nil
	}))
	return mux
}

// api is Docker's.
func (r *rig) api(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	name := r.names[strings.TrimPrefix(q.URL.Path, "/networks/")]
	r.mu.Unlock()
	switch {
	case name != "":
		containers := map[string]map[string]string{}
		for id, c := range map[string]string{"a4e0f18fade1": "0b9f", "c8bc77f3abdb": "0b9e"} {
			if r.mu.Lock(); !r.gone[id] {
				containers[c] = map[string]string{"EndpointID": id}
			}
			r.mu.Unlock()
		}
		text, _ := json.Marshal(containers)
		fmt.Fprintf(w, `{"Name":%q,"Options":{},"IPAM":{"Config":[{"Subnet":"10.77.0.0/16"}]},"Containers":%s}`, name, text)
	case strings.HasPrefix(q.URL.Path, "/containers/"):
		fmt.Fprint(w, `{"Name":"/shop_db_1","Config":{"Image":"bb:1","Labels":{"tier":"data","com.docker.compose.project":"shop","com.docker.compose.service":"db","docker.name":"forged","netctl/network":"forged","bad key":"x"}}}`)
	default:
		http.Error(w, `{"message":"network not found"}`, http.StatusNotFound)
	}
}

// call makes one call.
func (r *rig) call(path, body string) string {
	r.Helper()
	w := httptest.NewRecorder()
	r.handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	return strings.TrimSpace(w.Body.String())
}

// until waits for a word of what the agent was asked.
func (r *rig) until(words ...string) {
	r.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		r.mu.Lock()
		text := strings.Join(r.asked, "\n")
		r.mu.Unlock()
		missing := ""
		for _, w := range words {
			if !strings.Contains(text, w) {
				missing = w
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			r.Fatalf("the agent was not asked %s:\n%s", missing, text)
		}
	}
}

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
	set("the datastore does not answer", false)
	create()
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
	s, err := openState(t.TempDir(), t.TempDir())
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
	for id, network := range map[string]string{"a4e0f18fade1": "6a2b7979b2de", "c8bc77f3abdb": "23e7aa6f4a97", "0000000000aa": "ffffffffffff"} {
		if err := r.plugin.state.putEndpoint(endpoint{ID: id, Network: network, Named: true}); err != nil {
			t.Fatal(err)
		}
		name := r.names[network]
		if name == "" {
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
	tidy.once(t.Context())
	if !has("a4e0f18fade1") || !has("c8bc77f3abdb") || !has("0000000000aa") {
		t.Error("released at first sight")
	}
	silent := *r.plugin
	silent.names = &names{p: &silent, api: newAPI(filepath.Join(t.TempDir(), "none.sock"))}
	(&tidier{p: &silent, doubted: tidy.doubted}).once(t.Context())
	if !has("c8bc77f3abdb") {
		t.Error("released while Docker does not answer")
	}
	tidy.once(t.Context())
	if has("c8bc77f3abdb") || has("0000000000aa") || !has("a4e0f18fade1") {
		t.Error("after two looks the wrong ones are there")
	}
	if _, ok := r.plugin.state.network("ffffffffffff"); ok {
		t.Error("the network that was removed is remembered")
	}
	r.until(`detach {"orchestrator":"docker","workload":"c8bc77f3abdb"`, `detach {"orchestrator":"docker","workload":"0000000000aa"`)
}

func known(id, name string) network { return network{ID: id, Name: name, Made: true} }
