package datastore_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"netctl/datastore"
	"netctl/datastore/memory"
)

func TestTyped(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: "p"}}
	if err := datastore.Create(ctx, s, p); err != nil || p.Metadata.Revision == 0 {
		t.Fatalf("revision %d, %v", p.Metadata.Revision, err)
	}
	if err := datastore.Create(ctx, s, &datastore.Profile{Metadata: datastore.Metadata{Name: "p"}}); !errors.Is(err, datastore.ErrExists) {
		t.Errorf("create again: %v", err)
	}
	got, err := datastore.Get[*datastore.Profile](ctx, s, "p")
	if err != nil || got.Metadata.Revision != p.Metadata.Revision || got.Spec.Inbound[0].String() != "allow from tag p" {
		t.Fatalf("got %+v, %v", got, err)
	}
	got.Spec.Tags = append(got.Spec.Tags, "x")
	if err := datastore.Update(ctx, s, got); err != nil || got.Metadata.Revision == p.Metadata.Revision {
		t.Fatalf("revision %d, %v", got.Metadata.Revision, err)
	}
	if err := datastore.Update(ctx, s, p); !errors.Is(err, datastore.ErrConflict) {
		t.Errorf("update of an old revision: %v", err)
	}
	if err := datastore.Delete(ctx, s, p); !errors.Is(err, datastore.ErrConflict) {
		t.Errorf("delete of an old revision: %v", err)
	}
	if err := datastore.Update(ctx, s, &datastore.Profile{Metadata: datastore.Metadata{Name: "q"}}); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("update without a revision: %v", err)
	}
	if err := datastore.Delete(ctx, s, &datastore.Profile{Metadata: datastore.Metadata{Name: "p"}}); err != nil {
		t.Errorf("delete: %v", err)
	}
	for _, name := range []string{"p", "show"} {
		if _, err := datastore.Get[*datastore.Profile](ctx, s, name); !errors.Is(err, datastore.ErrNotFound) && !errors.Is(err, datastore.ErrInvalid) {
			t.Errorf("get %s: %v", name, err)
		}
	}
	if err := datastore.Delete(ctx, s, &datastore.Profile{Metadata: datastore.Metadata{Name: "p"}}); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("delete again: %v", err)
	}
}

func TestListReportsWhatDoesNotDecode(t *testing.T) {
	ctx := context.Background()
	s := memory.New()
	for _, name := range []string{"b", "a"} {
		if err := datastore.Create(ctx, s, &datastore.Network{Metadata: datastore.Metadata{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	bad := datastore.Op{Key: datastore.KindPrefix(datastore.KindNetwork) + "x", Value: []byte("{}")}
	if _, err := s.Commit(ctx, datastore.Txn{Then: []datastore.Op{bad}}); err != nil {
		t.Fatal(err)
	}
	list, err := datastore.List[*datastore.Network](ctx, s)
	if len(list) != 2 || list[0].Metadata.Name != "a" || !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("got %v, %v", list, err)
	}
}

// raced changes the object behind Modify's back the first few times.
type raced struct {
	datastore.Store
	left int
}

func (r *raced) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	if r.left > 0 {
		r.left--
		if _, err := datastore.Modify(ctx, r.Store, "p", func(p *datastore.Profile) error {
			p.Spec.Tags = append(p.Spec.Tags, "raced"+string(rune('a'+r.left)))
			return nil
		}); err != nil {
			return 0, err
		}
	}
	return r.Store.Commit(ctx, t)
}

func TestModifyStartsOverAfterAConflict(t *testing.T) {
	ctx := context.Background()
	s := &raced{Store: memory.New()}
	if err := datastore.Create(ctx, s, &datastore.Profile{Metadata: datastore.Metadata{Name: "p"}}); err != nil {
		t.Fatal(err)
	}
	s.left = 3
	p, err := datastore.Modify(ctx, s, "p", func(p *datastore.Profile) error {
		p.Spec.Tags = append(p.Spec.Tags, "mine")
		return nil
	})
	if want := []string{"p", "racedc", "racedb", "raceda", "mine"}; err != nil || !slices.Equal(p.Spec.Tags, want) {
		t.Errorf("got %v, %v; want %v", p.Spec.Tags, err, want)
	}
	stop := errors.New("stop")
	if _, err := datastore.Modify(ctx, s, "p", func(*datastore.Profile) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v, want the change's own error", err)
	}
}
