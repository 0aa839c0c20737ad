package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// holds waits until the packet filter is as it was.
func (w *world) holds(what, before string) {
	w.t.Helper()
	w.until(func() string {
		if now := w.nft.String(); now != before {
			return what + ": the packet filter is\n" + now
		}
		return ""
	})
}

// cutBy returns the rules that flows were judged by since the last call; it waits for
// the first.
func (w *world) cutBy() (last *acl.Ruleset) {
	w.t.Helper()
	w.until(func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.cuts) == 0 {
			return "no flow was judged"
		}
		last, w.cuts = w.cuts[len(w.cuts)-1].Rules, nil
		return ""
	})
	return last
}

// TestTheFilterIsPutBackInEveryStage: whoever flushes it, and wherever the agent stands
// with the datastore, the packet filter is what it was, and flows that began meanwhile
// are judged.
func TestTheFilterIsPutBackInEveryStage(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("a", "web", 3)
	w.cutBy()
	before := w.nft.String()
	flush := func(stage string) {
		t.Helper()
		w.nft.Flush()
		w.holds(stage, before)
		if by := w.cutBy(); by.String() != before {
			t.Errorf("%s: flows are judged by\n%s", stage, by)
		}
	}
	flush("ready")

	w.store.Away("cable cut")
	w.until(func() string {
		if w.status().Store == "" {
			return "not away"
		}
		return ""
	})
	flush("away")

	// Killed while the datastore is away and the ruleset is flushed.
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.nft.Flush()
	w.start()
	w.holds("starting", before)
	w.cutBy()
	flush("starting")

	w.store.Back()
	w.ready()
	w.holds("back", before)
	w.mustAttach("b", "web", 4)
	before = w.nft.String()

	backup := datastore.Snapshot{Revision: 1}
	w.store.Restore(backup)
	w.until(func() string {
		if w.status().Detached == "" {
			return "not detached"
		}
		return ""
	})
	flush("detached")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.nft.Flush()
	w.start()
	w.holds("starting detached", before)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
}

// TestARestartCutsNothing: an agent that starts in a large cluster works off selectors
// before it holds the kernel, and the flows that it knows, against them.
func TestARestartCutsNothing(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	rule, err := datastore.ParseRule(`allow tcp from selector "role == 'db'" to ports 80`)
	if err != nil {
		t.Fatal(err)
	}
	w.create(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: []datastore.Rule{rule}}})
	for i := range 4000 {
		e := remote("m2", fmt.Sprint("w", i), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), "other")
		e.Metadata.Labels = map[string]string{"role": "db"}
		e.SetDefaults()
		w.create(e)
	}
	w.start()
	w.ready()
	w.mustAttach("a", "web", 3)
	var before string
	w.until(func() string {
		if before = w.nft.String(); strings.Contains(before, "being worked out") {
			return "selectors are being worked out"
		}
		return ""
	})
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.cutBy()
	writes := w.nft.Writes()
	w.start()
	w.ready()
	w.holds("after the start", before)
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := w.nft.Writes() - writes; n > 0 || len(w.cuts) > 0 {
		t.Errorf("%d writes, and flows were judged %d times", n, len(w.cuts))
	}
}

// TestAStartThatFailsTakesNoRoutes: while the packet filter cannot be compared, what an
// earlier agent left of endpoints goes on working.
func TestAStartThatFailsTakesNoRoutes(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("a", "web", 3)
	before := w.fib.String()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	var failing atomic.Bool
	failing.Store(true)
	w.nft.Fail = func() error {
		if failing.Load() {
			return errors.New("it keeps changing")
		}
		return nil
	}
	w.start()
	w.until(func() string {
		if s := w.status(); s.Endpoints == 0 || len(s.Problems) == 0 {
			return "no endpoint, or no problem"
		}
		return ""
	})
	for range 3 {
		if err := w.a.loop.do(t.Context(), func() {}); err != nil {
			t.Fatal(err)
		}
	}
	if now := w.fib.String(); now != before {
		t.Errorf("the routes are\n%s", now)
	}
	failing.Store(false)
	w.ready()
	if now := w.fib.String(); now != before {
		t.Errorf("then the routes are\n%s", now)
	}
}
