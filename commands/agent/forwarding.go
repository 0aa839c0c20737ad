package agent

import (
	"log/slog"
	"maps"
	"slices"

	"netctl/datastore"
	"netctl/netdev"
)

// forwarding is what the host is to be set to so that endpoints reach others, as far
// as this agent has set it. Its owner is the loop.
type forwarding struct {
	log        *slog.Logger
	problems   *problems
	lo, v4, v6 hostSetting
	by         map[int]*hostSetting // by the index of an interface that leads to other nodes
	put        func(index int) (was bool, err error)
	names      map[int]string // of these
	lived      bool           // an agent before this one had endpoints
}

// hostSetting is one setting of the host that this agent keeps.
type hostSetting struct {
	what string // names it
	lost string // what nobody has without it
	put  func() (was bool, err error)

	wanted bool
	is     bool // is set, and nothing has happened since
	before bool // was set by this agent, or found set, once
	tussle tussle
}

func newForwarding(k hostLinks, p *problems, log *slog.Logger) *forwarding {
	return &forwarding{
		log: log, problems: p,
		lo: hostSetting{what: "lo", lost: "the IPv4 gateway of every endpoint", put: k.Loopback},
		v4: hostSetting{what: "ipv4 forwarding", lost: "all IPv4 traffic of every endpoint but to this host", put: k.Forwarding4},
		v6: hostSetting{what: "ipv6 forwarding", lost: "all IPv6 traffic of every endpoint but to this host", put: k.Forwarding6},
		by: map[int]*hostSetting{}, put: k.Forwarding4By,
	}
}

// want asks for what routes need: IPv4, and IPv6 if there are such routes.
func (f *forwarding) want(v6 bool) {
	f.lo.wanted, f.v4.wanted, f.v6.wanted = true, true, v6
	f.keep()
}

// wantFor asks for what links need that live on from before, in this boot: an agent
// had set it then.
func (f *forwarding) wantFor(wires map[string]attached) {
	for _, w := range wires {
		if w.Index == 0 {
			continue
		}
		f.lo.wanted, f.v4.wanted = true, true
		for _, a := range w.Addresses {
			f.v6.wanted = f.v6.wanted || a.Is6()
		}
	}
	f.lived = f.v4.wanted
	f.lo.before, f.v4.before, f.v6.before = f.lo.wanted, f.v4.wanted, f.v6.wanted
}

// doubt has everything looked at again.
func (f *forwarding) doubt() {
	f.lo.is, f.v4.is, f.v6.is = false, false, false
	for _, s := range f.by {
		s.is = false
	}
}

// lead takes the interfaces, by index, by which other nodes send to endpoints here. Of
// IPv6 the setting of a single one has no say in what is forwarded (networking/ip-sysctl,
// conf/interface/forwarding).
func (f *forwarding) lead(names map[int]string) {
	f.names = names
	for index, s := range f.by {
		if what := forwardingBy(names[index]); what != s.what {
			f.problems.drop(s.what)
			delete(f.by, index)
		}
	}
	for index, name := range names {
		if f.by[index] == nil {
			f.by[index] = &hostSetting{
				what: forwardingBy(name), lost: "what other nodes send to endpoints here by " + name,
				put: func() (bool, error) { return f.put(index) }, before: f.lived,
			}
		}
	}
}

func forwardingBy(link string) string { return "ipv4 forwarding by " + link }

// keep sets what is wanted and may not be set.
func (f *forwarding) keep() {
	list := []*hostSetting{&f.lo, &f.v4, &f.v6}
	for _, index := range slices.Sorted(maps.Keys(f.by)) { // after v4, which sets them all
		f.by[index].wanted = f.v4.wanted
		list = append(list, f.by[index])
	}
	for _, s := range list {
		if !s.wanted || s.is || !f.problems.due(s.what) {
			continue
		}
		was, err := s.put()
		if err == nil && was && s.before {
			f.log.Warn("a setting of the host was changed by another program, and is put back", "setting", s.what, "lost", s.lost, datastore.Drift(datastore.DriftSetting))
			err = s.tussle.again()
		}
		if err != nil {
			f.problems.failed(s.what, err)
			continue
		}
		f.problems.solved(s.what)
		s.is, s.before = true, true
	}
}

// leads are the interfaces by which other nodes send to endpoints here, by index: those
// with an address of the node, and where that is on lo all that may lead to other nodes.
func (l *loop) leads() map[int]string {
	own := l.cfg.Addresses
	if n := l.view.Node(l.cfg.Node); n != nil {
		own = nil
		for _, p := range n.Spec.Addresses {
			own = append(own, p.Addr())
		}
	}
	by, loopback := map[int]string{}, false
	for _, a := range l.links.addrs {
		if slices.Contains(own, a.Prefix.Addr()) {
			loopback = loopback || a.Loopback
			by[a.Index] = a.Link
		}
	}
	for _, a := range l.links.addrs {
		switch {
		case a.Loopback:
			delete(by, a.Index)
		case loopback && !netdev.LeadsAway(a.Link):
			by[a.Index] = a.Link
		}
	}
	return by
}
