package commands

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

// confirming is a change that is to be confirmed; nil: it needs no confirmation.
type confirming struct {
	within   time.Duration
	record   datastore.Unconfirmed
	revision int64 // of the record; 0: there is none
}

// maxConfirmed is how many objects of one transaction can be taken back: the rest of what
// one takes is for what goes with them.
const maxConfirmed = datastore.MaxTxnOps - 6

// confirmable are the commands that change objects which can be taken back.
func confirmable() []string {
	return []string{
		"apply", "create", "replace", "delete", "undo",
		"profile rule add", "profile rule remove", "profile rule update", "profile tag add", "profile tag remove",
		"policy create", "policy remove", "policy rule add", "policy rule remove", "policy promote", "policy stage",
		"tier create", "tier remove", "networkset cidr add", "networkset cidr remove", "networkset domain add", "networkset domain remove",
	}
}

// addConfirms gives the flag to those of a tree that can be confirmed.
func addConfirms(a *app, cmd *cobra.Command) {
	var walk func(c *cobra.Command, words []string)
	walk = func(c *cobra.Command, words []string) {
		if slices.Contains(confirmable(), strings.Join(words, " ")) && c.RunE != nil {
			addConfirm(a, c)
		}
		for _, sub := range c.Commands() {
			below := words
			if sub.Annotations[nameHolder] == "" {
				below = append(slices.Clone(words), sub.Name())
			}
			walk(sub, below)
		}
	}
	walk(cmd, []string{cmd.Name()})
}

// addConfirm gives a command that changes objects the flag --confirm.
func addConfirm(a *app, cmd *cobra.Command) {
	var within time.Duration
	cmd.Flags().DurationVar(&within, "confirm", 0, "take it back after this `time`, unless netctl confirm follows")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f := cmd.Flags().Lookup("confirm")
		if !f.Changed {
			return run(cmd, args)
		}
		if within < datastore.ConfirmLeast || within > datastore.ConfirmMost {
			return usage("--confirm %s: want %s to %s", within, datastore.ConfirmLeast, datastore.ConfirmMost)
		}
		if dry := cmd.Flags().Lookup("dry-run"); dry != nil && dry.Changed {
			return usage("--confirm and --dry-run: a dry run changes nothing")
		}
		return a.runConfirming(cmd, args, within.Round(time.Second), run)
	}
}

func (a *app) runConfirming(cmd *cobra.Command, args []string, within time.Duration, run func(*cobra.Command, []string) error) error {
	a.confirming = &confirming{within: within}
	err := run(cmd, args)
	c := a.confirming
	a.confirming = nil
	if c.revision == 0 {
		return err
	}
	if len(c.record.Changes) == 0 {
		failed := a.forgetUnconfirmed(cmd.Context(), c)
		if !errors.Is(failed, datastore.ErrConflict) && !errors.Is(failed, datastore.ErrNotFound) {
			return errors.Join(err, failed)
		}
		// It holds a change whose answer was lost.
	}
	text := fmt.Sprintf("Taken back in %s, unless this follows: netctl confirm %s\n", within, c.record.ID)
	return errors.Join(err, a.print(text))
}

// forgetUnconfirmed removes a record of nothing; datastore.ErrConflict: it has something by
// now, or is gone.
func (a *app) forgetUnconfirmed(ctx context.Context, c *confirming) error {
	s, err := a.store(ctx)
	if err == nil {
		key := datastore.ConfirmsPrefix + c.record.ID
		_, err = s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: key, Revision: c.revision}}, Then: []datastore.Op{{Key: key}}})
	}
	return err
}

// confirmedStore is the datastore where what is changed is to be confirmed.
type confirmedStore struct {
	clusterStore
	*confirming
	who datastore.HistoryRecord
}

// Commit implements datastore.Store: with the change it writes how to take it back.
func (s confirmedStore) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if len(t.Then) > maxConfirmed {
		return 0, fmt.Errorf("--confirm: more than %d objects at a time: %w", maxConfirmed, datastore.ErrInvalid)
	}
	changes, err := s.changes(ctx, t)
	if err != nil || len(changes) == 0 {
		if err != nil {
			return 0, err
		}
		return s.clusterStore.Commit(ctx, t)
	}
	if err := s.findKeeper(ctx); err != nil {
		return 0, err
	}
	next := s.record
	next.Changes = slices.Clone(s.record.Changes)
	for i := range next.Changes { // of earlier transactions
		if next.Changes[i].Revision == 0 {
			next.Changes[i].Revision = s.revision
		}
	}
	next.Changes = append(next.Changes, changes...)
	op, err := datastore.RecordOp(datastore.ConfirmsPrefix+next.ID, next)
	if err != nil {
		return 0, err
	}
	if len(op.Value) > datastore.ConfirmBytes {
		return 0, fmt.Errorf("--confirm: what was before is more than %d KiB: change less at a time: %w", datastore.ConfirmBytes>>10, datastore.ErrInvalid)
	}
	t.If = append(slices.Clone(t.If), datastore.Condition{Key: op.Key, Revision: s.revision})
	t.Then = append(slices.Clone(t.Then), op)
	revision, err := s.clusterStore.Commit(ctx, t)
	if err == nil {
		s.record, s.revision = next, revision
	}
	return revision, err
}

// changes is what a transaction changes, as it was.
func (s confirmedStore) changes(ctx context.Context, t datastore.Txn) (list []datastore.UnconfirmedChange, err error) {
	for _, op := range t.Then {
		kind, name, err := datastore.ParseKey(op.Key)
		if err != nil {
			continue // beside the model
		}
		if !datastore.CanConfirm(kind) {
			return nil, fmt.Errorf("--confirm: a change of %s cannot be taken back by itself: leave it out, or --confirm: %w", labelOf(kind, name), datastore.ErrInvalid)
		}
		c := datastore.UnconfirmedChange{Key: op.Key, Gone: op.Value == nil}
		switch e, err := s.Get(ctx, op.Key); {
		case err == nil:
			c.Before = e.Value
		case !errors.Is(err, datastore.ErrNotFound):
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// keeperWait is how long an agent has to say that it can take a change back.
const keeperWait = 3 * time.Second

// findKeeper makes the record of nothing yet, and waits for an agent that would take the
// change back.
func (s confirmedStore) findKeeper(ctx context.Context) error {
	if s.revision != 0 {
		return nil
	}
	id := make([]byte, 4)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	s.record = datastore.Unconfirmed{ID: hex.EncodeToString(id), Seconds: int(s.within / time.Second), User: s.who.User, Host: s.who.Host, Command: s.who.Command}
	key := datastore.ConfirmsPrefix + s.record.ID
	op, err := datastore.RecordOp(key, s.record)
	if err == nil {
		_, err = s.clusterStore.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: key}}, Then: []datastore.Op{op}})
	}
	if err != nil {
		return err
	}
	for until := time.Now().Add(keeperWait); ; {
		e, err := s.Get(ctx, key)
		if err != nil {
			return err
		}
		u, err := datastore.DecodeUnconfirmed(e)
		if err != nil {
			return err
		}
		if len(u.Keepers) > 0 {
			s.record, s.revision = u, e.Revision
			return nil
		}
		if time.Now().After(until) {
			_, err := s.clusterStore.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: key}}})
			return errors.Join(errors.New("--confirm: no agent runs that could take it back, with the rights to write what is changed: nothing was changed"), err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(answerLook):
		}
	}
}

func newConfirmCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "confirm [ID]",
		Short: "Keep a change that was made with --confirm",
		Long: "Keep a change that was made with --confirm, which would be taken back else. Without ID it is the one that waits; if there are several, they are\n" +
			"listed. The agents take a change back, also when the command that made it, or its connection, is gone. What somebody else changed meanwhile stays.",
		Example: "  netctl apply -f policies.yaml --confirm 60s && netctl confirm\n  netctl confirm 3fb2c07a",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.confirm(cmd.Context(), args) },
	}
}

func (a *app) confirm(ctx context.Context, args []string) error {
	s, err := a.store(ctx)
	if err != nil {
		return err
	}
	defer a.waiting("the datastore")()
	snap, err := s.List(ctx, datastore.ConfirmsPrefix)
	if err != nil {
		return err
	}
	var waiting []datastore.Unconfirmed
	at := map[string]int64{}
	for _, e := range snap.Entries {
		u, err := datastore.DecodeUnconfirmed(e)
		if err != nil || len(args) > 0 && args[0] != u.ID {
			continue
		}
		waiting, at[u.ID] = append(waiting, u), e.Revision
	}
	switch {
	case len(waiting) == 0 && len(args) > 0:
		return fmt.Errorf("no change %s waits to be confirmed: it was, or it is taken back; netctl history says so: %w", args[0], datastore.ErrNotFound)
	case len(waiting) == 0:
		return errors.New("no change waits to be confirmed; netctl history shows what was taken back")
	case len(waiting) > 1:
		text := ""
		for _, u := range waiting {
			text += fmt.Sprintf("%s  %s@%s  %s\n", u.ID, u.User, u.Host, u.Command)
		}
		return errors.Join(a.print(text), usage("several changes wait to be confirmed: name one"))
	}
	u := waiting[0]
	key := datastore.ConfirmsPrefix + u.ID
	if _, err := s.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: key, Revision: at[u.ID]}}, Then: []datastore.Op{{Key: key}}}); err != nil {
		return fmt.Errorf("confirm %s: %w", u.ID, err)
	}
	return a.print(fmt.Sprintf("confirmed: %s\n", u.Command))
}
