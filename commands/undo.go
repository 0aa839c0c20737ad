package commands

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newUndoCommand(a *app) *cobra.Command {
	var force, dryRun bool
	cmd := &cobra.Command{
		Use:   "undo REVISION",
		Short: "Take one change back that netctl history shows",
		Long: "Write the objects of one change again as they were before it, all of them or none; those that it created are deleted. It is checked as any\n" +
			"write is, and is in the history itself, so that it can be undone as well. An object that was changed since is not touched, and nothing else\n" +
			"is either, but with --force, which undoes those changes too.",
		Example: "  netctl history profile web\n  netctl undo 4711\n  netctl undo 4711 --dry-run",
		Args:    cobra.ExactArgs(1),
	}
	cmd.Flags().BoolVar(&force, "force", false, "also what was changed since")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check, and say what would happen")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		revision, err := strconv.ParseInt(args[0], 10, 64)
		if err != nil || revision <= 0 {
			return usage("%q is no revision: netctl history shows them", args[0])
		}
		if err := a.undo(cmd.Context(), revision, force, dryRun); err != nil {
			return fmt.Errorf("undo %d: %w", revision, err)
		}
		return nil
	}
	return cmd
}

func (a *app) undo(ctx context.Context, revision int64, force, dryRun bool) error {
	store, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	list, err := datastore.History(ctx, store)
	if err != nil && list == nil {
		return err
	}
	i := slices.IndexFunc(list, func(r datastore.HistoryRecord) bool { return r.Revision == revision })
	if i < 0 {
		return fmt.Errorf("the history has no change of that revision: %w", datastore.ErrNotFound)
	}
	for races := 0; ; races++ {
		view, err := a.view(ctx, datastore.Kinds()...)
		if err != nil {
			return err
		}
		before := judgedObjects(view)
		plans, err := planUndo(view, list, list[i], force)
		if err != nil {
			return err
		}
		if n, _ := firstTxn(view, plans); n < len(plans) {
			return fmt.Errorf("it is too large for one transaction: %w", datastore.ErrInvalid)
		}
		if dryRun {
			return a.tellPlans(ctx, store, before, view, plans)
		}
		err = commitPlans(ctx, store, view, plans, func(p planned) { _ = a.tell(p, "") })
		if !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) || races == maxRaces {
			return err
		}
	}
}

// planUndo decides what becomes of each object of a change. It changes view, as planWrite
// does.
func planUndo(view *datastore.View, list []datastore.HistoryRecord, r datastore.HistoryRecord, force bool) ([]planned, error) {
	var back []manifest
	var gone []datastore.Object
	for _, c := range r.Changes {
		if c.Omitted {
			return nil, fmt.Errorf("%s: what it was is not kept, for its size or because nobody could read it: %w", keyLabel(c.Key), datastore.ErrInvalid)
		}
		kind, name, err := datastore.ParseKey(c.Key)
		if err != nil {
			return nil, err
		}
		if err := view.Unreadable(kind, name); err != nil {
			return nil, fmt.Errorf("%s: %w", labelOf(kind, name), err)
		}
		now := view.Object(kind, name)
		if !force && !isAs(now, c) {
			return nil, fmt.Errorf("%s was %s; --force undoes that too: %w", labelOf(kind, name), changedSince(list, r.Revision, c.Key), datastore.ErrConflict)
		}
		if c.Before != nil {
			o, err := datastore.Decode(c.Key, c.Before)
			if err != nil {
				return nil, err
			}
			if n, ok := o.(*datastore.Node); ok && now != nil { // its agent says where it is
				n.Spec.Addresses = now.(*datastore.Node).Spec.Addresses
			}
			back = append(back, manifest{object: o})
		} else if now != nil {
			gone = append(gone, now)
		}
	}
	slices.SortStableFunc(back, func(x, y manifest) int { return kindRank(x.object) - kindRank(y.object) })
	slices.SortStableFunc(gone, func(x, y datastore.Object) int { return kindRank(y) - kindRank(x) })
	plans, err := planWrite(view, back, modeApply)
	if err != nil {
		return nil, err
	}
	for _, o := range gone {
		if err := view.CheckDelete(o); err != nil {
			return nil, fmt.Errorf("%s: %w", label(o), err)
		}
		p := planned{manifest: manifest{object: o}, verb: "deleted"}
		if p.cond, p.op, err = datastore.OpDelete(o); err != nil {
			return nil, err
		}
		if _, err := view.Apply(datastore.Entry{Key: p.op.Key}); err != nil {
			return nil, err
		}
		plans = append(plans, p)
	}
	return plans, nil
}

// isAs says whether an object is what a change made of it, but for what a node's agent
// writes.
func isAs(now datastore.Object, c datastore.HistoryChange) bool {
	if now == nil || c.Deleted() {
		return now == nil && c.Deleted()
	}
	if c.Sum != "" {
		value, err := datastore.Encode(now)
		return err == nil && datastore.HistorySum(value) == c.Sum
	}
	made, err := datastore.Decode(c.Key, c.After)
	if err != nil {
		return false
	}
	if n, ok := made.(*datastore.Node); ok {
		n.Spec.Addresses = now.(*datastore.Node).Spec.Addresses
	}
	keepStatus(made, now)
	return sameObject(now, made)
}

// changedSince says how an object was changed after a revision.
func changedSince(list []datastore.HistoryRecord, revision int64, key string) string {
	text := "changed since by nobody that is on record"
	for _, r := range list {
		if r.Revision > revision && slices.ContainsFunc(r.Changes, func(c datastore.HistoryChange) bool { return c.Key == key }) {
			text = fmt.Sprintf("changed since, last at revision %d by %s@%s", r.Revision, r.User, r.Host)
		}
	}
	return text
}
