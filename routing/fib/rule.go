package fib

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev"
	"netctl/routing"
)

// rule leads lookups to a table of our own. It is marked with the protocol of its routes.
type rule struct {
	priority, table uint32
	// specific leaves default routes aside.
	specific bool
}

// rules are those that lead to a Table which is not the main one.
type rules struct {
	wanted []rule
	kept   bool // by Watch
	retry  retry
}

// rulesOf are the rules that a table needs. Those of a smaller protocol number come
// first; all before the main table, as far as default routes do not matter.
func rulesOf(c Config) []rule {
	if c.Number == 0 || c.Number == unix.RT_TABLE_MAIN {
		return nil
	}
	list := []rule{{priority: 100 * uint32(c.Protocol), table: uint32(c.Number), specific: true}}
	if c.Defaults {
		const afterAll = 32768 // the last rule that the kernel has is 32767
		list = append(list, rule{priority: afterAll + uint32(c.Protocol), table: uint32(c.Number)})
	}
	return list
}

// Gather makes the rules to the table and brings there the routes of this protocol that
// are in another one, where the configuration had them: they are here before they go
// there. From now on Watch keeps the rules. Rules of this protocol to other tables go.
func (t *Table) Gather(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	others, err := t.kernel.elsewhere(ctx)
	if err != nil {
		return fmt.Errorf("read routes of other tables: %w", err)
	}
	var errs []*RouteError
	moved := map[uint32][]key{}
	// Another role's rule may lead to the table already: what is more specific is there
	// before what it is a part of, and goes after it.
	for _, table := range slices.Sorted(maps.Keys(others)) {
		slices.SortFunc(others[table], func(a, b routing.Route) int {
			return cmp.Or(cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()), routing.Compare(a, b))
		})
		for list := range slices.Chunk(others[table], batch) {
			changes := make([]change, len(list))
			for i, r := range list {
				a := &action{kind: r.Type, mtu: r.MTU, source: r.Source, hops: r.NextHops}
				if ours(r.Object, t.protocol) {
					a.group = &group{id: r.Object, members: r.NextHops}
				}
				changes[i] = change{opAdd, keyOf(r.Key()), a}
			}
			left := map[int]bool{}
			t.kernel.write(changes, func(i int, err error) {
				if !errors.Is(err, unix.EEXIST) {
					left[i] = true
					errs = append(errs, &RouteError{"move", list[i], err})
				}
			})
			for i, c := range changes {
				if !left[i] {
					moved[table] = append(moved[table], c.key)
				}
			}
		}
	}
	t.rules.kept = true
	if len(errs) > 0 { // those stay where they are until the next time
		t.log.Warn("routes not moved to another table", "routes", len(errs), "error", errs[0])
	}
	if err := t.kernel.rules(ctx, append(t.rules.wanted, rule{})); err != nil {
		return fmt.Errorf("rules of routes: %w", err)
	}
	for table, keys := range moved {
		slices.Reverse(keys)
		t.kernel.purge(table, keys)
		t.log.Info("routes moved", "routes", len(keys), "from", table)
	}
	return t.mendRules(ctx)
}

// mendRules makes the rules what they should be; it tries again if that fails.
func (t *Table) mendRules(ctx context.Context) error {
	err := t.kernel.rules(ctx, t.rules.wanted)
	if err != nil {
		t.rules.retry = t.rules.retry.next(time.Now())
		t.kernel.interrupt()
		return fmt.Errorf("rules of routes: %w", err)
	}
	t.rules.retry = retry{}
	return nil
}

// fraProtocol and the table action are of include/uapi/linux/fib_rules.h, and so is what
// struct fib_rule_hdr takes.
const (
	fraProtocol      = 21
	actionTable      = 1
	sizeofRuleHeader = 12
)

// rules implements kernel. The zero rule among those that are wanted has the others stay
// that are there.
func (n *rtnetlink) rules(ctx context.Context, wanted []rule) error {
	stay := slices.Contains(wanted, rule{})
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var have []rule
		request := make([]byte, sizeofRuleHeader)
		request[0] = family
		err := n.requests.ask(ctx, unix.RTM_GETRULE, unix.NLM_F_DUMP, request, func() { have = nil }, func(b []byte) {
			if r, protocol, ok := parseRule(b); ok && protocol == n.protocol {
				have = append(have, r)
			}
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue
		}
		if err != nil {
			return err
		}
		for _, r := range wanted {
			if i := slices.Index(have, r); i >= 0 {
				have = slices.Delete(have, i, i+1)
			} else if r != (rule{}) {
				if err := n.changeRule(ctx, unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, family, r); err != nil && !errors.Is(err, unix.EEXIST) {
					return err
				}
			}
		}
		for _, r := range have {
			if stay {
				break
			}
			if err := n.changeRule(ctx, unix.RTM_DELRULE, 0, family, r); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
		}
	}
	return nil
}

func (n *rtnetlink) changeRule(ctx context.Context, kind, flags uint16, family uint8, r rule) error {
	b := make([]byte, sizeofRuleHeader)
	b[0], b[7] = family, actionTable
	b = appendNumber(appendNumber(b, unix.FRA_PRIORITY, r.priority), unix.FRA_TABLE, r.table)
	if r.specific {
		b = appendNumber(b, unix.FRA_SUPPRESS_PREFIXLEN, 0)
	}
	b = appendBytes(b, fraProtocol, []byte{n.protocol})
	return n.requests.ask(ctx, kind, flags|unix.NLM_F_ACK, b, func() {}, func([]byte) {})
}

func parseRule(b []byte) (r rule, protocol uint8, ok bool) {
	if len(b) < sizeofRuleHeader || b[7] != actionTable {
		return r, 0, false
	}
	r.table = uint32(b[4])
	for b = b[sizeofRuleHeader:]; len(b) > 0; {
		kind, value, rest, ok := netdev.Attribute(b)
		if !ok {
			return r, 0, false
		}
		switch kind {
		case unix.FRA_PRIORITY:
			r.priority, ok = number(value)
		case unix.FRA_TABLE:
			r.table, ok = number(value)
		case unix.FRA_SUPPRESS_PREFIXLEN:
			var least uint32
			least, ok = number(value)
			r.specific = least == 0
		case fraProtocol:
			if ok = len(value) == 1; ok {
				protocol = value[0]
			}
		}
		if !ok {
			return r, 0, false
		}
		b = rest
	}
	return r, protocol, true
}

// elsewhere implements kernel.
func (n *rtnetlink) elsewhere(ctx context.Context) (map[uint32][]routing.Route, error) {
	tables, err := n.dumpTables(ctx, n.protocol, unix.RT_TABLE_UNSPEC)
	delete(tables, n.table)
	return tables, err
}

// purge implements kernel.
func (n *rtnetlink) purge(table uint32, keys []key) {
	own := n.table
	defer func() { n.table = own }()
	n.table = table
	for list := range slices.Chunk(keys, batch) {
		changes := make([]change, len(list))
		for i, k := range list {
			changes[i] = change{op: opDelete, key: k}
		}
		n.write(changes, func(int, error) {})
	}
}
