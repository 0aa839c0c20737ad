package bgp

import (
	"slices"

	"netctl/routing"
)

// lane is a path that a group is told under an ID of its own (RFC 7911, section 2): it
// keeps the ID as long as the group is told of it, whatever its attributes become.
type lane struct {
	path *path
	id   uint32
}

// told lists what the group may have been told of a prefix.
func (g *group) told(key routing.Packed) (list []nlri) {
	if _, one := g.sent[nlri{prefix: key}]; one {
		list = append(list, nlri{prefix: key})
	}
	for _, l := range g.lanes[key] {
		if _, sent := g.sent[nlri{key, l.id}]; sent {
			list = append(list, nlri{key, l.id})
		}
	}
	return list
}

// outgoing is a path that a group with IDs is told, and as what.
type outgoing struct {
	path  *path
	attrs *attrs
}

// exports are the paths to d that a group with IDs is told.
func (g *group) exports(d *dest) (list []outgoing) {
	add := func(p *path) {
		if g.export(d, p) != nil {
			if told, _ := g.filterOut(d, p); told != nil {
				list = append(list, outgoing{p, told})
			}
		}
	}
	var rest []*path
	for p := range d.all() {
		if !p.refused {
			rest = append(rest, p)
		}
	}
	if g.look.paths < 0 {
		for _, p := range rest {
			add(p)
		}
		return list
	}
	for len(list) < g.look.paths && len(rest) > 0 {
		best, _ := decide(rest)
		rest = slices.DeleteFunc(rest, func(p *path) bool { return p == best })
		add(best)
	}
	return list
}

// tellAll is tell for a group whose paths have IDs. An ID that becomes free is not given
// to another path at once: the withdrawal may be sent behind the announcement.
func (g *group) tellAll(d *dest, ps *parcels) {
	want, lanes := g.exports(d), g.lanes[d.key]
	used := map[uint32]bool{}
	for _, l := range lanes {
		used[l.id] = true
	}
	lanes = slices.DeleteFunc(lanes, func(l lane) bool {
		if slices.ContainsFunc(want, func(e outgoing) bool { return e.path == l.path }) {
			return false
		}
		n := nlri{d.key, l.id}
		if t, had := g.sent[n]; had {
			g.forget(n, t)
			ps.add(parcelKey{except: t.source}, n)
		}
		return true
	})
	for _, e := range want {
		p := e.path
		i := slices.IndexFunc(lanes, func(l lane) bool { return l.path == p })
		if i < 0 {
			id := uint32(1)
			for used[id] {
				id++
			}
			used[id] = true
			i, lanes = len(lanes), append(lanes, lane{p, id})
		}
		n := nlri{d.key, lanes[i].id}
		have, had := g.sent[n]
		if had && have.attrs.same(e.attrs) {
			continue
		}
		if had {
			g.forget(n, have)
		}
		g.sent[n] = told{e.attrs, p.peer}
		g.sources[p.peer]++
		if ps != nil {
			ps.add(parcelKey{attrs: e.attrs, except: p.peer}, n)
		}
	}
	if len(lanes) == 0 {
		delete(g.lanes, d.key)
	} else {
		g.lanes[d.key] = lanes
	}
}
