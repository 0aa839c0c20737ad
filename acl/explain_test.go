package acl

import (
	"net/netip"
	"testing"

	"netctl/datastore"
)

// TestExplain names the rule that decides with its position, and those before it, also
// where a rule became several in the kernel.
func TestExplain(t *testing.T) {
	x := NewIndex("node0", testOptions())
	web := &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}
	for _, text := range []string{"log tcp", "deny tcp from not tag web to ports http,22", "allow from tag web"} {
		r, err := datastore.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		web.Spec.Inbound = append(web.Spec.Inbound, r)
	}
	web.Spec.Tags = []string{"web"}
	x.Apply(datastore.Change{Kind: datastore.KindProfile, Name: "web", New: web})
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "node0/cni/a/eth0"}}
	e.Spec = datastore.EndpointSpec{Node: "node0", Link: "nca", Profiles: []string{"web"}, Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Ports: []datastore.Port{{Name: "http", Protocol: "tcp", Port: 80}}}
	x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: e.Metadata.Name, New: e})
	for _, c := range []struct {
		src    string
		port   uint16
		by     int // position; 0: none
		passed []bool
		reason string
	}{
		{"10.0.0.9", 80, 2, []bool{true}, ""},
		{"10.0.0.9", 22, 2, []bool{true}, ""},
		{"10.0.0.1", 80, 3, []bool{true, false}, ""},
		{"10.0.0.9", 23, 0, []bool{true, false, false}, "no inbound rule allows it"},
	} {
		got := x.Explain(Packet{InLink: "up0", OutLink: "nca", OutGroup: 77, Protocol: 6, DstPort: c.port, State: New, Src: netip.MustParseAddr(c.src), Dst: netip.MustParseAddr("10.0.0.1")})
		by := 0
		if got.By != nil {
			by = got.By.Position
		}
		if by != c.by || got.Allowed != (c.by == 3) || c.reason != "" && got.Reason != c.reason {
			t.Errorf("%s to port %d: by %v, %s", c.src, c.port, got.By, got.Decision)
		}
		for i, a := range got.Passed() {
			if len(got.Passed()) != len(c.passed) || a.Position != i+1 || a.Matched != c.passed[i] || a.Rule != web.Spec.Inbound[i].String() {
				t.Errorf("%s to port %d: passed %+v, want %v", c.src, c.port, got.Passed(), c.passed)
			}
		}
	}
}
