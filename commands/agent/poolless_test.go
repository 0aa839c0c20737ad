package agent

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
)

// TestRemovedPoolGoesWithItsLastAddress: what is in use of it stays wired, the blocks go
// when they are empty, and the pool after them.
func TestRemovedPoolGoesWithItsLastAddress(t *testing.T) {
	w := newWorld(t)
	w.cfg.quarantine = 50 * time.Millisecond
	w.pool("10.65.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101)
	routes := w.fib.String()
	name := datastore.PoolName(netip.MustParsePrefix("10.65.0.0/24"))
	if _, err := datastore.Modify(t.Context(), w.store, name, func(p *datastore.Pool) error { p.Spec.Removed = true; return nil }); err != nil {
		t.Fatal(err)
	}
	w.settled()
	if w.fib.String() != routes || len(w.status().Problems) != 0 {
		t.Errorf("routes:\n%s\nproblems %q", w.fib, w.status().Problems)
	}
	if _, err := w.attach("c2", "web", 102); !errors.Is(err, datastore.ErrExhausted) || !strings.Contains(err.Error(), "10.65.0.0/24 is removed") {
		t.Errorf("an attach: %v", err)
	}
	if err := w.detach("c1"); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if _, err := datastore.Get[*datastore.Pool](t.Context(), w.store, name); !errors.Is(err, datastore.ErrNotFound) {
			return "the pool is there"
		}
		return ""
	})
	if list, err := datastore.List[*datastore.Block](t.Context(), w.store); err != nil || len(list) > 0 {
		t.Errorf("after %s: blocks %v, %v", a.Endpoint, list, err)
	}
}

// TestBlockWithoutPool: its addresses in use are a problem that says what to do; empty it
// goes, whatever took the pool.
func TestBlockWithoutPool(t *testing.T) {
	w := newWorld(t)
	w.cfg.quarantine = 50 * time.Millisecond
	small := func(cidr string) {
		p := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr), BlockSize: 31}}
		p.SetDefaults()
		if err := datastore.Create(t.Context(), w.store, p); err != nil {
			t.Fatal(err)
		}
	}
	small("10.65.0.0/24")
	w.start()
	for i, c := range []string{"c1", "c2", "c3"} {
		w.mustAttach(c, "web", 101+i)
	}
	if err := w.detach("c3"); err != nil { // its block is kept, being the only empty one
		t.Fatal(err)
	}
	pool, err := datastore.Get[*datastore.Pool](t.Context(), w.store, "10.65.0.0-24")
	if err == nil {
		err = datastore.Delete(t.Context(), w.store, pool)
	}
	if err != nil {
		t.Fatal(err)
	}
	var used netip.Prefix
	w.until(func() string {
		list, err := datastore.List[*datastore.Block](t.Context(), w.store)
		if err != nil || len(list) != 1 {
			return "there is more than the block in use"
		}
		used = list[0].Spec.CIDR
		return ""
	})
	w.settled()
	want := "block " + used.String() + ": is in no pool, so other nodes have no route to it; `netctl pool add " + used.String() +
		" --block-size 31` gives it one, and empty it goes by itself"
	if got := w.status().Problems; !slices.Equal(got, []string{want}) {
		t.Errorf("problems %q, want %q", got, want)
	}
	small(used.String())
	w.settled()
	if got := w.status().Problems; len(got) != 0 {
		t.Errorf("with a pool again: %q", got)
	}
}
