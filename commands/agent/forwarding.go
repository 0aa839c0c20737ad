package agent

// forwarding is which families the host forwards, as far as this agent switched it
// on. Its owner is the loop.
type forwarding struct {
	kernel   hostLinks
	problems *problems
	v4, v6   bool // are switched on, and nothing has happened since
}

// want switches on what routes need: IPv4, and IPv6 if there are such routes.
func (f *forwarding) want(v6 bool) {
	f.on(&f.v4, "ipv4 forwarding", f.kernel.Forwarding4)
	if v6 {
		f.on(&f.v6, "ipv6 forwarding", f.kernel.Forwarding6)
	}
}

// on switches one family on, once.
func (f *forwarding) on(done *bool, what string, switchOn func() error) {
	if *done || !f.problems.due(what) {
		return
	}
	if err := switchOn(); err != nil {
		f.problems.failed(what, err)
		return
	}
	f.problems.solved(what)
	*done = true
}
