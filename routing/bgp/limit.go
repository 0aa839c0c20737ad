package bgp

import (
	"time"

	"netctl/routing"
)

// limits are the settings of a peer's prefix limit.
type limits struct {
	limit int
	warns bool
	rest  time.Duration
}

func (p PeerConfig) limits() limits { return limits{p.PrefixLimit, p.LimitWarns, p.LimitRest} }

// isFull says whether the peer sends as many prefixes as are to be said.
func (p *peer) isFull() bool {
	return p.config.PrefixWarning > 0 && len(p.in) >= p.config.PrefixWarning
}

// fill finds out whether a peer sends so much that it is to be said.
func (r *rib) fill(p *peer) {
	was := p.full
	if p.full = p.isFull(); p.full == was {
		return
	}
	if p.full {
		r.log.Warn("peer sends many prefixes", "peer", p.config.Address, "prefixes", len(p.in), "limit", p.config.PrefixLimit)
	}
	if r.config.OnSessionChange != nil {
		r.config.OnSessionChange()
	}
}

// holds is the number of paths of a peer that changes would leave, or what
// bounds it if that is within the limit.
func (r *rib) holds(p *peer, changes []change, limit int) int {
	most := len(p.in)
	for _, c := range changes {
		if c.attrs != nil {
			most += len(c.prefixes)
		}
	}
	if most <= limit {
		return most
	}
	held := map[nlri]bool{}
	count := 0 // what is stale may come again with another ID
	for _, path := range p.all() {
		if !path.stale {
			count++
		}
	}
	for _, c := range changes {
		for i, prefix := range c.prefixes {
			key := nlri{routing.Pack(prefix), c.id(i)}
			has, seen := held[key]
			if !seen {
				d := r.dests[key.prefix]
				if d != nil {
					path := d.from(p, key.id)
					has = path != nil && !path.stale
				}
			}
			held[key] = c.attrs != nil
			switch {
			case c.attrs != nil && !has:
				count++
			case c.attrs == nil && has:
				count--
			}
		}
	}
	return count
}
