package acl

import (
	"math"
	"slices"
)

// Two kinds of events concern many members: a new selector, which is held against
// everyone that may have the labels it needs, and a changed tag or label of a
// profile, which all its endpoints get. Such an event looks at one slice of them
// itself; the rest is left to Work, slice by slice, so that nothing else waits.
//
// A set that is not whole is in no rule of the kernel: a chain that needs it keeps
// the rules it had, and a new chain denies. Tags change endpoint by endpoint.
//
// Each member has a place, a number that stays the same as long as it is a member. A
// selector goes through its candidates in the order of their places, and remembers
// only how far it has come (upto). What changes at a place below upto is counted at
// once; what changes at any other is seen when its turn comes.

// atOnce is how many members are looked at at once: some two milliseconds' work.
const atOnce = 2000

// whole is the upto of what has looked at every place: it is above any place that a
// new member may get.
const whole = math.MaxInt

// Work does a slice of what is left to do, and says whether there is more. What it
// has done is in the next Flush.
func (x *Index) Work() (more bool) {
	x.left = x.slice
	x.update()
	x.settle()
	for x.left > 0 && len(x.filling) > 0 {
		x.fill(x.filling[0])
	}
	return !x.Whole()
}

// update works out the facts of outdated members anew.
func (x *Index) update() {
	for x.left > 0 && len(x.outdated) > 0 {
		last := len(x.outdated) - 1
		m := x.outdated[last]
		x.outdated = slices.Delete(x.outdated, last, last+1)
		if m.outdated = false; m.endpoint != nil {
			x.gatherAgain(m)
		}
	}
}

// fill goes on looking for a selector's members. With the last, the chains that
// waited for the set get their rules.
func (x *Index) fill(text string) {
	p := x.selectors[text]
	if p.need != nil && !x.labelsWhole() {
		return
	}
	price := lookups(p.need) / 16 // of a look at the index, in looks at a member
	for {
		candidates := x.candidates(p)
		if candidates.bits == 0 {
			break
		}
		for candidates.bits != 0 {
			place, rest := candidates.take()
			if x.left <= 0 {
				p.upto = place
				return
			}
			if m := x.places[place]; m != nil {
				x.look()
				if p.selector.Matches(m.facts.labels) {
					x.countAddrs(populationKey{fromSelector, text}, m.facts.addrs, +1)
				}
			}
			p.upto, candidates = place+1, rest
		}
		x.left -= price
	}
	p.upto = whole
	x.filling = slices.DeleteFunc(x.filling, func(t string) bool { return t == text })
	waiting := x.waiting[text]
	delete(x.waiting, text)
	for _, c := range waiting {
		if c.next != nil && x.whole(*c.next) {
			x.swap(c, *c.next)
		}
	}
}

// look is one look of a selector or of the label index at a member.
func (x *Index) look() {
	x.left--
	x.looked++
}

// candidates are the next places that a selector has to look at, in one word;
// without bits if there are none.
func (x *Index) candidates(p *population) word {
	if p.need == nil {
		return x.nextPlaces(p.upto)
	}
	w := x.labels.next(p.need, p.upto/64).from(p.upto)
	if w.bits == 0 { // none, or only places that were looked at
		w = x.labels.next(p.need, p.upto/64+1)
	}
	return w
}

// nextPlaces are the places in use or free from one on, in one word.
func (x *Index) nextPlaces(from int) word {
	if from >= len(x.places) {
		return word{}
	}
	w := word{number: from / 64, bits: ^uint64(0)}
	if rest := len(x.places) - 64*w.number; rest < 64 {
		w.bits = 1<<rest - 1
	}
	return w.from(from)
}

// labelsWhole goes on building the label index, and says whether it is whole.
func (x *Index) labelsWhole() bool {
	if x.labels == nil {
		x.labels = &labelIndex{keys: map[string]*labelKey{}}
	}
	l := x.labels
	for ; l.upto < len(x.places); l.upto++ {
		if x.left <= 0 {
			return false
		}
		if m := x.places[l.upto]; m != nil {
			x.look()
			x.left -= len(m.facts.labels)
			l.add(l.upto, m.facts.labels)
		}
	}
	l.upto = whole
	return true
}

// dropSelector forgets a selector, and with the last that needs it the label index.
func (x *Index) dropSelector(text string) {
	p := x.selectors[text]
	if p == nil {
		return // it did not parse
	}
	x.audience.remove(p)
	delete(x.selectors, text)
	x.filling = slices.DeleteFunc(x.filling, func(t string) bool { return t == text })
	for _, p := range x.selectors {
		if p.need != nil {
			return
		}
	}
	x.labels = nil
}

// whole says whether every set that a program needs is.
func (x *Index) whole(p program) bool {
	return !slices.ContainsFunc(p.refs, func(r setRef) bool { return x.unfilled(r) })
}

func (x *Index) unfilled(r setRef) bool {
	p := x.selectors[r.arg]
	return r.source == fromSelector && p != nil && p.upto != whole
}

// await keeps what a chain is to become until its sets are whole.
func (x *Index) await(c *liveChain, p program) {
	c.next = &p
	for _, r := range p.refs {
		if x.unfilled(r) && !slices.Contains(x.waiting[r.arg], c) {
			x.waiting[r.arg] = append(x.waiting[r.arg], c)
		}
	}
	if x.pending.comes(c.name) {
		c.close(families{true, true})
	}
}
