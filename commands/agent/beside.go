package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"netctl/acl/nft"
	"netctl/commands/control"
	"netctl/datastore"
)

// askedTasks look at what is beside the model, and at other programs' packet filters.
func (a *agent) askedTasks() []control.Task {
	return []control.Task{
		{Name: "look for other programs' refusals", Do: a.lookForRefusals},
		{Name: "trace packets", Do: func(ctx context.Context) error {
			t, closing := a.tracing()
			defer closing()
			return (&tracer{loop: a.loop, nft: t, store: a.guard.Fence(a.store), log: a.log}).Run(ctx)
		}},
		{Name: "take back what nobody confirms", Do: func(ctx context.Context) error {
			who := datastore.HistoryRecord{User: "agent", Host: a.cfg.Node, Node: a.cfg.Node, Command: "netctl agent: nobody confirmed a change"}
			return (&keeper{node: a.cfg.Node, store: &datastore.Recorder{Store: a.guard.Fence(a.store), Who: who}, spawn: a.loop.spawn, log: a.log}).Run(ctx)
		}},
	}
}

// tracing is the table by which packets are traced, nil where the kernel has no nftables.
func (a *agent) tracing() (t *nft.Table, closing func()) {
	if t, is := a.filter.packetFilter.(*nft.Table); is {
		return t, func() {}
	}
	t, err := nft.Open(a.log)
	if err != nil {
		return nil, func() {}
	}
	return t, func() { _ = t.Close() }
}

// besideRetry is after how long a prefix beside the model is followed again, besideDenied
// where the node has no right to.
const (
	besideRetry  = time.Second
	besideDenied = 5 * time.Minute
)

// besides are entries beside the model that a task of the agent follows, until ctx ends.
type besides struct {
	store  datastore.Store
	prefix string
	log    *slog.Logger
	// hear takes an entry that is there, or changed (nil Value: it went), and listed all
	// keys that are there.
	hear   func(ctx context.Context, e datastore.Entry)
	listed func(there map[string]bool)
}

func (b besides) run(ctx context.Context) error {
	said := ""
	for {
		err := b.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if text := fmt.Sprint(err); text != said {
			said = text
			b.log.Debug("not followed for now", "key", b.prefix, "error", err)
		}
		wait := besideRetry
		if errors.Is(err, datastore.ErrDenied) { // an older member of the datastore, or an external one
			wait = besideDenied
		}
		if !pause(ctx, wait) {
			return nil
		}
	}
}

func (b besides) follow(ctx context.Context) error {
	snap, err := b.store.List(ctx, b.prefix)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, e := range snap.Entries {
		there[e.Key] = true
		b.hear(ctx, e)
	}
	b.listed(there)
	return b.store.Watch(ctx, []string{b.prefix}, snap.Revision, func(batch datastore.Batch) error {
		for _, e := range batch.Events {
			b.hear(ctx, e)
		}
		return nil
	})
}
