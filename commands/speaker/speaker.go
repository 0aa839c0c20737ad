// Package speaker is the role that joins the BGP engine to this node: it tells
// the engine who the peers are (from the datastore) and what to announce (the
// agent's routes, from the kernel), and puts what peers announce into the
// kernel.
//
// It owns the kernel's routes of the speaker's protocol number,
// StateDir/speaker.json and the speaker's socket. It never writes another route
// and, of the datastore, only its own node's status.sessions.
//
// Invariants: it starts without the datastore from what it last ran with; it
// ends without deleting a route and without a BGP NOTIFICATION; while the
// datastore is away or not the right one nothing changes but what the kernel
// and the peers say.
package speaker

import (
	"context"
	"log/slog"

	"netctl/datastore/etcd"
)

// Config is what the role runs with.
type Config struct {
	Store etcd.Options
	// Node is this node's name.
	Node string
	// StateDir holds speaker.json and speaker.lock; RunDir is for the socket.
	StateDir, RunDir string
	// Socket is the control socket; "" is RunDir/speaker.sock.
	Socket string
	// Port is the TCP port of BGP on every node; 0 is 179.
	Port int
	// AgentProtocol and SpeakerProtocol are the kernel's route protocol
	// numbers; 0 is 87 and 88.
	AgentProtocol, SpeakerProtocol int
	// LinkPrefix begins the names of the host sides of endpoints; "" is "nc".
	LinkPrefix string
	// Version is told on the socket.
	Version string
}

// Run is the role; it blocks until ctx ends.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	<-ctx.Done()
	return nil
}
