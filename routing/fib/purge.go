package fib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"golang.org/x/sys/unix"

	"netctl/routing"
)

// Held counts what is in the kernel of one protocol, whatever the table.
type Held struct{ Routes, Rules, Objects int }

// Any says whether there is anything.
func (h Held) Any() bool { return h != Held{} }

// Count counts what the network namespace of the calling thread has of a protocol.
func Count(ctx context.Context, protocol int) (Held, error) { return purge(ctx, protocol, false) }

// Purge removes it all: routes of every table, rules that lead to tables, next-hop
// objects. It is for a host whose roles have ended for good. What it returns was there.
func Purge(ctx context.Context, protocol int) (Held, error) { return purge(ctx, protocol, true) }

func purge(ctx context.Context, protocol int, remove bool) (h Held, err error) {
	t, err := Open(Config{Protocol: protocol}, slog.New(slog.DiscardHandler))
	if err != nil {
		return h, err
	}
	defer t.Close()
	n, ok := t.kernel.(*rtnetlink)
	if !ok {
		return h, errors.New("routes of a protocol: not the kernel's")
	}
	tables, err := n.dumpTables(ctx, n.protocol, unix.RT_TABLE_UNSPEC)
	if err != nil {
		return h, fmt.Errorf("read routes of protocol %d: %w", protocol, err)
	}
	for _, routes := range tables {
		h.Routes += len(routes)
	}
	if h.Rules, err = n.countRules(ctx); err != nil {
		return h, fmt.Errorf("read rules of protocol %d: %w", protocol, err)
	}
	objects, err := n.objects(ctx)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return h, fmt.Errorf("read next-hop objects: %w", err)
	}
	if h.Objects = len(objects); !remove || !h.Any() {
		return h, nil
	}
	// The other way round than they were made: what is a part of another goes after it.
	errs := []error{n.rules(ctx, nil)}
	for table, routes := range tables {
		slices.SortFunc(routes, func(a, b routing.Route) int { return a.Prefix.Bits() - b.Prefix.Bits() })
		keys := make([]key, len(routes))
		for i, r := range routes {
			keys[i] = keyOf(r.Key())
		}
		slices.Reverse(keys)
		n.purge(table, keys)
	}
	for _, groups := range []bool{true, false} {
		for _, o := range objects {
			if (len(o.members) > 0) == groups {
				errs = append(errs, n.deleteObject(o.id))
			}
		}
	}
	left, err := n.dumpTables(ctx, n.protocol, unix.RT_TABLE_UNSPEC)
	for table, routes := range left {
		errs = append(errs, fmt.Errorf("%d routes of protocol %d stay in table %d", len(routes), protocol, table))
	}
	if err = errors.Join(append(errs, err)...); err != nil {
		return h, fmt.Errorf("remove routes of protocol %d: %w", protocol, err)
	}
	return h, nil
}

// countRules counts the rules marked with this protocol.
func (n *rtnetlink) countRules(ctx context.Context) (count int, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		have := 0
		request := make([]byte, sizeofRuleHeader)
		request[0] = family
		err := n.requests.ask(ctx, unix.RTM_GETRULE, unix.NLM_F_DUMP, request, func() { have = 0 }, func(b []byte) {
			if _, protocol, ok := parseRule(b); ok && protocol == n.protocol {
				have++
			}
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return 0, err
		}
		count += have
	}
	return count, nil
}
