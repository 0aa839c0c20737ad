package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/commands/serve"
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
	taken map[uint16]bool // ports of the host that others publish
	stop  func()
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{T: t, stop: func() {}, gone: map[string]bool{}, taken: map[uint16]bool{}, names: map[string]string{"6a2b7979b2de": "web", "23e7aa6f4a97": "net2"}}
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
	all.Go(func() { _ = serve.Serve(ctx, l, r.agent()) })
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
	r.plugin = open(r.cfg)
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
	mux.Handle("POST /v1/hold", serve.Call(func(_ context.Context, q control.HoldRequest) (control.HeldAddress, error) {
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
	mux.Handle("POST /v1/letgo", serve.Call(func(_ context.Context, q control.HeldAddress) (nothing, error) { return nothing{}, nil }))
	mux.Handle("GET /v1/pools", serve.Call(func(_ context.Context, _ struct{}) (control.PoolAnswer, error) {
		list := []control.PoolEntry{{CIDR: netip.MustParsePrefix("10.77.0.0/16")}, {CIDR: netip.MustParsePrefix("10.0.0.0/26")}, {CIDR: netip.MustParsePrefix("10.88.0.0/16"), Closed: "it is disabled"}}
		return control.PoolAnswer{Pools: list}, r.unavailable()
	}))
	mux.Handle("POST /v1/network", serve.Call(func(_ context.Context, q control.NetworkRequest) (control.NetworkAnswer, error) {
		r.note("network", q)
		return control.NetworkAnswer{Spec: q.Spec, Created: true}, r.unavailable()
	}))
	mux.Handle("POST /v1/attach", serve.Call(func(ctx context.Context, q control.AttachRequest) (a control.Attachment, err error) {
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
	mux.Handle("POST /v1/detach", serve.Call(func(_ context.Context, q control.DetachRequest) (nothing, error) {
		r.note("detach", q)
		return nothing{}, r.unavailable()
	}))
	mux.Handle("POST /v1/ports", serve.Call(func(_ context.Context, q control.PortRequest) (nothing, error) {
		r.note("ports", q)
		r.mu.Lock()
		taken := slices.ContainsFunc(q.Ports, func(p datastore.HostPort) bool { return r.taken[p.HostPort] })
		r.mu.Unlock()
		if taken {
			return nothing{}, fmt.Errorf("a port: %w", datastore.ErrInUse)
		}
		return nothing{}, r.unavailable()
	}))
	mux.Handle("POST /v1/labels", serve.Call(func(_ context.Context, q control.LabelRequest) (nothing, error) {
		r.note("labels", q)
		return nothing{}, r.unavailable()
	}))
	mux.Handle("GET /v1/status", serve.Call(func(_ context.Context, _ struct{}) (control.AgentStatus, error) {
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
		fmt.Fprint(w, `{"Name":"/shop_db_1","Config":{"Image":"bb:1","Labels":{"tier":"data","com.docker.compose.project":"shop","com.docker.compose.service":"db","docker.name":"forged","docker.forged":"x","netctl/network":"forged","bad key":"x"}}}`)
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

// named waits until the names of the networks are known.
func (r *rig) named() {
	r.Helper()
	for end := time.Now().Add(time.Minute); len(r.plugin.state.allNetworks(func(n network) bool { return n.Name == "" })) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatal("a network has no name")
		}
	}
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
