package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// encap writes a pool with an encapsulation.
func (w *world) encap(cidr string, e datastore.Encap) {
	w.t.Helper()
	p := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix(cidr), Encap: e}}
	p.SetDefaults()
	if old, err := datastore.Get[*datastore.Pool](w.t.Context(), w.db(), p.Metadata.Name); err == nil {
		p.Metadata.Revision = old.Metadata.Revision
		if err := datastore.Update(w.t.Context(), w.db(), p); err != nil {
			w.t.Fatal(err)
		}
		return
	}
	w.create(p)
}

// tunnelled waits until the node says that it has tunnels of these kinds, and the kernel
// has their devices.
func (w *world) tunnelled(kinds ...datastore.TunnelKind) {
	w.t.Helper()
	w.until(func() string {
		n, err := datastore.Get[*datastore.Node](w.t.Context(), w.db(), "n1")
		if err != nil {
			return err.Error()
		}
		var said []datastore.TunnelKind
		for _, t := range n.Status.Tunnels {
			if said = append(said, t.Kind); t.Kind != datastore.TunnelIPIP && t.MAC != netdev.TunnelMAC(w.a.host) {
				return "MAC " + t.MAC
			}
		}
		var devices []string
		for _, k := range kinds {
			devices = append(devices, w.cfg.Tunnels[k])
		}
		slices.Sort(devices)
		if have, _ := w.links.Tunnels(); !slices.Equal(said, kinds) || !slices.Equal(have, devices) {
			return fmt.Sprintf("said %v, there %v, want %v", said, have, kinds)
		}
		return ""
	})
}

// device waits for a tunnel's device with addresses in prefixes.
func (w *world) device(name string, in ...string) (t kernel.Tunnel) {
	w.t.Helper()
	w.until(func() string {
		t, _ = w.links.Tunnel(name)
		if len(t.Addresses) != len(in) {
			return fmt.Sprintf("%s has %v, want %v", name, t.Addresses, in)
		}
		for i, p := range in {
			if !netip.MustParsePrefix(p).Contains(t.Addresses[i]) {
				return fmt.Sprintf("%s has %v, want %v", name, t.Addresses, in)
			}
		}
		return ""
	})
	return t
}

func newTunnelWorld(t *testing.T) *world {
	w := newWorld(t)
	w.cfg.tunnelRest = 20 * time.Millisecond
	w.links.SetAddresses(
		kernel.Address{Prefix: netip.MustParsePrefix("192.168.99.102/24"), Subnet: netip.MustParsePrefix("192.168.99.0/24"), Link: "eth1", Index: 2, MTU: 1500},
		kernel.Address{Prefix: netip.MustParsePrefix("fd00:99::102/64"), Subnet: netip.MustParsePrefix("fd00:99::/64"), Link: "eth1", Index: 2, MTU: 1500})
	return w
}

// TestTunnels: devices come when a pool asks for them, are said once they are there, have
// the node's addresses from the pools, and go after they have rested.
func TestTunnels(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapNone)
	w.start()
	w.ready()
	w.tunnelled()
	w.encap("10.0.0.0/16", datastore.EncapIPIP)
	w.tunnelled(datastore.TunnelIPIP)
	d := w.device("tunl0", "10.0.0.0/16")
	if d.MTU != 1480 || d.Local != netip.MustParseAddr("192.168.99.102") || d.MAC != "" {
		t.Errorf("tunl0: %+v", d)
	}
	w.encap("10.0.0.0/16", datastore.EncapVXLANCrossSubnet)
	w.encap("fd80::/64", datastore.EncapVXLAN)
	w.tunnelled(datastore.TunnelVXLAN)
	d = w.device("vxlan.netctl", "10.0.0.0/16", "fd80::/64")
	if d.MTU != 1450 || d.Local != netip.MustParseAddr("192.168.99.102") || d.MAC != netdev.TunnelMAC(w.a.host) {
		t.Errorf("vxlan: %+v", d)
	}
	if got := w.holders(); !slices.Equal(got, []string{"tunnel/n1", "tunnel/n1"}) {
		t.Errorf("holders %v", got)
	}
	// A node that has IPv6 alone is reached over that.
	w.create(&datastore.Node{Metadata: datastore.Metadata{Name: "six"}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("fd00:99::106/64")}}})
	w.tunnelled(datastore.TunnelVXLAN, datastore.TunnelVXLAN6)
	if d = w.device("vxlan6.netctl", "10.0.0.0/16", "fd80::/64"); d.MTU != 1430 || d.Local != netip.MustParseAddr("fd00:99::102") {
		t.Errorf("vxlan6: %+v", d)
	}
	if a := w.mustAttach("c", "web", 100); a.MTU != 1430 || a.Warning != "" {
		t.Errorf("an endpoint: MTU %d, %s", a.MTU, a.Warning)
	}
	// What somebody deletes is made again, and an end of the agent takes nothing away.
	w.links.LoseTunnel("vxlan.netctl")
	w.tunnelled(datastore.TunnelVXLAN, datastore.TunnelVXLAN6)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	n, err := datastore.Get[*datastore.Node](t.Context(), w.db(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.tunnelled(datastore.TunnelVXLAN, datastore.TunnelVXLAN6)
	if again, err := datastore.Get[*datastore.Node](t.Context(), w.db(), "n1"); err != nil || again.Metadata.Revision != n.Metadata.Revision {
		t.Errorf("the node was written when the agent started again: %v", err)
	}
	// Without a tunnel the addresses go back.
	w.encap("10.0.0.0/16", datastore.EncapNone)
	w.encap("fd80::/64", datastore.EncapNone)
	w.tunnelled()
	w.until(func() string {
		if got := w.holders(); !slices.Equal(got, []string{"n1/cni/c/eth0"}) {
			return fmt.Sprintf("holders %v", got)
		}
		return ""
	})
	if p := w.status().Problems; len(p) > 0 {
		t.Errorf("problems %q", p)
	}
}

// TestTunnelIsNotThere: a kernel that does not take a device is said, others are not told
// of it, and it is tried again.
func TestTunnelIsNotThere(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapIPIP)
	refused := make(chan struct{})
	w.links.Fail = func(op, object string) error {
		select {
		case <-refused:
			return nil
		default:
		}
		if op == "tunnel" && object == "tunl0" {
			return errors.New("no ipip devices")
		}
		return nil
	}
	w.start()
	w.ready()
	w.until(func() string {
		if p := strings.Join(w.status().Problems, "\n"); !strings.Contains(p, "tunnel tunl0: no ipip devices") {
			return "problems: " + p
		}
		return ""
	})
	w.tunnelled()
	close(refused)
	w.tunnelled(datastore.TunnelIPIP)
	w.until(func() string { return strings.Join(w.status().Problems, "\n") })
}

// TestTunnelAddressMoves: it is drawn from another pool when its own is to be removed, or
// asks for no tunnel any more.
func TestTunnelAddressMoves(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapVXLAN)
	w.start()
	w.ready()
	w.device("vxlan.netctl", "10.0.0.0/16")
	w.encap("10.1.0.0/16", datastore.EncapVXLAN)
	w.encap("10.0.0.0/16", datastore.EncapNone)
	w.device("vxlan.netctl", "10.1.0.0/16")
	w.encap("10.2.0.0/16", datastore.EncapVXLAN)
	pool, err := datastore.Get[*datastore.Pool](t.Context(), w.db(), "10.1.0.0-16")
	if err != nil {
		t.Fatal(err)
	}
	pool.Spec.Removed, pool.Spec.Disabled = true, true
	if err := datastore.Update(t.Context(), w.db(), pool); err != nil {
		t.Fatal(err)
	}
	w.device("vxlan.netctl", "10.2.0.0/16")
}
