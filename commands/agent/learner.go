package agent

import (
	"context"
	"errors"

	"netctl/acl"
	"netctl/acl/dns"
	"netctl/acl/nflog"
	"netctl/commands/control"
)

// learner reads the answers of DNS servers that the packet filter logs, as long as a rule here
// names a network set with domains.
type learner struct {
	loop *loop
	// datagrams is nflog.Datagrams of acl.NFLogDNSGroup.
	datagrams func(ctx context.Context, bound func(), fn func(nflog.Datagram) error) error
}

// errUnneeded ends the reading of what nobody learns from.
var errUnneeded = errors.New("no rule names a network set with domains")

const learnerProblem = "domains of network sets"

// Run reads until ctx ends. Who else has the group is a problem, and asked again.
func (r *learner) Run(ctx context.Context) error {
	d := r.loop.domains
	for wait := retryMin; ctx.Err() == nil; {
		if len(*d.learning.Load()) == 0 {
			select {
			case <-ctx.Done():
			case <-d.changed:
			}
			continue
		}
		err := r.read(ctx, func() {
			wait = retryMin
			r.tell("")
		})
		if ctx.Err() != nil || err == nil || errors.Is(err, errUnneeded) {
			continue
		}
		text := err.Error() + ": what their names are is not learned"
		if errors.Is(err, nflog.ErrTaken) {
			text = err.Error() + ", so what their names are is not learned: end it"
		}
		r.tell(text)
		pause(ctx, wait)
		wait = min(2*wait, retryMax)
	}
	return nil
}

func (r *learner) tell(text string) {
	r.loop.post(func() { r.loop.problems.note(learnerProblem, oneLine(text)) })
}

// read reads until nobody learns any more.
func (r *learner) read(ctx context.Context, bound func()) error {
	d := r.loop.domains
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // who is not told of any answer learns by this that nobody wants one
		for {
			select {
			case <-ctx.Done():
				return
			case <-d.changed:
			}
			if len(*d.learning.Load()) == 0 {
				cancel(errUnneeded)
			}
		}
	}()
	return r.datagrams(ctx, bound, func(g nflog.Datagram) error {
		answer, err := dns.Parse(g.Payload)
		if err != nil || !d.wanted(answer.Name) {
			return nil
		}
		h := heard{link: g.OutIndex, answer: answer, at: d.now()}
		r.loop.post(func() { r.loop.heard(h) })
		return nil
	})
}

// heard takes an answer that an endpoint here got.
func (l *loop) heard(h heard) {
	d := l.domains
	switch {
	case !d.settled && len(d.early) < mostEarly:
		d.early = append(d.early, h)
		l.idle++
	case !d.settled, !d.learn(l.links.at(h.link), h):
		l.idle++
	}
}

// flushDomains follows what the rules name now, once the packet filter is as they say.
func (l *loop) flushDomains(whole bool) {
	if whole && l.domains.relearn(l.links.at) {
		l.again()
	}
	l.domains.write()
}

// readDatagrams are the answers of DNS servers.
func readDatagrams(ctx context.Context, bound func(), fn func(nflog.Datagram) error) error {
	return nflog.Datagrams(ctx, acl.NFLogDNSGroup, bound, fn)
}

// learned is what is known of a set's domains.
func (a *api) learned(ctx context.Context, r control.LearnedRequest) (out control.Learned, err error) {
	err = a.loop.do(ctx, func() {
		out = control.Learned{Node: a.loop.cfg.Node, Addresses: a.loop.domains.known(r.Set)}
	})
	return out, err
}
