package bgp

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// View is what a Query looks at.
type View uint8

// The views.
const (
	ViewAll        View = iota // every path, and what became of it
	ViewReceived               // those of Query.Peer
	ViewAdvertised             // what Query.Peer was told
	ViewRejected               // those that were turned down, and what Query.Peer is not told since its filter says so
)

// Query asks what the speaker knows.
type Query struct {
	View View
	// Peer, if valid, is the only one of interest.
	Peer netip.Addr
	// Prefix, if valid, is the only one; Covers asks for those that hold an address.
	Prefix netip.Prefix
	Covers netip.Addr
	// Limit bounds the answer.
	Limit int
}

// Path is a way to a prefix, in words.
type Path struct {
	Prefix      netip.Prefix
	Peer        netip.Addr // not valid: own
	ID          uint32     // that tells several paths of one peer (RFC 7911), or to it, apart
	NextHop     netip.Addr // not valid: own
	ASPath      string
	Origin      string
	LocalPref   uint32
	MED         uint32
	HasMED      bool
	Communities []string
	// Best is the best path, Used one that the route has as a next hop.
	Best, Used, Stale bool
	// Why says why it is the best one, or is not, or was turned down.
	Why string
}

// Look answers a query, by prefix, the best path first, and says how many paths more
// than its limit there are; nothing unless Run is running.
func (s *Speaker) Look(q Query) (paths []Path, more int) {
	s.ask(func() { paths, more = s.rib.query(q) })
	return paths, more
}

func (r *rib) query(q Query) (out []Path, more int) {
	var dests []*dest
	if q.Prefix.IsValid() {
		if d := r.dest(q.Prefix.Masked()); d != nil {
			dests = append(dests, d)
		}
	} else {
		for _, d := range r.dests {
			if !q.Covers.IsValid() || d.key.Prefix().Contains(q.Covers) {
				dests = append(dests, d)
			}
		}
	}
	slices.SortFunc(dests, func(a, b *dest) int { return a.key.Prefix().Compare(b.key.Prefix()) })
	for _, d := range dests {
		for _, p := range r.lookAt(d, q) {
			if len(out) < q.Limit {
				out = append(out, p)
			} else {
				more++
			}
		}
	}
	return out, more
}

// lookAt is the answer for one prefix.
func (r *rib) lookAt(d *dest, q Query) (out []Path) {
	if q.View == ViewAdvertised {
		p := r.peers[q.Peer]
		if p == nil || p.session == nil {
			return nil
		}
		for _, n := range p.session.group.told(d.key) {
			if t := p.session.group.sent[n]; t.source != p {
				shown := p.session.look.told(d, t)
				shown.ID = n.id
				out = append(out, shown)
			}
		}
		return out
	}
	all := slices.Collect(d.all())
	if p := r.peers[q.Peer]; q.View == ViewRejected && p != nil && p.session != nil {
		g := p.session.group
		if best := g.export(d, d.best); best != nil && best.peer != p {
			if told, by := g.filterOut(d, best); told == nil {
				shown := best.attrs.shown(d)
				if best.peer != nil {
					shown.Peer = best.peer.config.Address
				}
				shown.Best, shown.Why = true, "not announced to it: "+by
				out = append(out, shown)
			}
		}
	}
	for _, p := range all {
		switch {
		case q.View == ViewRejected && !p.refused,
			q.Peer.IsValid() && (p.peer == nil || p.peer.config.Address != q.Peer):
			continue
		}
		shown := p.attrs.shown(d)
		if q.View == ViewReceived { // before a filter changed it
			shown = p.attrs.received().shown(d)
		}
		if p.peer != nil {
			shown.Peer, shown.ID = p.peer.config.Address, p.id()
		}
		shown.Best, shown.Stale = p == d.best, p.stale
		shown.Used = p.peer != nil && !p.refused && slices.Contains(d.installed.addrs(), p.attrs.only.list[0])
		switch {
		case p.refused:
			shown.Used, shown.Why = false, "refused: "+p.peer.refused[p].Value()
		case p == d.best:
			shown.Why = won(p, all)
		default:
			shown.Why = behind(p, d.best, all)
			shown.Used = shown.Used && strings.HasPrefix(shown.Why, equally)
			if !shown.Used {
				shown.Why = strings.TrimPrefix(shown.Why, equally)
			}
		}
		out = append(out, shown)
	}
	slices.SortStableFunc(out, func(a, b Path) int {
		if c := order(a.Best, b.Best); c != 0 {
			return c
		}
		return cmp.Or(a.Peer.Compare(b.Peer), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// told is a path as a peer was told it.
func (o *outlook) told(d *dest, t told) Path {
	p := t.attrs.shown(d)
	p.NextHop, p.Why = o.hop(t.attrs, d.family()), "advertised"
	if t.source != nil {
		p.Peer = t.source.config.Address
	}
	path := t.attrs.path
	if o.external {
		path, p.LocalPref = prepend(path, o.localAS), 0
		if !t.attrs.tellMED {
			p.HasMED, p.MED = false, 0
		}
	} else if o.draining {
		p.LocalPref = 0
	}
	p.ASPath = pathText(path)
	p.Communities = communityTexts(withMore(withMore(t.attrs.rest, attrCommunities, o.communities, 4), attrLarge, o.large, 12))
	return p
}

// shown is what attributes say.
func (a *attrs) shown(d *dest) Path {
	return Path{
		Prefix: d.key.Prefix(), NextHop: a.nextHop, ASPath: pathText(a.path), Origin: originText(a.origin), LocalPref: a.localPref,
		MED: a.med, HasMED: a.hasMED, Communities: communityTexts(a.rest),
	}
}

func originText(origin uint8) string {
	return []string{"igp", "egp", "incomplete"}[min(origin, 2)]
}

// pathText is an AS_PATH as people write it, sets in braces.
func pathText(path []segment) string {
	var words []string
	for _, s := range path {
		var list []string
		for _, as := range s.as {
			list = append(list, fmt.Sprint(as))
		}
		if s.kind == 1 {
			words = append(words, "{"+strings.Join(list, ",")+"}")
		} else {
			words = append(words, list...)
		}
	}
	return strings.Join(words, " ")
}

func communityTexts(rest []carried) (texts []string) {
	for _, c := range rest {
		switch c.kind {
		case attrCommunities:
			for b := range slices.Chunk(c.value, 4) {
				texts = append(texts, communityText(binary.BigEndian.Uint32(b)))
			}
		case attrLarge:
			for b := range slices.Chunk(c.value, 12) {
				texts = append(texts, fmt.Sprintf("%d:%d:%d", binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])))
			}
		}
	}
	return texts
}

func communityText(c uint32) string {
	switch c {
	case GracefulShutdown:
		return "graceful-shutdown"
	case LLGRStale:
		return "llgr-stale"
	case NoLLGR:
		return "no-llgr"
	case Blackhole:
		return "blackhole"
	case NoExport:
		return "no-export"
	case NoAdvertise:
		return "no-advertise"
	case NoExportSubconfed:
		return "no-export-subconfed"
	}
	return fmt.Sprintf("%d:%d", c>>16, c&0xffff)
}

// won says why the best path is.
func won(best *path, all []*path) string {
	if best.attrs.aggregate > 0 {
		return "best: the aggregate of what lies in it; what is nobody's there is dropped"
	}
	if best.peer == nil {
		return "best: this node's own"
	}
	var rivals []string
	for _, p := range all {
		if p != best && !p.refused {
			rivals = append(rivals, fmt.Sprintf("that by %v has %s", p.peer.config.Address, strings.TrimPrefix(behind(p, best, all), equally)))
		}
	}
	if len(rivals) == 0 {
		return "best: the only one"
	}
	slices.Sort(rivals)
	return "best: " + strings.Join(rivals, "; ")
}

// equally begins what behind says of a path that only the tie-breaks told from the best.
const equally = "equal, "

// behind says in which step of decide a path that could be used fell behind the best one;
// see equally.
func behind(p, best *path, all []*path) string {
	a, b := p.attrs, best.attrs
	rivals := slices.DeleteFunc(slices.Clone(all), func(q *path) bool { // those whose MEDs decide compares
		return !(q != p && !q.refused && q.peer != nil && q.stale == p.stale && q.attrs.localPref == a.localPref && q.attrs.pathLen() == a.pathLen() &&
			q.attrs.origin == a.origin && q.attrs.neighbour() == a.neighbour() && q.attrs.med < a.med)
	})
	switch {
	case best.peer == nil:
		return "a peer's word against this node's own"
	case a.longStale && !b.longStale:
		return "the community llgr-stale: its source is gone for long"
	case p.stale && !best.stale:
		return "the mark stale: it is kept for a restart"
	case a.localPref < b.localPref:
		return fmt.Sprintf("LOCAL_PREF %d, not %d", a.localPref, b.localPref)
	case a.pathLen() > b.pathLen():
		return fmt.Sprintf("an AS path of %d, not %d", a.pathLen(), b.pathLen())
	case a.origin > b.origin:
		return fmt.Sprintf("origin %s, not %s", originText(a.origin), originText(b.origin))
	case len(rivals) > 0:
		q := slices.MinFunc(rivals, func(x, y *path) int {
			return cmp.Or(cmp.Compare(x.attrs.med, y.attrs.med), x.peer.config.Address.Compare(y.peer.config.Address))
		})
		return fmt.Sprintf("MED %d, that by %v has %d", a.med, q.peer.config.Address, q.attrs.med)
	case !p.external() && best.external():
		return "a source inside the AS, not in another one"
	case p.routerID() != best.routerID():
		return fmt.Sprintf(equally+"router ID %v, not %v", p.routerID(), best.routerID())
	case len(a.clusters) != len(b.clusters):
		return fmt.Sprintf(equally+"a cluster list of %d, not %d", len(a.clusters), len(b.clusters))
	}
	if p.peer == best.peer {
		return fmt.Sprintf(equally+"path ID %d, not %d", p.id(), best.id())
	}
	return fmt.Sprintf(equally+"the address %v, not %v", p.peer.config.Address, best.peer.config.Address)
}
