package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"netctl/netdev/kernel"
)

// lookForRoom is how often the tables are looked at that all share.
const lookForRoom = 15 * time.Second

// tables is what room asks the kernel.
type tables interface {
	Neighbours() ([]kernel.NeighbourTable, error)
	ReturnPath(links ...string) (kernel.ReturnPath, error)
}

// room is how full the kernel's tables are that are one for all: who fills one cuts
// everybody off. It belongs to one goroutine.
type room struct {
	loop    *loop
	kernel  tables
	tracked func() (count, most int, err error)
	refused map[string]uint64
	path    returnPath
	// astray is how many packets came with a pool's source by another way than that is
	// reached by; nil: nobody counts them.
	astray  func(ctx context.Context) (uint64, error)
	reverse reversePath
}

// Run looks from time to time and says what is nearly full.
func (r *room) Run(ctx context.Context) error {
	for {
		if err := r.look(ctx); err != nil && ctx.Err() == nil {
			r.loop.log.Warn("how full the kernel's tables are is not known", "error", err)
		}
		if !pause(ctx, lookForRoom) {
			return nil
		}
	}
}

func (r *room) look(ctx context.Context) error {
	var incoming []string
	if err := r.loop.do(ctx, func() { incoming = r.loop.incoming(); r.loop.idle++ }); err != nil {
		return err
	}
	list, err := r.kernel.Neighbours()
	path, pathErr := r.kernel.ReturnPath(incoming...)
	count, most, trackErr := r.tracked()
	var astray uint64
	var astrayErr error
	if r.astray != nil {
		astray, astrayErr = r.astray(ctx)
	}
	if errors.Is(trackErr, fs.ErrNotExist) {
		trackErr = nil // nothing is tracked
	}
	return errors.Join(err, trackErr, pathErr, astrayErr, r.loop.do(ctx, func() {
		l := r.loop
		l.tables = tablesSeen{list, count, most}
		for _, t := range list {
			before, known := r.refused[t.Name]
			r.refused[t.Name] = t.Refused
			l.problems.note(t.Name, neighbourProblem(t, known && t.Refused > before))
		}
		l.problems.note("connection tracking", trackingProblem(count, most))
		l.limitFlows(most)
		if pathErr == nil {
			l.problems.note("return path", r.path.seen(path, time.Now()))
		}
		if astrayErr == nil {
			l.problems.note("reverse path", r.reverse.seen(astray, time.Now()))
		}
		l.idle++
	}))
}

// nearlyFull is from how many hundredths of a table on it is said.
const nearlyFull = 80

// neighbourProblem is empty where there is room.
func neighbourProblem(t kernel.NeighbourTable, overflowed bool) string {
	setting := "net.ipv4.neigh.default.gc_thresh3"
	if t.Name == "ndisc_cache" {
		setting = "net.ipv6.neigh.default.gc_thresh3"
	}
	switch {
	case overflowed:
		return fmt.Sprintf("the kernel's neighbour table is full, and the node may reach nobody new: raise %s, which is %d", setting, t.Most)
	case 100*t.Entries >= nearlyFull*t.Most:
		return fmt.Sprintf("the kernel's neighbour table is nearly full (%d of %d): raise %s", t.Entries, t.Most, setting)
	}
	return ""
}

func trackingProblem(count, most int) string {
	if most == 0 || 100*count < nearlyFull*most {
		return ""
	}
	return fmt.Sprintf("the kernel's connection tracking table is nearly full (%d of %d): raise net.netfilter.nf_conntrack_max, or find who begins so many flows: conntrack -L", count, most)
}

// tracked is how many flows the kernel tracks at most; 0: it is not known, as before
// anything asks for it.
func tracked(use func() (count, most int, err error)) int {
	_, most, err := use()
	if err != nil {
		return 0
	}
	return most
}

// limitFlows has the bound follow the size of the kernel's table, which comes with the
// first rule that needs it and may be set to another one at any time. 0: not known.
func (l *loop) limitFlows(most int) {
	f := l.filtering
	rate, burst := flowLimit(l.cfg.NewFlows, most)
	if most == 0 || rate == f.options.FlowRate && burst == f.options.FlowBurst {
		return
	}
	l.log.Info("workloads may begin as many flows as the connection tracking table has room for", "rate", rate, "before", f.options.FlowRate, "room", most)
	f.options.FlowRate, f.options.FlowBurst = rate, burst
	f.index.SetFlows(rate, burst)
	f.judged.drop()
	if !f.resync && f.refused == nil {
		f.held = true // by what was right until now
		f.bounded = f.bounded || !f.behind
	}
	f.behind = true
}

// flowLimit is the bound of the flows that a workload begins, per second and at once: as
// set (0: by the kernel's table, which has room for most; 0: not known).
func flowLimit(set, most int) (rate, burst uint32) {
	if set > 0 {
		return uint32(set), 16 * uint32(set)
	}
	if most == 0 {
		most = 1 << 18 // the kernel's own default on a machine with enough memory
	}
	return uint32(max(most/256, 10)), uint32(max(most/16, 160))
}
