// Package ipam owns the giving out of addresses: which block a node claims, which
// address of it a handle gets, when a released one may be used again, and the
// proof that all of that is consistent.
//
// It never touches the kernel, never starts a goroutine and imports the
// standard library, golang.org/x/sys (one clock) and datastore only.
//
// Invariants: an address has at most one holder, because every change of a block
// compares the block's revision; a block and what its caller writes with it
// (the endpoint) change in one transaction or not at all; a block never overlaps
// another, a connected subnet of any node, or a node's address when it is claimed.
package ipam

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"netctl/datastore"
)

// Quarantine is how long a released address rests before it is given to a
// request without a wish (docs/design.md, "The path of a packet").
const Quarantine = 60 * time.Second

// Config is what an Allocator works with.
type Config struct {
	// Node is the node that addresses are assigned for.
	Node  string
	Store datastore.Store
	// Index is what plans are made from. nil: the store is listed for every plan,
	// which is for tools, not for an agent.
	Index *Index
	// Boot is this boot's ID; quarantines of another boot of this node are over.
	// "": not run on the node itself, whose clock is left alone.
	Boot string
	// Now is CLOCK_BOOTTIME; nil: Boottime.
	Now func() time.Duration
	// Quarantine replaces the constant of that name; 0 keeps it.
	Quarantine time.Duration
}

// Allocator assigns and releases addresses for one node. It is safe for
// concurrent use and does one thing at a time: concurrent assignments of a node
// would only race for the same block.
type Allocator struct {
	cfg    Config
	turn   chan struct{} // holds one token
	holds  holds
	listed *Index // without a Config.Index: what the store held last
}

// New returns an allocator.
func New(cfg Config) *Allocator {
	if cfg.Now == nil {
		cfg.Now = Boottime
	}
	if cfg.Quarantine == 0 {
		cfg.Quarantine = Quarantine
	}
	a := &Allocator{cfg: cfg, turn: make(chan struct{}, 1), holds: holds{until: map[netip.Addr]time.Duration{}, doubts: map[string][]netip.Addr{}}, listed: NewIndex(nil)}
	a.turn <- struct{}{}
	return a
}

// Commit returns what is to be written in the same transaction as the blocks. It
// is called again, possibly with other addresses, whenever the plan changes.
type Commit func(addrs []netip.Addr) ([]datastore.Condition, []datastore.Op, error)

// Request asks for one address of each family that is due: IPv4, unless Pools, or
// without it the cluster, has only IPv6 ones, and IPv6 if V6 is set, an IPv6 address is
// wanted or there is nothing else.
type Request struct {
	// Handle is who holds the addresses: an endpoint's name. A handle that holds
	// an address of a block of this node already gets that one again.
	Handle   string
	Workload string
	// Name, if set, is another name that reservations may be kept for.
	Name string
	// Wants are wishes, at most one of each family.
	Wants []netip.Addr
	// Pools are the CIDRs of the pools to draw from, in this order; empty: every
	// enabled pool that selects the node, by address.
	Pools []netip.Prefix
	V6    bool
	// Family, 4 or 6, is the only one that is due, whatever else is said; 0: as above.
	Family int
	// Within restricts the addresses to these prefixes; empty: any.
	Within []netip.Prefix
	// Held says that Wants were chosen by Hold, and are all that is due.
	Held bool
	// Restore says that Wants are in use by a live endpoint: exactly these are
	// assigned, and only another holder is an error.
	Restore bool
	// Away says that the store does not answer, so that only the node's own blocks can
	// be drawn from; Hold and Away know it.
	Away bool
	// Commit may be nil.
	Commit Commit
}

// Result is what was assigned.
type Result struct {
	Addresses []netip.Addr // IPv4 before IPv6
	// NewBlocks are the blocks that were claimed for the node.
	NewBlocks []*datastore.Block
	// Revision is the store's revision of the transaction.
	Revision int64
}

// Assign gives req.Handle its addresses. Errors wrap ErrExhausted (names the
// pools), ErrInUse (somebody else holds the wish; names the handle), ErrInvalid,
// ErrNotFound (node or pool), or are those of the store; ErrExists and
// ErrConflict are of a key of Commit's that somebody else changed.
func (a *Allocator) Assign(ctx context.Context, req Request) (Result, error) {
	var res Result
	err := a.transact(ctx, req.Handle, req.Restore, req.Commit, func(x *Index) (change, error) {
		p := planner{index: x, node: a.cfg.Node, req: req, clock: a.clock(), held: a.held(req)}
		err := p.run()
		res.Addresses, res.NewBlocks = p.addrs, p.claimed
		return p.change(), err
	}, &res.Revision)
	if err != nil {
		return Result{}, fmt.Errorf("assign %s: %w", req.Handle, err)
	}
	a.LetGo(res.Addresses...)
	return res, nil
}

// Release takes every address back that handle holds and puts it in quarantine.
// addrs says where they are; nil means that every block is searched. It is no
// error if the handle holds nothing; commit (may be nil) is carried out all the
// same, with the addresses that are released.
func (a *Allocator) Release(ctx context.Context, handle string, addrs []netip.Addr, commit Commit) error {
	err := a.transact(ctx, "", false, commit, func(x *Index) (change, error) {
		return releasePlan(x, a.cfg.Node, handle, addrs, a.clock()), nil
	}, nil)
	if err != nil {
		return fmt.Errorf("release %s: %w", handle, err)
	}
	a.LetGo(addrs...) // if they were given while the store was away
	return nil
}

// change is the outcome of a plan: what a transaction is made of.
type change struct {
	addrs  []netip.Addr
	blocks []*datastore.Block // with the revision they were read in
	gone   []*datastore.Block // are deleted
	pools  []*datastore.Pool  // must not have changed
}

func (a *Allocator) clock() clock {
	return clock{boot: a.cfg.Boot, now: a.cfg.Now(), rest: a.cfg.Quarantine}
}

// take waits for the turn; release ends it. Who has it waits for the store: a caller whose
// time runs out asks the store itself, to say why.
func (a *Allocator) take(ctx context.Context) (release func(), err error) {
	release = func() { a.turn <- struct{}{} }
	select {
	case <-a.turn:
		return release, nil
	default:
	}
	var soon <-chan time.Time
	if end, ok := ctx.Deadline(); ok {
		soon = time.After(time.Until(end) * 2 / 3)
	}
	for {
		select {
		case <-a.turn:
			return release, nil
		case <-soon:
			if _, err := a.cfg.Store.Get(ctx, datastore.ClusterKey); errors.Is(err, datastore.ErrUnavailable) {
				return nil, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// transact plans and commits, for a handle, until nobody interfered. anew: the store may
// be another one than that of the commits before, which are then no knowledge.
func (a *Allocator) transact(ctx context.Context, handle string, anew bool, commit Commit, plan func(*Index) (change, error), revision *int64) error {
	release, err := a.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	for try := 0; ; try++ {
		x, err := a.source(ctx, anew && try == 0)
		if err != nil {
			return err
		}
		x.mu.Lock()
		c, err := plan(x)
		x.mu.Unlock()
		if err != nil {
			return err
		}
		txn, foreign, err := c.txn(commit)
		if err != nil || len(txn.Then) == 0 {
			return err
		}
		a.holds.doubt(handle, c.addrs)
		rev, err := a.cfg.Store.Commit(ctx, txn)
		if err == nil {
			a.holds.sure()
			x.committed(c.blocks, c.gone, rev)
			if revision != nil {
				*revision = rev
			}
			return nil
		}
		if !isRace(err) {
			return err
		}
		a.holds.sure()
		if broken, e := changed(ctx, a.cfg.Store, foreign); e != nil {
			return e
		} else if broken {
			return err
		}
		if err := x.reread(ctx, a.cfg.Store, txn.If[:len(txn.If)-len(foreign)]); err != nil {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}

// txn makes the transaction; its last conditions are the caller's.
func (c change) txn(commit Commit) (t datastore.Txn, foreign []datastore.Condition, err error) {
	for _, b := range c.blocks {
		cond, op, err := datastore.OpPut(b)
		if err != nil {
			return t, nil, err
		}
		t.If, t.Then = append(t.If, cond), append(t.Then, op)
	}
	for _, b := range c.gone {
		cond, op, err := datastore.OpDelete(b)
		if err != nil {
			return t, nil, err
		}
		t.If, t.Then = append(t.If, cond), append(t.Then, op)
	}
	for _, p := range c.pools {
		key, err := datastore.KeyOf(p)
		if err != nil {
			return t, nil, err
		}
		t.If = append(t.If, datastore.Condition{Key: key, Revision: p.Metadata.Revision})
	}
	if commit == nil {
		return t, nil, nil
	}
	foreign, ops, err := commit(c.addrs)
	t.If, t.Then = append(t.If, foreign...), append(t.Then, ops...)
	return t, foreign, err
}

// changed reports whether one of the conditions does not hold any more.
func changed(ctx context.Context, s datastore.Store, conds []datastore.Condition) (bool, error) {
	for _, c := range conds {
		e, err := s.Get(ctx, c.Key)
		if err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return false, err
		}
		if e.Revision != c.Revision {
			return true, nil
		}
	}
	return false, nil
}
