package agent

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// wgKey is a public key that belongs to nobody.
func wgKey(b byte) kernel.WireGuardKey { return kernel.WireGuardKey{b, 1, 2, 3} }

// secureNode is another node with an end of WireGuard tunnels.
func secureNode(name, address string, key kernel.WireGuardKey) *datastore.Node {
	return &datastore.Node{
		Metadata: datastore.Metadata{Name: name},
		Spec:     datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix(address)}},
		Status: datastore.NodeStatus{Host: "host of " + name, Tunnels: []datastore.Tunnel{
			{Kind: datastore.TunnelWireGuard, MAC: "02:00:00:00:00:07", Key: base64.StdEncoding.EncodeToString(key[:])},
		}},
	}
}

// ownKey waits until the node tells a public key that ok likes.
func (w *world) ownKey(ok func(key string) bool) (key string) {
	w.t.Helper()
	w.until(func() string {
		n, err := datastore.Get[*datastore.Node](w.t.Context(), w.db(), "n1")
		if err != nil {
			return err.Error()
		}
		end, _ := n.TunnelOf(datastore.TunnelWireGuard)
		if key = end.Key; key == "" || !ok(key) {
			return fmt.Sprintf("tells %+v", n.Status.Tunnels)
		}
		return ""
	})
	return key
}

// takes waits until the device has the private key to a public one.
func (w *world) takes(public string) {
	w.t.Helper()
	w.until(func() string {
		if d, _ := w.links.Tunnel("wg.netctl"); publicKey(d.Private) != public {
			return "the device has the key of " + publicKey(d.Private) + ", want " + public
		}
		return ""
	})
}

// peered waits until the device has these peers.
func (w *world) peered(want ...string) {
	w.t.Helper()
	w.until(func() string {
		var have []string
		peers, _ := w.links.Peers("wg.netctl")
		for _, p := range peers {
			slices.SortFunc(p.Allowed, datastore.ComparePrefix)
			have = append(have, fmt.Sprintf("%d %s %v", p.Key[0], p.Endpoint, p.Allowed))
		}
		if !slices.Equal(have, want) {
			return fmt.Sprintf("peers %q, want %q", have, want)
		}
		return ""
	})
}

// wgBlock is one of a node with an address that another one has.
func wgBlock(cidr, of, borrower string) *datastore.Block {
	b := &datastore.Block{}
	b.Spec.CIDR, b.Spec.Affinity = netip.MustParsePrefix(cidr), of
	if borrower != "" {
		b.Spec.Allocations = []datastore.Allocation{{Ordinal: 5, Handle: borrower + "/cni/x/eth0", Node: borrower}}
	}
	b.SetDefaults()
	return b
}

// TestWireGuardKey: it is made once, is for root alone, others are told its public half;
// one that is removed, replaced or retired makes way for another, and what is no key is
// said.
func TestWireGuardKey(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapNone)
	w.start()
	w.ready()
	path := filepath.Join(w.cfg.StateDir, keyFile)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key that nobody asks for: %v", err)
	}
	w.encap("10.0.0.0/16", datastore.EncapWireGuard)
	first := w.ownKey(func(string) bool { return true })
	w.tunnelled(datastore.TunnelWireGuard)
	file := func(public string) {
		t.Helper()
		key, err := readKey(w.cfg.StateDir)
		if err != nil || publicKey(key) != public {
			t.Errorf("the file has the key of %s, want %s: %v", publicKey(key), public, err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the file: %v %v", st.Mode(), err)
		}
	}
	file(first)
	w.takes(first)
	if d := w.device("wg.netctl", "10.0.0.0/16"); d.MTU != 1440 || d.Port != 51820 {
		t.Errorf("the device: MTU %d, port %d", d.MTU, d.Port)
	}
	// It stays across a restart, and nobody is told to send otherwise meanwhile.
	revision := func() int64 {
		n, err := datastore.Get[*datastore.Node](t.Context(), w.db(), "n1")
		if err != nil {
			t.Fatal(err)
		}
		return n.Metadata.Revision
	}
	w.until(func() string {
		n, err := datastore.Get[*datastore.Node](t.Context(), w.db(), "n1")
		if err != nil {
			return err.Error()
		}
		if end, _ := n.TunnelOf(datastore.TunnelWireGuard); end.Pending {
			return "others are not told to send yet"
		}
		return ""
	})
	before := revision()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.takes(first)
	if revision() != before {
		t.Error("the node was written when the agent started again")
	}
	// Somebody removes it.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := w.ownKey(func(key string) bool { return key != first })
	w.takes(second)
	file(second)
	// Somebody says that it is not to be used any more.
	retire := func(key string) {
		t.Helper()
		n, err := datastore.Get[*datastore.Node](t.Context(), w.db(), "n1")
		if err == nil {
			n.Spec.RetiredKey = key
			err = datastore.Update(t.Context(), w.db(), n)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	retire(second)
	third := w.ownKey(func(key string) bool { return key != second })
	w.takes(third)
	file(third)
	// Somebody writes another one into the file.
	other := kernel.WireGuardKey{8, 31: 64}
	if err := os.WriteFile(path, []byte(base64.StdEncoding.EncodeToString(other[:])+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fourth := w.ownKey(func(key string) bool { return key != third })
	w.takes(fourth)
	if fourth != publicKey(other) {
		t.Errorf("took %s, not what was written", fourth)
	}
	third = fourth
	// What is no key is said, and the device keeps what it has.
	if err := datastore.WriteFile(path, []byte("open sesame\n"), datastore.FileOptions{}); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if p := strings.Join(w.status().Problems, "\n"); !strings.Contains(p, path+": not a key in base64 of 32 bytes") || !strings.Contains(p, "remove it for a new one") {
			return "problems: " + p
		}
		return ""
	})
	w.takes(third)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	w.takes(w.ownKey(func(key string) bool { return key != third }))
	w.until(func() string { return strings.Join(w.status().Problems, "\n") })
}

// TestWireGuardPeers: they are the other nodes, each with its addresses, its blocks and
// what it has in blocks of others; they come, change and go one by one.
func TestWireGuardPeers(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapWireGuard)
	w.start()
	w.ready()
	w.ownKey(func(string) bool { return true })
	two, three := secureNode("n2", "192.168.99.103/24", wgKey(2)), secureNode("n3", "fd00:99::104/64", wgKey(3))
	w.create(two)
	w.create(three)
	w.create(&datastore.Node{Metadata: datastore.Metadata{Name: "plain"}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("192.168.99.105/24")}}})
	w.peered("2 192.168.99.103:51820 [192.168.99.103/32]", "3 [fd00:99::104]:51820 [fd00:99::104/128]")
	if d, _ := w.links.Tunnel("wg.netctl"); d.MTU != 1420 {
		t.Errorf("MTU %d with a node that is reached over IPv6", d.MTU)
	}
	b := wgBlock("10.0.2.0/26", "n2", "n3")
	w.create(b)
	w.peered("2 192.168.99.103:51820 [10.0.2.0/26 192.168.99.103/32]", "3 [fd00:99::104]:51820 [10.0.2.5/32 fd00:99::104/128]")
	// A change of one writes no other.
	_, before := w.links.Peers("wg.netctl")
	w.create(wgBlock("10.0.2.64/26", "n2", ""))
	w.peered("2 192.168.99.103:51820 [10.0.2.0/26 10.0.2.64/26 192.168.99.103/32]", "3 [fd00:99::104]:51820 [10.0.2.5/32 fd00:99::104/128]")
	if _, after := w.links.Peers("wg.netctl"); after != before+1 {
		t.Errorf("%d peers were written for a block of one", after-before)
	}
	// Who takes over a block gets its addresses, and what is given back is nobody's.
	b.Spec.Affinity, b.Spec.Allocations = "n3", nil
	if err := datastore.Update(t.Context(), w.db(), b); err != nil {
		t.Fatal(err)
	}
	w.peered("2 192.168.99.103:51820 [10.0.2.64/26 192.168.99.103/32]", "3 [fd00:99::104]:51820 [10.0.2.0/26 fd00:99::104/128]")
	// A network behind endpoints of both, which should not be, is the one's that still has it.
	vpn := func(node string) *datastore.Endpoint {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: node + "/manual/vpn/eth0"}}
		e.Spec = datastore.EndpointSpec{
			Node: node, Orchestrator: "manual", Workload: "vpn", Interface: "eth0", Network: "vpn", Link: datastore.LinkName("nc", e.Metadata.Name),
			Addresses: []netip.Addr{netip.MustParseAddr("10.0.2.70")}, AllowedPrefixes: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")},
		}
		e.SetDefaults()
		return e
	}
	w.create(vpn("n2"))
	w.peered("2 192.168.99.103:51820 [10.0.2.64/26 10.9.0.0/24 192.168.99.103/32]", "3 [fd00:99::104]:51820 [10.0.2.0/26 fd00:99::104/128]")
	other := vpn("n3")
	w.create(other)
	w.peered("2 192.168.99.103:51820 [10.0.2.64/26 192.168.99.103/32]", "3 [fd00:99::104]:51820 [10.0.2.0/26 10.9.0.0/24 fd00:99::104/128]")
	if err := datastore.Delete(t.Context(), w.db(), other); err != nil {
		t.Fatal(err)
	}
	w.peered("2 192.168.99.103:51820 [10.0.2.64/26 10.9.0.0/24 192.168.99.103/32]", "3 [fd00:99::104]:51820 [10.0.2.0/26 fd00:99::104/128]")
	if err := datastore.Delete(t.Context(), w.db(), vpn("n2")); err != nil {
		t.Fatal(err)
	}
	// Another key of a node is another peer.
	key := wgKey(4)
	three.Status.Tunnels[0].Key = base64.StdEncoding.EncodeToString(key[:])
	if err := datastore.Update(t.Context(), w.db(), three); err != nil {
		t.Fatal(err)
	}
	w.peered("2 192.168.99.103:51820 [10.0.2.64/26 192.168.99.103/32]", "4 [fd00:99::104]:51820 [10.0.2.0/26 fd00:99::104/128]")
	// A device that somebody removes is made again with its peers.
	w.links.LoseTunnel("wg.netctl")
	w.peered("2 192.168.99.103:51820 [10.0.2.64/26 192.168.99.103/32]", "4 [fd00:99::104]:51820 [10.0.2.0/26 fd00:99::104/128]")
	// What changed while the agent was away is made up for.
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	b.Spec.Affinity = "n2"
	err := datastore.Update(t.Context(), w.db(), b)
	if err == nil {
		err = datastore.Delete(t.Context(), w.db(), three)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.peered("2 192.168.99.103:51820 [10.0.2.0/26 10.0.2.64/26 192.168.99.103/32]")
	if p := w.status().Problems; len(p) > 0 {
		t.Errorf("problems %q", p)
	}
}

// TestWireGuardHandshake: others are told to send by the tunnel once peers have answered;
// of two nodes one asks, and again if it hears nothing.
func TestWireGuardHandshake(t *testing.T) {
	w := newTunnelWorld(t)
	written := func() int {
		_, n := w.links.Peers("wg.netctl")
		return n
	}
	w.links.Silent = func(kernel.WireGuardKey) bool { return written() < 3 } // until one is asked again
	w.create(secureNode("n2", "192.168.99.103/24", wgKey(2)))
	w.create(secureNode("n0", "192.168.99.104/24", wgKey(3)))
	w.encap("10.0.0.0/16", datastore.EncapWireGuard)
	w.start()
	w.ready()
	w.until(func() string {
		n, err := datastore.Get[*datastore.Node](t.Context(), w.db(), "n1")
		if err != nil {
			return err.Error()
		}
		end, _ := n.TunnelOf(datastore.TunnelWireGuard)
		if end.Key == "" || end.Pending {
			return fmt.Sprintf("tells %+v", end)
		}
		return ""
	})
	if written() < 3 {
		t.Error("others are told to send before peers have answered, or those were not asked again")
	}
	peers, _ := w.links.Peers("wg.netctl")
	if len(peers) != 2 || !peers[0].Asks || peers[1].Asks {
		t.Errorf("n1 asks n2 and is asked by n0: %+v", peers)
	}
}
