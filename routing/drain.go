package routing

import (
	"cmp"

	"netctl/datastore"
)

// AddDrains takes into a plan which nodes are drained: this one, or its peers. It comes
// after everything that adds peers.
func (p *Plan) AddDrains(nodes []*datastore.Node) {
	ended := map[string]string{} // why, by node
	for _, n := range nodes {
		d := n.Spec.Drain
		switch {
		case d == nil:
		case n.Metadata.Name == p.Node:
			p.Drain = d
		case d.Shutdown:
			ended[n.Metadata.Name] = d.Words()
		}
	}
	for _, list := range [][]Peer{p.Peers, p.Interfaces} {
		for i, peer := range list {
			name := peer.Name
			if peer.Configured != nil {
				name = peer.Configured.Node
			}
			if list[i].Drained = ended[name]; p.Drain != nil && p.Drain.Shutdown {
				list[i].Drained = cmp.Or(list[i].Drained, p.Drain.Words())
			}
		}
	}
}
