package agent

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"netctl/datastore"
)

// keeper takes changes back that nobody confirmed in time. Every agent whose rights suffice
// does; the first is through.
type keeper struct {
	node  string
	store datastore.Store // records what it changes
	spawn func(func(context.Context) error)
	log   *slog.Logger
	kept  map[string]kept // by key
}

// kept is an Unconfirmed that is waited for, as of a revision.
type kept struct {
	revision int64
	stop     func()
}

const (
	keeperRetry = time.Second
	keeperTime  = 10 * time.Second // of the datastore
)

// Run keeps until ctx ends.
func (k *keeper) Run(ctx context.Context) error {
	k.kept = map[string]kept{}
	return besides{store: k.store, prefix: datastore.ConfirmsPrefix, log: k.log, hear: k.hear, listed: func(there map[string]bool) {
		for key := range k.kept {
			if !there[key] {
				k.drop(key)
			}
		}
	}}.run(ctx)
}

func (k *keeper) drop(key string) {
	if one, ok := k.kept[key]; ok {
		one.stop()
		delete(k.kept, key)
	}
}

// hear takes an Unconfirmed that came, is larger now, or was confirmed.
func (k *keeper) hear(ctx context.Context, e datastore.Entry) {
	if one, ok := k.kept[e.Key]; ok && one.revision == e.Revision && e.Value != nil {
		return // listed again
	}
	k.drop(e.Key)
	if e.Value == nil {
		return
	}
	u, err := datastore.DecodeUnconfirmed(e)
	if err != nil {
		k.log.Warn("entry of the datastore not used", "key", e.Key, "error", err)
		return
	}
	if len(u.Changes)+len(u.Keepers) == 0 {
		k.claim(ctx, e, u)
	}
	wait := min(max(time.Duration(u.Seconds)*time.Second, time.Second), datastore.ConfirmMost)
	inner, stop := context.WithCancel(ctx)
	k.kept[e.Key] = kept{e.Revision, stop}
	k.spawn(func(context.Context) error {
		for pause(inner, wait) {
			if k.takeBack(inner, e, u) {
				break
			}
			wait = keeperRetry + rand.N(keeperRetry)
		}
		return nil
	})
}

// claim says that this agent may take the change back, if it may: whoever wants to make one
// waits for that. One does, so that the record stays as whoever waits has read it.
func (k *keeper) claim(ctx context.Context, e datastore.Entry, u datastore.Unconfirmed) {
	ctx, cancel := context.WithTimeout(ctx, keeperTime)
	defer cancel()
	u.Keepers = append(u.Keepers, k.node)
	op, err := datastore.RecordOp(e.Key, u)
	if err == nil {
		_, err = k.store.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: e.Key, Revision: e.Revision}}, Then: []datastore.Op{op}})
	}
	if err != nil {
		k.log.Debug("not the keeper of a change", "key", e.Key, "error", err) // another one is
	}
}

// takeBack undoes what nobody else changed since; true: nothing is left to do.
func (k *keeper) takeBack(ctx context.Context, e datastore.Entry, u datastore.Unconfirmed) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), keeperTime)
	defer cancel()
	snap, err := k.store.List(ctx, append(datastore.Prefixes(datastore.Kinds()...), e.Key)...)
	if err != nil {
		return false
	}
	i := slices.IndexFunc(snap.Entries, func(o datastore.Entry) bool { return o.Key == e.Key })
	if i < 0 || snap.Entries[i].Revision != e.Revision {
		return true // confirmed, taken back, or larger
	}
	snap.Entries = slices.Delete(snap.Entries, i, i+1)
	view := datastore.NewView()
	if _, err := view.Replace(snap); err != nil {
		k.log.Debug("entries of the datastore not used", "error", err)
	}
	t, left, err := u.Undo(view, e.Revision)
	if err == nil {
		_, err = k.store.Commit(ctx, t)
	}
	switch {
	case errors.Is(err, datastore.ErrDenied):
		return true // another one's rights suffice
	case errors.Is(err, datastore.ErrConflict):
		return false // somebody was faster, which the next look tells
	case err != nil:
		k.log.Warn("change not taken back yet that nobody confirmed", "id", u.ID, "command", u.Command, "error", err)
		return false
	}
	if len(u.Changes) > 0 {
		k.log.Warn("change taken back that nobody confirmed", "id", u.ID, "user", u.User+"@"+u.Host, "command", u.Command, "objects", len(u.Changes)-len(left), "left", strings.Join(left, "; "), datastore.EventProblem.Mark())
	}
	return true
}
