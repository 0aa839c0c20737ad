package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"netctl/datastore"
	"netctl/routing"
)

// variant is what a rule made of a set of attributes. Those of one set are kept with it:
// equal changes give the same pointer, to be packed together.
type variant struct {
	change string
	as     uint32 // to be prepended
	out    bool
}

// received is what the peer sent, of attributes that an import filter may have changed.
func (a *attrs) received() *attrs {
	if a.raw != nil {
		return a.raw
	}
	return a
}

// facts are what filters read of the attributes.
func (a *attrs) facts() *routing.Attributes {
	if a.seen == nil {
		a.seen = &routing.Attributes{ASPath: pathText(a.path), Communities: communityList(a.rest)}
	}
	return a.seen
}

func communityList(rest []carried) (list []datastore.Community) {
	for _, c := range rest {
		switch c.kind {
		case attrCommunities:
			for b := range slices.Chunk(c.value, 4) {
				n := binary.BigEndian.Uint32(b)
				list = append(list, datastore.Community{Parts: [3]uint32{n >> 16, n & 0xffff}})
			}
		case attrLarge:
			for b := range slices.Chunk(c.value, 12) {
				list = append(list, datastore.Community{Large: true,
					Parts: [3]uint32{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])}})
			}
		}
	}
	return list
}

// announcement is a path to a prefix as filters see it; of no peer it is an own one.
func announcement(prefix netip.Prefix, p *peer, a *attrs) *routing.Announcement {
	out := &routing.Announcement{Prefix: prefix, NextHop: a.nextHop, Attributes: a.facts()}
	if p != nil {
		out.Peer, out.Outside, out.External, out.Reflected = p.config.Address, p.config.Outside, a.external, len(a.clusters) > 0
	}
	return out
}

// filterIn is what becomes of a path that Import took; a is as the peer sent it.
func (p *peer) filterIn(d *dest, a *attrs) (now *attrs, ok bool, by string) {
	if p.config.ImportFilter == nil || a.adopted {
		return a, true, ""
	}
	v := p.config.ImportFilter.Decide(announcement(d.key.Prefix(), p, a))
	if !v.Accept || v.Set == nil {
		return a, v.Accept, v.By
	}
	return a.changed(v.Set, a.neighbour(), false), true, v.By
}

// filterOut is what the group is told of a path, nil for nothing, and who says so.
func (g *group) filterOut(d *dest, best *path) (told *attrs, by string) {
	if g.look.export == nil {
		return best.attrs, ""
	}
	v := g.look.export.Decide(announcement(d.key.Prefix(), best.peer, best.attrs))
	switch {
	case !v.Accept:
		return nil, v.By
	case v.Set == nil:
		return best.attrs, v.By
	case g.look.external:
		return best.attrs.changed(v.Set, g.look.localAS, true), v.By
	}
	return best.attrs.changed(v.Set, 0, true), v.By // our AS in a path within it would be a loop
}

// changed is a as a rule has it. as is prepended where the rule prepends, but for 0.
func (a *attrs) changed(c *routing.Changed, as uint32, out bool) *attrs {
	key := variant{c.Text, as, out}
	if b := a.variants[key]; b != nil {
		return b
	}
	b := *a
	b.raw, b.seen, b.variants = a, nil, nil
	if a.id != "" {
		b.id = fmt.Sprintf("%s\x00%s %d %v", a.id, c.Text, as, out)
	}
	if as != 0 {
		for range c.Prepend {
			b.path = prepend(b.path, as)
		}
	}
	if c.Replace || len(c.Add)+len(c.Remove) > 0 {
		b.recommune(c.Apply(a.facts().Communities))
	}
	if c.HasLocalPref {
		b.localPref = c.LocalPref
	}
	if c.HasMED {
		b.med, b.hasMED, b.tellMED = c.MED, true, out
	}
	if a.variants == nil {
		a.variants = map[variant]*attrs{}
	}
	a.variants[key] = &b
	return &b
}

// recommune gives attributes other communities, and heeds them.
func (a *attrs) recommune(list []datastore.Community) {
	var now Communities
	for _, c := range list {
		if c.Large {
			now.Large = append(now.Large, c.Parts)
		} else {
			now.Standard = append(now.Standard, c.Parts[0]<<16|c.Parts[1])
		}
	}
	if a.longStale {
		now.Standard = append(now.Standard, LLGRStale) // "MUST NOT be removed" (RFC 9494, section 4.3)
	}
	a.rest = slices.DeleteFunc(slices.Clone(a.rest), func(c carried) bool { return c.kind == attrCommunities || c.kind == attrLarge })
	standard, large := now.wire()
	a.rest = withMore(withMore(a.rest, attrCommunities, standard, 4), attrLarge, large, 12)
	a.noExport, a.noAdvertise, a.blackhole, a.shutdown, a.noLong = false, false, false, false, false
	if a.heed(now.Standard); a.shutdown {
		a.localPref = 0
	}
	if a.nextHop.IsValid() {
		a.only.list = []netip.Addr{a.nextHop}
		if a.blackhole {
			a.only.list = []netip.Addr{discard(a.nextHop)}
		}
	}
}
