//go:build !bundled

package datastore

import (
	"context"
	"log/slog"

	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/datastore/etcd"
)

// share keeps the last events of a machine with Shares in the datastore, until ctx ends.
func (c Config) share(ctx context.Context, log *slog.Logger) {
	if !c.Shares {
		return
	}
	store, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{"unix://" + c.Socket}, Log: log})
	if err != nil {
		log.Warn("events are not shared", "error", err)
		return
	}
	defer store.Close()
	sharer := &telemetry.Sharer{Node: c.Node, StateDir: c.StateDir, Store: store, Log: log, May: func(ctx context.Context) bool {
		_, err := store.Get(ctx, datastore.ClusterKey) // an empty datastore stays empty
		return err == nil
	}}
	_ = sharer.Run(ctx) // nothing depends on it
}
