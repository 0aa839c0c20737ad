package routing

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
)

// Arrangement is who of all nodes has sessions with whom, and who reflects. It follows
// from the nodes and the BGP configuration alone, so that every node finds the same one.
//
// Nodes of different AS have sessions with each other in every topology: reflection is
// of one AS. Within one they are a mesh, or every node is a client of at least two
// reflectors for each family that it has, and the reflectors are a mesh.
type Arrangement struct {
	members map[string]*member
	nodes   int // with an address
	// reflects says that they are anything but a mesh.
	reflects bool
	// Why says what decided about it.
	Why string
	// Problems are what is wrong with it, with the names of the nodes that say so.
	Problems []ArrangementProblem
}

// ArrangementProblem is one line, and the nodes that it concerns.
type ArrangementProblem struct {
	Text  string
	Nodes []string
}

// member is a node in an arrangement.
type member struct {
	*datastore.Node
	addrs    []netip.Addr
	as       uint32
	zone     string
	has      [2]bool // an address of the family, IPv4 first
	reflects bool
	clients  *datastore.Selector // of a reflector; nil: its zone
	servers  []*member           // of a client, sorted by name
	served   int                 // clients of a reflector
	// alone are the families that nobody of the AS reflects.
	alone [2]bool
}

func (m *member) name() string { return m.Metadata.Name }

// meets says whether both have a family in common.
func (m *member) meets(n *member) bool { return m.has[0] && n.has[0] || m.has[1] && n.has[1] }

// reflectorModel is the first version of the model whose speakers reflect as is planned
// here; 0 is one that did not tell it yet, and they did so before. Whoever changes what a
// reflector must know raises ModelVersion, and this.
const reflectorModel = 0

// mode is whether m is to be a reflector. A node that no agent of netctl has registered
// runs somebody else's speaker, and becomes one only if a person says that it is. One
// that is away or drained, or whose netctl is too old for it, is not chosen.
func (m *member) mode() datastore.ReflectorMode {
	switch r := m.Spec.Reflector; {
	case r != nil && r.Mode != "" && r.Mode != datastore.ReflectorAuto:
		return r.Mode
	case m.Status.Host == "", m.Status.Model < reflectorModel, !m.Status.Away.IsZero(), m.drained():
		return datastore.ReflectorNever
	}
	return datastore.ReflectorAuto
}

func (m *member) drained() bool { return m.Spec.Drain != nil }

// reflect makes m a reflector, for the clients that it is set to have.
func (m *member) reflect() {
	m.reflects = true
	if r := m.Spec.Reflector; r != nil && r.Clients != "" {
		m.clients, _ = datastore.ParseSelector(r.Clients) // checked by Validate
	}
}

// least is how many reflectors of each family a zone and a client have.
const least = 2

// Arrange works out the sessions between nodes.
func Arrange(nodes []*datastore.Node, bgp *datastore.BGPConfig) *Arrangement {
	a := &Arrangement{members: make(map[string]*member, len(nodes))}
	byAS := map[uint32][]*member{}
	for _, n := range nodes {
		m := &member{Node: n, addrs: addresses(n), as: asOf(n, bgp), zone: n.Metadata.Labels[datastore.ZoneLabel]}
		for _, addr := range m.addrs {
			m.has[family(addr)] = true
		}
		a.members[m.name()] = m
		if len(m.addrs) > 0 {
			a.nodes++
			byAS[m.as] = append(byAS[m.as], m)
		}
	}
	t := bgp.Spec.Topology
	switch {
	case t.Mode == datastore.TopologyMesh:
		a.Why = "set to mesh"
		return a
	case t.Mode == datastore.TopologyReflectors:
		a.Why = "set to reflectors"
	case a.nodes <= t.MeshLimit:
		a.Why = fmt.Sprintf("auto: %d nodes, a mesh up to %d", a.nodes, t.MeshLimit)
		return a
	default:
		a.Why = fmt.Sprintf("auto: %d nodes, more than %d", a.nodes, t.MeshLimit)
	}
	for _, as := range slices.Sorted(maps.Keys(byAS)) {
		a.arrange(byAS[as])
	}
	return a
}

func family(addr netip.Addr) int {
	if addr.Is4() {
		return 0
	}
	return 1
}

// arrange makes reflectors and clients of the nodes of one AS.
func (a *Arrangement) arrange(all []*member) {
	for _, m := range all {
		if m.mode() == datastore.ReflectorAlways && !m.drained() {
			m.reflect()
		}
	}
	for _, zone := range zones(all) {
		choose(zone)
	}
	spare(all)
	reflectors := slices.DeleteFunc(slices.Clone(all), func(m *member) bool { return !m.reflects })
	a.reflects = a.reflects || len(reflectors) > 0
	var has [2]int
	for _, r := range reflectors {
		for f, on := range r.has {
			if on {
				has[f]++
			}
		}
	}
	for _, m := range all {
		for f, on := range m.has {
			m.alone[f] = on && has[f] == 0
		}
		if m.reflects {
			continue
		}
		m.servers = serve(m, reflectors)
		for _, r := range m.servers {
			r.served++
		}
	}
	a.judge(all, reflectors, has)
}

// zones are the nodes of each zone, in the order of the zones' names.
func zones(all []*member) [][]*member {
	index := map[string][]*member{}
	for _, m := range all {
		index[m.zone] = append(index[m.zone], m)
	}
	var out [][]*member
	for _, name := range slices.Sorted(maps.Keys(index)) {
		out = append(out, index[name])
	}
	return out
}

// choose makes so many nodes of a zone reflectors that it has two for each family, as
// far as there are willing ones. Those with both families come first, so that they are
// few; else a hash decides, so that a node that comes or goes moves one at most.
func choose(zone []*member) {
	var lacking [2]int
	var willing []*member
	for _, m := range zone {
		for f, on := range m.has {
			if on {
				lacking[f] = least
			}
		}
	}
	for _, m := range zone {
		switch {
		case m.reflects && m.clients == nil:
			for f, on := range m.has {
				if on {
					lacking[f]--
				}
			}
		case !m.reflects && m.mode() == datastore.ReflectorAuto:
			willing = append(willing, m)
		}
	}
	slices.SortFunc(willing, func(x, y *member) int {
		if c := cmp.Compare(len(y.addrs), len(x.addrs)); c != 0 {
			return c
		}
		return rank("", x, y)
	})
	for _, m := range willing {
		if m.has[0] && lacking[0] > 0 || m.has[1] && lacking[1] > 0 {
			m.reflect()
			for f, on := range m.has {
				if on {
					lacking[f]--
				}
			}
		}
	}
}

// spare lets nodes that are drained go on as the reflectors that they are set to be, in a
// family that nobody else reflects.
func spare(all []*member) {
	var has [2]bool
	for _, m := range all {
		for f, on := range m.has {
			has[f] = has[f] || on && m.reflects
		}
	}
	for _, m := range all {
		if m.mode() == datastore.ReflectorAlways && m.drained() && (m.has[0] && !has[0] || m.has[1] && !has[1]) {
			m.reflect()
		}
	}
}

// First is the one of several nodes that is to act on another: all find the same one.
func First(of string, nodes []string) string {
	return slices.MinFunc(nodes, func(x, y string) int {
		return cmp.Or(cmp.Compare(score(of, x), score(of, y)), strings.Compare(x, y))
	})
}

// rank orders two nodes by a hash of their names and a third's.
func rank(of string, x, y *member) int {
	return cmp.Or(cmp.Compare(score(of, x.name()), score(of, y.name())), strings.Compare(x.name(), y.name()))
}

func score(of, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(of + "\x00" + name))
	// FNV's last step leaves names that differ in their last letter close together.
	b := binary.BigEndian.AppendUint64(nil, h.Sum64())
	h.Write(b)
	return h.Sum64()
}

// serve are the reflectors of m: those that are for it, and where that are not two for
// each family, others of its AS.
func serve(m *member, reflectors []*member) []*member {
	var servers []*member
	var lacking [2]int
	for f, on := range m.has {
		if on {
			lacking[f] = least
		}
	}
	add := func(r *member) {
		servers = append(servers, r)
		for f, on := range r.has {
			if on {
				lacking[f]--
			}
		}
	}
	var others []*member
	for _, r := range reflectors {
		switch {
		case !m.meets(r):
		case r.clients != nil && r.clients.Matches(m.Metadata.Labels), r.clients == nil && r.zone == m.zone:
			add(r)
		default:
			others = append(others, r)
		}
	}
	if lacking[0] > 0 || lacking[1] > 0 {
		slices.SortFunc(others, func(x, y *member) int { return rank(m.name(), x, y) })
		for _, r := range others {
			if r.has[0] && lacking[0] > 0 || r.has[1] && lacking[1] > 0 {
				add(r)
			}
		}
	}
	slices.SortFunc(servers, func(x, y *member) int { return strings.Compare(x.name(), y.name()) })
	return servers
}

// judge notes what is wrong in one AS.
func (a *Arrangement) judge(all, reflectors []*member, has [2]int) {
	problem := func(nodes []string, format string, args ...any) {
		a.Problems = append(a.Problems, ArrangementProblem{fmt.Sprintf(format, args...), nodes})
	}
	const fix = "`netctl node NAME set reflector always` makes"
	if len(all) > 1 {
		var clients [2]int
		for _, m := range all {
			for f, on := range m.has {
				if on && !m.reflects {
					clients[f]++
				}
			}
		}
		for f, words := range []string{"IPv4", "IPv6"} {
			switch {
			case clients[f] == 0:
			case has[f] == 0:
				also := ""
				if i := slices.IndexFunc(all, (*member).drained); i >= 0 {
					also = fmt.Sprintf(", or `netctl node undrain %s`", all[i].name())
				}
				problem(names(all), "no node of AS %d with %s is willing to be a reflector, so these are a mesh: %s one%s", all[0].as, words, fix, also)
			case has[f] == 1:
				i := slices.IndexFunc(reflectors, func(r *member) bool { return r.has[f] })
				problem(names(reflectors), "%s is the only reflector of AS %d with %s: no route is learnt while it is away; %s another", reflectors[i].name(), all[0].as, words, fix)
			}
		}
	}
	for _, z := range zones(all) {
		var own []*member
		served := false
		for _, m := range z {
			if m.reflects && m.clients == nil {
				own = append(own, m)
			}
			served = served || !m.reflects
		}
		if len(own) == 1 && len(reflectors) > 1 && served {
			problem(names(own), "%s is the only reflector of zone %q, whose nodes use those of other zones too; %s another there", own[0].name(), own[0].zone, fix)
		}
	}
	byID := map[netip.Addr]*member{}
	for _, r := range reflectors {
		if r.served == 0 && r.mode() == datastore.ReflectorAlways {
			problem([]string{r.name()}, "reflector %s has no client: %s", r.name(), clientless(r))
		}
		id := clusterID(r.Node, r.addrs)
		other, taken := byID[id]
		if !taken {
			byID[id] = r
			continue
		}
		if !sameClients(all, r, other) {
			problem([]string{r.name(), other.name()}, "reflectors %s and %s have one cluster ID %s and other clients, so that neither believes what the other reflects: give one of them another with `netctl node %s set reflector --cluster-id ID`",
				other.name(), r.name(), id, r.name())
		}
	}
}

func clientless(r *member) string {
	if r.clients != nil {
		return fmt.Sprintf("no other node has the labels that its clients are to have: %s", r.Spec.Reflector.Clients)
	}
	return fmt.Sprintf("no node that is none itself has its label %s=%s", datastore.ZoneLabel, r.zone)
}

func sameClients(all []*member, r, other *member) bool {
	for _, m := range all {
		if slices.Contains(m.servers, r) != slices.Contains(m.servers, other) {
			return false
		}
	}
	return true
}

func names(members []*member) []string {
	out := make([]string, len(members))
	for i, m := range members {
		out[i] = m.name()
	}
	return out
}

// clusterID is the cluster ID of a node.
func clusterID(n *datastore.Node, addrs []netip.Addr) netip.Addr {
	if r := n.Spec.Reflector; r != nil && r.ClusterID.IsValid() {
		return r.ClusterID
	}
	return routerID(n.Metadata.Name, addrs)
}

// list is what the arrangement depends on, of a mesh nothing: its nodes are all peers.
func (a *Arrangement) list() []Member {
	if !a.reflects {
		return nil
	}
	selects := false // by other labels than the zone's
	for _, m := range a.members {
		selects = selects || m.Spec.Reflector != nil && m.Spec.Reflector.Clients != ""
	}
	var out []Member
	for _, name := range slices.Sorted(maps.Keys(a.members)) {
		m := a.members[name]
		one := Member{Name: name, AS: m.Spec.AS, Addresses: m.addrs, Reflector: m.Spec.Reflector, Host: m.Status.Host, Model: m.Status.Model, Away: !m.Status.Away.IsZero(), Drained: m.drained()}
		switch {
		case selects:
			one.Labels = m.Metadata.Labels
		case m.zone != "":
			one.Labels = map[string]string{datastore.ZoneLabel: m.zone}
		}
		out = append(out, one)
	}
	return out
}

// Link is what one node is to another.
type Link int

// The links.
const (
	NoLink     Link = iota // they have no session
	PlainLink              // neither reflects for the other
	ServerLink             // the other reflects for this one
	ClientLink             // this one reflects for the other
)

// Link says what node y is to node x.
func (a *Arrangement) Link(x, y string) Link {
	m, n := a.members[x], a.members[y]
	if m == nil || n == nil || m == n {
		return NoLink
	}
	switch {
	case !m.meets(n):
		return NoLink
	case m.as != n.as, !a.reflects, m.reflects && n.reflects:
		return PlainLink
	case slices.Contains(m.servers, n):
		return ServerLink
	case slices.Contains(n.servers, m):
		return ClientLink
	case m.alone[0] && n.alone[0], m.alone[1] && n.alone[1]:
		return PlainLink
	}
	return NoLink
}
