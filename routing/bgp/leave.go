package bgp

import (
	"time"

	"netctl/datastore"
)

// lookPause is how long changes are collected before the peers that leave are looked at.
const lookPause = 100 * time.Millisecond

// look has the peers that leave looked at soon, if anything changed.
func (r *rib) look() {
	if !r.moved && len(r.dirty) == 0 || r.looking {
		return
	}
	r.moved = false
	for _, p := range r.peers {
		if p.config.Leaving {
			r.looking = true
			r.after(lookPause, func() {
				r.looking = false
				r.depart()
			})
			return
		}
	}
}

// depart removes the peers that leave and that nobody would miss: the old session goes
// once the new ones carry its routes. It goes as for a restart, without a NOTIFICATION,
// so that a peer that is not so far yet keeps what it has from us meanwhile.
func (r *rib) depart() {
	for a, p := range r.peers {
		if p.config.Leaving && (p.session == nil || r.ready(time.Since(p.leaving))) && r.covered(p) {
			r.log.Info("peer left, others carry its routes", "peer", a, datastore.EventSession.Mark())
			r.dismiss(p)
			r.gone()
		}
	}
}

// ready reports whether those that stay are up and have told what they know: all of
// them, or after a restart time one of them.
func (r *rib) ready(waited time.Duration) bool {
	up, all := false, true
	for _, p := range r.peers {
		if p.config.Leaving || p.config.Shutdown != "" {
			continue
		}
		told := p.session != nil
		for f := range [2]Family{} {
			if told && p.session.families[f] && p.session.open.gr != nil && p.session.open.gr.listed[f] {
				told = p.session.heard[f]
			}
		}
		up, all = up || told, all && told
	}
	return up && (all || waited >= r.config.RestartTime)
}

// covered reports whether every prefix of p can be had from a peer that stays.
func (r *rib) covered(p *peer) bool {
	heir := r.peers[p.config.Heir]
	for d, path := range p.all() {
		family := FamilyOf(d.key.Prefix().Addr())
		if path.refused || heir != nil && heir.session != nil && !heir.session.families[family] {
			continue
		}
		found := false
		for q := range d.all() {
			found = found || q.peer == nil || !q.peer.config.Leaving && !q.stale && !q.refused
		}
		if !found {
			return false
		}
	}
	return true
}
