package routing

import (
	"cmp"
	"maps"
	"slices"
)

// Sessions counts those between all nodes, and those that a mesh would have.
func (a *Arrangement) Sessions() (n, mesh int) {
	for x, m := range a.members {
		for y, o := range a.members {
			if x < y && m.meets(o) {
				if mesh++; a.Link(x, y) != NoLink {
					n++
				}
			}
		}
	}
	return n, mesh
}

// Move is what it takes to get from one arrangement to another.
type Move struct {
	// Reflectors that come and go, sorted; Sessions that do, each counted once.
	NewReflectors   []string `json:"newReflectors"`
	GoneReflectors  []string `json:"goneReflectors"`
	NewSessions     int      `json:"newSessions"`
	GoneSessions    int      `json:"goneSessions"`
	ChangedSessions int      `json:"changedSessions"` // stay, and are a client's or no client's any more
}

// Move compares a with what comes after it, of the same nodes.
func (a *Arrangement) Move(next *Arrangement) Move {
	m := Move{NewReflectors: []string{}, GoneReflectors: []string{}}
	for _, x := range slices.Sorted(maps.Keys(a.members)) {
		switch was, is := a.members[x].reflects, next.members[x].reflects; {
		case is && !was:
			m.NewReflectors = append(m.NewReflectors, x)
		case was && !is:
			m.GoneReflectors = append(m.GoneReflectors, x)
		}
		for y := range a.members {
			if x >= y {
				continue
			}
			switch was, is := a.Link(x, y), next.Link(x, y); {
			case was == is:
			case was == NoLink:
				m.NewSessions++
			case is == NoLink:
				m.GoneSessions++
			default:
				m.ChangedSessions++
			}
		}
	}
	return m
}

// Zone is a zone of one AS: its reflectors, and who is a client of which.
type Zone struct {
	AS         uint32   `json:"as"`
	Name       string   `json:"name"`
	Reflectors []string `json:"reflectors,omitempty"`
	Clients    []Client `json:"clients,omitempty"`
	// Meshed are the nodes that nobody reflects for.
	Meshed []string `json:"meshed,omitempty"`
}

// Client is a node and its reflectors.
type Client struct {
	Name       string   `json:"name"`
	Reflectors []string `json:"reflectors"`
}

// Zones lists what Arrange decided, sorted. Nodes without an address are left out.
func (a *Arrangement) Zones() []Zone {
	type key struct {
		as   uint32
		zone string
	}
	index := map[key]int{}
	var zones []Zone
	for _, name := range slices.Sorted(maps.Keys(a.members)) {
		m := a.members[name]
		if len(m.addrs) == 0 {
			continue
		}
		k := key{m.as, m.zone}
		if _, ok := index[k]; !ok {
			index[k] = len(zones)
			zones = append(zones, Zone{AS: k.as, Name: k.zone})
		}
		switch z := &zones[index[k]]; {
		case m.reflects:
			z.Reflectors = append(z.Reflectors, name)
		case len(m.servers) > 0:
			z.Clients = append(z.Clients, Client{name, names(m.servers)})
		default:
			z.Meshed = append(z.Meshed, name)
		}
	}
	slices.SortFunc(zones, func(x, y Zone) int {
		return cmp.Or(cmp.Compare(x.AS, y.AS), cmp.Compare(x.Name, y.Name))
	})
	return zones
}
