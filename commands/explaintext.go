package commands

import (
	"fmt"
	"strconv"
	"strings"

	"netctl/commands/control"
)

// text is the answer for people.
func (e explained) text(verbose bool) string {
	var b strings.Builder
	if len(e.Flows) == 1 {
		fmt.Fprintf(&b, "%s: %s\n", e.headline(), e.Flows[0].between(e.Source.Address, e.Destination.Address))
		for _, s := range e.Flows[0].Sides {
			b.WriteString(s.text(verbose, "  "))
		}
	} else {
		fmt.Fprintf(&b, "%s: from %s to %s\n", e.headline(), e.Source.Address, e.Destination.Address)
		for _, f := range e.Flows {
			word := "denied"
			if f.Allowed {
				word = "allowed"
			}
			fmt.Fprintf(&b, "  %s: %s\n", f.traffic, word)
			for _, s := range f.Sides {
				b.WriteString(s.text(verbose, "    "))
			}
		}
	}
	for _, n := range e.Notes {
		b.WriteString("Note: " + n + "\n")
	}
	b.WriteString("Way:\n")
	if e.Source.Endpoint != "" {
		fmt.Fprintf(&b, "0 %s\n", e.Source.workload())
	}
	b.WriteString(e.Way.text())
	return b.String()
}

func (e explained) headline() string {
	switch e.Verdict {
	case verdictAllowed:
		return "Allowed"
	case verdictDenied:
		return "Denied"
	case verdictNoWay:
		return "Allowed, but does not arrive"
	}
	return "Depends on protocol and port"
}

func (s explainedSide) text(verbose bool, indent string) string {
	var b strings.Builder
	from := ""
	if s.From == fromAgent {
		from = " (as its agent has it)"
	}
	fmt.Fprintf(&b, "%s%s of %s%s: %s\n", indent, s.Direction, s.Endpoint, from, verdictText(s.Explanation))
	if verbose {
		for _, p := range s.Passed {
			met := "does not match"
			if p.Matched {
				met = "matches, and goes on"
			}
			fmt.Fprintf(&b, "%s  passed %s (%s)\n", indent, p.RulePlace, met)
		}
	}
	if s.Staged != nil {
		fmt.Fprintf(&b, "%s  with the staged policies in force: %s\n", indent, verdictText(*s.Staged))
	}
	if s.Problem != "" {
		fmt.Fprintf(&b, "%s  but the kernel does not hold it: %s\n", indent, s.Problem)
	}
	return b.String()
}

func verdictText(e control.Explanation) string {
	word := "denied"
	if e.Allowed {
		word = "allowed"
	}
	if e.By != nil {
		return word + " by " + e.By.String()
	}
	return word + ": " + e.Reason
}

// portNumber reads a port.
func portNumber(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && n > 0
}
