package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"

	"netctl/acl"
)

// maxCut is how many flows of a family are kept from being answered.
const maxCut = acl.MaxCut

var (
	errCutFull = fmt.Errorf("more than %d flows that were cut are answered", maxCut)
	// errNoPorts says that no kind of ipset has two addresses and a protocol alone.
	errNoPorts = errors.New("iptables cannot tell the answers in flows without ports that were cut from new flows")
)

// cutFlows are those whose packets begin no other, until when. What the kernel keeps of them
// goes with the sets.
type cutFlows struct {
	mu  *sync.Mutex // not for long, as that of a Table
	set map[string]map[acl.Flow]time.Time
}

func newCutFlows() cutFlows {
	return cutFlows{mu: &sync.Mutex{}, set: map[string]map[acl.Flow]time.Time{}}
}

// add takes note of flows, and returns those that matter.
func (c *cutFlows) add(flows []acl.Flow) (list []acl.Flow, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for _, f := range flows {
		name, typ, d, ok := f.Cut()
		switch {
		case !ok:
			continue
		case kindOf(typ) == nil:
			err = errNoPorts
			continue
		case c.set[name] == nil:
			c.set[name] = map[acl.Flow]time.Time{}
		}
		if len(c.set[name]) >= maxCut {
			c.forget(name, now)
		}
		if len(c.set[name]) >= maxCut {
			return list, errCutFull
		}
		c.set[name][f] = now.Add(d)
		list = append(list, f)
	}
	return list, err
}

func (c *cutFlows) forget(name string, now time.Time) {
	maps.DeleteFunc(c.set[name], func(_ acl.Flow, until time.Time) bool { return now.After(until) })
}

// lost are those whose sets were not there.
func (c *cutFlows) lost(have map[string]*ipset) (flows []acl.Flow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.set {
		if c.forget(name, time.Now()); have[setName(cutSets(name)[0].name)] == nil {
			flows = slices.AppendSeq(flows, maps.Keys(c.set[name]))
		}
	}
	return flows
}

// Cut keeps packets of the flows from beginning others: see acl.Flow. An error says that some,
// or all, are not kept from it.
func (t *Table) Cut(_ context.Context, flows []acl.Flow) error {
	list, err := t.cut.add(flows)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isShut {
		return err
	}
	return errors.Join(err, t.inside(func() error { return t.keepCut(list) }))
}

// IsCut tells whether Cut was told of the flow, for as long as that matters.
func (t *Table) IsCut(f acl.Flow) bool {
	t.cut.mu.Lock()
	defer t.cut.mu.Unlock()
	set, _, _, _ := f.Cut()
	return time.Now().Before(t.cut.set[set][f])
}

// keepCut adds the flows to the sets they are kept in.
func (t *Table) keepCut(flows []acl.Flow) error {
	longest := 24 * 24 * time.Hour // of a member of an ipset (2^31 ms)
	lists := map[string][]entry{}
	for _, f := range flows {
		name, _, d, _ := f.Cut()
		for _, s := range cutSets(name) {
			port := f.SrcPort
			if strings.HasSuffix(s.name, "_d") {
				port = f.DstPort
			}
			lists[setName(s.name)] = append(lists[setName(s.name)], entry{
				member: member{prefix: netip.PrefixFrom(f.Src, f.Src.BitLen()), proto: f.Protocol, first: port, last: port}, second: f.Dst, timeout: min(d, longest),
			})
		}
	}
	var errs []error
	for _, name := range sortedKeys(lists) {
		errs = append(errs, changeIPSet(nl.IPSET_CMD_ADD, name, lists[name]))
	}
	return errors.Join(errs...)
}
