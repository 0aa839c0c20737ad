package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// compareEvery is how often everything is compared with the kernel.
const compareEvery = 10 * time.Minute

// tell has the report looked at, and notes the boot.
func (l *loop) tell() {
	if l.stage != ready || l.frozen() {
		return
	}
	if len(l.dirty) == 0 {
		l.writeBoot()
	}
	l.report()
}

// reportStatus is what the datastore is told; false: not now.
func (l *loop) reportStatus(ctx context.Context) (r datastore.ReportStatus, ok bool) {
	_ = l.do(ctx, func() {
		l.reads++
		if ok = l.stage == ready && !l.frozen(); ok {
			r = datastore.ReportStatus{Started: l.started.UTC().Truncate(time.Second), Problems: l.problemList(), Endpoints: l.count}
		}
	})
	return r, ok
}

// problemList is one line for each thing that is wrong.
func (l *loop) problemList() []string {
	list := l.view.Problems()
	for _, text := range l.overlaps {
		list = append(list, text)
	}
	for what, text := range l.problems.text {
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
	for _, a := range l.links.addrs {
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
		InSync:    l.stage == ready && l.filtering.err == nil && l.table.err == nil,
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
