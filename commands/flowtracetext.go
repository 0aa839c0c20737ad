package commands

import (
	"fmt"
	"slices"
	"strings"

	"netctl/acl"
	"netctl/datastore"
)

// text is the trace for people: what each node did, in order.
func (t flowTrace) text() string {
	var b strings.Builder
	head := map[string]string{traceArrived: "Arrived", traceDropped: "Dropped", traceUnknown: "Not known to arrive"}[t.Verdict]
	fmt.Fprintf(&b, "%s: %s\n", head, t.Packet)
	if t.Disagrees != "" {
		fmt.Fprintf(&b, "THE KERNEL AND THE RULES DISAGREE: %s\n", t.Disagrees)
	}
	if t.Source.Endpoint != "" {
		fmt.Fprintf(&b, "0 %s\n", t.Source.workload())
	} else {
		fmt.Fprintf(&b, "0 %s itself\n", t.Source.Node)
	}
	for i, n := range t.Nodes {
		fmt.Fprintf(&b, "%d %s:", i+1, n.Node)
		switch {
		case n.Error != "":
			fmt.Fprintf(&b, " %s\n", n.Error)
			continue
		case n.Fate == datastore.Unseen:
			b.WriteString(" did not see it\n")
			continue
		}
		if in := n.Steps[0].In; in != "" {
			b.WriteString(" in by " + in)
		}
		if out := n.out(); out != "" && (n.Fate == datastore.Forwarded) {
			b.WriteString(" out by " + out)
		}
		b.WriteString("\n")
		for _, line := range n.lines() {
			b.WriteString("    " + line + "\n")
		}
	}
	if t.Sent != "" {
		fmt.Fprintf(&b, "Sender: %s\n", t.Sent)
	}
	fmt.Fprintf(&b, "%s: %s\n", head, t.End)
	return b.String()
}

// lines are the base chains, each with the rules that said something, and what became of
// the packet there.
func (n tracedNode) lines() (list []string) {
	head, said := "", "" // the base chain of a step, and the one that was named last
	for _, s := range n.Steps {
		policy := s.Position == 0 && strings.HasPrefix(s.Verdict, "policy ")
		rule := s.Rule != nil || s.Position != 0 && (ends(s.Verdict) || s.Comment != "" && denies(s))
		if s.Hook != "" {
			head = fmt.Sprintf("%s %s (%s)", s.Table, s.Chain, s.Hook)
		}
		switch {
		case s.Table == "": // the trace's own: nothing stopped the packet
		case policy && head != said:
			list = append(list, head+": "+s.Verdict)
		case policy:
			list = append(list, "  "+s.Verdict)
		case rule && head != said:
			list, said = append(list, head+":"), head
			fallthrough
		case rule:
			list = append(list, "  "+strings.Replace(stepVerdict(s)+" "+stepWords(s), " by because ", ": ", 1))
		}
	}
	return list
}

func ends(verdict string) bool { return verdict == "drop" || verdict == "accept" }

// denies says whether a step leads to where packets are dropped.
func denies(s datastore.TraceStep) bool {
	verb, to, _ := strings.Cut(s.Verdict, " ")
	return verb == "goto" && denying(to)
}

// denying says whether a chain of ours is for what is denied.
func denying(chain string) bool {
	return slices.ContainsFunc([]string{"deny_", "drop_", "reject_"}, func(p string) bool { return strings.HasPrefix(chain, p) })
}

// stepVerdict is what a rule did, in words.
func stepVerdict(s datastore.TraceStep) string {
	switch {
	case denies(s):
		return "denied by"
	case s.Verdict == "drop":
		return "dropped by"
	case s.Verdict == "accept":
		return "accepted by"
	}
	return "passed"
}

// stepWords is the rule of the model, or the place of another one.
func stepWords(s datastore.TraceStep) string {
	switch {
	case s.Rule != nil:
		return s.Rule.String()
	case s.Position == 0:
		return fmt.Sprintf("the policy of chain %s %s", s.Table, s.Chain)
	case s.Comment != "" && s.Table == ours:
		return "because " + s.Comment
	case s.Comment != "":
		return fmt.Sprintf("rule %d of chain %s %s: %s", s.Position, s.Table, s.Chain, s.Comment)
	}
	return fmt.Sprintf("rule %d of chain %s %s", s.Position, s.Table, s.Chain)
}

// why is what dropped the packet: the rule of the model, or why none allowed it, else
// whose rule it was.
func (n tracedNode) why() string {
	last := n.Steps[len(n.Steps)-1]
	if by := n.decider(); by != nil {
		return "by " + by.String()
	}
	for _, s := range slices.Backward(n.Steps) {
		switch {
		case s.Table != ours:
			return "by " + stepWords(last)
		case s.Comment != "":
			return s.Comment
		case !denying(s.Chain):
			return "by " + stepWords(last)
		}
	}
	return "by " + stepWords(last)
}

// ours is netctl's own table.
const ours = "inet " + acl.TableName
