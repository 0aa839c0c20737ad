package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/commands/telemetry"
	"netctl/datastore"
)

// compareEvery is how often everything is compared with the kernel.
const compareEvery = 10 * time.Minute

// tell has the report looked at, and notes the boot.
func (l *loop) tell() {
	if l.standing.stage != ready || l.standing.frozen() {
		return
	}
	if len(l.locals.dirty) == 0 {
		if err := l.boots.note(); err != nil {
			l.log.Warn("boot not noted", "error", err)
		}
	}
	l.report()
}

// reportStatus is what the datastore is told; false: not now.
func (l *loop) reportStatus(ctx context.Context) (r datastore.ReportStatus, ok bool) {
	_ = l.do(ctx, func() {
		l.idle++
		if ok = l.standing.stage == ready && !l.standing.frozen(); ok {
			r = datastore.ReportStatus{Started: l.started.UTC().Truncate(time.Second), Problems: l.problemList(), Refusing: few(l.refusing), Behind: !l.inSync(), Endpoints: l.endpoints(), Runtimes: l.runtimeStatus()}
		}
	})
	return r, ok
}

// sharing is the task that shares this node's events while it may report.
func (a *agent) sharing(store datastore.Store) control.Task {
	s := &telemetry.Sharer{Node: a.cfg.Node, StateDir: a.cfg.StateDir, Store: store, Log: a.log, May: func(ctx context.Context) bool {
		_, ok := a.loop.reportStatus(ctx)
		return ok
	}}
	return control.Task{Name: s.String(), Do: s.Run}
}

// problemList is one line for each thing that is wrong with this node. What of it is not in
// problems, which tells by itself, is told here.
func (l *loop) problemList() []string {
	list, _ := l.view.ProblemsOf(l.cfg.Node)
	shown := map[string]telemetry.Problem{}
	add := func(what, text, line string) {
		list = append(list, line)
		shown[what] = telemetry.Problem{What: what, Text: text}
	}
	for _, line := range list {
		key, why, _ := strings.Cut(line, ": ")
		shown[line] = telemetry.Problem{What: key, Text: why}
	}
	for what, text := range l.problems.text {
		list = append(list, oneLine(what+": "+text))
	}
	list = append(list, l.domains.fullSets()...)
	if text := l.tooLarge(); text != "" {
		add("mtu", text, "mtu: "+text)
	}
	for _, name := range l.locals.lost() {
		switch {
		case !l.detached(name):
			text := fmt.Sprintf("lost its link; it is released after %s", l.cfg.LostAfter)
			add("endpoint "+name, text, "endpoint "+name+" "+text)
		case l.problems.text[pending] == "": // else that says it
			text := "was detached, and is released once the datastore takes that"
			add("endpoint "+name, text, "endpoint "+name+" "+text)
		}
	}
	if l.standing.stage == renamed { // of which there is an event
		list = append(list, l.standing.reason.Error())
	} else {
		for _, line := range l.twins() {
			what, text, _ := strings.Cut(line, ": ")
			add(what, text, line)
		}
	}
	l.shown.Set(shown)
	slices.Sort(list)
	return list
}

// inSync says whether the kernel is what the datastore says.
func (l *loop) inSync() bool {
	return l.standing.stage == ready && l.filtering.err == nil && l.table.err == nil
}

// endpoints is how many this node has: by the records while the view is not (yet) what
// the node should be.
func (l *loop) endpoints() int {
	if !l.standing.frozen() {
		return l.locals.count
	}
	names := map[string]bool{}
	for _, w := range l.links.wires {
		names[w.endpoint] = true
	}
	return len(names)
}

// status is the answer of the control socket.
func (l *loop) status() control.AgentStatus {
	s := control.AgentStatus{
		Version: l.cfg.Version, Node: l.cfg.Node, PID: os.Getpid(), Started: l.started,
		InSync:    l.inSync(),
		Endpoints: l.endpoints(), Waiting: len(l.unsettled), Lost: l.locals.lost(), Problems: l.problemList(), AddressRule: l.rule,
	}
	s.Closed, s.Taps = l.closed()
	_, s.Unread = l.view.ProblemsOf(l.cfg.Node)
	switch l.standing.stage {
	case detached:
		s.Detached = oneLine(l.standing.reason.Error())
	case away:
		s.Store = oneLine(l.standing.reason.Error())
	}
	if n := l.view.Node(l.cfg.Node); n != nil {
		for _, p := range n.Spec.Addresses {
			s.Address = append(s.Address, p.Addr())
		}
	}
	return s
}
