package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"netctl/acl"
	"netctl/datastore"
)

// write makes tables that were read what want says. drift says that others made them differ.
func (t *Table) write(ctx context.Context, want *acl.Ruleset, have map[place]*held, drift bool) (changes []*tableChange, differed bool, err error) {
	sets, err := readIPSets()
	if err != nil {
		return nil, true, err
	}
	next := t.render(want)
	changes = t.differences(next, have)
	members := setChanges(ipsets(want), sets)
	objects := len(members)
	for _, c := range changes {
		objects += len(c.write) + len(c.remove) + len(c.hook)
	}
	before := t.wrote
	t.want, t.wrote = want.Clone(), next
	if objects == 0 {
		return nil, false, nil
	}
	said := []any{"table", "iptables-" + string(t.mode), "objects", objects}
	if drift {
		said = append(said, datastore.Drift(datastore.DriftFilter))
	}
	t.log.Info("packet filter differs", said...)
	refused := prepare(members)
	refused = append(refused, t.commit(ctx, changes, counted(before, have))...)
	err = errors.Join(finish(members), t.keepCut(t.cut.lost(sets)))
	if err == nil && len(refused) > 0 {
		err = &acl.RefusedError{Refusals: refused}
	}
	return changes, true, err
}

// learn takes note of how iptables-save prints what was just written.
func (t *Table) learn(changes []*tableChange, have map[place]*held) {
	for _, c := range changes {
		h := have[c.place]
		for name, lines := range c.write {
			if h == nil || h.chains[name] == nil || len(h.chains[name].text) != len(lines) {
				continue
			}
			if text, printed := textOf(lines), strings.Join(h.chains[name].text, "\n"); printed != text {
				t.printed[text] = printed
			}
		}
	}
}

func textOf(lines []line) string {
	list := make([]string, len(lines))
	for i, l := range lines {
		list[i] = l.text
	}
	return strings.Join(list, "\n")
}

// differences is what makes tables that were read the wanted ones.
func (t *Table) differences(want map[place]*rendered, have map[place]*held) (list []*tableChange) {
	for _, p := range places() {
		w, h := want[p], have[p]
		if w == nil {
			w = &rendered{}
		}
		if h == nil {
			h = &held{}
		}
		c := &tableChange{place: p, write: map[string][]line{}, unhook: map[string][]string{}, want: w}
		for name, lines := range w.chains {
			text := textOf(lines)
			if is := h.chains[name]; is == nil || !t.prints(text, strings.Join(is.text, "\n")) {
				c.write[name] = lines
			}
		}
		for _, name := range sortedKeys(h.chains) {
			if w.chains[name] == nil {
				if _, is := w.chains[name]; !is {
					c.remove = append(c.remove, name)
				}
			}
		}
		for _, builtin := range w.hooks {
			if state := h.hooks[builtin]; !state.first || len(state.rules) != 1 {
				c.hook = append(c.hook, builtin)
			}
		}
		for builtin, state := range h.hooks {
			if !slices.Contains(w.hooks, builtin) || slices.Contains(c.hook, builtin) {
				c.unhook[builtin] = state.rules
			}
		}
		if !c.empty() {
			list = append(list, c)
		}
	}
	return list
}

func (t *Table) prints(text, printed string) bool {
	return printed == text || t.printed[text] == printed && printed != ""
}

// counted is what the rules of tables have counted that were read.
func counted(wrote map[place]*rendered, have map[place]*held) map[place]counts {
	out := map[place]counts{}
	for p, h := range have {
		out[p] = counts{}
		tally(wrote[p], h, func(l line, n acl.Count) { out[p][l.counts] = out[p][l.counts].Plus(n) })
	}
	return out
}

// commit writes each table in one transaction. Of one that the kernel does not take, what it
// refuses is looked for, closed and told.
func (t *Table) commit(ctx context.Context, changes []*tableChange, counted map[place]counts) (refused []acl.Refusal) {
	for _, c := range changes {
		n := counted[c.place]
		kept := counts{} // what stays in chains that are not written is theirs
		for _, lines := range c.write {
			for _, l := range lines {
				if v, is := n[l.counts]; is && l.counts != "" {
					kept[l.counts] = v
				}
			}
		}
		if t.mode == NFT && c.ipv6 { // ip6tables-nft 1.8.9 takes no counters
			t.remember(c, kept)
		}
		err := t.mode.restore(ctx, c.place, c.text(kept), t.pids.add)
		if err == nil {
			continue
		}
		found := t.isolate(ctx, c)
		gone := fmt.Sprintf("*%[1]s\n:%[2]s - [0:0]\n-X %[2]s\nCOMMIT\n", c.table, probeChain)
		_ = t.mode.restore(ctx, c.place, gone, t.pids.add) // else the next Sync takes it away
		if len(found) > 0 {
			if again := t.mode.restore(ctx, c.place, c.text(counts{}), t.pids.add); again == nil {
				refused = append(refused, found...)
				continue
			}
		}
		refused = append(refused, acl.Refusal{Kind: "table", Name: c.table, Err: err})
	}
	return refused
}

// remember takes what rules have counted that are written anew.
func (t *Table) remember(c *tableChange, n counts) {
	for _, lines := range c.write {
		for _, l := range lines {
			if l.counts != "" {
				of := line{counts: l.counts, chain: l.chain}
				t.before[of] = t.before[of].Plus(n.take(l.counts))
			}
		}
	}
}

// probeChain is where chains are tried that the kernel may refuse.
const probeChain = chainPrefix + "probe"

// isolate finds the chains that the kernel refuses, and closes them in the change.
func (t *Table) isolate(ctx context.Context, c *tableChange) (refused []acl.Refusal) {
	try := func(lines []line) error { return t.mode.restore(ctx, c.place, probe(c.place, lines), t.pids.add) }
	for _, name := range sortedKeys(c.write) {
		lines := c.write[name]
		if try(lines) == nil {
			continue
		}
		chain := name
		for _, l := range lines {
			err := try([]line{l})
			if err == nil {
				continue
			}
			if l.chain != "" {
				chain = l.chain
			}
			refused = append(refused, acl.Refusal{Kind: "chain", Name: strings.TrimPrefix(chain, chainPrefix), Err: err})
			c.write[name] = []line{{text: "-m comment --comment " + quote("refused by the kernel") + " -j DROP"}}
			break
		}
	}
	if len(refused) > 0 || t.mode != NFT {
		return refused
	}
	for _, name := range c.want.tooDeep() {
		refused = append(refused, acl.Refusal{Kind: "chain", Name: strings.TrimPrefix(name, chainPrefix), Err: errDeep})
		c.write[name] = []line{{text: "-m comment --comment " + quote(errDeep.Error()) + " -j DROP"}}
	}
	return refused
}

// probe is a transaction that fails if the kernel does not take a line. What the lines lead to is not looked for.
func probe(p place, lines []line) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%s\n:%s - [0:0]\n", p.table, probeChain)
	for _, l := range lines {
		text := l.text
		if next := l.leadsTo(); next != "" {
			text = text[:len(text)-len("-g ")-len(next)] + "-j RETURN"
		}
		fmt.Fprintf(&b, "-A %s %s\n", probeChain, text)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// asHeld is what was written as if it were read.
func asHeld(wrote map[place]*rendered) map[place]*held {
	out := map[place]*held{}
	for p, r := range wrote {
		h := &held{chains: map[string]*heldChain{}, hooks: map[string]hookState{}}
		for name, lines := range r.chains {
			c := &heldChain{text: make([]string, len(lines))}
			for i, l := range lines {
				c.text[i] = l.text
			}
			h.chains[name] = c
		}
		for _, builtin := range r.hooks {
			h.hooks[builtin] = hookState{rules: []string{hookRule(builtin)}, first: true}
		}
		out[p] = h
	}
	return out
}

// countedBefore reads the tables in which chains that count are written anew.
func (t *Table) countedBefore(ctx context.Context, changes []*tableChange) (map[place]*held, error) {
	count := func(p place) bool {
		return slices.ContainsFunc(changes, func(c *tableChange) bool {
			if c.place != p || t.wrote[p] == nil {
				return false
			}
			for name, lines := range c.write {
				if t.wrote[p].chains[name] != nil && slices.ContainsFunc(lines, func(l line) bool { return l.counts != "" }) {
					return true
				}
			}
			return false
		})
	}
	if !slices.ContainsFunc(places(), count) {
		return nil, nil
	}
	return t.mode.read(ctx, count)
}
