package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/identity"
)

func TestEmptiedStore(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101)
	w.mustAttach("c2", "web", 102)
	before := w.links.String() + w.fib.String() + w.nft.String()
	w.store.Restore(datastore.Snapshot{Revision: 1})
	w.until(func() string {
		if w.status().Detached == "" {
			return "not detached"
		}
		return ""
	})
	if _, err := w.attach("c3", "web", 103); control.ErrorOf(err).Code != control.CodeDetached {
		t.Errorf("attach: %v", err)
	}
	if err := w.detach("c2"); control.ErrorOf(err).Code != control.CodeDetached {
		t.Errorf("detach: %v", err)
	}
	if snap, err := w.store.List(t.Context(), datastore.Prefix); err != nil || len(snap.Entries) != 0 {
		t.Errorf("written while detached: %v, %v", snap.Entries, err)
	}
	unchanged := func(when string) {
		t.Helper()
		if now := w.links.String() + w.fib.String() + w.nft.String(); now != before {
			t.Errorf("%s: before:\n%s\nnow:\n%s", when, before, now)
		}
	}
	unchanged("detached")
	if _, err := identity.Adopt(t.Context(), w.store, w.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	w.ready()
	before = strings.ReplaceAll(before, "flags interval; elements = { 10.0.0.0/24 };", "flags interval;") // the pool is gone
	unchanged("adopted")
	if got := w.endpoints(); len(got) != 2 {
		t.Errorf("written back: %v", got)
	}
	if got := w.holders(); len(got) != 2 {
		t.Errorf("addresses written back: %v", got)
	}
	w.pool("10.0.0.0/24")
	w.until(func() string {
		var pools int
		_ = w.a.loop.do(t.Context(), func() { pools = len(w.a.loop.view.Pools()) })
		if pools == 0 {
			return "pool not seen"
		}
		return ""
	})
	if _, err := w.attach("c3", "web", 103, a.Addresses[0].String()); !errors.Is(err, datastore.ErrInUse) {
		t.Errorf("a live address was handed out: %v", err)
	}
}

// TestAddressTakenMeanwhile: a live endpoint whose address somebody else holds in
// the store that was adopted runs on, is shown, and can be detached.
func TestAddressTakenMeanwhile(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101, "10.0.0.5")
	w.store.Restore(datastore.Snapshot{Revision: 1})
	w.until(func() string {
		if w.status().Detached == "" {
			return "not detached"
		}
		return ""
	})
	block := &datastore.Block{Metadata: datastore.Metadata{Name: "10.0.0.0-26"}, Spec: datastore.BlockSpec{
		CIDR: netip.MustParsePrefix("10.0.0.0/26"), Affinity: "n2",
		Allocations: []datastore.Allocation{{Ordinal: 5, Handle: "n2/cni/x/eth0", Node: "n2", Time: time.Now()}},
	}}
	if err := datastore.Create(t.Context(), w.store, block); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Adopt(t.Context(), w.store, w.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	w.ready()
	w.contains("kernel", w.links.String(), a.Link)
	w.contains("problems", strings.Join(w.status().Problems, "\n"), "n1/cni/c1/eth0", "n2/cni/x/eth0")
	if err := w.detach1("c1", "eth0"); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if got := w.status().Problems; len(got) > 0 || strings.Contains(w.links.String(), a.Link) || len(w.records()) > 0 {
			return fmt.Sprint(got, w.links)
		}
		return ""
	})
}
