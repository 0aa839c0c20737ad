package routing

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
)

// End is a link on which neighbours are looked for, and who is at its other end.
type End struct {
	Link string `json:"link"`
	// Local and Remote are the link-local addresses of both sides, with the link as zone.
	// Remote is valid if there can be a session.
	Local  netip.Addr `json:"local"`
	Remote netip.Addr `json:"remote"`
	// Why there can be none; Missed: there was a neighbour before.
	Why    string `json:"-"`
	Missed bool   `json:"-"`
	// Other is a further neighbour, who has no place on a link of two.
	Other netip.Addr `json:"-"`
}

// Silent is a peer of an interface that cannot be spoken to.
type Silent struct {
	Peer
	Why string
}

// OnLink says whether a peer of an interface is one of that link.
func (p Peer) OnLink(link string) bool {
	ok, err := path.Match(p.Interface, link)
	return ok && err == nil
}

// AtLinks is p with the peers of its interfaces, where they were found; of several that a
// link has, the one with its name comes before patterns.
func (p Plan) AtLinks(ends []End) Plan {
	if len(p.Interfaces) == 0 {
		return p
	}
	p.Peers, p.Problems = slices.Clone(p.Peers), slices.Clone(p.Problems)
	for _, e := range ends {
		i := slices.IndexFunc(p.Interfaces, func(peer Peer) bool { return peer.Interface == e.Link })
		if i < 0 {
			i = slices.IndexFunc(p.Interfaces, func(peer Peer) bool { return peer.OnLink(e.Link) })
		}
		if i < 0 {
			continue
		}
		peer := p.Interfaces[i]
		named := peer.Interface == e.Link
		peer.Interface, peer.Address, peer.Local = e.Link, e.Remote, e.Local
		switch {
		case e.Remote.IsValid():
			p.Peers = append(p.Peers, peer)
		case named || e.Missed:
			p.Silent = append(p.Silent, Silent{peer, e.Why})
		}
		if e.Other.IsValid() {
			p.problem("interface %s leads to two routers, %s and %s: the peer of an interface is the only one at its other end", e.Link, e.Remote.WithZone(""), e.Other.WithZone(""))
		}
	}
	for _, peer := range p.Interfaces {
		there := func(e End) bool { return peer.OnLink(e.Link) }
		if !slices.ContainsFunc(ends, there) {
			p.Silent = append(p.Silent, Silent{peer, fmt.Sprintf("this node has no interface %s", peer.Interface)})
		}
	}
	return p
}
