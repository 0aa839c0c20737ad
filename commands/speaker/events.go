package speaker

import (
	"net/netip"
	"slices"

	"netctl/datastore"
	"netctl/routing"
)

// events are what was last written to the log of what people look for there and what has
// no moment of its own.
type events struct {
	reflectors []string
	here       bool
	drained    string
}

// tell logs what a plan changes: which reflectors this node has sessions with, whether it
// is one, and whether it is in use.
func (l *loop) tell(plan routing.Plan) {
	var now events
	for _, p := range plan.Peers {
		if p.Reflects {
			now.reflectors = append(now.reflectors, p.Name)
		}
		now.here = now.here || p.Client
	}
	slices.Sort(now.reflectors)
	now.reflectors = slices.Compact(now.reflectors)
	if plan.Drain != nil {
		now.drained = plan.Drain.Words()
	}
	was := l.told
	l.told = now
	if !slices.Equal(now.reflectors, was.reflectors) || now.here != was.here {
		l.log.Info("reflectors changed", "reflectors", now.reflectors, "here", now.here, datastore.EventSession.Mark())
	}
	switch {
	case now.drained == was.drained:
	case now.drained == "":
		l.log.Info("node is in use again", datastore.EventDrain.Mark())
	default:
		l.log.Info("node is taken out of use", "reason", now.drained, datastore.EventDrain.Mark())
	}
}

// weigh logs which peers begin or cease to have little room for routes.
func (s *state) weigh() {
	engine, plan, err := s.running()
	if err != nil {
		return
	}
	now := map[netip.Addr]bool{}
	for _, p := range plan.Peers {
		if p.Configured == nil || p.Configured.Spec.RouteBudget == 0 {
			continue
		}
		n, budget := burden(engine, plan, p.Address)
		if 100*n < nearlyFull*budget {
			continue
		}
		if now[p.Address] = true; !s.heavy[p.Address] {
			s.log.Warn("peer has little room for routes", "peer", p.Address, "routes", n, "budget", budget, datastore.EventProblem.Mark())
		}
	}
	for a := range s.heavy {
		if !now[a] {
			s.log.Info("peer has room for routes again", "peer", a, datastore.EventProblem.Mark())
		}
	}
	s.heavy = now
}
