package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"netctl/datastore"
)

// Problem is what a Finding is about.
type Problem string

// The problems. Leaked, Unallocated and Orphaned can be repaired; the others
// need a decision.
const (
	Leaked      Problem = "leaked"      // allocated to an endpoint that does not exist or does not have it
	Unallocated Problem = "unallocated" // an endpoint has it, no block says so
	Double      Problem = "double"      // two endpoints have the same address
	Orphaned    Problem = "orphaned"    // a block of a node that does not exist
	Homeless    Problem = "homeless"    // an endpoint of a node that does not exist
	Outside     Problem = "outside"     // a block in no pool
	Overlap     Problem = "overlap"     // a block over another, or over a connected subnet
	Twin        Problem = "twin"        // two nodes of one host, or with one address
	Unreadable  Problem = "unreadable"  // an entry that does not parse
)

// Finding is one thing that is wrong.
type Finding struct {
	Problem Problem      `json:"problem"`
	Address netip.Addr   `json:"address,omitzero"`
	Block   netip.Prefix `json:"block,omitzero"`
	Handle  string       `json:"handle,omitempty"`
	// Message is one line for a person.
	Message string `json:"message"`
	// Repaired: Repair has put it right.
	Repaired bool   `json:"repaired"`
	stray    string // why its address is none that a block is made for
}

// Report is what Check found, and what it looked at.
type Report struct {
	Pools     int       `json:"pools"`
	Blocks    int       `json:"blocks"`
	Addresses int       `json:"addresses"` // allocated
	Endpoints int       `json:"endpoints"`
	Findings  []Finding `json:"findings"`
}

// Check compares blocks, endpoints, nodes and pools as of one revision of the
// store. It changes nothing.
func Check(ctx context.Context, s datastore.Store) (Report, error) {
	v, err := load(ctx, s, datastore.KindEndpoint)
	if err != nil {
		return Report{}, fmt.Errorf("check addresses: %w", err)
	}
	c := checker{view: v, report: Report{Pools: len(v.Pools()), Blocks: len(v.Blocks()), Endpoints: len(v.Endpoints()), Findings: []Finding{}}}
	c.endpoints()
	for _, b := range v.Blocks() {
		c.block(b)
	}
	c.overlaps()
	c.twins()
	for _, p := range v.Problems() {
		c.add(Finding{Problem: Unreadable, Message: p})
	}
	return c.report, nil
}

type checker struct {
	view   *datastore.View
	report Report
}

func (c *checker) add(f Finding) { c.report.Findings = append(c.report.Findings, f) }

// endpoints looks at every endpoint's addresses.
func (c *checker) endpoints() {
	has := map[netip.Addr]string{}
	for _, ep := range c.view.Endpoints() {
		name := ep.Metadata.Name
		if c.view.Node(ep.Spec.Node) == nil {
			c.add(Finding{Problem: Homeless, Handle: name, Message: fmt.Sprintf("endpoint %s: node %s does not exist; remove the endpoint or add the node", name, ep.Spec.Node)})
		}
		for _, a := range ep.Spec.Addresses {
			if other, ok := has[a]; ok {
				c.add(Finding{Problem: Double, Address: a, Handle: name, Message: fmt.Sprintf("address %s: endpoints %s and %s have it; remove one of them", a, other, name)})
				continue
			}
			has[a] = name
			b := blockOf(c.view, a, blockAround(a, poolAround(c.view, a)))
			if b != nil {
				if h := holderOf(b, a); h != nil && h.Handle == name {
					continue
				}
			}
			f := Finding{Problem: Unallocated, Address: a, Handle: name, Message: fmt.Sprintf("address %s: endpoint %s has it, but no block says so", a, name)}
			if b == nil {
				f.stray = c.stray(a)
			}
			if f.stray != "" {
				f.Message = fmt.Sprintf("address %s: endpoint %s has it, and it is %s; remove the endpoint (`netctl delete endpoint %s --force`), or if it is right, put that right", a, name, f.stray, name)
			}
			c.add(f)
		}
	}
}

// stray says why no block is made for an address that an endpoint says it has; "": one is.
// A node can write what it likes of its own endpoints, and a block takes a whole range
// from everybody else.
func (c *checker) stray(a netip.Addr) string {
	for _, t := range exclusions(c.view) {
		if !t.part && t.cidr.Contains(a) {
			return "in " + t.why()
		}
	}
	if poolAround(c.view, a) == nil {
		return "in no pool"
	}
	return ""
}

// NoPool says what a block that is in no pool means, and what to do.
func NoPool(block netip.Prefix) string {
	return fmt.Sprintf("is in no pool, so other nodes have no route to it; `netctl pool add %s --block-size %d` gives it one, and empty it goes by itself",
		block, block.Bits())
}

// block looks at one block's node, pool and allocations.
func (c *checker) block(b *datastore.Block) {
	cidr := b.Spec.CIDR
	if poolAround(c.view, cidr.Addr()) == nil {
		c.add(Finding{Problem: Outside, Block: cidr, Message: fmt.Sprintf("block %s: %s", cidr, NoPool(cidr))})
	}
	if n := b.Spec.Affinity; n != "" && c.view.Node(n) == nil {
		c.add(Finding{Problem: Orphaned, Block: cidr, Message: fmt.Sprintf("block %s: its node %s does not exist", cidr, n)})
	}
	c.report.Addresses += len(b.Spec.Allocations)
	for _, a := range b.Spec.Allocations {
		addr := addressOf(cidr, a.Ordinal)
		if ep, judged := endpointOf(c.view, a.Handle); judged && (ep == nil || !slices.Contains(ep.Spec.Addresses, addr)) {
			why := "does not exist"
			if ep != nil {
				why = "does not have it"
			}
			c.add(Finding{Problem: Leaked, Address: addr, Block: cidr, Handle: a.Handle, Message: fmt.Sprintf("address %s: allocated to %s, which %s", addr, a.Handle, why)})
		}
	}
}

// endpointOf is the endpoint that a handle names; judged is false for handles of
// another kind, and of an endpoint that cannot be read.
func endpointOf(v *datastore.View, handle string) (ep *datastore.Endpoint, judged bool) {
	if _, err := datastore.Key(datastore.KindEndpoint, handle); err != nil {
		return nil, false
	}
	if v.Unreadable(datastore.KindEndpoint, handle) != nil { // it may have the address
		return nil, false
	}
	return v.Endpoint(handle), true
}

func (c *checker) overlaps() {
	var before *datastore.Block
	excluded := exclusions(c.view)
	for _, b := range c.view.Blocks() {
		if before != nil && before.Spec.CIDR.Overlaps(b.Spec.CIDR) {
			c.add(Finding{Problem: Overlap, Block: b.Spec.CIDR, Message: fmt.Sprintf("block %s: overlaps block %s", b.Spec.CIDR, before.Spec.CIDR)})
		} else {
			before = b
		}
		for _, t := range excluded {
			if !t.part && t.cidr.Overlaps(b.Spec.CIDR) {
				c.add(Finding{Problem: Overlap, Block: b.Spec.CIDR, Message: fmt.Sprintf("block %s: overlaps %s", b.Spec.CIDR, t.why())})
				break
			}
		}
	}
}

// twins looks for nodes that are one machine: a host that got another name, a copy
// of a machine, an address that two have.
func (c *checker) twins() {
	hosts, addresses := map[string]string{}, map[netip.Addr]string{}
	for _, n := range c.view.Nodes() {
		name := n.Metadata.Name
		if other := hosts[n.Status.Host]; other != "" {
			c.add(Finding{Problem: Twin, Message: fmt.Sprintf(
				"nodes %s and %s: registered by one host (%s); `netctl node remove` the name that it does not go by, or if one machine is a copy of the other, remove the copy's /var/lib/netctl-node/host", other, name, n.Status.Host)})
		} else if n.Status.Host != "" {
			hosts[n.Status.Host] = name
		}
		for _, p := range n.Spec.Addresses {
			if other := addresses[p.Addr()]; other != "" {
				c.add(Finding{Problem: Twin, Address: p.Addr(), Message: fmt.Sprintf("address %s: nodes %s and %s have it; change or remove one of them", p.Addr(), other, name)})
				continue
			}
			addresses[p.Addr()] = name
		}
	}
}

func holderOf(b *datastore.Block, a netip.Addr) *datastore.Allocation {
	return (&space{block: b}).holder(ordinalOf(b.Spec.CIDR, a))
}

// Repair checks, puts right what can be put right without a decision, and returns
// the findings with Repaired set where it did. Each repair is a transaction that
// does nothing if what it judged by has changed.
func Repair(ctx context.Context, s datastore.Store) (Report, error) {
	r, err := Check(ctx, s)
	if err != nil {
		return r, err
	}
	order := map[Problem]int{Leaked: 1, Unallocated: 2, Orphaned: 3}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(order[a.Problem], order[b.Problem]) })
	for i := range r.Findings {
		f := &r.Findings[i]
		var err error
		switch f.Problem {
		case Leaked:
			err = releaseLeaked(ctx, s, *f)
		case Unallocated:
			if f.stray != "" {
				continue
			}
			err = allocateAgain(ctx, s, *f)
		case Orphaned:
			err = disown(ctx, s, *f)
		default:
			continue
		}
		switch {
		case err == nil:
			f.Repaired = true
		case isRace(err), errors.Is(err, datastore.ErrNotFound), errors.Is(err, datastore.ErrInUse), errors.Is(err, datastore.ErrInvalid):
			f.Message += fmt.Sprintf(" (not repaired: %v)", err)
		default:
			return r, fmt.Errorf("repair addresses: %w", err)
		}
	}
	return r, nil
}

// releaseLeaked releases an address, if its endpoint still has no use for it.
func releaseLeaked(ctx context.Context, s datastore.Store, f Finding) error {
	return edit(ctx, s, f.Block, func(sp *space) ([]datastore.Condition, error) {
		cond, has, err := endpointHas(ctx, s, f)
		if err == nil && has {
			err = fmt.Errorf("endpoint %s: %w", f.Handle, datastore.ErrInUse)
		}
		sp.give(f.Handle, ordinalOf(f.Block, f.Address))
		return []datastore.Condition{cond}, err
	})
}

// allocateAgain allocates an endpoint's address to it, if it still has it.
func allocateAgain(ctx context.Context, s datastore.Store, f Finding) error {
	ep, err := datastore.Get[*datastore.Endpoint](ctx, s, f.Handle)
	if err != nil {
		return err
	}
	if !slices.Contains(ep.Spec.Addresses, f.Address) {
		return fmt.Errorf("endpoint %s: %w", f.Handle, datastore.ErrConflict)
	}
	_, err = New(Config{Node: ep.Spec.Node, Store: s}).Assign(ctx, Request{
		Handle: f.Handle, Workload: ep.Spec.Workload, Wants: []netip.Addr{f.Address}, Restore: true,
		Commit: func([]netip.Addr) ([]datastore.Condition, []datastore.Op, error) {
			key, err := datastore.KeyOf(ep)
			return []datastore.Condition{{Key: key, Revision: ep.Metadata.Revision}}, nil, err
		},
	})
	return err
}

// disown deletes the block of a node that is gone, or leaves it to whoever needs
// one next if others still use addresses of it.
func disown(ctx context.Context, s datastore.Store, f Finding) error {
	b, err := datastore.Get[*datastore.Block](ctx, s, datastore.PoolName(f.Block))
	if err != nil {
		return err
	}
	key, err := datastore.Key(datastore.KindNode, b.Spec.Affinity)
	if err != nil {
		return err
	}
	cond, op, err := datastore.OpDelete(b)
	if len(b.Spec.Allocations) > 0 {
		b.Spec.Affinity = ""
		cond, op, err = datastore.OpPut(b)
	}
	if err != nil {
		return err
	}
	_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{cond, {Key: key}}, Then: []datastore.Op{op}})
	return err
}

// endpointHas reports whether the endpoint of a finding has the address, and the
// condition under which that stays true.
func endpointHas(ctx context.Context, s datastore.Store, f Finding) (datastore.Condition, bool, error) {
	key, err := datastore.Key(datastore.KindEndpoint, f.Handle)
	if err != nil {
		return datastore.Condition{}, false, err
	}
	ep, err := datastore.Get[*datastore.Endpoint](ctx, s, f.Handle)
	if errors.Is(err, datastore.ErrNotFound) {
		return datastore.Condition{Key: key}, false, nil
	}
	if err != nil {
		return datastore.Condition{}, false, err
	}
	return datastore.Condition{Key: key, Revision: ep.Metadata.Revision}, slices.Contains(ep.Spec.Addresses, f.Address), nil
}

// isRace: somebody else changed a key first.
func isRace(err error) bool {
	return errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists)
}

// edit changes one block, again if somebody else did meanwhile.
func edit(ctx context.Context, s datastore.Store, cidr netip.Prefix, change func(*space) ([]datastore.Condition, error)) error {
	for try := 0; ; try++ {
		b, err := datastore.Get[*datastore.Block](ctx, s, datastore.PoolName(cidr))
		if err != nil {
			return err
		}
		sp := open(b, "", clock{})
		conds, err := change(sp)
		if err != nil || !sp.dirty {
			return err
		}
		cond, op, err := datastore.OpPut(sp.block)
		if err != nil {
			return err
		}
		_, err = s.Commit(ctx, datastore.Txn{If: append(conds, cond), Then: []datastore.Op{op}})
		if !isRace(err) {
			return err
		}
		if err := pause(ctx, try); err != nil {
			return err
		}
	}
}
