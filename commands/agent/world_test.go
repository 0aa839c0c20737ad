package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"netctl/acl/conntrack"
	"netctl/acl/nflog"
	"netctl/acl/nft"
	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/identity"
	"netctl/datastore/memory"
	"netctl/netdev/kernel"
	"netctl/netdev/tap"
	"netctl/routing"
	"netctl/routing/fib"
)

// world is an agent on fakes: a kernel, a packet filter, a routing table and a
// store that outlive it.
type world struct {
	t        *testing.T
	cfg      Config
	boot     string
	links    *kernel.Fake
	fib      *fib.Fake
	nft      *nft.Fake
	store    *memory.Store
	etcd     datastore.Store                       // in the place of store; nil: store
	wrap     func(datastore.Store) datastore.Store // what the agent writes to; nil: store
	counters *counters                             // nil: nothing is counted
	log      *slog.Logger                          // nil: the test's
	mu       sync.Mutex
	forgot   []netip.Addr
	answers  chan nflog.Datagram // that DNS servers give to endpoints
	flowing  []netip.Addr        // that the kernel remembers flows of
	cuts     []conntrack.Cutter
	broken   atomic.Pointer[netip.Addr] // nothing leads there; nil: something does everywhere
	// undirected are the ports whose flows to the host were ended, and whether the rules
	// that publish them were there.
	undirected []string

	machines toldMachines

	a    *agent
	api  *api
	stop func() error
}

// unresolved is a table of a host without routes to others.
type unresolved struct{ *fib.Table }

func (unresolved) Resolve(context.Context, netip.Addr) (routing.NextHop, error) {
	return routing.NextHop{}, fib.ErrUnreachable
}

// toldMachines keeps what virtual machines would be told.
type toldMachines struct {
	mu     sync.Mutex
	guests map[string]tap.Guest
}

func (m *toldMachines) Serve(guests map[string]tap.Guest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.guests = guests
}

func (*toldMachines) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

func (m *toldMachines) told(link string) (tap.Guest, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g, ok := m.guests[link]
	return g, ok
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, answers: make(chan nflog.Datagram, 100), boot: "boot-1", links: &kernel.Fake{}, fib: fib.NewFake(), nft: &nft.Fake{}, store: memory.New(),
		cfg: Config{Node: "n1", StateDir: t.TempDir(), RunDir: t.TempDir(), LostAfter: time.Hour},
	}
	w.links.SetAddresses(kernel.Address{Prefix: netip.MustParsePrefix("192.168.99.102/24"), Subnet: netip.MustParsePrefix("192.168.99.0/24"), Link: "eth1", Index: 2})
	return w
}

// db is the store the agent works on.
func (w *world) db() datastore.Store {
	if w.etcd != nil {
		return w.etcd
	}
	return w.store
}

func (w *world) pool(cidr string) {
	w.t.Helper()
	if err := datastore.Create(w.t.Context(), w.db(), &datastore.Pool{
		Metadata: datastore.Metadata{Name: datastore.PoolName(netip.MustParsePrefix(cidr))},
		Spec:     datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr)},
	}); err != nil {
		w.t.Fatal(err)
	}
}

// create writes a new object.
func (w *world) create(o datastore.Object) {
	w.t.Helper()
	if err := datastore.Create(w.t.Context(), w.db(), o); err != nil {
		w.t.Fatal(err)
	}
}

// start runs the agent until end or the test's end.
func (w *world) start() {
	w.t.Helper()
	if err := w.cfg.finish(); err != nil {
		w.t.Fatal(err)
	}
	guard, err := identity.Open(w.cfg.StateDir, true, slog.New(slog.DiscardHandler))
	if err != nil {
		w.t.Fatal(err)
	}
	state := control.Keep(w.cfg.StateDir, datastore.FileOptions{})
	host, err := hostID(state)
	if err != nil {
		w.t.Fatal(err)
	}
	log := w.log
	if log == nil {
		log = slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, cancel := context.WithCancel(context.Background())
	group, ctx := errgroup.WithContext(ctx)
	w.a = &agent{cfg: w.cfg, log: log, host: host, boot: w.boot, state: state, folders: []control.Folder{state.Folder()}, manager: control.NewService(log)}
	table := w.fib.Table(w.cfg.RouteProtocol)
	store := w.db()
	if w.wrap != nil {
		store = w.wrap(store)
	}
	o := outside{
		links: w.links, routes: unresolved{table}, filter: w.nft, followed: w.db(), store: guard.Fence(store), guard: guard,
		machines: &w.machines,
		forget: func(addrs ...netip.Addr) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.forgot = append(w.forgot, addrs...)
			return nil
		},
		answers: func(ctx context.Context, bound func(), fn func(nflog.Datagram) error) error {
			bound()
			for {
				select {
				case <-ctx.Done():
					return nil
				case g := <-w.answers:
					if err := fn(g); err != nil {
						return err
					}
				}
			}
		},
		counted: func(context.Context, string) (uint64, error) { return 0, nil },
		flowing: func() ([]netip.Addr, error) { return w.flowing, nil },
		routed:  func(_, to netip.Addr) bool { a := w.broken.Load(); return a == nil || *a != to },
		echoes:  func(_, to netip.Addr) bool { a := w.broken.Load(); return a == nil || *a != to },
		cut: func(c conntrack.Cutter) (int, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.cuts = append(w.cuts, c)
			return 1, nil
		},
		undirect: func(host []netip.Addr, ports []datastore.HostPort) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.undirected = append(w.undirected, fmt.Sprintf("%v to %v with %v", ports, host, strings.Contains(w.nft.String(), "dnat ip")))
			return nil
		},
		forward: func(ctx context.Context, _ string, _ <-chan struct{}, report func(int, error)) error {
			report(0, nil)
			<-ctx.Done()
			return nil
		},
		serve: func(ctx context.Context, _ http.Handler) error { // the tests call the api itself
			<-ctx.Done()
			return nil
		},
	}
	if w.counters != nil {
		w.counters.count(&o, w)
	}
	w.a.build(o, func(fn func(context.Context) error) { group.Go(func() error { return fn(ctx) }) })
	for _, t := range w.a.tasks(o, ctx) {
		group.Go(func() error { return t.Run(ctx) })
	}
	w.api = w.a.api
	w.stop = sync.OnceValue(func() error {
		cancel()
		if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errEnded) {
			return err
		}
		return guard.Close()
	})
	w.t.Cleanup(func() { _ = w.stop() })
}

func (w *world) attach(workload, network string, ns int, addrs ...string) (control.Attachment, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	r := control.AttachRequest{Target: control.Target{Orchestrator: "cni", Workload: workload, Interface: "eth0"}, Network: network, NetnsFD: ns}
	for _, a := range addrs {
		r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
	}
	return w.api.attach(ctx, r)
}

func (w *world) mustAttach(workload, network string, ns int, addrs ...string) control.Attachment {
	w.t.Helper()
	a, err := w.attach(workload, network, ns, addrs...)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) detach(workload string) error { return w.detach1(workload, "") }

func (w *world) detach1(workload, iface string) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	_, err := w.api.detach(ctx, control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: workload, Interface: iface}})
	return err
}

// until waits for ok to return "", else the test ends with what it last said.
func (w *world) until(ok func() string) {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for last := ok(); last != ""; last = ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("not in time: %s", last)
		}
		<-time.After(5 * time.Millisecond)
	}
}

func (w *world) ready() {
	w.t.Helper()
	w.until(func() string {
		if err := w.a.loop.gate(w.t.Context()); err != nil {
			return err.Error()
		}
		return ""
	})
}

func (w *world) status() (s control.AgentStatus) {
	w.t.Helper()
	if err := w.a.loop.do(w.t.Context(), func() { s = w.a.loop.status() }); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) endpoints() (names []string) {
	w.t.Helper()
	list, err := datastore.List[*datastore.Endpoint](w.t.Context(), w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Metadata.Name)
	}
	return names
}

// holders lists who holds an address in any block.
func (w *world) holders() (handles []string) {
	w.t.Helper()
	list, err := datastore.List[*datastore.Block](w.t.Context(), w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, b := range list {
		for _, a := range b.Spec.Allocations {
			handles = append(handles, a.Handle)
		}
	}
	slices.Sort(handles)
	return handles
}

func (w *world) contains(what, text string, wants ...string) {
	w.t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			w.t.Errorf("%s lacks %q:\n%s", what, want, text)
		}
	}
}

func (w *world) records() (names []string) {
	files, _ := filepath.Glob(filepath.Join(w.cfg.recordsDir(), "*.json"))
	for _, f := range files {
		st, err := os.Stat(f)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // it went meanwhile
		case err != nil:
			w.t.Error(err)
		case st.Mode().Perm() != 0o600:
			w.t.Errorf("%s: %v", f, st.Mode())
		}
		names = append(names, filepath.Base(f))
	}
	return names
}
