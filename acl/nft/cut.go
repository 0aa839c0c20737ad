package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"

	"netctl/acl"
)

// errCutFull says that a set is full of flows that were cut.
var errCutFull = fmt.Errorf("more than %d flows that were cut are answered", acl.MaxCut)

// cutFlows are those whose packets begin no other, until when, by the set that has them in
// the kernel. What the kernel keeps of them goes with the table.
type cutFlows struct {
	mu  sync.Mutex // not for long, as that of a Table
	set map[string]map[acl.Flow]time.Time
}

// add takes note of flows, and returns those that matter.
func (c *cutFlows) add(flows []acl.Flow) (list []acl.Flow, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, f := range flows {
		name, _, d, ok := f.Cut()
		if !ok {
			continue
		}
		if c.set[name] == nil {
			c.set[name] = map[acl.Flow]time.Time{}
		}
		if len(c.set[name]) >= acl.MaxCut {
			c.forget(name, now)
		}
		if len(c.set[name]) >= acl.MaxCut {
			return list, errCutFull
		}
		c.set[name][f] = now.Add(d)
		list = append(list, f)
	}
	return list, nil
}

// forget forgets those of a set whose time is over.
func (c *cutFlows) forget(name string, now time.Time) {
	maps.DeleteFunc(c.set[name], func(_ acl.Flow, until time.Time) bool { return now.After(until) })
}

// lost are those of which a table that was read knows nothing.
func (c *cutFlows) lost(have *kernel) (flows []acl.Flow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.set {
		if c.forget(name, time.Now()); have.sets[name] == nil {
			flows = slices.AppendSeq(flows, maps.Keys(c.set[name]))
		}
	}
	return flows
}

// Cut keeps packets of the flows from beginning others: see acl.Flow. An error says that
// some, or all, are not kept from it. While the table is shut the flows are noted with
// what makes it whole.
func (t *Table) Cut(ctx context.Context, flows []acl.Flow) error {
	list, err := t.cut.add(flows)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isShut {
		return err
	}
	tx := newTransaction()
	if tx.cut(list); !tx.empty() {
		err = errors.Join(err, t.commit(ctx, tx))
	}
	return err
}

// IsCut tells whether Cut was told of the flow, for as long as that matters.
func (t *Table) IsCut(f acl.Flow) bool {
	t.cut.mu.Lock()
	defer t.cut.mu.Unlock()
	set, _, _, _ := f.Cut()
	return time.Now().Before(t.cut.set[set][f])
}

// cut adds the flows to the sets they are kept in.
func (tx *transaction) cut(flows []acl.Flow) {
	elements, types := map[string][]nftables.SetElement{}, map[string]acl.SetType{}
	for _, f := range flows {
		name, typ, d, _ := f.Cut()
		elements[name] = append(elements[name], nftables.SetElement{Key: cutKey(typ, f), Timeout: d})
		types[name] = typ
	}
	for name, list := range elements {
		s := encodeSet(name, types[name], "")
		for chunk := range slices.Chunk(list, maxElements) {
			tx.add(phaseElements, op{object: setObject(name), weight: 1 + len(chunk)/20, emit: func(c *nftables.Conn) error {
				return c.SetAddElements(s, chunk)
			}})
		}
	}
}
