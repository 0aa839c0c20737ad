package commands

import (
	"context"
	"slices"
	"strings"

	"netctl/commands/agent"
	"netctl/datastore"
)

// refusalsOn are other programs' chains on nodes that may refuse what netctl allows, as
// their agents report: rules of the model know nothing of them.
func (a *app) refusalsOn(ctx context.Context, nodes ...string) (notes []string) {
	slices.Sort(nodes)
	for _, n := range slices.Compact(nodes) {
		if n == "" {
			continue
		}
		r, err := read[*datastore.Report](ctx, a, n+"/"+datastore.ReportAgent)
		if err != nil {
			continue // there is none: the node is new, or away
		}
		for _, text := range r.Status.Refusing {
			notes = append(notes, n+": "+text)
		}
		for _, text := range r.Status.Problems {
			if strings.Contains(text, agent.ReversePathSetting) {
				notes = append(notes, n+": "+text)
			}
		}
	}
	return notes
}
