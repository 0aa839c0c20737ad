package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Settle does in the workload's namespace what is left to do for a side that somebody
// else took there and addressed: what has one of its addresses, and what is sent to one
// of the destinations, goes by it, whichever interface has the default route
// (ip-rule(8)); and the gateway need not be asked for. False: it is not there yet.
func (k *Kernel) Settle(w Wire, at Place, to []netip.Prefix) (bool, error) {
	settled, err := k.settle(w, at, to)
	if err != nil {
		return false, fmt.Errorf("settle %s: %w", w.Link, cause(err))
	}
	return settled, nil
}

func (k *Kernel) settle(w Wire, at Place, to []netip.Prefix) (bool, error) {
	s, err := k.sideOf(w)
	if err != nil || !s.link.apart {
		return false, err
	}
	ns, err := openPlace(at)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	inside, err := newHandle(ns.fd)
	if err != nil {
		return false, err
	}
	defer inside.Close()
	index := s.link.peer
	l, err := inside.LinkByIndex(index)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none) || err == nil && (l.Type() != "veth" || l.Attrs().ParentIndex != s.link.Index):
		return false, nil
	case err != nil:
		return false, err
	case l.Attrs().RawFlags&unix.IFF_UP == 0:
		return false, nil
	}
	if !w.Gateway6.IsValid() {
		w.Gateway6 = ownAddress().Addr()
	}
	c, err := dial(ns.fd)
	if err != nil {
		return false, err
	}
	defer func() { _ = c.close() }()
	table := secondTable + index
	steps := append(gatewayNeighbors(c, index, w), gatewayRoutes(index, w, table, 0)...)
	rule := func(what string, r *netlink.Rule) {
		steps = append(steps, step{what, func(h *netlink.Handle) error { return h.RuleAdd(r) }})
	}
	for _, a := range w.Addresses {
		r := ruleFrom(a, table)
		r.Priority = settledRules
		rule("rule from "+a.String(), r)
	}
	for _, p := range to {
		if w.has(p.Addr().Is4()) {
			rule("rule to "+p.String(), ruleTo(p, table))
		}
	}
	for _, st := range steps {
		if err := st.do(inside); err != nil && !errors.Is(err, unix.EEXIST) {
			if errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) {
				return false, nil // it was taken away meanwhile
			}
			return false, fmt.Errorf("%s: %w", st.what, err)
		}
	}
	return true, nil
}

// settledRules is where the rules of Settle begin: by the source, which the host
// insists on, before those by the destination, of which the narrower come first.
const settledRules = 30000

func ruleTo(p netip.Prefix, table int) *netlink.Rule {
	r := netlink.NewRule()
	r.Dst, r.Table, r.Priority = network(p), table, settledRules+1+p.Addr().BitLen()-p.Bits()
	return r
}
