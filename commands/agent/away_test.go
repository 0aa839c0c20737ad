package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
)

// cutStore is a datastore that others reach and this node does not while it is cut.
type cutStore struct {
	datastore.Store
	mu    sync.Mutex
	gone  chan struct{} // closed while it is cut
	isCut bool
	did   bool
}

func newCutStore(s datastore.Store) *cutStore { return &cutStore{Store: s, gone: make(chan struct{})} }

func (s *cutStore) cut(now bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now == s.isCut {
		return
	}
	if s.isCut = now; now {
		close(s.gone)
	} else {
		s.gone = make(chan struct{})
	}
}

func (s *cutStore) usable() (<-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isCut {
		return nil, fmt.Errorf("cut off: %w", datastore.ErrUnavailable)
	}
	return s.gone, nil
}

func (s *cutStore) Get(ctx context.Context, key string) (datastore.Entry, error) {
	if _, err := s.usable(); err != nil {
		return datastore.Entry{}, err
	}
	return s.Store.Get(ctx, key)
}

func (s *cutStore) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	if _, err := s.usable(); err != nil {
		return datastore.Snapshot{}, err
	}
	return s.Store.List(ctx, prefixes...)
}

func (s *cutStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if _, err := s.usable(); err != nil {
		return 0, err
	}
	return s.Store.Commit(ctx, t)
}

func (s *cutStore) Watch(ctx context.Context, prefixes []string, after int64, fn func(datastore.Batch) error) error {
	gone, err := s.usable()
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-gone:
			stop(fmt.Errorf("cut off: %w", datastore.ErrUnavailable))
		case <-ctx.Done():
		}
	}()
	err = s.Store.Watch(ctx, prefixes, after, fn)
	if cause := context.Cause(ctx); errors.Is(cause, datastore.ErrUnavailable) {
		return cause
	}
	return err
}

// cutWorld is a world with a pool, one endpoint, and a datastore that can be cut off.
func cutWorld(t *testing.T) (*world, *cutStore) {
	w := newWorld(t)
	s := newCutStore(w.store)
	w.etcd = s
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("c1", "web", 101)
	return w, s
}

// lose cuts the datastore off, for as long as an attach bears with.
func (w *world) lose(s *cutStore) {
	w.t.Helper()
	s.cut(true)
	w.until(func() string {
		if w.status().Store == "" {
			return "not missed"
		}
		return ""
	})
	_ = w.a.loop.do(w.t.Context(), func() { w.a.loop.standing.since = time.Now().Add(-storePatience) })
}

// clean says what of the datastore's addresses is not right.
func (w *world) clean() string {
	r, err := ipam.Check(w.t.Context(), w.store)
	if err != nil {
		return err.Error()
	}
	var text []string
	for _, f := range r.Findings {
		text = append(text, f.Message)
	}
	return strings.Join(text, "\n")
}

func (w *world) written() {
	w.t.Helper()
	w.until(func() string {
		if s := w.status(); s.Store != "" || s.Waiting > 0 {
			return fmt.Sprintf("%+v", s)
		}
		return w.clean()
	})
}

// TestAttachAway: what is attached while the datastore is away is routed and filtered,
// outlives the agent, is given back by its detach, and is in the datastore afterwards.
func TestAttachAway(t *testing.T) {
	w, s := cutWorld(t)
	w.lose(s)
	a := w.mustAttach("c2", "web", 102)
	wish, _ := wishes(w)
	b := w.mustAttach("c3", "web", 103, wish)
	if again := w.mustAttach("c2", "web", 102); again.Addresses[0] != a.Addresses[0] || again.MAC != a.MAC {
		t.Errorf("attached again as %+v, was %+v", again, a)
	}
	w.contains("routes", w.fib.String(), a.Addresses[0].String(), wish)
	w.contains("filter", w.nft.String(), a.Link, b.Link)
	if st := w.status(); st.Waiting != 2 || st.Endpoints != 3 {
		t.Errorf("%+v", st)
	}
	if got := w.endpoints(); len(got) != 1 {
		t.Fatalf("the datastore has %v", got)
	}
	heldAway(t, w)
	// One that it never heard of ends at once; of another the caller keeps the request.
	if err := w.detach("c3"); err != nil {
		t.Errorf("detach: %v", err)
	}
	if err := w.detach("c1"); !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("detach: %v", err)
	}
	if strings.Contains(w.fib.String(), wish+" ") {
		t.Errorf("routes:\n%s", w.fib)
	}
	// Its container starts again: it has its address again.
	if err := control.StorePending(w.cfg.pendingDir(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1"}}); err != nil {
		t.Fatal(err)
	}
	first := w.mustAttach("c1", "web", 111)
	if left, _ := control.ReadPending(w.cfg.pendingDir()); len(left) != 0 {
		t.Errorf("pending %v", left)
	}
	w.until(func() string {
		text, err := os.ReadFile(filepath.Join(w.cfg.StateDir, datastore.CopyFile))
		if err != nil || !strings.Contains(string(text), "n1/cni/c1/eth0") {
			return fmt.Sprintf("the copy lacks an endpoint: %v", err)
		}
		return ""
	})
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.until(func() string {
		if st := w.status(); st.Waiting != 1 || st.Store == "" || st.Endpoints != 2 {
			return fmt.Sprintf("%+v", st)
		}
		return ""
	})
	// The new agent goes by the copy: what ran runs, and more can come.
	w.contains("routes", w.fib.String(), a.Addresses[0].String(), first.Addresses[0].String())
	_ = w.a.loop.do(t.Context(), func() { w.a.loop.standing.since = time.Now().Add(-storePatience) })
	later := w.mustAttach("c4", "web", 104)
	if x := later.Addresses[0]; x == a.Addresses[0] || x == first.Addresses[0] {
		t.Errorf("%s was given twice", x)
	}
	if err := w.detach("c4"); err != nil {
		t.Error(err)
	}
	s.cut(false)
	w.written()
	ep, err := datastore.Get[*datastore.Endpoint](t.Context(), w.store, a.Endpoint)
	if err != nil || ep.Spec.Addresses[0] != a.Addresses[0] || ep.Spec.MAC != a.MAC || ep.Spec.Network != "web" {
		t.Errorf("%+v, %v", ep, err)
	}
	if ep, err := datastore.Get[*datastore.Endpoint](t.Context(), w.store, first.Endpoint); err != nil || ep.Spec.Addresses[0] != first.Addresses[0] {
		t.Errorf("%+v, %v", ep, err)
	}
	w.contains("routes", w.fib.String(), a.Addresses[0].String(), first.Addresses[0].String())
	if got := w.endpoints(); len(got) != 2 {
		t.Errorf("the datastore has %v", got)
	}
	if err := errors.Join(w.detach("c2"), w.detach("c1")); err != nil {
		t.Error(err)
	}
	if got := w.holders(); len(got) != 0 {
		t.Errorf("held by %v", got)
	}
}

// heldAway does as Docker's driver does: the address first, then the endpoint, then the
// ports and labels; and takes it away again.
func heldAway(t *testing.T, w *world) {
	t.Helper()
	if _, err := w.api.network(t.Context(), control.NetworkRequest{Name: "web"}); err != nil {
		t.Error(err)
	}
	if _, err := w.api.network(t.Context(), control.NetworkRequest{Name: "db"}); !errors.Is(err, datastore.ErrUnavailable) {
		t.Error(err)
	}
	h, err := w.api.hold(t.Context(), control.HoldRequest{Network: "web"})
	if err != nil {
		t.Fatal(err)
	}
	target := control.Target{Orchestrator: "docker", Workload: "d", Interface: "eth0"}
	at, err := w.api.attach(t.Context(), control.AttachRequest{Target: target, Network: "web", NetnsFD: 109, Addresses: []netip.Addr{h.Address}, Held: true})
	if err != nil || at.Addresses[0] != h.Address {
		t.Fatalf("%+v, %v", at, err)
	}
	_, err = w.api.labels(t.Context(), control.LabelRequest{Target: target, Labels: map[string]string{"name": "d"}})
	if err != nil {
		t.Error(err)
	}
	_, err = w.api.ports(t.Context(), control.PortRequest{Target: target, Ports: []datastore.HostPort{{Protocol: "tcp", HostPort: 8080, Port: 80}}})
	if err != nil || !strings.Contains(w.nft.String(), "8080") {
		t.Errorf("%v\n%s", err, w.nft)
	}
	if _, err := w.api.detach(t.Context(), control.DetachRequest{Target: target}); err != nil {
		t.Error(err)
	}
}

// TestAttachAwayThenReboot: what was attached while the datastore is away is gone with the
// boot, and nothing of it is left; the next agent goes by the copy until the datastore
// answers.
func TestAttachAwayThenReboot(t *testing.T) {
	w, s := cutWorld(t)
	w.lose(s)
	gone := w.mustAttach("c2", "web", 102)
	w.until(func() string {
		if text, err := os.ReadFile(filepath.Join(w.cfg.StateDir, datastore.CopyFile)); err != nil || !strings.Contains(string(text), "n1/cni/c1/eth0") {
			return fmt.Sprintf("the copy lacks an endpoint: %v", err)
		}
		return ""
	})
	if err := errors.Join(w.stop(), os.RemoveAll(w.cfg.RunDir)); err != nil {
		t.Fatal(err)
	}
	fresh := newWorld(t)
	w.links, w.fib, w.nft, w.boot = fresh.links, fresh.fib, fresh.nft, "boot-2"
	w.start()
	w.until(func() string {
		if w.status().Store == "" {
			return "not missed"
		}
		return ""
	})
	_ = w.a.loop.do(t.Context(), func() { w.a.loop.standing.since = time.Now().Add(-storePatience) })
	next := w.mustAttach("c3", "web", 103)
	s.cut(false)
	w.written()
	w.until(func() string {
		if got := strings.Join(w.holders(), " "); got != "n1/cni/c3/eth0" {
			return got
		}
		return ""
	})
	if got := w.endpoints(); len(got) != 1 {
		t.Errorf("the datastore has %v", got)
	}
	t.Logf("before the boot %v, after it %v", gone.Addresses, next.Addresses)
}

// TestAttachAwayRefused: what only the datastore could give is refused in one line.
func TestAttachAwayRefused(t *testing.T) {
	w, s := cutWorld(t)
	w.lose(s)
	_, outside := wishes(w)
	for what, c := range map[string]struct {
		network string
		addrs   []string
		want    string
	}{
		"network": {"db", nil, "Network db is not known on this node"},
		"address": {"web", []string{outside}, "invalid: is in no block of node n1"},
		"taken":   {"web", []string{strings.Split(strings.Join(addressesIn(w), " "), " ")[0]}, "in use: held by n1/cni/c1/eth0"},
	} {
		_, err := w.attach("x", c.network, 102, c.addrs...)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		_, err = w.attach(fmt.Sprint("f", n), "web", 200+n)
	}
	if n != 64 || // 63 and the one that failed
		!strings.Contains(err.Error(), "no address left in the blocks of node n1") {
		t.Errorf("%d: %v", n, err)
	}
	s.cut(false)
	w.written()
	if got := w.holders(); len(got) != 64 {
		t.Errorf("%d hold an address", len(got))
	}
}

// wishes are an address of the node's block, far from what comes next and last, and one
// of the pool outside of it.
func wishes(w *world) (in, out string) {
	blocks, err := datastore.List[*datastore.Block](w.t.Context(), w.store)
	if err != nil || len(blocks) != 1 {
		w.t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	a := blocks[0].Spec.CIDR.Addr().As4()
	in = netip.AddrFrom4([4]byte{a[0], a[1], a[2], a[3] + 30}).String()
	return in, netip.AddrFrom4([4]byte{a[0], a[1], a[2], a[3] ^ 64 + 30}).String()
}

func addressesIn(w *world) (list []string) {
	eps, err := datastore.List[*datastore.Endpoint](w.t.Context(), w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range eps {
		list = append(list, e.Spec.Addresses[0].String())
	}
	return list
}

// TestAttachAwayConflict: somebody else got the address meanwhile, and has it; the
// endpoint is cut off, and says so until it is detached.
func TestAttachAwayConflict(t *testing.T) {
	w, s := cutWorld(t)
	w.lose(s)
	a := w.mustAttach("c2", "web", 102)
	if err := datastore.Create(t.Context(), w.store, &datastore.Node{Metadata: datastore.Metadata{Name: "n2"}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.99.103/24")}}}); err != nil {
		t.Fatal(err)
	}
	other := ipam.New(ipam.Config{Node: "n2", Store: w.store})
	if _, err := other.Assign(t.Context(), ipam.Request{Handle: "n2/cni/x/eth0", Workload: "x", Wants: a.Addresses}); err != nil {
		t.Fatal(err)
	}
	said := func() string {
		text := strings.Join(w.status().Problems, "\n")
		if !strings.Contains(text, "n1/cni/c2/eth0 refused") || !strings.Contains(text, "held by n2/cni/x/eth0") || strings.Contains(w.fib.String(), a.Addresses[0].String()) {
			return text + "\n" + w.fib.String()
		}
		return ""
	}
	s.cut(false)
	w.until(said)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.until(said)
	if got := w.endpoints(); len(got) != 1 {
		t.Errorf("the datastore has %v", got)
	}
	if err := w.detach1("c2", "eth0"); err != nil {
		t.Fatal(err)
	}
	if p := w.status().Problems; len(p) != 0 || len(w.records()) != 1 {
		t.Errorf("problems %q, records %v", p, w.records())
	}
	if b := w.mustAttach("c2", "web", 102); b.Addresses[0] == a.Addresses[0] {
		t.Errorf("attached with %v", b.Addresses)
	}
}

// TestAttachAwayInDoubt: the datastore took an attach and could not say so. Whoever
// attaches then has what it took.
func TestAttachAwayInDoubt(t *testing.T) {
	w := newWorld(t)
	s := newCutStore(w.store)
	w.etcd = s
	silent := make(chan struct{})
	w.wrap = func(datastore.Store) datastore.Store { return silentStore{s, silent} }
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("c1", "web", 101)
	close(silent)
	short, cancel := context.WithTimeout(t.Context(), 4*time.Second) // half of which is for the datastore
	defer cancel()
	a, err := w.api.attach(short, control.AttachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c2", Interface: "eth0"}, Network: "web", NetnsFD: 102})
	if err != nil {
		t.Fatal(err)
	}
	s.cut(false)
	w.written()
	if got := w.holders(); len(got) != 2 {
		t.Errorf("held by %v", got)
	}
	ep, err := datastore.Get[*datastore.Endpoint](t.Context(), w.store, a.Endpoint)
	if err != nil || ep.Spec.Addresses[0] != a.Addresses[0] || ep.Spec.MAC != a.MAC {
		t.Errorf("%+v, %v, attached %+v", ep, err, a)
	}
}

// silentStore takes the first write once it is silent, and is cut off before it says so.
type silentStore struct {
	*cutStore
	silent chan struct{}
}

func (s silentStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	revision, err := s.cutStore.Commit(ctx, t)
	select {
	case <-s.silent:
		for _, op := range t.Then {
			if err == nil && strings.HasSuffix(op.Key, "/c2/eth0") && op.Value != nil && !s.once() {
				s.cut(true)
				return 0, fmt.Errorf("cut off: %w", datastore.ErrUnavailable)
			}
		}
	default:
	}
	return revision, err
}

// once says whether it was called before.
func (s *cutStore) once() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.did
	s.did = true
	return was
}
