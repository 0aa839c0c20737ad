package agent

import (
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestCopyOfAnEndpoint: an endpoint that names the link of a running one, and its
// going, change nothing of that one.
func TestCopyOfAnEndpoint(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101, "10.0.0.7")
	links, routes := w.links.String(), w.fib.String()
	copied, err := datastore.Get[*datastore.Endpoint](t.Context(), w.store, a.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	copied.Metadata = datastore.Metadata{Name: "n1/cni/c2/eth0"}
	copied.Spec.Workload = "c2"
	if err := datastore.Create(t.Context(), w.store, copied); err != nil {
		t.Fatal(err)
	}
	w.settled()
	if p := w.status().Problems; !slices.ContainsFunc(p, func(s string) bool { return strings.Contains(s, "is another endpoint's") }) {
		t.Errorf("problems: %q", p)
	}
	if err := datastore.Delete(t.Context(), w.store, copied); err != nil {
		t.Fatal(err)
	}
	w.settled()
	w.a.loop.post(w.a.loop.compare)
	w.settled()
	// What another node has there and cannot be read is said, and makes nothing wrong here.
	key := datastore.KindPrefix(datastore.KindEndpoint) + "n2/a/b/c"
	if _, err := w.store.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: key, Value: []byte("{}")}}}); err != nil {
		t.Fatal(err)
	}
	w.settled()
	if u := w.status().Unread; len(u) != 1 || !strings.HasPrefix(u[0], key+": apiVersion: ") {
		t.Errorf("unread: %q", u)
	}
	if w.links.String() != links || w.fib.String() != routes || len(w.status().Problems) != 0 {
		t.Errorf("links:\n%s\nroutes:\n%s\nproblems: %q", w.links, w.fib, w.status().Problems)
	}
}
