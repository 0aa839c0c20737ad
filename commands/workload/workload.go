// Package workload owns the steps of attaching, detaching and checking one
// endpoint, in the order that keeps a workload protected at every moment, and
// their undoing when one fails. It runs inside the agent; CNI, Docker, Podman
// and the command line all come here.
//
// It never decides what the node's routes or ACLs are (the agent's loop does,
// behind Reconciler) and reads the store only after it lost a race.
//
// Invariants: one endpoint has one step at a time; the endpoint and its
// addresses are written in one transaction before anything is in the kernel, and
// removed from the kernel before they are released (but for what goes on while the store
// is away: see AttachAway); an Attach that fails leaves
// nothing behind, except in a store that went away meanwhile, where the agent
// finds an endpoint without a link.
package workload

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev/kernel"
)

// undoTimeout bounds the undoing of an Attach, whose own time may be over.
const undoTimeout = 10 * time.Second

// Links is what makes and removes an endpoint's link; *kernel.Kernel is one.
type Links interface {
	Create(kernel.Wire) (kernel.Made, error)
	Detach(link string, index int) error
	// DropRules removes what outlives the link in the workload's namespace.
	DropRules(path string, dev, ino uint64, addrs []netip.Addr, to []netip.Prefix) error
	Check(kernel.Wire) error
	// Lives says whether a workload's namespace is where its attach found it.
	Lives(kernel.Place) bool
	// Mend puts back what is nobody else's to change on the workload's side.
	Mend(kernel.Wire) (differed []string, err error)
}

// Addresses assigns and releases addresses; *ipam.Allocator is one.
type Addresses interface {
	Assign(ctx context.Context, req ipam.Request) (ipam.Result, error)
	Release(ctx context.Context, handle string, addrs []netip.Addr, commit ipam.Commit) error
	// Away assigns while the store is away; Rest ends that.
	Away(ctx context.Context, req ipam.Request) ([]netip.Addr, error)
	Rest(addrs ...netip.Addr)
}

// Reconciler is the agent's loop as seen from one endpoint.
type Reconciler interface {
	// Begin tells what is known of an endpoint and of what it refers to, waiting
	// for an earlier detach to be seen. Until End the loop leaves the endpoint's
	// link alone.
	Begin(ctx context.Context, endpoint, network string, profiles []string) (Known, error)
	End(endpoint string)
	// Program returns when the endpoint of a record, as of revision, has its ACLs,
	// link and routes in the kernel. From then on the link is kept as recorded.
	Program(ctx context.Context, rec *Record, revision int64) error
	// Retire takes the endpoint's routes out and keeps them out; Keep undoes that.
	Retire(endpoint string)
	Keep(endpoint string)
	// Linked says whether an endpoint's link exists.
	Linked(ctx context.Context, link string) (bool, error)
	// Settled tells that the store has an endpoint that Program was given unsettled;
	// Withdraw that it never will.
	Settled(endpoint string)
	Withdraw(endpoint string)
	// Reach waits until the view is at least at revision.
	Reach(ctx context.Context, revision int64) error
	// Programmed says what of ACLs, link and routes is not in the kernel.
	Programmed(ctx context.Context, endpoint string) error
	// Find lists the known endpoints of a workload on this node.
	Find(ctx context.Context, orchestrator, workload string) ([]string, error)
}

// Known is what a view of the store tells about an endpoint; its objects are
// never changed. nil: not there.
type Known struct {
	Endpoint *datastore.Endpoint
	// Linked says that the endpoint's link exists.
	Linked  bool
	Network *datastore.Network
	// Profiles are those that were asked for, or the network's.
	Profiles []*datastore.Profile
	// Ways are those to the other nodes.
	Ways Ways
	// Cluster is whose store it is.
	Cluster datastore.Cluster
}

// Ways is what leads packets to the other nodes, and how large they may be.
type Ways struct {
	// MTU in bytes of an endpoint that asks for none; 0: the kernel's default.
	MTU int
	// Uplink is what leads to the other nodes.
	Uplink Uplink
	// Tunnelled are the pools whose packets to other nodes may take a tunnel.
	Tunnelled []PoolUplink
}

// Of is the MTU of an endpoint with these addresses that asks for none.
func (w Ways) Of(addrs []netip.Addr) int {
	if way := w.Uplink.Of(addrs, w.Tunnelled); way != w.Uplink {
		return min(w.MTU, way.MTU)
	}
	return w.MTU
}

// Equal says whether both are the same ways.
func (w Ways) Equal(o Ways) bool {
	return w.MTU == o.MTU && w.Uplink == o.Uplink && slices.Equal(w.Tunnelled, o.Tunnelled)
}

// Uplink is the interface that leads to the other nodes; its MTU is in bytes, 0: not
// known.
type Uplink struct {
	Link string
	MTU  int
}

// PoolUplink is what leads packets to addresses of a pool to the other nodes.
type PoolUplink struct {
	CIDR netip.Prefix
	Uplink
}

// Of is what leads packets of an endpoint with these addresses to the other nodes: of
// u and the tunnels of its pools the one that has least room.
func (u Uplink) Of(addrs []netip.Addr, pools []PoolUplink) Uplink {
	for _, p := range pools {
		if p.MTU < u.MTU && slices.ContainsFunc(addrs, p.CIDR.Contains) {
			u = p.Uplink
		}
	}
	return u
}

// Exceeded says, of one that has that MTU or of several, what is wrong with it; "": it fits.
func (u Uplink) Exceeded(mtu int, several bool) string {
	if u.MTU == 0 || mtu <= u.MTU {
		return ""
	}
	has := "has an MTU of"
	if several {
		has = "have MTUs of up to"
	}
	return fmt.Sprintf(has+" %d, and %s, which leads to the other nodes, one of %d: what is larger is lost or cut up; lower the one or raise the other", mtu, u.Link, u.MTU)
}

// Config is what a Service works with.
type Config struct {
	Node       string
	LinkPrefix string
	Gateway    netip.Addr // IPv4 next hop of workloads
	Boot       string     // this boot's ID
	Links      Links
	Addresses  Addresses
	Reconciler Reconciler
	// Forget deletes the connection tracking entries of addresses.
	Forget func(addrs ...netip.Addr) error
	// GivenUp says whether a detach of a target was asked for since the attach that ctx
	// belongs to was begun; nil: it never was.
	GivenUp func(ctx context.Context, t control.Target) bool
	// Store refuses writes while it is not the right one.
	Store   datastore.Store
	Records *Records
	Log     *slog.Logger
}

// Service attaches and detaches the endpoints of one node. It is safe for
// concurrent use.
type Service struct {
	Config
	turns turns
}

// New returns a service.
func New(cfg Config) *Service {
	return &Service{Config: cfg, turns: turns{held: map[string]chan struct{}{}}}
}

// undo removes what an Attach left, whatever became of its context.
func (s *Service) undo(ctx context.Context, ep *datastore.Endpoint) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if err := s.remove(ctx, ep); err != nil {
		s.Log.Warn("failed attach not undone", "endpoint", ep.Metadata.Name, "error", err)
	}
}

// remove takes an endpoint out of the kernel and then out of the store. Its
// connection tracking entries go in between: after the last packet, and before
// anybody else can have the address.
func (s *Service) remove(ctx context.Context, ep *datastore.Endpoint) error {
	name := ep.Metadata.Name
	s.Reconciler.Retire(name)
	var err error
	if ep.Spec.Orchestrator != datastore.OrchestratorAdopted {
		err = s.sever(ep.Spec.Link)
	}
	if err == nil {
		if e := s.Forget(ep.Spec.Addresses...); e != nil {
			s.Log.Warn("connection tracking entries not deleted", "endpoint", name, "error", e)
		}
		err = s.Addresses.Release(ctx, name, ep.Spec.Addresses, func([]netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
			key, err := datastore.KeyOf(ep)
			return nil, []datastore.Op{{Key: key}}, err
		})
	}
	if err != nil {
		s.Reconciler.Keep(name)
		return fmt.Errorf("detach %s: %w", name, err)
	}
	if err := s.Records.Remove(ep.Spec.Link); err != nil {
		s.Log.Warn("attach record not removed", "endpoint", name, "error", err)
	}
	s.Reconciler.Withdraw(name) // of one that is in no store nothing is heard from there
	s.Log.Info("endpoint detached", "endpoint", name, "link", ep.Spec.Link, "addresses", ep.Spec.Addresses, datastore.EventEndpoint.Mark())
	return nil
}

// sever takes a link out of service, whatever it is called by now, with the rules that
// outlive it.
func (s *Service) sever(link string) error {
	rec, unread := s.Records.Read(link)
	if unread == nil && rec.Adopted() {
		return nil // it is somebody else's
	}
	index := 0
	if unread == nil {
		index = rec.Wire(s.Boot, s.Gateway).Index
	}
	err := s.Links.Detach(link, index)
	if err == nil && unread == nil {
		if e := s.Links.DropRules(rec.Netns, rec.Dev, rec.Ino, rec.Endpoint.Spec.Addresses, rec.Destinations); e != nil {
			s.Log.Warn("rules of a workload not removed", "link", link, "error", e)
		}
	}
	return err
}

// raced says that somebody else wrote what an assignment wanted to write.
func raced(err error) bool {
	return errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists)
}
