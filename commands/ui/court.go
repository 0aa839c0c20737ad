package ui

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"netctl/acl"
	"netctl/datastore"
)

// here is the node that endpoints are judged on, which no node of a cluster is called.
const here = "\x00"

// court holds the rules of some endpoints as if all were on one node: what leaves one is
// judged as on its own node, what reaches another as on that one's.
type court struct {
	*cluster
	rules *acl.Judge
	links map[string]string // of the endpoints that may be judged
}

// group is the device group of endpoints' links here.
const group = 1

func (c *cluster) court(names []string) *court {
	x := acl.NewIndex(here, acl.Options{LinkPrefix: "nc", Group: group})
	t := &court{cluster: c, links: map[string]string{}}
	for _, name := range names {
		if name != "" && t.links[name] == "" {
			t.links[name] = "nc" + strconv.Itoa(len(t.links))
		}
	}
	for _, o := range c.others {
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	for name, p := range c.profiles {
		x.Apply(datastore.Change{Kind: datastore.KindProfile, Name: name, New: p})
	}
	delete(t.links, World) // it is nobody's
	for name, e := range c.endpoints {
		if name == World {
			continue
		}
		if link := t.links[name]; link != "" {
			own := *e
			own.Spec.Node, own.Spec.Link = here, link
			e = &own
		}
		x.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: name, New: e})
	}
	for x.Work() { // until every selector has its members
	}
	t.rules = x.Ruleset().Judge()
	return t
}

// Judged is traffic of one kind, and what decided about it at both ends.
type Judged struct {
	Family string `json:"family"`
	// Traffic is a protocol with its ports at the receiver, like "tcp 80,443".
	Traffic  string `json:"traffic"`
	Allowed  bool   `json:"allowed"`
	Outbound Ruling `json:"outbound"`
	Inbound  Ruling `json:"inbound"`

	protocol string
	ports    string
}

// Ruling is what one end decided, and by which rule.
type Ruling struct {
	Allowed bool   `json:"allowed"`
	Rule    string `json:"rule"`
}

// clientPort is where what is judged comes from: one that clients send from.
const clientPort = 40000

// judge judges everything that rules may tell apart between two endpoints.
func (t *court) judge(from, to string) ([]Judged, Verdict) {
	var list []Judged
	a, b := t.endpoints[from], t.endpoints[to]
	kinds := t.traffic(a, b)
	for _, v6 := range []bool{false, true} {
		src, dst := address(a, v6), address(b, v6)
		if !src.IsValid() || !dst.IsValid() {
			continue
		}
		for _, k := range kinds {
			if k.is4 && v6 || k.is6 && !v6 {
				continue
			}
			p := k.packet
			p.Src, p.Dst, p.State = src, dst, acl.New
			list = add(list, t.one(p, k, t.links[from], t.links[to]))
		}
	}
	allowed := 0
	for _, j := range list {
		if j.Allowed {
			allowed++
		}
	}
	switch {
	case len(list) == 0:
		return list, Apart
	case allowed == 0:
		return list, None
	case allowed == len(list):
		return list, All
	}
	return list, Some
}

// one judges a packet where it leaves and where it arrives.
func (t *court) one(p acl.Packet, k kind, from, to string) Judged {
	out, in := p, p
	out.InLink, out.InGroup, out.OutLink = from, group, "away"
	in.InLink, in.OutLink, in.OutGroup = "away", to, group
	j := Judged{Family: "IPv4", protocol: k.protocol, ports: k.ports, Outbound: Ruling{Allowed: true}, Inbound: Ruling{Allowed: true}}
	if from != "" { // else nobody's rules are asked
		j.Outbound = ruling(t.rules.Eval(out))
	}
	if to != "" {
		j.Inbound = ruling(t.rules.Eval(in))
	}
	if p.Src.Is6() {
		j.Family = "IPv6"
	}
	j.Allowed = j.Outbound.Allowed && j.Inbound.Allowed
	j.Traffic = strings.TrimSpace(j.protocol + " " + j.ports)
	return j
}

func ruling(d acl.Decision) Ruling {
	r := Ruling{Allowed: d.Allowed, Rule: d.Reason}
	if r.Rule == "" {
		r.Rule = fmt.Sprintf("chain %s, rule %d", d.Chain, d.Rule)
	}
	return r
}

// add appends j, or its ports to traffic of the same protocol that was decided alike.
func add(list []Judged, j Judged) []Judged {
	i := slices.IndexFunc(list, func(o Judged) bool {
		return j.ports != "" && o.Family == j.Family && o.protocol == j.protocol && o.Outbound == j.Outbound && o.Inbound == j.Inbound
	})
	if i < 0 {
		return append(list, j)
	}
	o := &list[i]
	o.ports = joinPorts(o.ports, j.ports)
	o.Traffic = strings.TrimSpace(o.protocol + " " + o.ports)
	return list
}

// joinPorts appends a range to a list of them, as one with the last if they touch; the
// whole range is "".
func joinPorts(list, next string) string {
	head, last := "", list
	if i := strings.LastIndexByte(list, ','); i >= 0 {
		head, last = list[:i+1], list[i+1:]
	}
	f, l := ends(last)
	nf, nl := ends(next)
	if l+1 != nf {
		return list + "," + next
	}
	return head + portRange(f, nl)
}

func ends(s string) (first, last int) {
	a, b, ok := strings.Cut(s, ":")
	first, _ = strconv.Atoi(a)
	last = first
	if ok {
		last, _ = strconv.Atoi(b)
	}
	return first, last
}

// portRange is a range as rules have it.
func portRange(first, last int) string {
	if first == last {
		return strconv.Itoa(first)
	}
	return fmt.Sprintf("%d:%d", first, last)
}

// sum is a cell of what was judged.
func sum(list []Judged, v Verdict) Cell {
	c := Cell{Verdict: v}
	if v != Some {
		return c
	}
	var words []string
	for _, j := range list {
		if !j.Allowed {
			continue
		}
		other := func(o Judged) bool { return o.Allowed && o.Traffic == j.Traffic && o.Family != j.Family }
		one := slices.ContainsFunc(list, func(o Judged) bool { return o.Family != j.Family })
		switch {
		case slices.ContainsFunc(list, other) || !one || strings.HasPrefix(j.Traffic, "icmp"):
			words = append(words, j.Traffic)
		default:
			words = append(words, j.Traffic+" ("+j.Family+")")
		}
	}
	slices.Sort(words)
	c.Open = strings.Join(slices.Compact(words), "; ")
	return c
}

func address(e *datastore.Endpoint, v6 bool) netip.Addr {
	for _, a := range e.Spec.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

func families(e *datastore.Endpoint) string {
	return fmt.Sprint(address(e, false).IsValid(), address(e, true).IsValid())
}
