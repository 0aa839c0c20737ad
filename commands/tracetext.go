package commands

import (
	"fmt"
	"strings"
)

// text is one hop after the other, and how it ends.
func (t traced) text() string {
	var b strings.Builder
	for i, h := range t.Hops {
		fmt.Fprintf(&b, "%d %s: ", i+1, h.Host)
		switch {
		case h.Router:
			b.WriteString("no node of netctl")
		case !h.Prefix.IsValid() && h.Source == fromStore:
			b.WriteString("no route that is known")
		case !h.Prefix.IsValid():
			b.WriteString("no route")
		default:
			b.WriteString(h.Prefix.String() + ", " + h.Protocol)
		}
		if h.Table != "" && h.Table != "main" {
			b.WriteString(", table " + h.Table)
		}
		if h.Metric != 0 {
			fmt.Fprintf(&b, ", metric %d", h.Metric)
		}
		if len(h.AnnouncedBy) > 0 {
			b.WriteString(", heard from " + strings.Join(h.AnnouncedBy, " and "))
		}
		if h.Source == fromStore {
			b.WriteString(" (from the datastore)")
		}
		b.WriteString("\n")
		for _, n := range h.NextHops {
			fmt.Fprintf(&b, "    %s\n", n)
		}
	}
	end := "Does not arrive: "
	switch {
	case t.Arrives && t.Node == "":
		end = "Leaves: "
	case t.Arrives:
		end = "Arrives: "
	}
	return b.String() + end + t.End + "\n"
}

func (n tracedGoing) String() string {
	var words []string
	if n.Via != "" {
		words = append(words, "via "+n.Via)
	}
	if n.Node != "" && n.Encapsulation == "" {
		words = append(words, "("+n.Node+")")
	}
	if n.Link != "" {
		words = append(words, "dev "+n.Link)
	}
	if n.MTU != 0 {
		words = append(words, fmt.Sprintf("MTU %d", n.MTU))
	}
	if n.Encapsulation != "" {
		words = append(words, fmt.Sprintf("in %s to %s (%s)", n.Encapsulation, n.Node, n.Remote))
	}
	return strings.Join(words, " ")
}
