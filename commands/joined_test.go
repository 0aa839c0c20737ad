package commands

import (
	"context"
	"slices"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// raced has something happen before the first commit.
type raced struct {
	datastore.Store
	first func()
}

func (r *raced) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if first := r.first; first != nil {
		r.first = nil
		first()
	}
	return r.Store.Commit(ctx, t)
}

func keep(t *testing.T, s datastore.Store, record any) {
	t.Helper()
	var at string
	var err error
	switch r := record.(type) {
	case datastore.JoinToken:
		at, err = datastore.TokenKey(r.ID)
	case datastore.JoinedNode:
		at, err = datastore.JoinedKey(r.Name)
	}
	if err != nil {
		t.Fatal(err)
	}
	op, err := datastore.RecordOp(at, record)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{op}}); err != nil {
		t.Fatal(err)
	}
}

func kept(t *testing.T, s datastore.Store, name string) (n datastore.JoinedNode) {
	t.Helper()
	at, err := datastore.JoinedKey(name)
	if err == nil {
		_, err = datastore.Record(t.Context(), s, at, &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestJoinedRaces: what is kept of a node changes while a person takes its rights away,
// and they are taken away all the same.
func TestJoinedRaces(t *testing.T) {
	since := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for name, do := range map[string]func(context.Context, datastore.Store) error{
		"demote": func(ctx context.Context, s datastore.Store) error { return demote(ctx, s, "n3") },
		"remove": func(ctx context.Context, s datastore.Store) error {
			_, err := forgetJoined(ctx, s, nil, "n3")
			return err
		},
	} {
		s := &raced{Store: memory.New()}
		keep(t, s, datastore.JoinedNode{Name: "n3", Key: "aa", Member: true})
		s.first = func() { keep(t, s.Store, datastore.JoinedNode{Name: "n3", Key: "aa", Member: true, Since: since}) }
		if err := do(t.Context(), s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := kept(t, s, "n3"); n.Member || n.Key != "aa" || !n.Since.Equal(since) || n.Removed.IsZero() == (name == "remove") {
			t.Errorf("%s: %+v", name, n)
		}
	}
	// Removed in that moment, it stays removed.
	s := &raced{Store: memory.New()}
	keep(t, s, datastore.JoinedNode{Name: "n3", Key: "aa", Member: true})
	s.first = func() { keep(t, s.Store, datastore.JoinedNode{Name: "n3", Key: "aa", Removed: since}) }
	if err := demote(t.Context(), s, "n3"); err != nil || !kept(t, s, "n3").Removed.Equal(since) {
		t.Errorf("%v, %+v", err, kept(t, s, "n3"))
	}
	if err := demote(t.Context(), s, "n4"); err != nil || kept(t, s, "n4").Name != "" {
		t.Errorf("one that did not join: %v", err)
	}
}

// TestRemovedNodesTokens: with a node go the tokens that it used, and no others.
func TestRemovedNodesTokens(t *testing.T) {
	s := memory.New()
	keep(t, s, datastore.JoinedNode{Name: "n2", Key: "aa"})
	for id, by := range map[string]string{"a1": "n2", "a2": "n3", "a3": "", "a4": "n2", "a5": "n22"} {
		keep(t, s, datastore.JoinToken{ID: id, UsedBy: by})
	}
	if had, err := forgetJoined(t.Context(), s, nil, "n2"); !had || err != nil {
		t.Errorf("%v, %v", had, err)
	}
	left, err := datastore.ListTokens(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, token := range left {
		ids = append(ids, token.ID)
	}
	if slices.Sort(ids); !slices.Equal(ids, []string{"a2", "a3", "a5"}) {
		t.Errorf("left are %v", ids)
	}
	if had, err := forgetJoined(t.Context(), s, nil, "n2"); had || err != nil {
		t.Errorf("again: %v, %v", had, err)
	}
}
