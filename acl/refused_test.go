package acl

import (
	"errors"
	"net/netip"
	"testing"

	"netctl/datastore"
)

// TestConcerning: a refused object concerns the links whose packets need it, one
// that belongs to nobody concerns everybody.
func TestConcerning(t *testing.T) {
	x := NewIndex("n1", testOptions())
	for _, name := range []string{"web", "db"} {
		x.Apply(datastore.Change{Kind: datastore.KindProfile, Name: name, New: &datastore.Profile{
			Metadata: datastore.Metadata{Name: name},
			Spec: datastore.ProfileSpec{Tags: []string{name}, Inbound: []datastore.Rule{
				{Action: datastore.Allow, From: datastore.Side{Tag: datastore.Term{Value: name}}},
			}},
		}})
		x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: "n1/cni/" + name + "/eth0", New: &datastore.Endpoint{
			Metadata: datastore.Metadata{Name: "n1/cni/" + name + "/eth0"},
			Spec: datastore.EndpointSpec{
				Node: "n1", Orchestrator: "cni", Workload: name, Interface: "eth0", Link: "nc" + name,
				Addresses: []netip.Addr{netip.MustParseAddr("10.0.0." + map[string]string{"web": "1", "db": "2"}[name])}, Profiles: []string{name},
			},
		}})
	}
	needs := x.needs("ncweb")
	if len(needs) != 5 { // two classes, two chains, the tag's set
		t.Fatalf("needs = %q", needs)
	}
	set := ""
	for name := range x.sets {
		if x.sets[name].ref.comment() == "tag web" {
			set = name
		}
	}
	for _, c := range []struct {
		r       Refusal
		web, db bool
		label   string
	}{
		{Refusal{Kind: "chain", Name: profileChain(inbound, "web")}, true, false, "profile web"},
		{Refusal{Kind: "set", Name: set}, true, false, "tag web"},
		{Refusal{Kind: "set", Name: mapFromEP, Element: "x", Link: "ncdb"}, false, true, ""},
		{Refusal{Kind: "set", Name: mapFromEP}, true, true, ""},
		{Refusal{Kind: "chain", Name: ChainRawPre}, true, true, ""},
		{Refusal{Kind: "table", Name: TableName}, true, true, ""},
		{Refusal{Kind: "chain", Name: "in_000000000000"}, false, false, ""}, // of nobody any more
	} {
		c.r.Err = errors.ErrUnsupported
		e := &RefusedError{[]Refusal{c.r}}
		if web, db := x.Concerning("ncweb", e) != nil, x.Concerning("ncdb", e) != nil; web != c.web || db != c.db {
			t.Errorf("%v concerns web: %t, db: %t", c.r, web, db)
		}
		if got := x.Name(c.r).Label; got != c.label {
			t.Errorf("%v: label %q", c.r, got)
		}
	}
	e := &RefusedError{[]Refusal{{Kind: "chain", Name: "a"}, {Kind: "set", Name: "b"}}}
	if left := e.Without(Delta{Chains: []ChainChange{{Name: "a"}}}); left == nil || len(left.Refusals) != 1 || left.Refusals[0].Name != "b" {
		t.Errorf("left = %v", left)
	}
}
