package iptables

import (
	"errors"
	"slices"
	"strings"
)

// errDeep is why packets end at a chain.
var errDeep = errors.New("more tiers that pass than the kernel follows a packet through")

// mostDeep is how many chains behind a built-in one nftables follows a packet through
// (NFT_JUMP_STACK_SIZE less that one, Linux 5.10 to 6.18).
const mostDeep = 15

// tooDeep are the chains, sorted, from which packets would go further than that.
func (r *rendered) tooDeep() (names []string) {
	seen := map[string]int{} // the longest way to a chain
	var visit func(name string, deep int)
	visit = func(name string, deep int) {
		if deep <= seen[name] {
			return
		}
		seen[name] = deep
		for _, l := range r.chains[name] {
			next := l.leadsTo()
			switch {
			case next == "":
			case deep < mostDeep:
				visit(next, deep+1)
			case !slices.Contains(names, name):
				names = append(names, name)
			}
		}
	}
	for _, builtin := range r.hooks {
		visit(dispatcher(builtin), 1)
	}
	slices.Sort(names)
	return names
}

// leadsTo is the chain of ours that a line leads to; "": none.
func (l line) leadsTo() string {
	for _, flag := range []string{"-g ", "-j "} {
		if at := strings.LastIndex(l.text, flag+chainPrefix); at >= 0 {
			return l.text[at+len(flag):]
		}
	}
	return ""
}
