package commands

import (
	"cmp"
	"fmt"
	"strings"

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

// lines are the base chains with what decided in each.
func (n tracedNode) lines() (list []string) {
	for i, s := range n.Steps {
		switch {
		case s.Table == "": // the trace's own
		case s.Rule != nil:
			list = append(list, "  "+stepVerdict(s)+" "+s.Rule.String())
		case s.Position != 0 && (s.Comment != "" || ends(s.Verdict)) && !strings.HasPrefix(s.Verdict, "jump ") && s.Verdict != "continue":
			list = append(list, "  "+stepVerdict(s)+" "+stepWords(s, nil))
		}
		if s.Hook != "" && s.Table != "" && (i == len(n.Steps)-1 || n.Steps[i+1].Hook != s.Hook || n.Steps[i+1].Chain != s.Chain) && s.Position == 0 {
			list = append(list, fmt.Sprintf("%s %s (%s): %s", s.Table, s.Chain, s.Hook, s.Verdict))
		}
	}
	return list
}

func ends(verdict string) bool { return verdict == "drop" || verdict == "accept" }

// stepVerdict is what a rule did, in words.
func stepVerdict(s datastore.TraceStep) string {
	verb, to, _ := strings.Cut(s.Verdict, " ")
	switch {
	case verb == "goto" && strings.HasPrefix(to, "deny_"), verb == "goto" && strings.HasPrefix(to, "drop_"), verb == "goto" && strings.HasPrefix(to, "reject_"):
		return "denied by"
	case verb == "drop":
		return "dropped by"
	case verb == "accept":
		return "accepted by"
	}
	return "passed"
}

// stepWords is the place of a step, or the rule of the model that decided.
func stepWords(s datastore.TraceStep, by *datastore.RulePlace) string {
	if by != nil {
		return by.String()
	}
	if s.Position == 0 {
		return fmt.Sprintf("the policy of chain %s %s", s.Table, s.Chain)
	}
	text := fmt.Sprintf("rule %d of chain %s %s", s.Position, s.Table, s.Chain)
	return text + cmp.Or(strings.TrimSuffix(" ("+s.Comment+")", " ()"))
}
