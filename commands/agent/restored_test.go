package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"netctl/datastore"
	"netctl/datastore/identity"
)

// TestRestoredStore: the store comes back as of a backup, which knows an endpoint by
// another address and has none of them hold any. What runs wins, and the agent reports
// anew once that is written back.
func TestRestoredStore(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a, b := w.mustAttach("c1", "web", 101), w.mustAttach("c2", "web", 102)
	var snap datastore.Snapshot
	report := datastore.ReportPrefix + datastore.ReportName("n1", datastore.ReportAgent)
	w.until(func() (why string) {
		var err error
		if snap, err = w.store.List(t.Context(), datastore.Prefix, datastore.ReportPrefix); err != nil {
			return err.Error()
		}
		if !slices.ContainsFunc(snap.Entries, func(e datastore.Entry) bool { return e.Key == report }) {
			return "not reported"
		}
		return ""
	})
	before := w.links.String() + w.fib.String() + w.nft.String()
	var kept []datastore.Entry
	for _, e := range snap.Entries {
		o, err := datastore.Decode(e.Key, e.Value)
		switch o := o.(type) {
		case nil:
			continue // the identity and the key of the pools
		case *datastore.Report:
			continue
		case *datastore.Block:
			o.Spec.Allocations = nil
		case *datastore.Endpoint:
			o.Metadata.Labels = map[string]string{"set": "since"}
			if o.Metadata.Name == a.Endpoint {
				o.Spec.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.50")}
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		value, err := datastore.Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, datastore.Entry{Key: e.Key, Value: value, Revision: 1})
	}
	w.store.Restore(datastore.Snapshot{Entries: kept, Revision: 1})
	w.until(func() string {
		if w.status().Detached == "" {
			return "not detached"
		}
		return ""
	})
	if _, err := identity.Adopt(t.Context(), w.store, w.cfg.StateDir); err != nil {
		t.Fatal(err)
	}
	w.ready()
	if now := w.links.String() + w.fib.String() + w.nft.String(); now != before {
		t.Errorf("before:\n%s\nnow:\n%s", before, now)
	}
	list, err := datastore.List[*datastore.Endpoint](t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	for _, ep := range list {
		want := a.Addresses
		if ep.Metadata.Name == b.Endpoint {
			want = b.Addresses
		}
		if !slices.Equal(ep.Spec.Addresses, want) || ep.Metadata.Labels["set"] != "since" {
			t.Errorf("%s: %v %v, want %v", ep.Metadata.Name, ep.Spec.Addresses, ep.Metadata.Labels, want)
		}
	}
	f := w.a.loop.former
	f.mu.Lock()
	if len(w.forgot)+len(f.gone) > 0 {
		t.Errorf("flows of what runs are forgotten: %v, and %v", w.forgot, f.gone)
	}
	f.mu.Unlock()
	if got, want := fmt.Sprint(w.holders()), fmt.Sprint([]string{a.Endpoint, b.Endpoint}); got != want {
		t.Errorf("held by %s, want %s", got, want)
	}
	w.until(func() string {
		if _, err := w.store.Get(t.Context(), report); err != nil {
			return err.Error()
		}
		return ""
	})
}
