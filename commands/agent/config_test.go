package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/datastore"
)

func TestConfig(t *testing.T) {
	c := Config{Node: "n1"}
	if err := c.finish(); err != nil {
		t.Fatal(err)
	}
	if c.Socket != "/run/netctl-node/agent.sock" || c.Store.Endpoints[0] != "unix:///run/netctl-node/etcd.sock" || c.LostAfter != 5*time.Minute ||
		c.pendingDir() != "/run/netctl-node/pending" || c.recordsDir() != "/run/netctl-node/endpoints" {
		t.Errorf("defaults: %+v", c)
	}
	ip := netip.MustParseAddr
	for want, c := range map[string]Config{
		"node":                 {Node: "a b"},
		"agent.linkPrefix":     {Node: "n", LinkPrefix: "toolong"},
		"agent.interface":      {Node: "n", Interface: "["},
		"agent.gateway":        {Node: "n", Gateway: ip("fe80::1")},
		"agent.mtu":            {Node: "n", MTU: 10},
		"agent.lostAfter":      {Node: "n", LostAfter: -1},
		"routes.agentProtocol": {Node: "n", RouteProtocol: 2},
		"agent.addresses":      {Node: "n", Addresses: []netip.Addr{ip("10.0.0.1"), ip("10.0.0.2")}},
	} {
		if err := c.finish(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestHostID(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "host")
	in := func() *control.Kept { return control.Keep(filepath.Dir(file), datastore.FileOptions{}) }
	first, err := hostID(in())
	if err != nil || len(first) != 16 {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := hostID(in()); again != first || err != nil {
		t.Errorf("again %q, %v", again, err)
	}
	if err := os.WriteFile(file, []byte("me\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := hostID(in()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("damaged file: %v", err)
	}
}

func FuzzParseHostPort(f *testing.F) {
	for _, s := range []string{"udp/53", "tcp/65535", "sctp/1", "icmp/1", "udp/0", "udp/65536", "udp", "", "udp/+5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := ParseHostPort(s)
		if err == nil && (h.Port == 0 || h.Protocol == 0) {
			t.Errorf("%q: %+v", s, h)
		}
	})
}

func TestParseHostPort(t *testing.T) {
	if h, err := ParseHostPort("udp/53"); err != nil || h != (acl.HostPort{Protocol: 17, Port: 53}) {
		t.Errorf("%+v, %v", h, err)
	}
	if _, err := ParseHostPort("icmp/8"); err == nil {
		t.Error("icmp has no ports")
	}
}
