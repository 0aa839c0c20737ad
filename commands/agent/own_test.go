package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev/kernel"
	"netctl/netdev/netlab"
)

// knownAs waits until the node is registered with addresses and its status says
// exactly one problem that begins so; "": none.
func (w *world) knownAs(addresses, problem string) {
	w.t.Helper()
	w.until(func() string {
		n, err := datastore.Get[*datastore.Node](w.t.Context(), w.store, "n1")
		if err != nil {
			return err.Error()
		}
		if got := fmt.Sprint(n.Spec.Addresses); got != "["+addresses+"]" {
			return "registered: " + got
		}
		got := w.status().Problems
		if problem == "" && len(got) > 0 || problem != "" && (len(got) != 1 || !strings.HasPrefix(got[0], problem)) {
			return fmt.Sprint("problems: ", got)
		}
		return ""
	})
}

// TestOwnAddressGoes: others are told of another address, and people that the one
// they know is gone.
func TestOwnAddressGoes(t *testing.T) {
	eth1, six, eth0 := on("eth1", "192.168.99.102/24"), on("eth1", "fd00:99::102/64"), on("eth0", "192.168.1.5/24")
	w := newWorld(t)
	w.links.SetAddresses(eth1, six)
	w.start()
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "")

	// Renumbered: what is on the same interface takes its place.
	w.links.SetAddresses(on("eth1", "192.168.99.112/24"), six)
	w.knownAs("192.168.99.112/24 fd00:99::102/64", "")
	w.links.SetAddresses(eth1, on("eth1", "192.168.99.112/24"), six, on("eth2", "10.7.0.1/24"))
	w.until(func() string {
		n, err := datastore.Get[*datastore.Node](t.Context(), w.store, "n1")
		if err != nil || len(n.Status.Subnets) != 3 || n.Status.Model != datastore.ModelVersion {
			return fmt.Sprint(n, err)
		}
		return ""
	})
	w.knownAs("192.168.99.112/24 fd00:99::102/64", "")
	w.links.SetAddresses(eth1, six)
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "")

	w.links.SetAddresses(eth0, six)
	w.knownAs("192.168.1.5/24 fd00:99::102/64", "IPv4 address: 192.168.99.102 is gone from eth1, other nodes know this one by 192.168.1.5 now: add it again")
	w.links.SetAddresses(eth0, six, eth1)
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "")

	w.links.SetAddresses(six)
	w.knownAs("fd00:99::102/64", "IPv4 address: 192.168.99.102 is gone from eth1, other nodes reach this one by the other family alone: add it again")
	w.links.SetAddresses(eth1, six)
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "")

	// Nothing is left to be told: the registration stays, also when the agent starts anew.
	w.links.SetAddresses(eth1)
	w.knownAs("192.168.99.102/24", "IPv6 address: fd00:99::102 is gone")
	w.links.SetAddresses()
	gone := "IPv4 address: 192.168.99.102 is on no interface any more, and other nodes know this one by it: add it again"
	said := func() string {
		if got := w.status().Problems; !slices.Contains(got, gone) {
			return fmt.Sprint(got)
		}
		return ""
	}
	w.until(said)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.until(said)
	w.knownAs("192.168.99.102/24", gone)
	w.links.SetAddresses(eth1)
	w.knownAs("192.168.99.102/24", "")
}

// stuckStore does not take the node while it is stuck, and counts the tries.
type stuckStore struct {
	datastore.Store
	stuck *atomic.Bool
	tries *atomic.Int32
}

func (s stuckStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if slices.ContainsFunc(t.Then, func(op datastore.Op) bool { return op.Key == "/netctl/v1/nodes/n1" }) && s.stuck.Load() {
		s.tries.Add(1)
		return 0, fmt.Errorf("write: %w: the connection broke", datastore.ErrUnavailable)
	}
	return s.Store.Commit(ctx, t)
}

// TestOwnAddressStuck: until others are told of the new address it is said that they
// know the old one, and telling them is tried again.
func TestOwnAddressStuck(t *testing.T) {
	w := newWorld(t)
	stuck, tries := &atomic.Bool{}, &atomic.Int32{}
	w.wrap = func(s datastore.Store) datastore.Store { return stuckStore{s, stuck, tries} }
	w.start()
	w.knownAs("192.168.99.102/24", "")
	stuck.Store(true)
	w.links.SetAddresses(on("eth1", "192.168.99.78/24"))
	w.until(func() string {
		if n := tries.Load(); n < 2 {
			return fmt.Sprint(n, " tries")
		}
		return ""
	})
	w.knownAs("192.168.99.102/24", "IPv4 address: 192.168.99.102 is on no interface any more, and other nodes know this one by it until it is registered with another one: 192.168.99.78")
	stuck.Store(false)
	w.knownAs("192.168.99.78/24", "")
}

// TestConfiguredAddressGoes: it is said at once, whether or not the store answers.
func TestConfiguredAddressGoes(t *testing.T) {
	w := newWorld(t)
	w.cfg.Addresses = []netip.Addr{netip.MustParseAddr("192.168.99.102")}
	w.start()
	w.knownAs("192.168.99.102/24", "")
	_ = w.a.loop.do(t.Context(), func() { w.a.loop.standing.part(datastore.ErrUnavailable) })
	w.links.SetAddresses(on("eth1", "192.168.99.7/24"))
	w.knownAs("192.168.99.102/24", "IPv4 address: 192.168.99.102 is on no interface any more, and other nodes know this one by it: add it again, or correct agent.addresses")
	w.links.SetAddresses(on("eth1", "192.168.99.102/24"))
	w.knownAs("192.168.99.102/24", "")
}

// TestWhyTheAddressIsOfNoUse: that its interface is down, or IPv6 switched off, is said.
func TestWhyTheAddressIsOfNoUse(t *testing.T) {
	eth1, six := on("eth1", "192.168.99.102/24"), on("eth1", "fd00:99::102/64")
	w := newWorld(t)
	w.links.SetAddresses(eth1, six)
	off := atomic.Bool{}
	w.links.Fail = func(op, link string) error {
		if op == "ipv6" && link == "eth1" && off.Load() {
			return errors.New("net.ipv6.conf.all.disable_ipv6")
		}
		return nil
	}
	w.start()
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "")
	off.Store(true)
	w.links.SetAddresses(eth1)
	w.knownAs("192.168.99.102/24", "IPv6 address: fd00:99::102 is gone, as net.ipv6.conf.all.disable_ipv6 is 1: `sysctl -w net.ipv6.conf.all.disable_ipv6=0`")
	w.links.SetAddresses(eth1, six)
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "")
	down := eth1
	down.Down = true
	w.links.SetAddresses(down, six)
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "IPv4 address: 192.168.99.102 is on eth1, which is down: `ip link set eth1 up`")
	w.links.SetAddresses(eth1, six)
	w.knownAs("192.168.99.102/24 fd00:99::102/64", "")
}

// TestVirtualAddress: one that came later does not become the node's when the agent
// starts anew.
func TestVirtualAddress(t *testing.T) {
	six, virtual := on("eth1", "fd00:99::102/64"), on("eth1", "fd00:99::f0/64")
	w := newWorld(t)
	w.links.SetAddresses(six)
	w.start()
	w.knownAs("fd00:99::102/64", "")
	w.links.SetAddresses(virtual, six)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.knownAs("fd00:99::102/64", "")
}

// TestMTUOfLo: an address on lo has no MTU of its own.
func TestMTUOfLo(t *testing.T) {
	lo := kernel.Address{Prefix: netip.MustParsePrefix("10.255.0.1/32"), Link: "lo", Index: 1, Loopback: true}
	a, b, c := on("eth0", "192.168.1.5/24"), on("eth1", "192.168.99.102/24"), on("wg0", "10.9.0.1/24")
	lo.MTU, a.MTU, b.MTU, c.MTU = 65536, 9000, 1500, 1420
	k := newLinks(nil)
	k.addrs = []kernel.Address{lo, a, b, c}
	for want, own := range map[int]kernel.Address{1500: lo, 9000: a, 1420: c, 0: on("eth9", "10.1.1.1/24")} {
		if got := k.uplink([]netip.Prefix{own.Prefix}).MTU; got != want {
			t.Errorf("of %s: %d, want %d", own.Link, got, want)
		}
	}
}

// ownAddressGone takes the host's address away and gives it back.
func ownAddressGone(t *testing.T, s *site) {
	four := s.node.Addr.String()
	says := func(problem string, addresses ...string) {
		t.Helper()
		s.until("address "+fmt.Sprint(addresses), func() string {
			n, err := datastore.Get[*datastore.Node](t.Context(), s.store, "node1")
			if err != nil {
				return err.Error()
			}
			var now []string
			for _, p := range n.Spec.Addresses {
				now = append(now, p.String())
			}
			got := s.status().Problems
			if !slices.Equal(now, addresses) || len(got) > 1 || len(got) == 1 && (problem == "" || !strings.HasPrefix(got[0], problem)) || len(got) == 0 && problem != "" {
				return fmt.Sprint(now, got)
			}
			return ""
		})
	}
	six := s.node.Addr6.String()
	says("", four, six)
	netlab.Must(t, s.node, "ip", "addr", "del", four, "dev", "eth1")
	says("IPv4 address: "+s.node.Addr.Addr().String()+" is gone from eth1", six)
	netlab.Must(t, s.node, "ip", "addr", "add", four, "dev", "eth1")
	says("", four, six)
	// A virtual address that comes first in the kernel's list, and a new start.
	netlab.Must(t, s.node, "ip", "addr", "add", "fd00:99::f0/64", "dev", "eth1", "nodad")
	s.kill(unix.SIGTERM)
	says("", four, six)
	netlab.Must(t, s.node, "ip", "addr", "del", "fd00:99::f0/64", "dev", "eth1")
}
