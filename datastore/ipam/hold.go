package ipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"netctl/datastore"
)

// HoldTime is how long a held address is kept for who asked for it.
const HoldTime = 2 * time.Minute

// holds are the addresses that were chosen for somebody who has yet to say for what.
type holds struct {
	mu    sync.Mutex
	until map[netip.Addr]time.Duration // on the allocator's clock
	// doubts are, by handle, addresses of a commit that nobody knows the outcome of.
	doubts map[string][]netip.Addr
}

// Hold chooses what Assign would, writes nothing, and keeps other requests from it for
// HoldTime or until LetGo. An Assign with Held may have it. The errors are Assign's.
func (a *Allocator) Hold(ctx context.Context, req Request) ([]netip.Addr, error) {
	req.Held = len(req.Wants) > 0
	addrs, err := a.choose(ctx, req, Request{}, a.cfg.Now()+HoldTime)
	if err != nil {
		return nil, fmt.Errorf("hold: %w", err)
	}
	return addrs, nil
}

// choose plans a request, writes nothing, and keeps others from its addresses until a
// moment of the allocator's clock. It may have what is held for holder.
func (a *Allocator) choose(ctx context.Context, req, holder Request, until time.Duration) ([]netip.Addr, error) {
	if !req.Away { // else who has the turn may wait for the store for long
		release, err := a.take(ctx)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	x, err := a.source(ctx, false)
	if err != nil {
		return nil, err
	}
	x.mu.Lock() // until they are kept: two may choose at the same time
	defer x.mu.Unlock()
	own, others := a.holds.doubted(req.Handle)
	p := planner{index: x, node: a.cfg.Node, req: req, clock: a.clock(), held: append(a.held(holder), others...)}
	again := p
	if req.Away && len(own) > 0 && len(req.Wants) == 0 {
		p.req.Wants, p.req.Held = own, true
	}
	err = p.run()
	if err != nil && p.req.Held != req.Held { // they were of a block that was not there yet
		p = again
		err = p.run()
	}
	if err != nil {
		return nil, err
	}
	a.holds.keep(until, p.addrs)
	return p.addrs, nil
}

// LetGo ends the holds of addresses.
func (a *Allocator) LetGo(addrs ...netip.Addr) {
	a.holds.mu.Lock()
	defer a.holds.mu.Unlock()
	for _, addr := range addrs {
		delete(a.holds.until, addr)
	}
}

// held are the addresses that a request may not have.
func (a *Allocator) held(req Request) (list []netip.Addr) {
	a.holds.mu.Lock()
	defer a.holds.mu.Unlock()
	now := a.cfg.Now()
	for addr, until := range a.holds.until {
		switch {
		case until <= now:
			delete(a.holds.until, addr)
		case !req.Held || !slices.Contains(req.Wants, addr):
			list = append(list, addr)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// PoolOf is the pool that an address is in; nil: none.
func (x *Index) PoolOf(addr netip.Addr) *datastore.Pool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.poolAround(addr)
}

// Free says whether an endpoint could have an address, and nobody has it.
func (x *Index) Free(addr netip.Addr) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.poolAround(addr) == nil {
		return false
	}
	for t := range x.taken(netip.PrefixFrom(addr, addr.BitLen())) {
		if t.keptFor == "" {
			return false
		}
	}
	b := x.blockAround(addr)
	if b == nil {
		return true
	}
	_, held := slices.BinarySearchFunc(b.Spec.Allocations, ordinalOf(b.Spec.CIDR, addr), byOrdinal)
	return !held
}
