package agent

import (
	"context"
	"net/http"
	"net/netip"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/acl/nflog"
	"netctl/commands/control"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev/kernel"
	"netctl/routing"
	"netctl/routing/fib"
)

// outside is what the role works on; tests put fakes in.
type outside struct {
	links interface {
		hostLinks
		tables
		everything
		workload.Links
		Run(ctx context.Context) error
		Watch(ctx context.Context, fn func(kernel.Event)) error
		WatchPeers(ctx context.Context, fn func(kernel.Event)) error
		OpenNetns(pid, fd int) (*kernel.Netns, error)
	}
	routes interface {
		routes
		Resolve(ctx context.Context, a netip.Addr) (routing.NextHop, error)
		Watch(ctx context.Context, ignore fib.Ignore, fn func(fib.Event)) error
	}
	filter interface {
		filter
		Watch(ctx context.Context, fn func()) error
		WatchOthers(ctx context.Context, fn func()) error
	}
	// followed is the datastore; store is the same, and fails while it is not the
	// right one, as guard says.
	followed, store datastore.Store
	guard           datastore.Guard
	// beside keeps the way to the datastore open.
	beside []control.Task
	// forget deletes the connection tracking entries of addresses.
	forget func(addrs ...netip.Addr) error
	// flowing is conntrack.Addresses.
	flowing func() ([]netip.Addr, error)
	// denied counts the packets that the packet filter dropped.
	denied func(ctx context.Context) (map[string]uint64, error)
	// astray counts those of them that acl.ChainReverse dropped.
	astray func(ctx context.Context) (uint64, error)
	// counts is what rules of the packet filter have counted.
	counts func(ctx context.Context, rules []acl.Rule) ([]acl.Count, error)
	// counted is how many packets a chain of it dropped.
	counted func(ctx context.Context, chain string) (uint64, error)
	// routed and echoes are the functions of those names, for the ways of WireGuard.
	routed, echoes func(from, to netip.Addr) bool
	// cut deletes those of flows that policy denies.
	cut      func(conntrack.Cutter) (int, error)
	machines machines
	// undirect is conntrack.DeleteDirect.
	undirect func(host []netip.Addr, ports []datastore.HostPort) error
	// answers are what DNS servers answer to endpoints: readDatagrams.
	answers func(ctx context.Context, bound func(), fn func(nflog.Datagram) error) error
	// forward is iptables.Run.
	forward func(ctx context.Context, prefix string, changed <-chan struct{}, report func(added int, err error)) error
	// serve answers on the control socket until ctx ends.
	serve func(ctx context.Context, h http.Handler) error
}
