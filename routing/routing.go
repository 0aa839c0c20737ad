// Package routing owns the words of routing and every decision about routes
// that needs no kernel and no peer: what a route is, which changes turn one set
// of routes into another, which kernel routes a node announces, which announced
// prefixes it believes, and who its peers are.
//
// It never touches a kernel (routing/fib does), never speaks BGP (routing/bgp
// does) and keeps no state.
//
// Invariants: prefixes are masked; a blackhole has no next hops and a unicast
// route has at least one; a route is known by its prefix and metric.
package routing

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netctl/datastore"
)

// The protocol numbers that mark netctl's routes in the kernel, unless the
// configuration says otherwise. Each role changes routes of its own only.
const (
	ProtocolAgent   = 87 // endpoint routes, block blackholes, gateway routes
	ProtocolSpeaker = 88 // what peers announced
)

// CheckProtocols refuses protocol numbers that the kernel uses itself, that do
// not fit, or that are equal.
func CheckProtocols(agent, speaker int) error {
	for _, p := range []int{agent, speaker} {
		if p < 5 || p > 255 {
			return fmt.Errorf("route protocol %d: not between 5 and 255 (0 to 4 are the kernel's own)", p)
		}
	}
	if agent == speaker {
		return fmt.Errorf("route protocol %d: agent and speaker need different numbers", agent)
	}
	return nil
}

// ProtocolName is the name of a protocol number as `ip route` prints it with
// the names netctl installs in /etc/iproute2/rt_protos.d.
func ProtocolName(p int) string {
	switch p {
	case ProtocolAgent:
		return "netctl"
	case ProtocolSpeaker:
		return "netctl-bgp"
	}
	return strconv.Itoa(p)
}

// SpeakerMetric is the metric of the speaker's route to p: above the one that
// the agent's have, so that an endpoint of this node wins over what a peer says
// of the same address.
func SpeakerMetric(p netip.Prefix) int {
	const behind = 32
	if p.Addr().Is4() {
		return behind
	}
	return 1024 + behind
}

// Type says what a route does with a packet.
type Type uint8

// The types netctl writes.
const (
	Unicast   Type = iota // forward to a next hop
	Blackhole             // drop without an answer
)

// NextHop is where a packet goes next.
type NextHop struct {
	// Addr is the gateway; invalid: the destination itself is on Link.
	Addr netip.Addr
	// Link is the name of the outgoing interface.
	Link string
	// Onlink takes Addr as reachable on Link whatever the connected subnets say.
	Onlink bool
}

// Route is one route of a table. Its protocol is that of the table it is
// read from or written to; its scope follows from the next hops, as with
// `ip route`: link without a gateway, else global.
type Route struct {
	Prefix netip.Prefix
	Type   Type
	// Object is the next-hop object that the kernel's route names; 0: it has its next
	// hops itself. It is read, not asked for.
	Object   uint32
	NextHops []NextHop
	// Metric is the priority; 0 is the kernel's default of the family (0 for
	// IPv4, 1024 for IPv6).
	Metric int
	// MTU is that of the way, in bytes; 0: that of the link.
	MTU int
	// Source is the address that packets of this machine's own leave with, of the
	// prefix's family; invalid: the kernel's choice.
	Source netip.Addr
}

// Key is what a route is known by.
type Key struct {
	Prefix netip.Prefix
	Metric int
}

// Key returns what r is known by.
func (r Route) Key() Key { return Key{r.Prefix, r.Metric} }

// Equal says whether both routes do the same; the order of next hops does not
// matter.
func (r Route) Equal(o Route) bool {
	return r.Key() == o.Key() && r.Type == o.Type && r.MTU == o.MTU && r.Source == o.Source && slices.Equal(sorted(r.NextHops), sorted(o.NextHops))
}

func sorted(hops []NextHop) []NextHop {
	if len(hops) < 2 {
		return hops
	}
	hops = slices.Clone(hops)
	slices.SortFunc(hops, CompareNextHops)
	return hops
}

// CompareNextHops orders next hops by address, then link.
func CompareNextHops(a, b NextHop) int {
	if c := a.Addr.Compare(b.Addr); c != 0 {
		return c
	}
	return cmp.Compare(a.Link, b.Link)
}

// Compare orders routes by prefix (IPv4 first, then address, then length), then
// metric.
func Compare(a, b Route) int {
	if c := ComparePrefixes(a.Prefix, b.Prefix); c != 0 {
		return c
	}
	return cmp.Compare(a.Metric, b.Metric)
}

// ComparePrefixes orders prefixes by family, address and length.
func ComparePrefixes(a, b netip.Prefix) int { return datastore.ComparePrefix(a, b) }

// String prints the route as `ip route` does, without protocol and scope.
func (r Route) String() string {
	var b strings.Builder
	if r.Type == Blackhole {
		b.WriteString("blackhole ")
	}
	b.WriteString(destination(r.Prefix))
	if len(r.NextHops) == 1 {
		b.WriteString(" " + r.NextHops[0].Of(r.Prefix))
	}
	if r.Source.IsValid() {
		fmt.Fprintf(&b, " src %s", r.Source)
	}
	if r.Metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.MTU != 0 {
		fmt.Fprintf(&b, " mtu %d", r.MTU)
	}
	if len(r.NextHops) > 1 {
		for _, h := range sorted(r.NextHops) {
			b.WriteString(" nexthop " + h.Of(r.Prefix))
		}
	}
	return b.String()
}

// String prints the next hop as `ip route` does for a prefix of its family.
func (h NextHop) String() string { return h.text("via") }

// Of prints the next hop of a prefix as `ip route` does.
func (h NextHop) Of(p netip.Prefix) string {
	if h.Addr.Is6() && p.Addr().Is4() {
		return h.text("via inet6")
	}
	return h.text("via")
}

func (h NextHop) text(via string) string {
	var parts []string
	if h.Addr.IsValid() {
		parts = append(parts, via, h.Addr.String())
	}
	if h.Link != "" {
		parts = append(parts, "dev", h.Link)
	}
	if h.Onlink {
		parts = append(parts, "onlink")
	}
	return strings.Join(parts, " ")
}

func destination(p netip.Prefix) string {
	if p.Bits() == 0 {
		return "default"
	}
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
