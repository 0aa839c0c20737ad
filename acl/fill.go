package acl

import "slices"

// A selector that comes anew is held against every endpoint of the cluster, and a
// changed tag or label of a profile concerns all its endpoints. Where there are many
// that goes in slices (Work), so that nothing else waits for it. A set that is not
// whole is in no rule of the kernel: a chain that needs it keeps the rules that it
// had, and one that is new denies. Tags change endpoint by endpoint.

// atOnce is how many members are looked at at once: some two milliseconds' work.
const atOnce = 2000

// fill is how far a selector's population has come.
type fill struct {
	todo []*facts // of the members as they were when it began
	// changed are members that came, changed or went since, with what they were.
	changed map[string]*facts // nil: it was not there
}

// newFill begins with all members. Fills that begin together share the list.
func (x *Index) newFill() *fill {
	if x.everybody == nil {
		x.everybody = make([]*facts, 0, len(x.members))
		for _, m := range x.members {
			x.everybody = append(x.everybody, m.facts)
		}
	}
	return &fill{todo: x.everybody, changed: map[string]*facts{}}
}

// memberChanges notes a change of a member for the fills that go on; was is what it
// was, nil if it was not there.
func (x *Index) memberChanges(name string, was *facts) {
	x.everybody = nil
	for _, text := range x.filling {
		f := x.selectors[text].fill
		if _, noted := f.changed[name]; !noted {
			f.changed[name] = was
		}
	}
}

// fill looks at up to n members of a selector's and returns how many it did. With
// the last, the chains that waited for the set get their rules.
func (x *Index) fill(text string, n int) (done int) {
	p := x.selectors[text]
	f := p.fill
	key := populationKey{fromSelector, text}
	count := func(of *facts, by int) {
		if of != nil && p.selector.Matches(of.labels) {
			x.countAddrs(key, of.addrs, by)
		}
	}
	for ; done < n && len(f.todo) > 0; done++ {
		count(f.todo[0], +1)
		f.todo = f.todo[1:]
	}
	if len(f.todo) > 0 {
		return done
	}
	for name, was := range f.changed {
		count(was, -1)
		if m := x.members[name]; m != nil {
			count(m.facts, +1)
		}
		done++
	}
	p.fill = nil
	x.filling = slices.DeleteFunc(x.filling, func(t string) bool { return t == text })
	for _, c := range x.waiting[text] {
		if c.next != nil && x.whole(*c.next) {
			x.swap(c, *c.next)
		}
	}
	delete(x.waiting, text)
	return done
}

// Work does a slice of what is left to do, and says whether there is more. What it
// has done is in the next Flush.
func (x *Index) Work() (more bool) {
	left := x.slice
	for ; left > 0 && len(x.outdated) > 0; left-- {
		last := len(x.outdated) - 1
		x.gatherAgain(x.outdated[last])
		x.outdated = x.outdated[:last]
	}
	for left > 0 && len(x.filling) > 0 {
		left -= max(1, x.fill(x.filling[0], left))
	}
	return len(x.filling)+len(x.outdated) > 0
}

// whole says whether every set that a program needs is.
func (x *Index) whole(p program) bool {
	return !slices.ContainsFunc(p.refs, func(r setRef) bool { return x.unfilled(r) })
}

func (x *Index) unfilled(r setRef) bool {
	p := x.selectors[r.arg]
	return r.source == fromSelector && p != nil && p.fill != nil
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
		for _, r := range c.program.refs {
			x.releaseSet(r.name)
		}
		c.program = program{rules: []Rule{{Verdict: goTo(c.direction.denyChain()), Comment: clip("profile " + c.profile + ": its selectors are being worked out")}}}
	}
}

// fillNow looks at all members for the sets of a program.
func (x *Index) fillNow(p program) {
	for _, r := range p.refs {
		for x.unfilled(r) {
			x.fill(r.arg, len(x.members)+1)
		}
	}
}
