package bgp

import (
	"net/netip"
	"time"
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

// holds is the number of prefixes of a peer that changes would leave, or what
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
	held := map[netip.Prefix]bool{}
	count := len(p.in)
	for _, c := range changes {
		for _, prefix := range c.prefixes {
			has, seen := held[prefix]
			if !seen {
				d := r.dest(prefix)
				has = d != nil && d.from(p) != nil
			}
			held[prefix] = c.attrs != nil
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
