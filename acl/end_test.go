package acl

import (
	"net/netip"
	"testing"

	"netctl/datastore"
)

// TestWhatARuleComesTo: of a rule that comes to nothing here, its end goes with it.
func TestWhatARuleComesTo(t *testing.T) {
	x, applied := NewIndex("node0", testOptions()), Static(testOptions())
	put := func(o datastore.Object) {
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
		applied.Apply(x.Flush())
	}
	allow, _ := datastore.ParseRule("allow tcp")
	deny, _ := datastore.ParseRule("deny from cidr fd00::/64")
	profile := func(rules ...datastore.Rule) {
		put(&datastore.Profile{Metadata: datastore.Metadata{Name: "p"}, Spec: datastore.ProfileSpec{Inbound: rules}})
	}
	put(&datastore.Endpoint{Metadata: datastore.Metadata{Name: "node0/cni/a/eth0"}, Spec: datastore.EndpointSpec{
		Node: "node0", Link: "nc1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Profiles: []string{"p"}}})
	chains := len(applied.Chains)
	profile(allow, deny)
	if profile(allow); len(applied.Chains) != chains {
		t.Errorf("%d chains are left, want %d:\n%s", len(applied.Chains), chains, applied)
	}
}
