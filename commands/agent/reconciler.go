package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"netctl/commands/control"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// The loop is the reconciler of commands/workload.
var _ workload.Reconciler = (*loop)(nil)

// Begin implements workload.Reconciler.
func (l *loop) Begin(ctx context.Context, endpoint, network string, profiles []string) (k workload.Known, err error) {
	err = l.await(ctx, func() (bool, error) {
		if l.standing.listed == 0 {
			return l.standing.stage == away || l.standing.stage == detached, l.standing.why()
		}
		lo := l.locals.of(endpoint)
		if lo.leaving && lo.ep != nil && l.standing.stage != away {
			return false, nil // its detach is still under way to the view
		}
		lo.leaving = false
		lo.busy++
		k = l.known(lo, network, profiles)
		return true, nil
	})
	return k, err
}

func (l *loop) known(lo *local, network string, profiles []string) workload.Known {
	k := workload.Known{Endpoint: lo.ep, Cluster: l.standing.cluster, Ways: l.ways()}
	_, k.Linked = l.links.present[lo.link]
	if network != "" {
		k.Network = l.view.Network(network)
	}
	for _, name := range datastore.ProfilesOf(network, k.Network, profiles) {
		if p := l.view.Profile(name); p != nil {
			k.Profiles = append(k.Profiles, p)
		}
	}
	return k
}

// mtu is that of workload interfaces: the setting, the cluster's, or that of the
// interface that has the node's address.
func (l *loop) mtu() int {
	if l.cfg.MTU != 0 {
		return l.cfg.MTU
	}
	if m := l.view.Config().Spec.MTU; m != 0 {
		return m
	}
	return l.uplink().MTU
}

// End implements workload.Reconciler.
func (l *loop) End(endpoint string) {
	l.post(func() {
		lo := l.locals.named[endpoint]
		if lo == nil || lo.busy == 0 {
			return
		}
		lo.busy--
		if lo.busy == 0 {
			lo.created = false
		}
		l.locals.mark(endpoint)
		l.locals.sized[endpoint] = true
	})
}

// Program implements workload.Reconciler.
func (l *loop) Program(ctx context.Context, rec *workload.Record, revision int64) error {
	endpoint := rec.Endpoint.Metadata.Name
	// The link is there, whether or not its event has arrived.
	if err := l.do(ctx, func() {
		lo := l.locals.of(endpoint)
		lo.created, lo.raise, lo.leaving = true, !rec.Adopted(), false
		if !rec.Adopted() {
			l.learn(rec)
		}
		if ep := l.view.Endpoint(endpoint); ep != nil {
			l.rerate(ep)
		}
		if l.awaits(rec); rec.Unsettled {
			l.stand(rec)
			l.settleSoon()
		}
		if _, ok := l.links.present[lo.link]; !ok && !rec.Adopted() {
			l.links.present[lo.link] = kernel.Link{Name: lo.link, Index: rec.Index}
		}
		l.locals.mark(endpoint)
	}); err != nil {
		return err
	}
	return l.await(ctx, func() (bool, error) {
		lo := l.locals.named[endpoint]
		switch {
		case l.standing.stage == detached:
			return false, l.standing.why()
		case lo == nil || lo.ep == nil || l.view.Revision() < revision || l.standing.frozen():
			return false, nil
		}
		err := l.programmed(lo)
		return err == nil, err
	})
}

// Retire implements workload.Reconciler.
func (l *loop) Retire(endpoint string) {
	_ = l.do(context.Background(), func() {
		lo := l.locals.of(endpoint)
		lo.leaving = true
		delete(l.links.present, lo.link)
		delete(l.links.hold, lo.link)
		l.locals.moved[endpoint] = true
	})
}

// Keep implements workload.Reconciler.
func (l *loop) Keep(endpoint string) {
	l.post(func() {
		if lo := l.locals.named[endpoint]; lo != nil {
			lo.leaving = false
			l.links.resync = true
			l.locals.mark(endpoint)
		}
	})
}

// Reach implements workload.Reconciler.
func (l *loop) Reach(ctx context.Context, revision int64) error {
	return l.await(ctx, func() (bool, error) { return l.view.Revision() >= revision, l.standing.why() })
}

// Programmed implements workload.Reconciler.
func (l *loop) Programmed(ctx context.Context, endpoint string) (err error) {
	if e := l.do(ctx, func() {
		if lo := l.locals.named[endpoint]; lo != nil {
			err = l.programmed(lo)
		}
	}); e != nil {
		return e
	}
	return err
}

// Find implements workload.Reconciler.
func (l *loop) Find(ctx context.Context, orchestrator, work string) (names []string, err error) {
	prefix := datastore.EndpointName(l.cfg.Node, orchestrator, work, "")
	err = l.do(ctx, func() { names = l.locals.under(prefix) })
	return names, err
}

// gate waits until endpoints can be attached and released; it fails with the
// reason where that will take longer.
func (l *loop) gate(ctx context.Context) error {
	err := l.await(ctx, func() (bool, error) { return l.standing.stage == ready, l.standing.why() })
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the agent starts and has not heard all of the datastore yet: %w", datastore.ErrUnavailable)
	}
	return err
}

// takes says why this node is given no new endpoint: it is drained. One that it has
// already may be attached again.
func (l *loop) takes(ctx context.Context, t control.Target) (err error) {
	name := t.Endpoint(l.cfg.Node)
	asked := l.do(ctx, func() {
		n := l.view.Node(l.cfg.Node)
		if n == nil || n.Spec.Drain == nil || l.view.Endpoint(name) != nil {
			return
		}
		err = &control.Error{Code: control.CodeExhausted, Message: fmt.Sprintf("attach %s: node %s takes no new endpoints, it is %s; `netctl node undrain %s` ends that",
			t.Workload, l.cfg.Node, n.Spec.Drain.Words(), l.cfg.Node)}
	})
	return cmp.Or(asked, err)
}

// awayFor is how long the store has not answered; for ever, if the agent ends.
func (l *loop) awayFor(ctx context.Context) time.Duration {
	var d time.Duration
	if l.do(ctx, func() {
		if l.standing.stage == away {
			d = time.Since(l.standing.since)
		}
	}) != nil {
		return math.MaxInt64
	}
	return d
}
