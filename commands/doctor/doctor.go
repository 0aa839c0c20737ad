// Package doctor owns what on a host breaks the network without a word: a list of
// checks, each with its name, what it means, a probe and the fix.
//
// It changes nothing unless Run is told to fix, and then only settings of the kernel,
// files of its own and the two rules that let forwarded packets of workloads pass, each
// told with its old and new value. It needs no datastore and no role that runs.
//
// Invariants: what a check could not find out is told as that, never as fine; a check
// reads the machine through a Host alone, so that a fake can stand for one; everything
// that is waited for has a bound.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Check is one thing that may be wrong with a host.
type Check struct {
	// Name is what the check is called, in lower case and dashes.
	Name string
	// Meaning is what breaks, in a sentence.
	Meaning string
	// First says that install and join ask it: what it finds may make both pointless.
	First bool
	probe func(context.Context, *scene) ([]Finding, error)
}

// Finding is one thing that is wrong.
type Finding struct {
	// What is wrong, with names and values.
	What string `json:"what"`
	// Fix is what the operator can do: commands to paste, in order.
	Fix []string `json:"fix"`
	// Fatal says that nothing works as long as it is so: install and join refuse.
	Fatal bool `json:"fatal,omitempty"`
	// Fixable says that --fix does it.
	Fixable bool `json:"fixable,omitempty"`

	repairs []repair
}

// State is what became of a check.
type State string

// The states of a check.
const (
	Fine    State = "fine"
	Wrong   State = "wrong"
	Unknown State = "unknown" // it could not be told
	Skipped State = "skipped" // it does not apply here
)

// Result is what a check found.
type Result struct {
	Name     string    `json:"name"`
	State    State     `json:"state"`
	Meaning  string    `json:"meaning"`
	Findings []Finding `json:"findings"`
	// Reason is why it was skipped or could not be told.
	Reason string `json:"reason,omitempty"`
	// Changes are what --fix did, each with its old and new value.
	Changes []string `json:"changes,omitempty"`
}

// Report is what all checks found.
type Report struct {
	// Healthy: nothing is wrong, and everything could be told.
	Healthy bool     `json:"healthy"`
	Checks  []Result `json:"checks"`
}

// Count is how many checks ended in a state.
func (r *Report) Count(s State) (n int) {
	for _, c := range r.Checks {
		if c.State == s {
			n++
		}
	}
	return n
}

// skipped is the error of a check that does not apply.
type skipped struct{ why string }

func (s skipped) Error() string { return s.why }

func skip(format string, args ...any) error { return skipped{fmt.Sprintf(format, args...)} }

// Run makes every check of the host. With fix it repairs what can be repaired safely and
// looks again. It ends early only with ctx.
func Run(ctx context.Context, h Host, c Config, fix bool) (*Report, error) {
	return run(ctx, h, c, fix, Checks())
}

func run(ctx context.Context, h Host, c Config, fix bool, checks []Check) (*Report, error) {
	c.finish()
	r := &Report{Healthy: true}
	s := newScene(h, c)
	for _, check := range checks {
		res := check.run(ctx, s)
		if fix && res.State == Wrong {
			changes, err := repairAll(ctx, h, res.Findings)
			if len(changes) > 0 {
				s = newScene(h, c)
				res = check.run(ctx, s)
				res.Changes = changes
			}
			if err != nil {
				res.State, res.Reason = Wrong, err.Error()
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		r.Checks = append(r.Checks, res)
		r.Healthy = r.Healthy && (res.State == Fine || res.State == Skipped)
	}
	return r, nil
}

func (c Check) run(ctx context.Context, s *scene) Result {
	found, err := c.probe(ctx, s)
	res := Result{Name: c.Name, Meaning: c.Meaning, Findings: append([]Finding{}, found...), State: Fine}
	for i := range res.Findings {
		res.Findings[i].Fixable = len(res.Findings[i].repairs) > 0
	}
	var not skipped
	switch {
	case len(found) > 0:
		res.State = Wrong
		if err != nil {
			res.Reason = err.Error()
		}
	case errors.As(err, &not):
		res.State, res.Reason = Skipped, not.why
	case err != nil:
		res.State, res.Reason = Unknown, strings.Join(strings.Fields(err.Error()), " ")
	}
	return res
}

// RefusedError is why a machine cannot be a node.
type RefusedError struct{ Findings []Finding }

// Error is one line: what is wrong, and the first of what mends it.
func (e *RefusedError) Error() string {
	var list []string
	for _, f := range e.Findings {
		text := f.What
		if len(f.Fix) > 0 {
			command, _, _ := strings.Cut(f.Fix[0], "   #")
			text += " (fix: " + command + ")"
		}
		list = append(list, text)
	}
	return "this machine cannot be a node: " + strings.Join(list, "; ") + ": `netctl doctor` says more"
}

// Preflight makes the checks that tell whether the machine can be a node with the roles
// of c at all: for what installs, and joins a cluster. The error is a *RefusedError that
// says why it cannot. What could not be told, and what is wrong and does not stop a node,
// is in the report alone.
func Preflight(ctx context.Context, h Host, c Config) (*Report, error) {
	var first []Check
	for _, check := range Checks() {
		if check.First {
			first = append(first, check)
		}
	}
	r, err := run(ctx, h, c, false, first)
	if err != nil {
		return nil, err
	}
	var fatal []Finding
	for _, res := range r.Checks {
		for _, f := range res.Findings {
			if f.Fatal {
				fatal = append(fatal, f)
			}
		}
	}
	if len(fatal) > 0 {
		return r, &RefusedError{fatal}
	}
	return r, nil
}
