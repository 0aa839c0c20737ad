package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/telemetry"
	"netctl/datastore"
)

// eventsOptions are the flags of netctl events.
type eventsOptions struct {
	follow bool
	all    bool
	since  string
	kinds  []string
	format *format
	from   time.Time // what since says
}

func newEventsCommand(a *app) *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Show what happened on this node, or on all: endpoints, sessions, drift, leaks, certificates, drains, problems",
		Long: "Show what happened on this node, the oldest first, one line each: time, node, kind, object, and what and why in words.\n" +
			"Each role keeps its last 500 events in the state folder, also while it does not run, and across restarts.\n" +
			"The last 50 of each node are in the datastore, a few seconds later: --all shows those of every node.\n" +
			"Kinds: " + strings.Join(eventKinds(), ", ") + ". -o json is one JSON value a line, -o wide has the role and the level too.",
		Example: "  netctl events -f\n  netctl events --all --since 10m\n  netctl events --since 1h --kind session,drift\n  netctl events --since \"2026-11-30 08:00\" -o json",
		Args:    cobra.NoArgs,
	}
	o.format = addFormat(cmd)
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with further events as they come")
	cmd.Flags().BoolVar(&o.all, "all", false, "the last events of all nodes, as the datastore has them")
	cmd.Flags().StringVar(&o.since, "since", "", "the oldest `time` of interest: how long ago (90m, 2h) or since when (2026-11-30, 2026-11-30 08:00, RFC 3339)")
	cmd.Flags().StringSliceVar(&o.kinds, "kind", nil, "`kinds` of events, parted by commas (default: all)")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(eventKinds(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("since", cobra.FixedCompletions([]string{"10m", "1h", "24h"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.from, err = parseSince(o.since, time.Now()); err != nil {
			return usageError{err}
		}
		if err := each(o.kinds, func(k string) error { return oneOf(k, eventKinds()...) }); err != nil {
			return usage("--kind: %w", err)
		}
		if o.follow && (a.caller != nil || a.server != nil) {
			return usage("--follow does not go over an API: ask without it, or on the machine itself")
		}
		if o.all {
			return a.showAllEvents(cmd.Context(), o)
		}
		s, err := a.settings()
		if err != nil {
			return err
		}
		if o.follow {
			return telemetry.Follow(cmd.Context(), s.StateDir, func(list []datastore.Event) error { return a.showEvents(o, list) })
		}
		list, err := telemetry.Events(s.StateDir)
		if err != nil {
			return err
		}
		return a.showEvents(o, list)
	}
	return cmd
}

// showAllEvents prints what the nodes share.
func (a *app) showAllEvents(ctx context.Context, o eventsOptions) error {
	store, err := a.store(ctx)
	if err != nil {
		return err
	}
	if o.follow {
		return telemetry.FollowAll(ctx, store, func(list []datastore.Event) error { return a.showEvents(o, list) }, func(err error) {
			a.warn("the datastore is away, waiting for it: %v", err)
		})
	}
	list, _, err := datastore.ListEvents(ctx, store)
	if err != nil {
		return err
	}
	return a.showEvents(o, list)
}

func eventKinds() (names []string) {
	for _, k := range datastore.EventKinds() {
		names = append(names, string(k))
	}
	return names
}

// parseSince reads a time, or how long ago it was; "" is the zero time.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since: %q is no time: say how long ago, as 90m or 2h, or since when, as 2026-11-30 or \"2026-11-30 08:00\"", text)
}

// showEvents prints those of interest.
func (a *app) showEvents(o eventsOptions, list []datastore.Event) error {
	list = slices.DeleteFunc(slices.Clone(list), func(e datastore.Event) bool {
		return e.Time.Before(o.from) || len(o.kinds) > 0 && !slices.Contains(o.kinds, string(e.Kind))
	})
	if a.caller != nil && a.caller.oneValue {
		return a.showPlain(formatJSON, list)
	}
	var b strings.Builder
	for _, e := range list {
		switch *o.format {
		case formatYAML:
			if err := a.print("---\n"); err != nil {
				return err
			}
			if err := a.showPlain(formatYAML, e); err != nil {
				return err
			}
		case formatJSON:
			line, err := json.Marshal(e)
			if err != nil {
				return err
			}
			b.Write(append(line, '\n'))
		default:
			b.WriteString(eventLine(e, *o.format == formatWide))
		}
	}
	return a.print(b.String())
}

// eventLine is one event with its line's end.
func eventLine(e datastore.Event, wide bool) string {
	head := fmt.Sprintf("%s  %s  ", e.Time.Local().Format(time.DateTime), e.Node)
	if wide {
		head += fmt.Sprintf("%-9s  %-5s  ", e.Role, e.Level)
	}
	head += fmt.Sprintf("%-11s  ", e.Kind)
	if e.Object != "" {
		head += e.Object + "  "
	}
	return datastore.Line(head+e.Words()) + "\n"
}
