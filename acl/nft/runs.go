package nft

import (
	"errors"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/google/nftables"

	"netctl/acl"
)

// list is the change of a chain that has runs (acl.Pack), or had. All that is of it changes in
// one batch: while half of it did, a packet would meet the rules in no order that anybody wrote.
type list struct {
	acl.ChainChange // of the chain itself, packed
	was, is         acl.Packed
	maps            []mapChange
	edit            *op // of the chain itself; nil: it is filled anew
}

// mapChange is what changes in a map that stays. again are the elements of before whose
// addresses or ports go on, to another rule or as a part: for as long as they change they are in
// the map by acl.NextMap.
type mapChange struct {
	set             *acl.Set
	del, add, again []acl.Element
}

// list is the change of a chain as that of a list; nil: it has no runs. before are the sets that
// were there, as t.sets.
func (t *Table) list(c acl.ChainChange, before map[string][]acl.Element) *list {
	if c.Hook != nil {
		return nil
	}
	l := &list{is: acl.Pack(c.Name, c.Rules, t.sets)}
	if known, ok := t.packed[c.Name]; ok && same(known.rules, c.Before) {
		l.was = known.Packed
	} else {
		l.was = acl.Pack(c.Name, c.Before, before)
	}
	delete(t.packed, c.Name)
	if len(l.was.Chains)+len(l.is.Chains) == 0 {
		return nil
	}
	if len(l.is.Chains) > 0 {
		t.packed[c.Name] = packed{l.is, c.Rules}
	}
	l.ChainChange = acl.ChainChange{Name: c.Name, New: c.New, Gone: c.Gone, Before: l.was.Rules, Rules: l.is.Rules}
	for name, s := range l.is.Sets {
		if was := l.was.Sets[name]; was != nil {
			if m := changeOf(was, s); len(m.del)+len(m.add) > 0 {
				l.maps = append(l.maps, m)
			}
		}
	}
	return l
}

// packed is a chain as Pack made it of rules.
type packed struct {
	acl.Packed
	rules []acl.Rule
}

// same says whether both are one list, which nobody changes.
func same(a, b []acl.Rule) bool { return len(a) == len(b) && len(a) > 0 && &a[0] == &b[0] }

// changeOf is what changes from was to is.
func changeOf(was, is *acl.Set) mapChange {
	without := func(a, b *acl.Set) (list []acl.Element) {
		for e := range a.Elements {
			if _, both := b.Elements[e]; !both {
				list = append(list, e)
			}
		}
		slices.SortFunc(list, acl.Element.Compare)
		return list
	}
	m := mapChange{set: is, del: without(was, is), add: without(is, was)}
	for _, e := range m.del {
		// The first of add that does not end before e.
		i := sort.Search(len(m.add), func(i int) bool { return !endsBefore(m.add[i], e) })
		if i < len(m.add) && !endsBefore(e, m.add[i]) {
			m.again = append(m.again, e)
		}
	}
	return m
}

// endsBefore says whether a ends before b begins, of elements of one map.
func endsBefore(a, b acl.Element) bool {
	if a.Until.IsValid() {
		return a.Until.Less(b.Prefix.Addr())
	}
	return a.Last < b.First
}

// only are the chains of a that are not in b.
func only(a, b map[string]*acl.Chain) (list []*acl.Chain) {
	for name, c := range a {
		if b[name] == nil {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b *acl.Chain) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// counted are the changes of chains between which rules may move, with what they have counted;
// none where each that stays does so where it is.
func (l *list) counted() (changes []acl.ChainChange) {
	came, went := only(l.is.Chains, l.was.Chains), only(l.was.Chains, l.is.Chains)
	comments, gates := map[string]bool{}, false
	for _, c := range slices.Concat(came, went) {
		comments[c.Rules[0].Comment] = true
		gates = gates || len(c.Rules) > 1
	}
	moves := l.New || l.Gone || gates || slices.ContainsFunc(slices.Concat(l.Before, l.Rules), func(r acl.Rule) bool { return comments[r.Comment] })
	if !moves && l.edit != nil {
		return nil
	}
	l.edit = nil
	changes = append(changes, l.ChainChange)
	for _, c := range came {
		changes = append(changes, acl.ChainChange{Name: c.Name, New: true, Rules: c.Rules})
	}
	for _, c := range went {
		changes = append(changes, acl.ChainChange{Name: c.Name, Gone: true, Before: c.Rules})
	}
	return changes
}

// list turns the change of a list into operations.
func (tx *transaction) list(l *list) {
	if l.New || l.Gone {
		tx.chain(acl.ChainChange{Name: l.Name, New: l.New, Gone: l.Gone})
	}
	came := only(l.is.Chains, l.was.Chains)
	if l.New { // nobody comes to them yet
		for _, c := range came {
			tx.chain(acl.ChainChange{Name: c.Name, New: true, Rules: c.Rules})
		}
		came = nil
	}
	if !l.Gone {
		tx.recut(l)
		tx.add(phaseLists, l.change(came, tx.counts))
	}
	for _, c := range only(l.was.Chains, l.is.Chains) {
		tx.chain(acl.ChainChange{Name: c.Name, Gone: true})
	}
	for name := range l.was.Sets {
		if l.is.Sets[name] == nil {
			tx.set(acl.SetChange{Name: name, Gone: true})
		}
	}
}

// recut keeps packets from falling between the old elements and the new ones: kernels find
// neither for a moment.
func (tx *transaction) recut(l *list) {
	for _, m := range l.maps {
		if len(m.again) == 0 {
			continue
		}
		tx.recuts = true
		next := encodeSet(acl.NextMap(m.set.Name), m.set.Type, "")
		tx.add(phaseNextRuns, op{object: chainObject(l.Name), weight: 1 + len(m.again)/20, emit: func(n *nftables.Conn) error {
			n.FlushSet(next)
			return putElements(n, next, m.set.Type, m.again)
		}})
		tx.add(phaseDelNextMaps, op{object: chainObject(l.Name), weight: 1, gone: true, emit: func(n *nftables.Conn) error {
			n.FlushSet(next)
			return nil
		}})
	}
}

// change is what makes a list as it is to be, with the chains that come, and without what goes. If
// the kernel refuses it, all of the list is made anew.
func (l *list) change(came []*acl.Chain, c counts) op {
	fill := countsOf(c, came)
	refilled := refill(&nftables.Chain{Name: l.Name, Table: tableOf(l.Name)}, l.Rules, c.take(l.Rules))
	itself := refilled
	if l.edit != nil {
		itself = *l.edit
	}
	o := op{object: chainObject(l.Name), weight: weightOf(came) + itself.weight, after: itself.after, parts: []op{l.anew(refilled)}}
	for _, m := range l.maps {
		o.weight += 1 + (len(m.del)+len(m.add))/20
	}
	o.emit = func(n *nftables.Conn) error {
		emitChains(n, came, fill)
		for _, name := range slices.Sorted(maps.Keys(l.is.Sets)) {
			if l.was.Sets[name] != nil {
				continue
			}
			if err := emitMap(n, l.is.Sets[name]); err != nil {
				return err
			}
		}
		for _, m := range l.maps {
			def := encodeSet(m.set.Name, m.set.Type, "")
			for chunk := range slices.Chunk(m.del, maxElements) {
				if err := n.SetDeleteElements(def, encodeElements(m.set.Type, chunk)); err != nil {
					return err
				}
			}
			if err := putElements(n, def, m.set.Type, m.add); err != nil {
				return err
			}
		}
		return itself.emit(n)
	}
	return o
}

// anew makes a list whatever there is of it.
func (l *list) anew(itself op) op {
	all := only(l.is.Chains, nil)
	return op{object: chainObject(l.Name), weight: weightOf(all) + itself.weight, emit: func(n *nftables.Conn) error {
		n.AddChain(&nftables.Chain{Name: l.Name, Table: tableOf(l.Name)})
		emitChains(n, all, countsOf(nil, all))
		for _, name := range slices.Sorted(maps.Keys(l.is.Sets)) {
			if err := emitMap(n, l.is.Sets[name]); err != nil {
				return err
			}
		}
		return itself.emit(n)
	}}
}

// weightOf is what it weighs to make chains.
func weightOf(chains []*acl.Chain) (n int) {
	for _, c := range chains {
		n += 1 + len(c.Rules)
	}
	return n
}

// countsOf is what the rules of each chain have counted.
func countsOf(c counts, chains []*acl.Chain) [][]acl.Count {
	list := make([][]acl.Count, len(chains))
	for i := range chains {
		list[i] = make([]acl.Count, len(chains[i].Rules))
		copy(list[i], c.take(chains[i].Rules))
	}
	return list
}

// emitChains makes chains, all before the first rule: they may lead to each other.
func emitChains(n *nftables.Conn, chains []*acl.Chain, counted [][]acl.Count) {
	in := func(c *acl.Chain) *nftables.Chain { return &nftables.Chain{Name: c.Name, Table: tableOf(c.Name)} }
	for _, c := range chains {
		n.AddChain(in(c))
		n.FlushChain(in(c))
	}
	for i, c := range chains {
		for r := range c.Rules {
			n.AddRule(encodeRule(in(c), &c.Rules[r], counted[i][r]))
		}
	}
}

// emitMap makes a map what s is.
func emitMap(n *nftables.Conn, s *acl.Set) error {
	def := encodeSet(s.Name, s.Type, s.Comment)
	if err := n.AddSet(def, nil); err != nil {
		return err
	}
	n.FlushSet(def)
	return putElements(n, encodeSet(s.Name, s.Type, ""), s.Type, s.Sorted())
}

func putElements(n *nftables.Conn, def *nftables.Set, typ acl.SetType, elements []acl.Element) error {
	for chunk := range slices.Chunk(elements, maxElements) {
		if err := n.SetAddElements(def, encodeElements(typ, chunk)); err != nil {
			return err
		}
	}
	return nil
}

func encodeElements(typ acl.SetType, elements []acl.Element) (list []nftables.SetElement) {
	for _, e := range elements {
		list = append(list, encodeElement(typ, e)...)
	}
	return list
}

// has says whether an object in the kernel is of the list, beside the chain itself.
func (l *list) has(name string) bool {
	return l.was.Has(name) || l.is.Has(name)
}

// blame has an error that lists refusals name the chains that runs are of; of says which that
// is, "": none.
func blame(err error, of func(object string) string) error {
	var refused *acl.RefusedError
	if !errors.As(err, &refused) {
		return err
	}
	var list []acl.Refusal
	for _, r := range refused.Refusals {
		if chain := of(r.Name); chain != "" {
			r = acl.Refusal{Kind: "chain", Name: chain, Err: r.Err}
		}
		if !slices.ContainsFunc(list, func(o acl.Refusal) bool { return o.Kind == r.Kind && o.Name == r.Name && o.Element == r.Element }) {
			list = append(list, r)
		}
	}
	return &acl.RefusedError{Refusals: list}
}

// blameList does so of what a delta changes.
func blameList(err error, lists []*list) error {
	return blame(err, func(object string) string {
		for _, l := range lists {
			if l.has(object) {
				return l.Name
			}
		}
		return ""
	})
}

// blameRuns does so of all that there is.
func (t *Table) blameRuns(err error, want *acl.Ruleset) error {
	return blame(err, func(object string) string {
		if want.Chains[object] != nil || want.Sets[object] != nil {
			return ""
		}
		for name, c := range want.Chains {
			if c.Hook == nil && acl.Pack(name, c.Rules, t.sets).Has(object) {
				return name
			}
		}
		return ""
	})
}

// learnSets notes the sets of want that acl.Pack has to know.
func (t *Table) learnSets(want *acl.Ruleset) {
	t.sets, t.packed = map[string][]acl.Element{}, map[string]packed{}
	for name, s := range want.Sets {
		switch elements, known := acl.PackSets(name, s.Type); {
		case elements:
			t.sets[name] = s.Sorted()
		case known:
			t.sets[name] = nil
		}
	}
}

// changeSets notes those that a delta brings and takes away, and returns what there was.
func (t *Table) changeSets(d acl.Delta) (before map[string][]acl.Element) {
	before = t.sets
	own := false
	for _, s := range d.Sets {
		_, was := before[s.Name]
		elements, known := acl.PackSets(s.Name, s.Type)
		if !(s.New && known || s.Gone && was) {
			continue
		}
		if !own {
			t.sets, own = maps.Clone(before), true
		}
		switch {
		case s.Gone:
			delete(t.sets, s.Name)
		case elements:
			t.sets[s.Name] = s.Add
		default:
			t.sets[s.Name] = nil
		}
	}
	return before
}
