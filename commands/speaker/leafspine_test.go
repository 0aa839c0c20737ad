package speaker

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// leafSpine is a fabric of links without addresses: leaves that run netctl, each in an AS of
// its rack and with one container of each family, and two spines that are FRR.
type leafSpine struct {
	*rig
	leaves []*netctlNode
	spines []*netlab.Host
	// from are the leaves' containers, at[leaf][spine] the addresses of both ends' links.
	from, from6 []*netlab.Container
	leafAt      [][]string
	spineAt     [][]string
}

// spineAS is the AS number of both spines.
const spineAS = 65000

// newLeafSpine starts everything; change says what else a leaf's peers have, and more what
// FRR's have, for each LINK.
func newLeafSpine(t *testing.T, leaves int, change func(*datastore.PeerSpec), more string) *leafSpine {
	t.Helper()
	r := newRig(t, netlab.Options{Nodes: leaves + 2})
	x := &leafSpine{rig: r, spines: r.lab.Hosts[leaves:]}
	r.pool("10.65.0.0/16")
	r.pool("fd80:24e2:f998:72d6::/64")
	mesh := false
	if _, err := datastore.Modify(r.ctx, r.store, datastore.DefaultName, func(c *datastore.BGPConfig) error { c.Spec.Mesh = &mesh; return nil }); err != nil {
		t.Fatal(err)
	}
	r.create(atLink("up*", change))
	var links []string
	for i, h := range r.lab.Hosts[:leaves] {
		links = append(links, fmt.Sprintf("swp%d", i+1))
		x.leafAt, x.spineAt = append(x.leafAt, nil), append(x.spineAt, nil)
		for j, spine := range x.spines {
			a, b := cable(t, 16*(j+1)+i, h, fmt.Sprintf("up%d", j+1), spine, links[i])
			x.leafAt[i], x.spineAt[i] = append(x.leafAt[i], a), append(x.spineAt[i], b)
		}
		n := r.node(h)
		if _, err := datastore.Modify(r.ctx, r.store, h.Name, func(n *datastore.Node) error { n.Spec.AS = uint32(65101 + i); return nil }); err != nil {
			t.Fatal(err)
		}
		n.block(x.block(i))
		n.block(x.block6(i))
		x.leaves = append(x.leaves, n)
		x.from = append(x.from, n.endpoint(fmt.Sprintf("c%d", i), x.container(i)))
		x.from6 = append(x.from6, n.endpoint(fmt.Sprintf("d%d", i), x.container6(i)))
	}
	for _, spine := range x.spines {
		unnumberedFRR(t, spine, spineAS, links, nil, more)()
	}
	return x
}

func (x *leafSpine) block(leaf int) string { return fmt.Sprintf("10.65.%d.0/26", leaf) }
func (x *leafSpine) block6(leaf int) string {
	return fmt.Sprintf("fd80:24e2:f998:72d6::%d00/122", leaf+1)
}
func (x *leafSpine) container(leaf int) string { return fmt.Sprintf("10.65.%d.5", leaf) }
func (x *leafSpine) container6(leaf int) string {
	return fmt.Sprintf("fd80:24e2:f998:72d6::%d05", leaf+1)
}

// carried waits until every leaf has exactly the others' blocks, over these spines.
func (x *leafSpine) carried(spines ...int) {
	x.t.Helper()
	for i, n := range x.leaves {
		var want []string
		for j := range x.leaves {
			if j == i {
				continue
			}
			var via, hops []string
			for _, s := range spines {
				via = append(via, fmt.Sprintf("via inet6 %s dev up%d", x.spineAt[i][s], s+1))
			}
			for _, v := range via {
				hops = append(hops, "nexthop "+v+" weight 1")
			}
			// Links without addresses have none to send from but the node's.
			src := " src " + n.host.Addr.Addr().String()
			route, route6 := x.block(j)+src+" metric 32 "+strings.Join(hops, " "), x.block6(j)+" metric 1056 pref medium "+strings.Join(hops, " ")
			if len(via) == 1 {
				route, route6 = x.block(j)+" "+via[0]+src+" metric 32", x.block6(j)+" "+via[0]+" metric 1056 pref medium"
			}
			want = append(want, route, strings.ReplaceAll(route6, "via inet6", "via"))
		}
		slices.Sort(want)
		netlab.Until(x.t, 30*time.Second, fmt.Sprintf("%s reaches the other racks over spines %v", n.host.Name, spines), func() string {
			got := learnt(x.t, n.host, "88")
			for k, l := range got { // a group of one is shown in the other way
				if head, hop, one := strings.Cut(l, " nexthop "); one && !strings.Contains(hop, "nexthop") {
					prefix, rest, _ := strings.Cut(head, " ")
					got[k] = prefix + " " + strings.TrimSuffix(hop, " weight 1") + " " + rest
				}
			}
			if !slices.Equal(got, want) {
				return fmt.Sprintf("has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			return ""
		})
	}
}

// reached has every container ping those of the other racks.
func (x *leafSpine) reached() {
	x.t.Helper()
	for i := range x.leaves {
		for j := range x.leaves {
			if i != j {
				netlab.Must(x.t, x.from[i], "ping", "-n", "-c1", "-W5", x.container(j))
				netlab.Must(x.t, x.from6[i], "ping", "-n", "-c1", "-W5", x.container6(j))
			}
		}
	}
}

// way is the spine that packets of the first rack's container to the second's go over.
func (x *leafSpine) way() int {
	x.t.Helper()
	out := netlab.Must(x.t, x.leaves[0].host, "ip", "route", "get", x.container(1), "from", x.container(0), "iif", "ncc0")
	for s := range x.spines {
		if strings.Contains(out, fmt.Sprintf(" dev up%d ", s+1)) {
			return s
		}
	}
	x.t.Fatal(out)
	return 0
}

// freeze takes a spine's packets away, in and out, with its links up: as a machine that
// hangs. thaw ends that.
func (x *leafSpine) freeze(spine int) {
	x.t.Helper()
	netlab.Must(x.t, x.spines[spine], "nft", "add table netdev dead; add chain netdev dead in { type filter hook ingress devices = { swp1, swp2, swp3 } priority 0; policy drop; }; "+
		"add table inet dead; add chain inet dead out { type filter hook output priority 0; policy drop; }")
}

func (x *leafSpine) thaw(spine int) {
	x.t.Helper()
	netlab.Must(x.t, x.spines[spine], "nft", "delete table netdev dead; delete table inet dead")
}

// death has a spine that carries packets die in a way, and waits until the leaves go over
// the other one. What is lost until then is logged, what is after that must be nothing.
func (x *leafSpine) death(what string, die func(spine int)) (spine int, lost time.Duration) {
	const interval = 2 * time.Millisecond
	spine = x.way()
	x.sub(what, func(t *testing.T) {
		to := netip.MustParseAddr(x.container(1))
		flood, err := netlab.StartFlood(x.from[0], to, interval)
		if err != nil {
			t.Fatal(err)
		}
		netlab.Until(t, 10*time.Second, "packets go", func() string {
			if n := flood.Answered(); n < 50 {
				return fmt.Sprintf("%d answers", n)
			}
			return ""
		})
		die(spine)
		x.carried(1 - spine)
		after, err := netlab.StartFlood(x.from[2], to, interval)
		if err != nil {
			t.Fatal(err)
		}
		result := flood.Stop()
		netlab.Until(t, 10*time.Second, "packets go", func() string {
			if n := after.Answered(); n < 100 {
				return fmt.Sprintf("%d answers", n)
			}
			return ""
		})
		lost = time.Duration(len(result.Lost)) * interval
		t.Logf("spine %d: %s, which is %v", spine+1, result, lost)
		if result := after.Stop(); len(result.Lost) > 0 {
			t.Errorf("lost when the leaves had turned away: %s", result)
		}
		x.reached()
	})
	return spine, lost
}

// TestLeafSpine: three racks behind two spines, both of which carry; then a spine loses its
// power and comes back. `make test-all` (NETCTL_FLOOD) has one hang too, with its links up,
// which is noticed by the hold time.
func TestLeafSpine(t *testing.T) {
	everything := os.Getenv("NETCTL_FLOOD") != ""
	x := newLeafSpine(t, 3, func(s *datastore.PeerSpec) {
		if everything {
			s.HoldTime = new(3)
		}
	}, "")
	x.carried(0, 1)
	x.settle(2)
	x.reached()
	dark, _ := x.death("a spine loses its power", func(spine int) {
		for i := range x.leaves {
			netlab.Must(x.t, x.spines[spine], "ip", "link", "set", fmt.Sprintf("swp%d", i+1), "down")
		}
	})
	for i := range x.leaves {
		netlab.Must(t, x.spines[dark], "ip", "link", "set", fmt.Sprintf("swp%d", i+1), "up")
	}
	x.carried(0, 1)
	x.settle(2)
	x.reached()
	if !everything {
		return
	}
	hung, _ := x.death("a spine hangs", x.freeze)
	x.thaw(hung)
	x.carried(0, 1)
	x.settle(2)
}
