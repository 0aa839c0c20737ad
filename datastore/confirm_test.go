package datastore

import (
	"fmt"
	"strings"
	"testing"
)

// TestUndoOfUnconfirmed: what nobody changed since goes back to what it was, in an order
// that the checks bear, and what somebody did, or uses, stays.
func TestUndoOfUnconfirmed(t *testing.T) {
	const made, later = 10, 12
	entry := func(revision int64, o Object) Entry {
		t.Helper()
		o.SetDefaults()
		_, op, err := OpPut(o)
		if err != nil {
			t.Fatal(err)
		}
		return Entry{Key: op.Key, Value: op.Value, Revision: revision}
	}
	profile := func(name string, tags ...string) *Profile {
		return &Profile{Metadata: Metadata{Name: name}, Spec: ProfileSpec{Tags: tags}}
	}
	network := func(name, profile string) *Network {
		return &Network{Metadata: Metadata{Name: name}, Spec: NetworkSpec{Profile: profile}}
	}
	was := func(o Object) UnconfirmedChange {
		e := entry(1, o)
		return UnconfirmedChange{Key: e.Key, Before: e.Value}
	}
	fresh := func(o Object) UnconfirmedChange { return UnconfirmedChange{Key: entry(1, o).Key} }
	earlier := was(profile("early", "old"))
	earlier.Revision = 8
	gone := was(profile("gone", "old"))
	gone.Gone = true
	again := was(profile("again", "old"))
	again.Gone = true
	u := Unconfirmed{ID: "x", Changes: []UnconfirmedChange{
		was(profile("mine", "old")), was(profile("theirs", "old")), was(profile("deleted", "old")), fresh(profile("new")), fresh(network("net", "new")), fresh(profile("used")), earlier, gone, again,
	}}
	view := NewView()
	for _, e := range []Entry{
		entry(made, profile("mine", "new")), entry(later, profile("theirs", "new")), entry(made, profile("new")), entry(made, network("net", "new")), entry(made, profile("used")),
		entry(later, network("user", "used")), entry(8, profile("early", "new")), entry(later, profile("again", "x")),
	} {
		if _, err := view.Apply(e); err != nil {
			t.Fatal(err)
		}
	}
	txn, left, err := u.Undo(view, made)
	if err != nil {
		t.Fatal(err)
	}
	var did []string
	for i, op := range txn.Then {
		did = append(did, fmt.Sprint(strings.TrimPrefix(op.Key, Prefix), " ", op.Value != nil, " ", txn.If[i].Revision))
	}
	if got, want := strings.Join(did, ", "), ConfirmsPrefix+"x false 10, profiles/mine true 10, profiles/early true 8, profiles/gone true 0, networks/net false 10, profiles/new false 10"; got != want {
		t.Errorf("does %s\nwant %s", got, want)
	}
	said := strings.Join(left, ", ")
	for _, w := range []string{"profile theirs: was changed since", "profile deleted: was deleted since", "profile used: ", "profile again: was made again since"} {
		if !strings.Contains(said, w) || len(left) != 4 {
			t.Errorf("left %d, no %q in %s", len(left), w, said)
		}
	}
}
