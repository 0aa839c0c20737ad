package speaker

import (
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// over waits until the session of every node is up by addresses of a family.
func (r *rig) over(v6 bool) {
	r.t.Helper()
	netlab.Until(r.t, 40*time.Second, fmt.Sprintf("the session is up, over IPv6: %t", v6), func() string {
		for _, n := range r.nodes {
			if why := n.settled(1); why != "" {
				return why
			}
			if s, err := n.status(); err != nil || s.Sessions[0].Local.Is6() != v6 {
				return fmt.Sprintf("%+v, %v", s.Sessions, err)
			}
		}
		return ""
	})
}

// TestOneFamilyLost: two nodes with both families between which IPv4 does not get
// through any more, then one whose IPv4 address is gone. The session goes by IPv6, and
// packets of IPv4 with it; what went there already loses none, and routes follow what
// changes. IPv4 is used again after.
func TestOneFamilyLost(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 2, IPv6: true})
	if _, err := datastore.Modify(r.ctx, r.store, datastore.DefaultName, func(c *datastore.BGPConfig) error {
		*c.Spec.HoldTime, c.Spec.RestartTime = 3, 120
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.pool("10.65.0.0/16")
	r.pool("fd80:24e2:f998:72d6::/64")
	n1, n2 := r.node(r.lab.Hosts[0]), r.node(r.lab.Hosts[1])
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	n1.block("fd80:24e2:f998:72d6::/122")
	n2.block("fd80:24e2:f998:72d6::40/122")
	c1 := n1.endpoint("c1", "fd80:24e2:f998:72d6::5")
	n2.endpoint("c2", "fd80:24e2:f998:72d6::45")
	c4 := n1.endpoint("c3", "10.65.0.5")
	n2.endpoint("c4", "10.65.1.5")
	four, six := "10.65.1.0/26 via 192.168.99.103 dev eth1", "fd80:24e2:f998:72d6::40/122 via fd00:99::103 dev eth1"
	r.expect(n1.host, "88", four, six)
	r.over(false)
	netlab.Until(t, 20*time.Second, "the first answer", func() string {
		_, err := netlab.Try(t, c1, "ping", "-n", "-c1", "-W1", "fd80:24e2:f998:72d6::45")
		if err != nil {
			return err.Error()
		}
		return ""
	})
	flood, err := netlab.StartFlood(c1, netip.MustParseAddr("fd80:24e2:f998:72d6::45"), 5*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}

	cut := `add table ip cut
add chain ip cut in { type filter hook input priority 0; }
add chain ip cut out { type filter hook output priority 0; }
add rule ip cut in iifname eth1 reject with icmp type host-unreachable
add rule ip cut out oifname eth1 meta l4proto tcp reject with icmp type host-unreachable`
	netlab.Must(t, n1.host, "nft", cut)
	r.over(true)
	by6 := "10.65.1.0/26 via inet6 fd00:99::103 dev eth1 src 192.168.99.102"
	r.expect(n1.host, "88", by6, six)
	netlab.Must(t, c4, "ping", "-n", "-c3", "-i0.1", "-W5", "10.65.1.5")
	n2.block("fd80:24e2:f998:72d6::80/122")
	later := "fd80:24e2:f998:72d6::80/122 via fd00:99::103 dev eth1"
	r.expect(n1.host, "88", by6, six, later)

	netlab.Must(t, n1.host, "nft", "delete", "table", "ip", "cut")
	n1.proc.Signal(syscall.SIGKILL)
	<-n1.proc.Done()
	n1.up()
	r.over(false)
	r.expect(n1.host, "88", four, six, later)

	n2.ip("addr del 192.168.99.103/24 dev eth1")
	r.over(true)
	r.expect(n1.host, "88", by6, six, later)

	// Its agent tells the others that it has no IPv4 address any more.
	if _, err := datastore.Modify(r.ctx, r.store, n2.host.Name, func(n *datastore.Node) error {
		n.Spec.Addresses = []netip.Prefix{n2.host.Addr6}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, 40*time.Second, "a session between IPv6 addresses", func() string {
		for _, n := range r.nodes {
			if why := n.settled(1); why != "" {
				return why
			}
			if s, err := n.status(); err != nil || !s.Sessions[0].Peer.Is6() {
				return fmt.Sprintf("%+v, %v", s.Sessions, err)
			}
		}
		return ""
	})
	r.expect(n1.host, "88", by6, six, later)
	netlab.Must(t, c4, "ping", "-n", "-c3", "-i0.1", "-W5", "10.65.1.5")
	if lost := flood.Stop(); len(lost.Lost) > 0 {
		t.Errorf("over IPv6: %s", lost)
	}
}
