package acl

import (
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestMissing: what rules name and is not there is said, as long as it is so and an endpoint
// of this node is judged by them.
func TestMissing(t *testing.T) {
	r := newRig(t)
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Tags: []string{"web"},
		Inbound: r.rules("allow from tag nobody", "allow from tag web", `allow from selector "role == 'cache'"`)}})
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "idle"}, Spec: datastore.ProfileSpec{Inbound: r.rules("allow from tag unsaid")}})
	r.policy("gate", datastore.DefaultTier, 1, "role == 'web'", "deny from set bad to not set worse", "pass")
	expect := func(when string, want ...string) {
		t.Helper()
		r.x.Flush()
		if got := r.x.Missing(); !slices.Equal(got, want) {
			t.Errorf("%s:\n got %s\nwant %s", when, strings.Join(got, "\n     "), strings.Join(want, "\n     "))
		}
	}
	expect("no endpoint")
	r.endpoint("nca", "10.0.0.1", "web", "web", "gone")
	const (
		gone  = "endpoint node0/cni/nca/eth0 names profile gone, which does not exist"
		tag   = "profile web, inbound rule 1: allow from tag nobody names tag nobody, which no profile has"
		cache = `profile web, inbound rule 3: allow from selector "role == 'cache'" names selector "role == 'cache'", which picks nobody`
		bad   = "tier default, policy gate, ingress rule 1: deny from set bad to not set worse names network set bad, which does not exist"
		worse = "tier default, policy gate, ingress rule 1: deny from set bad to not set worse names network set worse, which does not exist"
	)
	expect("one endpoint", gone, tag, cache, bad, worse)
	r.put(&datastore.NetworkSet{Metadata: datastore.Metadata{Name: "bad"}})
	r.put(&datastore.Profile{Metadata: datastore.Metadata{Name: "gone"}, Spec: datastore.ProfileSpec{Tags: []string{"nobody"}, Inbound: r.rules()}})
	expect("a set and a profile", cache, worse)
	r.endpoint("ncb", "10.0.0.2", "cache", "idle")
	expect("somebody with the label", "profile idle, inbound rule 1: allow from tag unsaid names tag unsaid, which no profile has", worse)
	r.remove(datastore.KindNetworkSet, "bad")
	r.remove(datastore.KindPolicy, "gate")
	r.remove(datastore.KindEndpoint, "node0/cni/ncb/eth0")
	expect("without them", cache)
	r.put(&datastore.NetworkSet{Metadata: datastore.Metadata{Name: "caches", Labels: map[string]string{"role": "cache"}}})
	expect("a set with the label")
}
