package agent

import (
	"fmt"

	"netctl/commands/workload"
)

// uplink is the interface with the node's address; the zero Uplink: not known.
func (l *loop) uplink() (u workload.Uplink) {
	node := l.view.Node(l.cfg.Node)
	if node == nil {
		return u
	}
	for _, own := range node.Spec.Addresses {
		for _, a := range l.links.addrs {
			if a.Prefix.Addr() == own.Addr() {
				return workload.Uplink{Link: a.Link, MTU: a.MTU}
			}
		}
	}
	return u
}

// tooLarge says of how many endpoints packets fit their own link and not that to the
// other nodes; "": of none.
func (l *loop) tooLarge() string {
	u := l.uplink()
	if u.MTU == 0 {
		return ""
	}
	n, largest, plain, pools := 0, 0, u, l.tunnelled()
	for _, lo := range l.locals.named {
		mtu := l.links.present[lo.link].MTU
		if lo.ep == nil || mtu == 0 {
			continue
		}
		if of := plain.Of(lo.ep.Spec.Addresses, pools); mtu > of.MTU {
			if n, largest = n+1, max(largest, mtu); of.MTU < u.MTU {
				u = of
			}
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return "an endpoint " + u.Exceeded(largest)
	}
	return fmt.Sprintf("%d of the endpoints each ", n) + u.Exceeded(largest)
}
