package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"netctl/datastore"
)

// Sizes of headers in bytes, and the smallest packet that is tried.
const (
	smallEcho = 100
	leastMTU  = 576
	leastMTU6 = 1280
)

// overhead is what a tunnel puts around a packet, in bytes.
func overhead(kind datastore.TunnelKind) int {
	return map[datastore.TunnelKind]int{datastore.TunnelIPIP: 20, datastore.TunnelVXLAN: 50, datastore.TunnelVXLAN6: 70, datastore.TunnelWireGuard: 80}[kind]
}

// around is what the cluster's tunnels put around packets at most, in bytes. Where IPv4 is
// had by all, VXLAN over IPv6 is for when that fails.
func (c *Cluster) around() (most int) {
	for _, kind := range []datastore.TunnelKind{datastore.TunnelIPIP, datastore.TunnelVXLAN, datastore.TunnelVXLAN6, datastore.TunnelWireGuard} {
		six := slices.ContainsFunc(c.Nodes, func(n *datastore.Node) bool { _, has := n.TunnelOf(kind); return has && !n.Address(false).IsValid() })
		if len(c.tunnelled(kind)) > 0 && (kind != datastore.TunnelVXLAN6 || six) {
			most = max(most, overhead(kind))
		}
	}
	return most
}

// largest is the size of packets that workloads may cause on the link to other nodes.
func (s *scene) largest(link int) int {
	mtu := s.cfg.MTU
	if c := s.cfg.Cluster; c != nil && mtu == 0 && c.Config != nil {
		mtu = c.Config.Spec.MTU
	}
	if mtu == 0 || s.cfg.Cluster == nil {
		return link
	}
	return min(mtu+s.cfg.Cluster.around(), link)
}

func pathMTU(ctx context.Context, s *scene) ([]Finding, error) {
	return s.tryAll([]bool{false, true}, func(o other, from own, to netip.Addr) said {
		small, err := s.Echo(ctx, from.addr, to, smallEcho)
		if err != nil {
			return said{untold: fmt.Errorf("%s: %w", o.name, err)}
		}
		if small.Reply != Answered {
			if !o.alive {
				return said{}
			}
			return said{untold: fmt.Errorf("%s (%s): %s to a small echo request either, so that nothing can be said of large ones", o.name, to, words(small))}
		}
		want := s.largest(from.link.MTU)
		fits, err := s.fitting(ctx, from.addr, to, want)
		if err != nil {
			return said{untold: fmt.Errorf("%s: %w", o.name, err)}
		}
		if fits >= want {
			return said{tried: true}
		}
		mtu := fits
		if s.cfg.Cluster != nil {
			mtu -= s.cfg.Cluster.around()
		}
		return said{tried: true, found: &Finding{
			What: fmt.Sprintf("packets from %s to %s (%s) may have %d bytes, and %s lets them have %d: what is larger vanishes", from.addr, o.name, to, fits, from.link.Name, want),
			Fix: []string{fmt.Sprintf(`printf 'apiVersion: netctl/v1\nkind: Config\nmetadata: {name: default}\nspec: {mtu: %d}\n' | netctl apply -f -`, mtu),
				fmt.Sprintf("# or raise the MTU of every switch and interface on the way to %d", want)}}}
	})
}

// fitting is the size in bytes of the largest packet of at most want that comes through.
func (s *scene) fitting(ctx context.Context, from, to netip.Addr, want int) (int, error) {
	least := leastMTU
	if to.Is6() {
		least = leastMTU6
	}
	through := func(n int) (bool, int, error) {
		for range 2 { // one that is lost is not too large
			a, err := s.Echo(ctx, from, to, n)
			if err != nil || a.Reply == Answered {
				return err == nil, 0, err
			}
			if a.Reply == TooLarge {
				return false, a.MTU, nil
			}
		}
		return false, 0, nil
	}
	ok, told, err := through(want)
	if ok || err != nil {
		return want, err
	}
	low, high := least, want // low comes through, high does not
	if told > low && told < high {
		if ok, _, err := through(told); err != nil {
			return 0, err
		} else if ok {
			low = told
		}
		if ok, _, err := through(told + 1); err != nil {
			return 0, err
		} else if !ok && low == told {
			return told, nil
		}
	}
	for high-low > 1 {
		sizes := between(low, high)
		came, errs := make([]bool, len(sizes)), make([]error, len(sizes))
		var all sync.WaitGroup
		for i, n := range sizes { // at once: each that does not come through takes its time
			all.Go(func() { came[i], _, errs[i] = through(n) })
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return 0, err
		}
		if last := slices.Index(came, false); last >= 0 {
			high, sizes = sizes[last], sizes[:last]
		}
		if len(sizes) > 0 {
			low = sizes[len(sizes)-1]
		}
	}
	return low, nil
}

// atOnce is how many sizes are tried together.
const atOnce = 32

// between are sizes between two others, evenly spread.
func between(low, high int) (sizes []int) {
	n := min(atOnce, high-low-1)
	for i := range n {
		sizes = append(sizes, low+(high-low)*(i+1)/(n+1))
	}
	return sizes
}
