package iptables

import (
	"context"

	"netctl/acl"
)

// each tells what every line has counted that counts for a rule.
func (t *Table) each(ctx context.Context, fn func(l line, n acl.Count)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inside(func() error {
		have, err := t.mode.read(ctx, anyPlace)
		if err != nil {
			return err
		}
		for _, p := range places() {
			tally(t.wrote[p], have[p], fn)
		}
		for l, n := range t.before {
			fn(l, n)
		}
		return nil
	})
}

// Counts is what each of the rules has counted, in whichever chains it is.
func (t *Table) Counts(ctx context.Context, rules []acl.Rule) ([]acl.Count, error) {
	sums := counts{}
	if err := t.each(ctx, func(l line, n acl.Count) { sums[l.counts] = sums[l.counts].Plus(n) }); err != nil {
		return nil, err
	}
	list := make([]acl.Count, len(rules))
	for i := range rules {
		list[i] = sums[rules[i].String()]
	}
	return list, nil
}

// Denied counts the packets that the chains of acl.DenyingChains dropped, by what is counted
// there.
func (t *Table) Denied(ctx context.Context) (map[string]uint64, error) {
	chains, denied := acl.DenyingChains(), map[string]uint64{}
	for _, what := range chains {
		denied[what] = 0
	}
	err := t.each(ctx, func(l line, n acl.Count) {
		if what := chains[l.chain]; what != "" {
			denied[what] += n.Packets
		}
	})
	if err != nil {
		return nil, err
	}
	return denied, nil
}

// Dropped is how many packets the rules of a chain counted; of one that is not there none.
func (t *Table) Dropped(ctx context.Context, chain string) (sum uint64, err error) {
	err = t.each(ctx, func(l line, n acl.Count) {
		if l.chain == chain {
			sum += n.Packets
		}
	})
	return sum, err
}
