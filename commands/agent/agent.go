// Package agent owns the role that makes this node's kernel what the datastore
// says: the links, routes and packet filter of the endpoints on this node.
//
// It never writes a route of another protocol, never speaks BGP, and never
// changes the kernel while it is detached from the datastore. The steps of
// attaching and detaching one endpoint are commands/workload's.
//
// Invariants: one goroutine (loop) owns the view, the desired state and every
// write of routes and ACLs; store round trips happen outside of it; ending the
// role, however, leaves the kernel as it is.
package agent

import (
	"context"
	"log/slog"
)

// Run is the role; it blocks until ctx ends (nil) or it cannot go on.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.finish(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
