package agent

import (
	"context"
	"strings"

	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// The loop is the reconciler of commands/workload.
var _ workload.Reconciler = (*loop)(nil)

// Begin implements workload.Reconciler.
func (l *loop) Begin(ctx context.Context, endpoint, network string, profiles []string) (k workload.Known, err error) {
	err = l.await(ctx, func() (bool, error) {
		if l.seen == 0 {
			return l.stage == away || l.stage == detached, l.why()
		}
		lo := l.local(endpoint)
		if lo.leaving && lo.ep != nil && l.stage != away {
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
	k := workload.Known{Endpoint: lo.ep, Cluster: l.cluster, MTU: l.mtu()}
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
	node := l.view.Node(l.cfg.Node)
	if node == nil {
		return 0
	}
	return l.links.mtuOf(node.Spec.Addresses)
}

// End implements workload.Reconciler.
func (l *loop) End(endpoint string) {
	l.post(func() {
		lo := l.locals[endpoint]
		if lo == nil || lo.busy == 0 {
			return
		}
		lo.busy--
		if lo.busy == 0 {
			lo.created = false
		}
		l.mark(endpoint)
	})
}

// Program implements workload.Reconciler.
func (l *loop) Program(ctx context.Context, endpoint string, revision int64) error {
	// The link is there, whether or not its event has arrived.
	if err := l.do(ctx, func() {
		lo := l.local(endpoint)
		lo.created, lo.raise, lo.leaving = true, true, false
		if _, ok := l.links.present[lo.link]; !ok {
			l.links.present[lo.link] = kernel.Link{Name: lo.link}
		}
		l.mark(endpoint)
	}); err != nil {
		return err
	}
	return l.await(ctx, func() (bool, error) {
		lo := l.locals[endpoint]
		switch {
		case l.stage == detached:
			return false, l.why()
		case lo == nil || lo.ep == nil || l.view.Revision() < revision || l.frozen():
			return false, nil
		}
		err := l.programmed(lo)
		return err == nil, err
	})
}

// Retire implements workload.Reconciler.
func (l *loop) Retire(endpoint string) {
	_ = l.do(context.Background(), func() {
		lo := l.local(endpoint)
		lo.leaving = true
		delete(l.links.present, lo.link)
		l.moved[endpoint] = true
	})
}

// Keep implements workload.Reconciler.
func (l *loop) Keep(endpoint string) {
	l.post(func() {
		if lo := l.locals[endpoint]; lo != nil {
			lo.leaving = false
			l.links.resync = true
			l.mark(endpoint)
		}
	})
}

// Reach implements workload.Reconciler.
func (l *loop) Reach(ctx context.Context, revision int64) error {
	return l.await(ctx, func() (bool, error) { return l.view.Revision() >= revision, l.why() })
}

// Programmed implements workload.Reconciler.
func (l *loop) Programmed(ctx context.Context, endpoint string) (err error) {
	if e := l.do(ctx, func() {
		if lo := l.locals[endpoint]; lo != nil {
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
	err = l.do(ctx, func() {
		for name := range l.locals {
			if strings.HasPrefix(name, prefix) {
				names = append(names, name)
			}
		}
	})
	return names, err
}

// gate waits until endpoints can be attached and released; it fails with the
// reason where that will take longer.
func (l *loop) gate(ctx context.Context) error {
	return l.await(ctx, func() (bool, error) { return l.stage == ready, l.why() })
}

// why says why the store cannot be used; nil: it can, or nobody knows yet.
func (l *loop) why() error {
	if l.stage == away || l.stage == detached {
		return l.reason
	}
	return nil
}
