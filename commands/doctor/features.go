package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/acl/iptables"
	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing"
	"netctl/routing/fib"
)

func (m *machine) Interfaces() ([]kernel.Interface, error)           { return m.kernel.Interfaces() }
func (m *machine) Routes() ([]kernel.Route, error)                   { return m.kernel.MainRoutes() }
func (m *machine) Neighbours() ([]kernel.NeighbourTable, error)      { return m.kernel.Neighbours() }
func (m *machine) BaseChains(prefix string) ([]nft.BaseChain, error) { return nft.BaseChains(prefix) }
func (m *machine) Accept(prefix string) (int, error)                 { return iptables.EnsureForward(prefix) }

func (m *machine) Iptables(ctx context.Context, prefix string) ([]iptables.Flavour, error) {
	ctx, cancel := context.WithTimeout(ctx, runTime)
	defer cancel()
	return iptables.Look(ctx, prefix)
}

// Lacks makes in a network namespace of its own what the agent makes on a host. The
// thread that has it is never used again, and with it the namespace ends.
func (m *machine) Lacks(ctx context.Context, o Features) (map[Feature]error, error) {
	type answer struct {
		lacks map[Feature]error
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		inner, err := scratch()
		if err != nil {
			done <- answer{nil, err}
			return
		}
		defer unix.Close(inner)
		lacks, err := m.try(ctx, o, inner)
		done <- answer{lacks, err}
	}()
	select {
	case a := <-done:
		return a.lacks, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// scratch takes the thread into a new namespace and returns a descriptor of another one,
// for the far end of a link.
func scratch() (inner int, err error) {
	inner = -1
	for range 2 {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return -1, fmt.Errorf("make a network namespace: %w", err)
		}
		if inner < 0 {
			if inner, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
				return -1, fmt.Errorf("open a network namespace: %w", err)
			}
		}
	}
	return inner, nil
}

func (m *machine) try(ctx context.Context, o Features, inner int) (map[Feature]error, error) {
	k, err := kernel.Open(m.log)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	if _, err := k.Loopback(); err != nil {
		return nil, err
	}
	lacks := map[Feature]error{}
	note := func(f Feature, err error) {
		if err != nil {
			lacks[f] = err
		}
	}
	_, err = k.Create(kernel.Wire{Netns: inner, Interface: "eth0", Link: netdev.LinkName(o.LinkPrefix, "doctor"), Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	note(FeatureLinks, err)
	note(FeatureRoutes, tryRoute(ctx, o, m))
	note(FeatureFilter, m.tryFilter(ctx, o))
	note(FeatureConntrack, conntrack.Delete(netip.MustParseAddr("192.0.2.1")))
	features := map[datastore.TunnelKind]Feature{datastore.TunnelIPIP: FeatureIPIP, datastore.TunnelVXLAN: FeatureVXLAN, datastore.TunnelWireGuard: FeatureWireGuard}
	for _, kind := range o.Tunnels {
		t := kernel.Tunnel{Name: netdev.DefaultTunnels()[kind], Kind: kind, Local: netip.MustParseAddr("127.0.0.1"), MTU: 1400}
		if kind == datastore.TunnelVXLAN {
			t.MAC = netdev.TunnelMAC("doctor")
		}
		if kind == datastore.TunnelWireGuard {
			t.Private, t.Port = kernel.WireGuardKey{1}, netdev.WireGuardPort
		}
		_, err := k.SetTunnel(t)
		note(features[kind], err)
	}
	return lacks, nil
}

func tryRoute(ctx context.Context, o Features, m *machine) error {
	t, err := fib.Open(fib.Config{Protocol: o.Protocol}, m.log)
	if err != nil {
		return err
	}
	defer t.Close()
	return t.Apply(ctx, routing.Changes{Put: []routing.Route{{Prefix: netip.MustParsePrefix("192.0.2.0/26"), Type: routing.Blackhole}}})
}

// tryFilter makes the table that every node has.
func (m *machine) tryFilter(ctx context.Context, o Features) error {
	t, err := nft.Open(m.log)
	if err != nil {
		return err
	}
	defer t.Close()
	_, err = t.Sync(ctx, acl.Static(acl.Options{LinkPrefix: o.LinkPrefix, Group: netdev.Group, Gateways: []netip.Addr{netdev.Gateway4()}, FlowRate: 1000, FlowBurst: 16000}))
	var refused *acl.RefusedError
	if errors.As(err, &refused) {
		return fmt.Errorf("it refuses rules that every node needs: %w", refused)
	}
	return err
}
