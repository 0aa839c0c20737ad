package agent

import (
	"io"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"netctl/acl"
	"netctl/datastore"
)

// TestFailsafesFollowMembers: a node with a host endpoint and no rule reaches the datastore's
// members where they are now, and where they renew its certificate.
func TestFailsafesFollowMembers(t *testing.T) {
	cfg := Config{Node: "n1", LinkPrefix: "nc"}
	f := newFiltering("n1", cfg.FilterOptions(), nil, filepath.Join(t.TempDir(), "filter"), slog.New(slog.NewTextHandler(io.Discard, nil)))
	f.apply(datastore.Change{Kind: datastore.KindHostEndpoint, Name: "up", New: &datastore.HostEndpoint{
		Metadata: datastore.Metadata{Name: "up"}, Spec: datastore.HostEndpointSpec{Node: "n1", InterfaceName: "up0"},
	}})
	check := func(when string, ports map[uint16]bool) {
		t.Helper()
		judge := f.index.Ruleset().Judge()
		for port, open := range ports {
			p := acl.Packet{OutLink: "up0", Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"), Protocol: 6, SrcPort: 40000, DstPort: port, State: acl.New}
			if d := judge.Eval(p); d.Allowed != open {
				t.Errorf("%s: tcp %d: %s", when, port, d)
			}
		}
	}
	check("at first", map[uint16]bool{179: true, 2378: true, 12379: false, 12378: false})
	f.setFailsafes(cfg.failsafes(datastore.Members{Endpoints: []string{"https://192.0.2.2:12379"}, JoinPort: 12378}))
	check("members elsewhere", map[uint16]bool{179: true, 2378: false, 12379: true, 12378: true})
}
