package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing/fib"
)

// TestAnAddressThatMovesHere: the flows of an endpoint elsewhere are forgotten at once
// where one of this node gets its address, and not later, when they are that one's.
func TestAnAddressThatMovesHere(t *testing.T) {
	l := newLoop(Config{Node: "n1", LinkPrefix: "nc", Gateway: netdev.Gateway4(), StateDir: t.TempDir()}, slog.New(slog.DiscardHandler),
		&kernel.Fake{}, fib.NewFake().Table(87), &nft.Fake{})
	a := netip.MustParseAddr("10.0.0.1")
	there, here := remote("n2", "web", a, "web"), remote("n1", "web", a, "web")
	there.SetDefaults()
	here.SetDefaults()
	change := func(old, now *datastore.Endpoint) {
		c := datastore.Change{Kind: datastore.KindEndpoint}
		if old != nil {
			c.Name, c.Old = old.Metadata.Name, old
		}
		if now != nil {
			c.Name, c.New = now.Metadata.Name, now
		}
		l.changed(c)
	}
	change(nil, there)
	change(there, nil)
	l.former.filtered()
	if gone, _, more := l.former.take(); len(gone) > 0 || more == 0 {
		t.Errorf("forgotten before anybody has it: %v, more after %v", gone, more)
	}
	change(nil, here)
	if gone, _, _ := l.former.take(); len(gone) > 0 {
		t.Errorf("forgotten before the packet filter knows who has it: %v", gone)
	}
	l.former.filtered()
	if gone, _, more := l.former.take(); !slices.Equal(gone, []netip.Addr{a}) || more != 0 {
		t.Errorf("to be forgotten is %v, more after %v", gone, more)
	}
}

// TestForgetsFlowsOfOthers: the flows of an endpoint elsewhere are forgotten some time
// after it went, or as soon as another one has its address.
func TestForgetsFlowsOfOthers(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	endpoint := func(name string, addrs ...netip.Addr) datastore.Object {
		return &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}, Spec: datastore.EndpointSpec{Addresses: addrs}}
	}
	synctest.Test(t, func(t *testing.T) {
		var forgot []string
		f := newFormer(t.TempDir(), nil, slog.New(slog.DiscardHandler))
		f.forget = func(addrs ...netip.Addr) error {
			for _, x := range addrs {
				forgot = append(forgot, x.String())
			}
			slices.Sort(forgot)
			return nil
		}
		go func() { _ = f.Run(t.Context()) }()
		expect := func(what, want string) {
			t.Helper()
			f.filtered()
			synctest.Wait()
			if got := strings.Join(forgot, " "); got != want {
				t.Errorf("%s: forgot %q, want %q", what, got, want)
			}
			forgot = nil
		}
		f.moved(datastore.Change{New: endpoint("x", a)})
		expect("came", "")
		f.moved(datastore.Change{Old: endpoint("x", a, b), New: endpoint("x", a)})
		time.Sleep(formerRest / 2)
		f.moved(datastore.Change{Old: endpoint("x", a)})
		expect("went", "")
		time.Sleep(formerRest/2 + time.Second)
		expect("went a while ago", "10.0.0.1 10.0.0.2")
		f.moved(datastore.Change{Old: endpoint("x", a)})
		f.moved(datastore.Change{New: endpoint("y", b)})
		expect("another address", "")
		f.moved(datastore.Change{New: endpoint("y", a)})
		expect("another's already", "10.0.0.1")
		time.Sleep(time.Minute)
		expect("nothing more", "")
	})
}

// TestWhoStartsForgets: an agent forgets the flows of what went or changed hands while there
// was none, what one before it had not come to, and no others.
func TestWhoStartsForgets(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/16")
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}) }
	b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.0.1.0/26"), Affinity: "m2"}}
	for i := range 5 {
		b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: i, Handle: "h", Node: "m2"})
	}
	b.SetDefaults()
	w.create(b)
	endpoint := func(name string, i int) *datastore.Endpoint {
		e := remote("m2", name, addr(i), "web")
		e.SetDefaults()
		w.create(e)
		return e
	}
	remove := func(e *datastore.Endpoint) {
		t.Helper()
		if err := datastore.Delete(t.Context(), w.store, e); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() {
		t.Helper()
		w.ready()
		w.settled()
		w.until(func() string {
			f := w.a.loop.former
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.stale || f.sweep || f.ahead {
				return "what was forgotten is not on record"
			}
			return ""
		})
	}
	forgets := func(what string, want ...netip.Addr) {
		t.Helper()
		kept()
		w.mu.Lock()
		defer w.mu.Unlock()
		got := slices.Compact(slices.SortedFunc(slices.Values(w.forgot), netip.Addr.Compare))
		if !slices.Equal(got, want) {
			t.Errorf("%s: forgot %v, want %v", what, got, want)
		}
		w.forgot = nil
	}
	end := func() {
		t.Helper()
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
	w.flowing = []netip.Addr{addr(1), addr(2), addr(3), addr(4), addr(9), netip.MustParseAddr("192.0.2.1")}
	endpoint("stays", 1)
	moves, again, goes := endpoint("moves", 2), endpoint("again", 3), endpoint("goes", 4)
	w.start()
	forgets("a first start", addr(1), addr(2), addr(3), addr(4), addr(9))
	end()
	w.flowing = w.flowing[:4]
	w.start()
	forgets("nothing happened")
	end()
	remove(moves)
	endpoint("moved", 2)
	remove(again)
	endpoint("again", 3)
	w.start()
	forgets("others", addr(2), addr(3))
	remove(goes) // its flows are forgotten later
	kept()
	end()
	endpoint("gets", 4)
	w.start()
	forgets("what one before had not come to", addr(4))
	end()
	w.flowing = append(w.flowing, addr(63))
	w.start()
	forgets("nobody's", addr(63))
}

// TestAnotherStore: where the datastore is another one than before, those whose nodes have yet
// to write them back keep their flows for a while; whoever appears meanwhile begins anew.
func TestAnotherStore(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		before := newFormer(dir, nil, slog.New(slog.DiscardHandler))
		before.told(datastore.Cluster{UUID: "old", Generation: 1}, 7)
		before.stale = true
		if wait := before.write(); wait != 0 {
			t.Fatal(wait)
		}
		var forgot []netip.Addr
		f := newFormer(dir, func(_ context.Context, addrs []netip.Addr) ([]netip.Addr, error) { return addrs, nil }, slog.New(slog.DiscardHandler))
		f.flowing = func() ([]netip.Addr, error) { return []netip.Addr{a}, nil }
		f.forget = func(addrs ...netip.Addr) error {
			forgot = append(forgot, addrs...)
			return nil
		}
		go func() { _ = f.Run(t.Context()) }()
		expect := func(what string, want ...netip.Addr) {
			t.Helper()
			f.filtered()
			synctest.Wait()
			if !slices.Equal(forgot, want) {
				t.Errorf("%s: forgot %v, want %v", what, forgot, want)
			}
			forgot = nil
		}
		f.relisted(datastore.Cluster{UUID: "new", Generation: 1})
		expect("at once")
		f.arrived([]netip.Addr{b})
		expect("who appeared", b)
		time.Sleep(formerReturn - time.Second)
		expect("before they had time")
		time.Sleep(time.Second)
		expect("who did not come back", a)
		f.arrived([]netip.Addr{b})
		expect("afterwards")
	})
}
