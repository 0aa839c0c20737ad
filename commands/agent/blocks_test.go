package agent

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
	"netctl/routing/fib"
)

// routedStore looks at the kernel's routes whenever a block is deleted.
type routedStore struct {
	*memory.Store
	deleted func(key string)
}

func (s *routedStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	for _, op := range t.Then {
		if op.Value == nil && strings.HasPrefix(op.Key, datastore.KindPrefix(datastore.KindBlock)) {
			s.deleted(op.Key)
		}
	}
	return s.Store.Commit(ctx, t)
}

// TestBlocksAreGivenBack: of blocks that emptied one is kept; the others' routes go
// first. Restarted, the agent still does it.
func TestBlocksAreGivenBack(t *testing.T) {
	w := newWorld(t)
	w.cfg.quarantine = 50 * time.Millisecond
	p := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.65.0.0/24"), BlockSize: 30}}
	p.SetDefaults()
	if err := datastore.Create(t.Context(), w.store, p); err != nil {
		t.Fatal(err)
	}
	routes := func() string { return w.fib.String() }
	w.wrap = func(s datastore.Store) datastore.Store {
		return &routedStore{Store: w.store, deleted: func(key string) {
			cidr := strings.Replace(strings.TrimPrefix(key, datastore.KindPrefix(datastore.KindBlock)), "-", "/", 1)
			if strings.Contains(routes(), "blackhole "+cidr) {
				t.Errorf("block %s is deleted before its route:\n%s", cidr, routes())
			}
		}}
	}
	w.start()
	w.ready()
	blocks := func() int {
		list, err := datastore.List[*datastore.Block](t.Context(), w.store)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	for i := range 9 {
		w.mustAttach(fmt.Sprint("w", i), "web", 7+i)
	}
	if n := blocks(); n != 3 {
		t.Fatalf("%d blocks for 9 addresses of blocks of 4", n)
	}
	for i := range 9 {
		if i == 5 { // the rest is over when the agent is back
			if err := w.stop(); err != nil {
				t.Fatal(err)
			}
			w.start()
			w.ready()
		}
		if err := w.detach(fmt.Sprint("w", i)); err != nil {
			t.Fatal(err)
		}
	}
	w.until(func() string {
		if n := blocks(); n != 1 {
			return fmt.Sprint(n, " blocks")
		}
		if n := strings.Count(routes(), "blackhole 10.65.0."); n != 1 {
			return routes()
		}
		return ""
	})
	// What is left is used again, with its route.
	a := w.mustAttach("again", "web", 40)
	if blocks() != 1 || !strings.Contains(routes(), a.Addresses[0].String()+" dev ") {
		t.Errorf("%d blocks\n%s", blocks(), routes())
	}
}

// TestABlockThatIsNeededStays: its route comes back.
func TestABlockThatIsNeededStays(t *testing.T) {
	w := newWorld(t)
	w.pool("10.65.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("w1", "web", 7)
	list, err := datastore.List[*datastore.Block](t.Context(), w.store)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	cidr := list[0].Spec.CIDR
	line := "blackhole " + cidr.String()
	if err := w.a.loop.withdraw(t.Context(), cidr); err != nil || strings.Contains(w.fib.String(), line) {
		t.Errorf("%v\n%s", err, w.fib)
	}
	w.a.loop.post(func() { w.a.loop.blocks.keepOut(cidr, false) })
	w.until(func() string {
		if !strings.Contains(w.fib.String(), line) {
			return w.fib.String()
		}
		return ""
	})
}

// TestABlockComesBack: a block that was given back and is claimed again has its route.
func TestABlockComesBack(t *testing.T) {
	view, tab := datastore.NewView(), newTable(fib.NewFake().Table(87))
	s := &blocks{node: "n1", view: view, table: tab, links: &links{}, returning: map[netip.Prefix]bool{}}
	b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.65.0.0/26"), Affinity: "n1"}}
	name := datastore.PoolName(b.Spec.CIDR)
	wanted := func() bool { return len(tab.wants["block "+name]) == 1 }
	s.changed(name, nil, b)
	if !wanted() {
		t.Error("a claimed block has no route")
	}
	s.keepOut(b.Spec.CIDR, true)
	if s.changed(name, b, b); wanted() {
		t.Error("a block that is being given back has a route")
	}
	s.changed(name, b, nil)
	if s.changed(name, nil, b); !wanted() {
		t.Error("a block that was claimed again has no route")
	}
}
