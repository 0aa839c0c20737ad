package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newPolicySuggestCommand(a *app) *cobra.Command {
	var period time.Duration
	var labels []string
	cmd := &cobra.Command{
		Use:   "suggest [FILE]",
		Short: "Print staged policies that would allow what was dropped",
		Long: "Print staged policies, as manifests, that would allow what was dropped: what FILE has (- is stdin), as `netctl drops -o json` prints it, also of several\n" +
			"nodes, or else what this node drops from now on. Policies pick endpoints by a label, and name the other end by a tag of its profiles, by a label, by a\n" +
			"network set, or by its address. A policy stands where the packet was denied, and leaves to the others what it does not allow. Whatever no policy can\n" +
			"allow, or would still be denied, is a warning. Nothing is written: read it, then `netctl apply -f` it, look, and `netctl policy promote`.",
		Example: "  netctl policy suggest --for 1m > suggested.yaml\n  netctl drops -f -o json | tee drops.json; netctl policy suggest drops.json --label role,zone",
		Args:    cobra.MaximumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().DurationVar(&period, "for", defaultDropsFor, "`time` to wait for packets, without FILE")
	cmd.Flags().StringSliceVar(&labels, "label", nil, "`key` of the labels to pick endpoints by; may be repeated (default: those that profiles give, role, app and the like, or the rarest)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		s, err := a.settings()
		if err != nil {
			return err
		}
		var drops []drop
		if len(args) > 0 {
			drops, err = a.readDrops(ctx, args[0])
		} else {
			drops, err = a.watchDrops(ctx, s, period)
		}
		if err != nil {
			return err
		}
		view, err := a.view(ctx, explainKinds()...)
		if err != nil {
			return err
		}
		out := suggester{settings: s, view: view, labels: labels, warn: a.warn, found: map[string]*suggestion{}}
		list, err := out.suggest(ctx, drops)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			a.warn("nothing to allow among %s", plural(len(drops), "record"))
			return nil
		}
		return a.show(formatYAML, list, nil)
	}
	return cmd
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// readDrops reads what `netctl drops -o json` printed, of either form.
func (a *app) readDrops(ctx context.Context, file string) (all []drop, err error) {
	raw, err := readInput(ctx, a.in, file, maxManifest)
	if err != nil {
		return nil, err
	}
	in := json.NewDecoder(bytes.NewReader(raw))
	for {
		var value json.RawMessage
		if err = in.Decode(&value); errors.Is(err, io.EOF) {
			return all, nil
		}
		var some []drop
		if err == nil && value[0] != '[' {
			value = slices.Concat([]byte("["), value, []byte("]"))
		}
		if err == nil {
			err = json.Unmarshal(value, &some)
		}
		if err == nil && slices.ContainsFunc(some, func(d drop) bool {
			return !d.Source.Address.IsValid() || !d.Destination.Address.IsValid() || d.Protocol == ""
		}) {
			err = errors.New("a record lacks addresses or protocol")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: is not what `netctl drops -o json` prints: %w: %w", inputName(file), err, datastore.ErrInvalid)
		}
		all = append(all, some...)
	}
}
