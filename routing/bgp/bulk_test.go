package bgp

import (
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"netctl/routing"
)

// bulk is a table with one peer and what it tells the Installer.
func bulk(t *testing.T, in Installer) (*rib, *session) {
	t.Helper()
	c := &Config{Installer: in, Log: slog.New(slog.DiscardHandler)}
	r := newRIB(c, func(time.Duration, func()) *time.Timer { return nil })
	p := &peer{config: PeerConfig{Address: netip.MustParseAddr("10.9.0.2"), AS: 64511}, routerID: netip.MustParseAddr("10.9.0.2")}
	r.peers[p.config.Address] = p
	p.session = &session{peer: p}
	return r, p.session
}

// hosts are n host routes.
func hosts(n int) []netip.Prefix {
	list := make([]netip.Prefix, n)
	a := netip.MustParseAddr("10.66.0.0")
	for i := range list {
		list[i], a = netip.PrefixFrom(a, 32), a.Next()
	}
	return list
}

func wayTo(addr string) *attrs {
	a := netip.MustParseAddr(addr)
	return &attrs{nextHop: a, only: hops{[]netip.Addr{a}}, id: addr}
}

// lists keeps every list of changes.
type lists [][]Change

func (k *lists) Install(c []Change) { *k = append(*k, c) }

// TestInstallComesInBatches: the Installer writes while the rest is decided about, and
// hears what each route was and is.
func TestInstallComesInBatches(t *testing.T) {
	k := &lists{}
	r, s := bulk(t, k)
	prefixes := hosts(2*installBatch + 7)
	check := func(what, was, now string, lists, count int) {
		t.Helper()
		seen := map[netip.Prefix]bool{}
		for _, list := range *k {
			if len(list) > installBatch {
				t.Errorf("%s: %d changes at once", what, len(list))
			}
			for _, c := range list {
				seen[c.Prefix] = true
				if len(c.Was) > 1 || len(c.Now) > 1 || (was == "") != (len(c.Was) == 0) || (now == "") != (len(c.Now) == 0) ||
					was != "" && c.Was[0].String() != was || now != "" && c.Now[0].String() != now {
					t.Fatalf("%s: %+v", what, c)
				}
			}
		}
		if len(*k) != lists || len(seen) != count {
			t.Errorf("%s: %d prefixes in %d lists", what, len(seen), len(*k))
		}
		*k = nil
	}
	a, b := wayTo("10.9.0.2"), wayTo("10.9.0.3")
	r.apply(s, []change{{reachable: reachable{prefixes: prefixes}, attrs: a}})
	r.flush()
	check("announced", "", "10.9.0.2", 3, len(prefixes))
	r.apply(s, []change{{reachable: reachable{prefixes: prefixes[:5]}, attrs: b}, {reachable: reachable{prefixes: prefixes[5:10]}, attrs: a}})
	r.flush()
	check("changed", "10.9.0.2", "10.9.0.3", 1, 5)
	r.reinstall(map[netip.Addr]bool{b.nextHop: true})
	check("told again", "10.9.0.3", "10.9.0.3", 1, 5)
	r.reinstall(map[netip.Addr]bool{netip.MustParseAddr("10.9.0.4"): true})
	check("of nobody's next hop", "", "", 0, 0)
	r.apply(s, []change{{reachable: reachable{prefixes: prefixes[:5]}}})
	r.flush()
	check("withdrawn", "10.9.0.3", "", 1, 5)
	r.down(&session{peer: s.peer}, endLost)
	r.flush()
	check("the end of another session", "", "", 0, 0)
	s.peer.session = nil // it ended
	r.forget(s.peer)
	r.flush()
	check("the peer's end", "10.9.0.2", "", 3, len(prefixes)-5)
	if len(r.dests) > 0 || len(s.peer.in) > 0 {
		t.Errorf("left: %d prefixes, %d of the peer", len(r.dests), len(s.peer.in))
	}
}

// TestPeersKeepTheirPlaces: prefixes come and go at several peers in every order, and
// each peer's list holds what it announced, at the place that its path says.
func TestPeersKeepTheirPlaces(t *testing.T) {
	r, s := bulk(t, &lists{})
	other := &peer{config: PeerConfig{Address: netip.MustParseAddr("10.9.0.3"), AS: 64511}, routerID: netip.MustParseAddr("10.9.0.3")}
	other.session = &session{peer: other}
	r.peers[other.config.Address] = other
	ways := []*attrs{wayTo("10.9.0.2"), wayTo("10.9.0.3"), wayTo("10.9.0.4")}
	prefixes := hosts(40)
	want := map[*peer]map[netip.Prefix]*attrs{s.peer: {}, other: {}}
	n := uint32(1)
	for range 4000 {
		n = n*1664525 + 1013904223 // a fixed row of numbers (Numerical Recipes)
		p, prefix, a := []*peer{s.peer, other}[n>>30&1], prefixes[n>>8%uint32(len(prefixes))], ways[n>>20%3]
		if n>>25&1 == 0 {
			a = nil
		}
		r.apply(p.session, []change{{reachable: reachable{prefixes: []netip.Prefix{prefix}}, attrs: a}})
		if want[p][prefix] = a; a == nil {
			delete(want[p], prefix)
		}
		if n>>27&3 == 0 {
			r.flush()
		}
	}
	r.flush()
	for p, has := range want {
		if len(p.in) != len(has) || len(has) == 0 {
			t.Errorf("%d prefixes, want %d", len(p.in), len(has))
		}
		for at, d := range p.in {
			if path := d.from(p, 0); path == nil || int(path.at) != at || path.attrs != has[d.key.Prefix()] {
				t.Errorf("%s at %d: %+v", d.key.Prefix(), at, path)
			}
		}
	}
	for key, d := range r.dests {
		if count := len(slices.Collect(d.all())); key != d.key || count == 0 || count > 2 {
			t.Errorf("%s: %d paths", key.Prefix(), count)
		}
	}
}

// TestARouteTakesLittleMemory bounds what the table holds for each host route of a
// peer.
func TestARouteTakesLittleMemory(t *testing.T) {
	const count = 100_000
	r, s := bulk(t, nil)
	a := wayTo("10.9.0.2")
	live := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := live()
	r.apply(s, []change{{reachable: reachable{prefixes: hosts(count)}, attrs: a}})
	r.flush()
	if each := (live() - before) / count; each > 160 {
		t.Errorf("%d bytes for each route", each)
	}
	s.peer.session = nil // it ended
	r.forget(s.peer)
	r.flush()
	if left := live() - before; left > 1<<20 {
		t.Errorf("%d bytes are left", left)
	}
	runtime.KeepAlive(r)
	if len(r.dests) != 0 || r.dest(netip.MustParsePrefix("10.66.0.0/32")) != nil || r.dests[routing.Packed{}] != nil {
		t.Error("something is left")
	}
}
