package acl

import "slices"

// pending is what was touched since the last Flush, as it was then.
type pending struct {
	chains map[string]pendingChain
	sets   map[string]pendingSet
}

type pendingChain struct {
	existed bool
	rules   []Rule
	gates   []string
}

type pendingSet struct {
	fresh   bool // did not exist
	changes map[Element]bool
}

func newPending() pending {
	return pending{chains: map[string]pendingChain{}, sets: map[string]pendingSet{}}
}

// chain notes what the chain was before its first change; nil: absent.
func (p pending) chain(name string, c *liveChain) {
	if _, ok := p.chains[name]; ok {
		return
	}
	if c == nil {
		p.chains[name] = pendingChain{}
		return
	}
	p.chains[name] = pendingChain{existed: true, rules: c.rules(), gates: c.program.held}
}

// comes says whether a chain was absent at the last Flush.
func (p pending) comes(name string) bool {
	c, touched := p.chains[name]
	return touched && !c.existed
}

func (p pending) set(name string, fresh bool) {
	if _, ok := p.sets[name]; !ok {
		p.sets[name] = pendingSet{fresh: fresh, changes: map[Element]bool{}}
	}
}

// element notes that e came or went. The two cancel each other out, because an
// element comes only where it is absent and goes only where it is present.
func (p pending) element(set string, e Element, present bool) {
	p.set(set, false)
	changes := p.sets[set].changes
	if was, ok := changes[e]; ok && was != present {
		delete(changes, e)
		return
	}
	changes[e] = present
}

func (p pendingSet) split() (add, del []Element) {
	for e, present := range p.changes {
		if present {
			add = append(add, e)
		} else {
			del = append(del, e)
		}
	}
	slices.SortFunc(add, Element.Compare)
	slices.SortFunc(del, Element.Compare)
	return add, del
}
