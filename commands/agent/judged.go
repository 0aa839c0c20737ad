package agent

import "netctl/acl"

// mostLag is how many changes are kept for a copy of the rules that nobody asks for: then it is
// dropped with them, and made anew.
const mostLag = 10_000

// judged is a copy of the rules that the kernel is to hold, for others to read while the loop
// goes on. It is made once, and brought up to date, where somebody asks for it, by copies of the
// sets alone that changed.
type judged struct {
	rules  *acl.Ruleset // nil: there is none
	since  []acl.Delta  // what changed since
	lag    int          // by how much
	copies int          // how often all was copied; tests count them
}

// follow takes a change.
func (j *judged) follow(d acl.Delta) {
	if j.rules == nil || d.Empty() {
		return
	}
	j.since, j.lag = append(j.since, d), j.lag+d.Changes()
	if j.lag > mostLag {
		j.drop()
	}
}

// drop forgets the copy.
func (j *judged) drop() { j.rules, j.since, j.lag = nil, nil, 0 }

// take returns the rules, which nobody changes. whole copies all of them.
func (j *judged) take(whole func() *acl.Ruleset) *acl.Ruleset {
	if j.rules == nil {
		j.rules = whole()
		j.copies++
	} else if len(j.since) > 0 {
		j.rules = j.rules.With(j.since...)
	}
	j.since, j.lag = nil, 0
	return j.rules
}
