package acl

import (
	"fmt"
	"slices"
	"strings"
)

// Refusal is an object of the table that the kernel refused.
type Refusal struct {
	// Kind is "table", "chain" or "set"; Name is its name in the kernel.
	Kind, Name string
	// Label says whose it is, e.g. "profile web"; Index.Name sets it.
	Label string
	// Element is set if it is one element of the set; Link is whose.
	Element, Link string
	// Err is the kernel's answer.
	Err error
}

// Error implements error.
func (r Refusal) Error() string {
	if r.Element != "" {
		return fmt.Sprintf("element of %s: %s: %v", r.Name, r.Element, r.Err)
	}
	if r.Label != "" {
		return fmt.Sprintf("%s %s (%s): %v", r.Kind, r.Name, r.Label, r.Err)
	}
	return fmt.Sprintf("%s %s: %v", r.Kind, r.Name, r.Err)
}

// Unwrap is the kernel's answer.
func (r Refusal) Unwrap() error { return r.Err }

// RefusedError is what a back end returns that wrote everything except some
// objects.
type RefusedError struct{ Refusals []Refusal }

// maxTold bounds how many refusals the text of an error names.
const maxTold = 5

// Error implements error.
func (e *RefusedError) Error() string {
	var texts []string
	for _, r := range e.Refusals[:min(len(e.Refusals), maxTold)] {
		texts = append(texts, r.Error())
	}
	if more := len(e.Refusals) - maxTold; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return "packet filter: " + strings.Join(texts, "; ")
}

// Unwrap are the refusals.
func (e *RefusedError) Unwrap() []error {
	var errs []error
	for _, r := range e.Refusals {
		errs = append(errs, r)
	}
	return errs
}

// Without is the error but for what a delta writes anew; nil: nothing is left.
func (e *RefusedError) Without(d Delta) *RefusedError {
	if e == nil {
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(e.Refusals), func(r Refusal) bool {
		return r.Link == "" && (slices.ContainsFunc(d.Chains, func(c ChainChange) bool { return c.Name == r.Name }) ||
			slices.ContainsFunc(d.Sets, func(c SetChange) bool { return c.Name == r.Name }))
	})
	if len(left) == 0 {
		return nil
	}
	return &RefusedError{left}
}

// Concerning is the error with those refusals that keep the link's endpoint from
// being what the datastore says; nil: none does. What belongs to nobody concerns
// everybody.
func (x *Index) Concerning(link string, e *RefusedError) error {
	if e == nil {
		return nil
	}
	needs := x.needs(link)
	static := Static(x.options)
	var found []Refusal
	for _, r := range e.Refusals {
		switch _, set := static.Sets[r.Name]; {
		case r.Link != "" && r.Link != link:
		case r.Link == link, r.Kind == "table", set, static.Chains[r.Name] != nil, slices.Contains(needs, r.Name):
			found = append(found, r)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return &RefusedError{found}
}

// needs are the chains and sets that the link's packets go through, the static
// ones excepted.
func (x *Index) needs(link string) (names []string) {
	w, ok := x.wired[link]
	if !ok {
		return nil
	}
	for _, class := range []string{w.in, w.out} {
		names = append(names, class)
		for _, c := range x.chains[class].jumps {
			names = append(names, c)
			p := x.chains[c].program
			for _, r := range p.refs {
				names = append(names, r.name)
			}
			names = append(names, p.held...)
			for _, e := range p.ends {
				names = append(names, e.name)
			}
		}
	}
	return names
}

// Name is the refusal with its Label: the profile, policy, tier or set that the object is of.
func (x *Index) Name(r Refusal) Refusal {
	if c := x.chains[r.Name]; c != nil && c.rank == ruleChain {
		r.Label = c.label()
	}
	if s := x.sets[r.Name]; s != nil {
		r.Label = s.ref.comment()
	}
	return r
}
