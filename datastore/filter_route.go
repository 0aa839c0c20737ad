package datastore

import (
	"net/netip"
	"slices"
	"strings"
)

// FilterRoute is a route that a filter is tried with.
type FilterRoute struct {
	// Want is what is to become of it; "" says nothing.
	Want        FilterAction
	Prefix      netip.Prefix
	NextHop     netip.Addr
	ASPath      string
	Communities []Community
	// Sources are all that it is from.
	Sources []FilterSource
}

// ParseFilterRoute parses
//
//	ROUTE    = [accept|reject] PREFIX {PROPERTY}
//	PROPERTY = as-path "AS AS …" | community C{, C} | next-hop ADDRESS | source SOURCE{, SOURCE}
//
// The error is a *SyntaxError.
func ParseFilterRoute(s string) (r FilterRoute, err error) {
	p, err := newFilterParser("route", s)
	if err != nil {
		return r, err
	}
	for _, a := range []FilterAction{FilterAccept, FilterReject} {
		if p.accept(string(a)) {
			r.Want = a
			break
		}
	}
	if r.Prefix, err = p.net("a prefix"); err != nil {
		return r, err
	}
	var had []string
	for !p.peek().end && err == nil {
		word := p.peek().text
		if slices.Contains(had, word) {
			return r, p.expected("each property once")
		}
		had = append(had, word)
		switch {
		case p.accept("as-path"):
			r.ASPath = strings.Join(strings.Fields(p.peek().text), " ")
			if !p.peek().quoted || strings.Trim(r.ASPath, "0123456789 ,{}") != "" {
				return r, p.expected(`AS numbers in double quotes, sets in braces: "65001 {65002,65003}"`)
			}
			p.pos++
		case p.accept("community"):
			r.Communities, err = oneOrMore(p, p.community)
		case p.accept("next-hop"):
			var net netip.Prefix
			if net, err = p.net("an address"); err == nil && !net.IsSingleIP() {
				p.pos--
				err = p.expected("an address")
			}
			r.NextHop = net.Addr()
		case p.accept("source"):
			r.Sources, err = oneOrMore(p, p.source)
		default:
			return r, p.expected("as-path, community, next-hop, source or the end of the route")
		}
	}
	return r, err
}
