package agent

import (
	"context"
	"time"

	"netctl/acl"
	"netctl/acl/conntrack"
)

// cut deletes the flows that policy denies, and keeps what is under way of them from
// beginning others: where they are too many, by their ports for a time. It is of one
// goroutine.
func (a *agent) cut(c conntrack.Cutter) (n int, err error) {
	if a.tracked == nil {
		if a.tracked, err = conntrack.Open(); err != nil {
			return 0, err
		}
	}
	defer func() {
		if err != nil {
			a.tracked.Close()
			a.tracked = nil
		}
	}()
	c.IsCut = a.filter.IsCut
	doubted := false
	c.Answers = func(flows []acl.Flow) error {
		if doubted {
			return nil
		}
		err := a.filter.Cut(context.Background(), flows)
		if err == nil {
			return nil
		}
		doubted = true
		a.log.Warn("answers in flows that are cut are known by their ports alone", "flows", len(flows), "error", err)
		return a.filter.Doubt(context.Background())
	}
	return c.Cut(a.tracked)
}

// closedFor is for how long at most the packet filter lets nothing pass, so that no flow goes on
// that began while it was open and is yet to be cut. Each closedLook it is looked at whether
// somebody took it away again meanwhile.
const (
	closedFor  = time.Second
	closedLook = 5 * time.Millisecond
)

// closed has the flows cut that began while the filter was open, before it is whole again.
func (a *agent) closed(r *acl.Ruleset) {
	if !awaitCut(a.loop.repaired(r), func() bool {
		stands, err := a.filter.Standing(context.Background())
		return err == nil && stands
	}) {
		a.log.Warn("packets pass again, flows are still being cut", "after", closedFor)
	}
}

// awaitCut waits until flows are cut, for as long as the filter that keeps them closed is
// there; false: for as long as it may last.
func awaitCut(done <-chan struct{}, there func() bool) bool {
	enough, look := time.NewTimer(closedFor), time.NewTicker(closedLook)
	defer enough.Stop()
	defer look.Stop()
	for {
		select {
		case <-done:
			return true
		case <-enough.C:
			return false
		case <-look.C:
			if !there() {
				return true
			}
		}
	}
}
