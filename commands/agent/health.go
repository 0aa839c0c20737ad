package agent

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// The pace of status reports: a change of what others act on is written after
// reportSoon, a mere count after reportLate, and the node is seen at least every
// compareEvery.
const (
	reportSoon   = time.Second
	reportLate   = time.Minute
	compareEvery = 10 * time.Minute
)

// report is what the node's status says of the agent.
type report struct {
	subnets   []netip.Prefix
	problems  []string
	endpoints int
	due       time.Time // zero: at once
}

// tell hands the status on if it changed, and notes the boot.
func (l *loop) tell() {
	if l.stage != ready || l.frozen() {
		return
	}
	if len(l.dirty) == 0 {
		l.writeBoot()
	}
	r := report{subnets: subnets(l.addrs), problems: l.problemList(), endpoints: l.count}
	now := time.Now()
	switch {
	case l.reported.due.IsZero(), !slices.Equal(r.subnets, l.reported.subnets), !slices.Equal(r.problems, l.reported.problems):
		r.due = now.Add(reportSoon)
	case r.endpoints != l.reported.endpoints:
		r.due = now.Add(reportLate)
	default:
		return
	}
	l.reported = r
	l.report(r)
}

// problemList is one line for each thing that is wrong.
func (l *loop) problemList() []string {
	list := l.view.Problems()
	for _, text := range l.overlaps {
		list = append(list, text)
	}
	for what, text := range l.problems {
		list = append(list, oneLine(what+": "+text))
	}
	for _, name := range l.lostEndpoints() {
		list = append(list, fmt.Sprintf("endpoint %s lost its link; it is released after %s", name, l.cfg.LostAfter))
	}
	slices.Sort(list)
	return list
}

// overlap notes whether a block (nil: it is gone) lies over a subnet that this
// host is connected to: what is in both is unreachable from here or from there.
func (l *loop) overlap(name string, b *datastore.Block) {
	delete(l.overlaps, name)
	if b == nil {
		return
	}
	for _, a := range l.addrs {
		if a.Subnet.Overlaps(b.Spec.CIDR) && !a.Prefix.Addr().IsLinkLocalUnicast() {
			l.overlaps[name] = fmt.Sprintf("block %s of node %s overlaps %s, which this host is connected to by %s: reserve that subnet and empty the block, or renumber it",
				b.Spec.CIDR, b.Spec.Affinity, a.Subnet, a.Link)
			return
		}
	}
}

// status is the answer of the control socket.
func (l *loop) status() control.AgentStatus {
	s := control.AgentStatus{
		Version: l.cfg.Version, Node: l.cfg.Node, PID: os.Getpid(), Started: l.started,
		InSync:    l.stage == ready && l.aclErr == nil && l.routeErr == nil,
		Endpoints: l.count, Lost: l.lostEndpoints(), Problems: l.problemList(), AddressRule: l.rule,
	}
	switch l.stage {
	case detached:
		s.Detached = oneLine(l.reason.Error())
	case away:
		s.Store = oneLine(l.reason.Error())
	}
	if n := l.view.Node(l.cfg.Node); n != nil {
		for _, p := range n.Spec.Addresses {
			s.Address = append(s.Address, p.Addr())
		}
	}
	return s
}

// reporter writes the node's status, the latest report wins.
type reporter struct {
	join *joiner
	want chan report // holds one
}

// put hands a report over; one that was not written yet is replaced, its time
// kept if that is earlier.
func (r *reporter) put(p report) {
	select {
	case old := <-r.want:
		if old.due.Before(p.due) {
			p.due = old.due
		}
	default:
	}
	r.want <- p
}

// run writes reports until ctx ends. One that cannot be written is dropped:
// whatever ended that has the status reported again.
func (r *reporter) run(ctx context.Context) error {
	for {
		var p report
		select {
		case <-ctx.Done():
			return nil
		case p = <-r.want:
		}
		for wait := time.Until(p.due); wait > 0; wait = time.Until(p.due) {
			t := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				t.Stop()
				return nil
			case <-t.C:
			case newer := <-r.want:
				t.Stop()
				if newer.due.After(p.due) {
					newer.due = p.due
				}
				p = newer
			}
		}
		if err := r.write(ctx, p); err != nil && ctx.Err() == nil {
			r.join.loop.log.Debug("status not written", "error", err)
		}
	}
}

func (r *reporter) write(ctx context.Context, p report) error {
	if err := r.join.loop.gate(ctx); err != nil {
		return err
	}
	var node *datastore.Node
	if err := r.join.loop.do(ctx, func() { node = r.join.loop.view.Node(r.join.cfg.Node) }); err != nil || node == nil {
		return err
	}
	_, err := r.join.write(ctx, node, func(n *datastore.Node) (bool, error) {
		if n.Status.Host != r.join.host {
			return false, r.join.taken(n)
		}
		now := time.Now().UTC().Truncate(time.Second)
		s := &n.Status
		same := slices.Equal(s.Subnets, p.subnets) && slices.Equal(s.Problems, p.problems) && s.Endpoints == p.endpoints
		if same && now.Sub(s.Seen) < compareEvery/2 {
			return false, nil
		}
		s.Subnets, s.Problems, s.Endpoints, s.Seen = p.subnets, p.problems, p.endpoints, now
		return true, nil
	})
	return err
}
