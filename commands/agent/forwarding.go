package agent

import "log/slog"

// forwarding is what the host is to be set to so that endpoints reach others, as far
// as this agent has set it. Its owner is the loop.
type forwarding struct {
	log        *slog.Logger
	problems   *problems
	lo, v4, v6 hostSetting
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
	f.lo.before, f.v4.before, f.v6.before = f.lo.wanted, f.v4.wanted, f.v6.wanted
}

// doubt has everything looked at again.
func (f *forwarding) doubt() { f.lo.is, f.v4.is, f.v6.is = false, false, false }

// keep sets what is wanted and may not be set.
func (f *forwarding) keep() {
	for _, s := range []*hostSetting{&f.lo, &f.v4, &f.v6} {
		if !s.wanted || s.is || !f.problems.due(s.what) {
			continue
		}
		was, err := s.put()
		if err == nil && was && s.before {
			f.log.Warn("a setting of the host was changed by another program, and is put back", "setting", s.what, "lost", s.lost)
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
