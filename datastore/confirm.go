package datastore

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ConfirmsPrefix is the root of the Unconfirmed changes. Agents follow it.
const ConfirmsPrefix = "/netctl/confirms/v1/"

// Bounds of how long a change may wait to be confirmed, and of how many bytes it is with
// what was before.
const (
	ConfirmLeast = 5 * time.Second
	ConfirmMost  = 24 * time.Hour
	ConfirmBytes = 512 << 10
)

// Unconfirmed is a change that is taken back unless somebody confirms it in time, by
// removing this. It is written by the transaction that makes the change, so that it has the
// revision of what was changed.
type Unconfirmed struct {
	ID      string `json:"id"`
	Seconds int    `json:"seconds"` // since an agent has seen it as it is
	// Who made it, and by which command.
	User    string `json:"user"`
	Host    string `json:"host"`
	Command string `json:"command"`
	// Keepers are nodes whose agents may take it back.
	Keepers []string            `json:"keepers,omitempty"`
	Changes []UnconfirmedChange `json:"changes,omitempty"`
}

// UnconfirmedChange is an object as it was; without Before it was not there. Revision is
// that of its change, 0: that of the Unconfirmed.
type UnconfirmedChange struct {
	Key      string          `json:"key"`
	Before   json.RawMessage `json:"before,omitempty"`
	Revision int64           `json:"revision,omitempty"`
	// Gone says that the change deleted it.
	Gone bool `json:"gone,omitempty"`
}

// CanConfirm says whether changes of a kind can be taken back so: not of what holds
// addresses, or what agents write too.
func CanConfirm(k Kind) bool { return HasHistory(k) && k != KindNode && k != KindPool }

// DecodeUnconfirmed reads an Unconfirmed.
func DecodeUnconfirmed(e Entry) (u Unconfirmed, err error) {
	if err = decodeRecord(e, &u); err == nil && e.Key != ConfirmsPrefix+u.ID {
		err = fmt.Errorf("%s: is of %q: %w", e.Key, u.ID, ErrInvalid)
	}
	lines(&u.User, &u.Host, &u.Command)
	return u, err
}

// Undo is the transaction that takes it back: the objects that nobody changed since, at
// the revision that the Unconfirmed has now. left says of the others why not. It changes
// view.
func (u Unconfirmed) Undo(view *View, revision int64) (t Txn, left []string, err error) {
	key := ConfirmsPrefix + u.ID
	t = Txn{If: []Condition{{Key: key, Revision: revision}}, Then: []Op{{Key: key}}}
	for _, c := range u.ordered() {
		kind, name, err := ParseKey(c.Key)
		if err != nil || !CanConfirm(kind) {
			return t, nil, fmt.Errorf("%s: %w", c.Key, errors.Join(err, ErrInvalid))
		}
		cond, op, err := c.undo(view, view.Object(kind, name), cmp.Or(c.Revision, revision))
		if err != nil {
			left = append(left, fmt.Sprintf("%s %s: %v", strings.ToLower(string(kind)), name, err))
			continue
		}
		if _, err := view.Apply(Entry{Key: op.Key, Value: op.Value, Revision: max(cond.Revision, 1)}); err != nil {
			return t, nil, err
		}
		t.If, t.Then = append(t.If, cond), append(t.Then, op)
	}
	return t, left, nil
}

// ordered are the changes in the order of taking them back: what is put back comes before
// what refers to it, and what goes behind.
func (u Unconfirmed) ordered() []UnconfirmedChange {
	rank := func(c UnconfirmedChange) int {
		kind, _, _ := ParseKey(c.Key)
		if i := slices.Index(Kinds(), kind); c.Before != nil {
			return i
		} else {
			return 2*len(Kinds()) - i
		}
	}
	return slices.SortedStableFunc(slices.Values(u.Changes), func(a, b UnconfirmedChange) int { return rank(a) - rank(b) })
}

// undo takes one change back, of what the object is now (nil: nothing) and was made at a
// revision.
func (c UnconfirmedChange) undo(view *View, now Object, at int64) (cond Condition, op Op, err error) {
	switch {
	case c.Gone && now != nil:
		return cond, op, fmt.Errorf("was made again since: %w", ErrConflict)
	case !c.Gone && now == nil:
		return cond, op, fmt.Errorf("was deleted since: %w", ErrConflict)
	case now != nil && now.Meta().Revision != at:
		return cond, op, fmt.Errorf("was changed since: %w", ErrConflict)
	case c.Before == nil:
		if err = view.CheckDelete(now); err == nil {
			cond, op, err = OpDelete(now)
		}
		return cond, op, err
	}
	o, err := Decode(c.Key, c.Before)
	if err != nil {
		return cond, op, err
	}
	o.Meta().Revision = 0
	if now != nil {
		o.Meta().Revision = now.Meta().Revision
	}
	if err = view.CheckPut(o); err == nil {
		cond, op, err = OpPut(o)
	}
	return cond, op, err
}
