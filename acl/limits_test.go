package acl

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestLimitsFollow: the sum of the deltas is what a new index makes of what there is, for random
// limits of endpoints and profiles, and without limits nothing is left of them.
func TestLimitsFollow(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		x, applied := NewIndex("node0", testOptions()), Static(testOptions())
		current := map[string]datastore.Object{}
		limits := func() (q datastore.QoSControls) {
			for _, to := range []*uint32{&q.IngressPacketRate, &q.EgressPacketRate, &q.IngressNewConnections, &q.EgressNewConnections, &q.IngressMaxConnections, &q.EgressMaxConnections} {
				if rng.IntN(4) == 0 {
					*to = uint32(1 + rng.IntN(3))
				}
			}
			return q
		}
		flush := func() {
			d := x.Flush()
			checkDelta(t, d, applied)
			applied.Apply(d)
			needsNothing(t, applied)
		}
		for range 150 {
			var o datastore.Object
			if i := rng.IntN(4); i == 0 {
				p := &datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprint("p", rng.IntN(3))}}
				p.Spec.QoSControls = limits()
				o = p
			} else {
				name := fmt.Sprintf("node%d/cni/w%d/eth0", rng.IntN(2), rng.IntN(4))
				e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}}
				e.Spec = datastore.EndpointSpec{Node: name[:5], Link: "nc" + name[10:12], QoSControls: limits(), Addresses: addrs("10.0.0.1"), Profiles: []string{fmt.Sprint("p", rng.IntN(3))}}
				if rng.IntN(10) == 0 {
					e.Spec.Link = "ncshared"
				}
				o = e
			}
			c := datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o}
			if current[c.Name] = o; rng.IntN(4) == 0 {
				c.New = nil
				delete(current, c.Name)
			}
			x.Apply(c)
			if rng.IntN(3) == 0 {
				flush()
				sameRuleset(t, fmt.Sprintf("seed %d: in the middle", seed), applied, x.Ruleset())
			}
		}
		flush()
		anew := NewIndex("node0", testOptions())
		for _, name := range sortedKeys(current) {
			anew.Apply(datastore.Change{Kind: current[name].Kind(), Name: name, New: current[name]})
		}
		sameRuleset(t, fmt.Sprintf("seed %d: deltas", seed), applied, anew.Ruleset())
		for name, o := range current {
			x.Apply(datastore.Change{Kind: o.Kind(), Name: name, Old: o})
		}
		flush()
		sameRuleset(t, "emptied", applied, Static(testOptions()))
		if len(x.limited)+len(x.sets)+len(x.chains)+x.limits[0]+x.limits[1] > 0 {
			t.Fatalf("left are %v, %d sets, %d chains", x.limited, len(x.sets), len(x.chains))
		}
	}
}

// TestALimitKeepsWhatOthersCounted: with another limit of an endpoint the chains of its others,
// in whose rules the kernel counts, are not touched.
func TestALimitKeepsWhatOthersCounted(t *testing.T) {
	x := NewIndex("n1", testOptions())
	put := func(q datastore.QoSControls) Delta {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "n1/cni/a/eth0"}}
		e.Spec = datastore.EndpointSpec{Node: "n1", Link: "nca", Addresses: addrs("10.0.0.1"), QoSControls: q}
		x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: e.Metadata.Name, New: e})
		return x.Flush()
	}
	put(datastore.QoSControls{IngressPacketRate: 100, IngressMaxConnections: 10})
	d := put(datastore.QoSControls{IngressPacketRate: 200, IngressMaxConnections: 10, EgressNewConnections: 5})
	for _, c := range d.Chains {
		if c.Name == limitChain(inbound, "nca", "ingressMaxConnections") || c.Name == limitChain(inbound, "nca", "") {
			t.Errorf("changed: %+v", c)
		}
	}
	if len(d.Chains) != 1+2+2 {
		t.Errorf("%d chains change: %+v", len(d.Chains), d.Chains)
	}
	text := x.Ruleset().String()
	for _, want := range []string{
		"limit rate 200/second burst 20 packets return", "ct count 10 return", "limit rate 5/second burst 5 packets return",
		`log group 1 prefix "QPI|ingressMaxConnections"`, `drop comment "nca: over egressNewConnections 5"`, "type filter hook postrouting priority -8",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	for prefix, want := range map[string]string{"QPI|ingressPacketRate": "ingressPacketRate true true", "QPE|egressPacketRate": "egressPacketRate false true", "DPI|default": " false false", "QP": " false false"} {
		limit, in, ok := Limited(prefix)
		if got := fmt.Sprint(limit, " ", in, " ", ok); got != want {
			t.Errorf("%s: %s, want %s", prefix, got, want)
		}
	}
}
