package ipam

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"netctl/datastore"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// TestHold: what is held nobody else gets, with or without a wish, until it is assigned,
// let go, or too old; nothing is written for it.
func TestHold(t *testing.T) {
	w := newWorld(t, pool("10.0.0.0/30", blockSize(30)))
	a := w.on("n1")
	hold := func(req Request) (netip.Addr, error) {
		list, err := a.Hold(context.Background(), req)
		if err != nil {
			return netip.Addr{}, err
		}
		return list[0], nil
	}
	var held []netip.Addr
	for range 4 {
		addr, err := hold(Request{})
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, addr)
	}
	if snap, err := w.store.List(context.Background(), datastore.KindPrefix(datastore.KindBlock)); err != nil || len(snap.Entries) > 0 {
		t.Errorf("written: %v, %v", snap.Entries, err)
	}
	if addr, err := hold(Request{}); !errors.Is(err, datastore.ErrExhausted) {
		t.Errorf("a fifth of four: %s, %v", addr, err)
	}
	wish := Request{Handle: "other", Wants: held[:1]}
	if _, err := a.Assign(context.Background(), wish); !errors.Is(err, datastore.ErrInUse) {
		t.Errorf("somebody else wishes it: %v", err)
	}
	if _, err := hold(Request{Wants: held[:1]}); !errors.Is(err, datastore.ErrInUse) {
		t.Errorf("somebody else holds it: %v", err)
	}
	if got := w.assign(a, Request{Handle: "own", Wants: held[:1], Held: true, V6: true}); len(got) != 1 || got[0] != held[0].String() {
		t.Errorf("who holds it gets %v", got)
	}
	a.LetGo(held[1])
	if addr, err := hold(Request{}); err != nil || addr != held[1] {
		t.Errorf("after one was let go: %s, %v", addr, err)
	}
	w.now += HoldTime
	if got := w.assign(a, Request{Handle: "late", Wants: held[2:3]}); got[0] != held[2].String() {
		t.Errorf("after a while: %v", got)
	}
}

// TestWithin: a part of a pool, larger and smaller than a block, and of two blocks.
func TestWithin(t *testing.T) {
	for _, c := range []struct {
		within string
		room   int
	}{{"10.0.1.16/28", 16}, {"10.0.0.192/26", 64}, {"10.0.2.0/25", 128}, {"10.0.0.0/22", 256}} {
		w := newWorld(t, pool("10.0.0.0/22"))
		a := w.on("n1")
		in := prefixes(c.within)
		for i := range c.room {
			res, err := a.Assign(context.Background(), Request{Handle: string(rune('a'+i%26)) + string(rune('a'+i/26)), Within: in})
			if err != nil || !in[0].Contains(res.Addresses[0]) {
				t.Fatalf("%s, address %d: %v, %v", c.within, i, res.Addresses, err)
			}
		}
		if c.room == 256 {
			continue // there is more
		}
		if res, err := a.Assign(context.Background(), Request{Handle: "more", Within: in}); !errors.Is(err, datastore.ErrExhausted) {
			t.Errorf("%s, more than it has: %v, %v", c.within, res.Addresses, err)
		}
		out := Request{Handle: "out", Within: in, Wants: []netip.Addr{netip.MustParseAddr("10.0.3.200")}}
		if _, err := a.Assign(context.Background(), out); !errors.Is(err, datastore.ErrInUse) {
			t.Errorf("%s, a wish outside: %v", c.within, err)
		}
	}
}

// TestFamily: of one family alone, from pools that select the node.
func TestFamily(t *testing.T) {
	elsewhere := func(s *datastore.PoolSpec) { s.NodeSelector = "rack == 'b'" }
	w := newWorld(t, pool("10.0.0.0/24", elsewhere), pool("10.9.0.0/24"), pool("fd80::/64"))
	w.put(node("n3", "192.168.99.104/24", "fd00:99::104/64"))
	for _, c := range []struct {
		family int
		want   string
	}{{4, "10.9.0.0/24"}, {6, "fd80::/64"}} {
		list, err := w.on("n3").Hold(context.Background(), Request{Family: c.family})
		if err != nil || len(list) != 1 || !prefixes(c.want)[0].Contains(list[0]) {
			t.Errorf("family %d: %v, %v", c.family, list, err)
		}
	}
	if list, err := w.on("n1").Hold(context.Background(), Request{Family: 6}); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("on a node without IPv6: %v, %v", list, err)
	}
}
