package datastore_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

const patience = 20 * time.Second

// model is a follower that keeps what it was told and says what happened.
type model struct {
	entries   map[string]string
	calls     chan string
	doubt     func(datastore.Batch) bool
	applyFail error
}

func newModel() *model {
	return &model{entries: map[string]string{}, calls: make(chan string, 1000)}
}

func (m *model) Replace(s datastore.Snapshot) error {
	clear(m.entries)
	for _, e := range s.Entries {
		m.entries[e.Key] = string(e.Value)
	}
	m.calls <- "replace " + m.text()
	return nil
}

func (m *model) Apply(b datastore.Batch) error {
	for _, e := range b.Events {
		if e.Value == nil {
			delete(m.entries, e.Key)
		} else {
			m.entries[e.Key] = string(e.Value)
		}
	}
	m.calls <- "apply " + m.text()
	return m.applyFail
}

func (m *model) Lost(err error) {
	what := "lost: " + err.Error()
	switch {
	case errors.Is(err, datastore.ErrDetached):
		what = "detached: " + err.Error()
	case !errors.Is(err, datastore.ErrUnavailable):
		what = "lost for no reason: " + err.Error()
	}
	m.calls <- what
}

func (m *model) Suspicious(b datastore.Batch) bool { return m.doubt != nil && m.doubt(b) }

func (m *model) text() string {
	var out []string
	for _, k := range []string{"a", "b", "c"} {
		if v, ok := m.entries[datastore.Prefix+k]; ok {
			out = append(out, k+"="+v)
		}
	}
	return strings.Join(out, " ")
}

// want waits for the next call and compares how it begins.
func (m *model) want(t *testing.T, text string) string {
	t.Helper()
	select {
	case got := <-m.calls:
		if !strings.HasPrefix(got, text) {
			t.Fatalf("got %q, want %q", got, text)
		}
		return got
	case <-time.After(patience):
		t.Fatalf("nothing came, want %q", text)
		return ""
	}
}

func (m *model) silent(t *testing.T) {
	t.Helper()
	select {
	case got := <-m.calls:
		t.Fatalf("unexpected %q", got)
	default:
	}
}

// remember is a guard that judges by an identity in memory.
type remember struct {
	have *datastore.Identity
}

func (r *remember) Check(ctx context.Context, s datastore.Store, snap datastore.Snapshot) error {
	c, _, err := snap.Cluster()
	if err != nil {
		return err
	}
	id, err := s.ID(ctx)
	if err != nil {
		return err
	}
	if r.have != nil {
		if err := r.have.Judge(c, id, snap.Revision); err != nil {
			return err
		}
	}
	r.have = &datastore.Identity{UUID: c.UUID, Generation: c.Generation, Store: id, Revision: snap.Revision}
	return nil
}

func (r *remember) Progress(revision int64) { r.have.Revision = revision }

func write(t *testing.T, s datastore.Store, pairs ...string) int64 {
	t.Helper()
	var txn datastore.Txn
	for _, p := range pairs {
		key, value, keep := strings.Cut(p, "=")
		op := datastore.Op{Key: datastore.Prefix + key}
		if keep {
			op.Value = []byte(value)
		}
		txn.Then = append(txn.Then, op)
	}
	rev, err := s.Commit(context.Background(), txn)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func writeCluster(t *testing.T, s datastore.Store, uuid string, generation int64) int64 {
	t.Helper()
	value, err := datastore.Cluster{UUID: uuid, Generation: generation}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return write(t, s, "cluster="+string(value))
}

// follow runs Follow until the test ends, and returns how to end it.
func follow(t *testing.T, s datastore.Store, g datastore.Guard, f datastore.Follower) (end func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- datastore.Follow(ctx, s, datastore.Prefix, g, f) }()
	end = func() error {
		cancel()
		err := <-ended
		ended <- err
		return err
	}
	t.Cleanup(func() { end() })
	return end
}

func TestFollow(t *testing.T) {
	s, m := memory.New(), newModel()
	writeCluster(t, s, "u", 1)
	write(t, s, "a=1")
	end := follow(t, s, &remember{}, m)
	m.want(t, "replace a=1")
	write(t, s, "a=2", "b=1")
	m.want(t, "apply a=2 b=1")
	write(t, s, "a")
	m.want(t, "apply b=1")
	if err := end(); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	m.silent(t)
}

func TestFollowResumes(t *testing.T) {
	s, m := memory.New(), newModel()
	writeCluster(t, s, "u", 1)
	write(t, s, "a=1")
	follow(t, s, &remember{}, m)
	m.want(t, "replace a=1")
	// Away for a moment: nothing is said, nothing is read twice.
	s.Break()
	write(t, s, "a=2")
	m.want(t, "apply a=2")
	// Away for longer: told once, then everything.
	s.Away("cable cut")
	m.want(t, "lost: cable cut")
	s.Away("power cut")
	m.want(t, "lost: power cut")
	s.Back()
	m.want(t, "replace a=2")
	m.silent(t)
}

func TestFollowStartsWhileAway(t *testing.T) {
	s, m := memory.New(), newModel()
	writeCluster(t, s, "u", 1)
	s.Away("not up yet")
	follow(t, s, &remember{}, m)
	m.want(t, "lost: not up yet")
	s.Back()
	m.want(t, "replace")
}

// compacting loses the history whenever a watch starts.
type compacting struct {
	*memory.Store
	watches int
}

func (s *compacting) Watch(ctx context.Context, prefix string, after int64, fn func(datastore.Batch) error) error {
	if s.watches++; s.watches == 2 {
		for i := range 5 {
			s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "b", Value: fmt.Append(nil, i)}}})
		}
		s.Compact(after + 3)
	}
	return s.Store.Watch(ctx, prefix, after, fn)
}

func TestFollowSurvivesCompaction(t *testing.T) {
	s, m := &compacting{Store: memory.New()}, newModel()
	writeCluster(t, s, "u", 1)
	write(t, s, "a=1")
	follow(t, s, &remember{}, m)
	m.want(t, "replace a=1")
	s.Break()
	m.want(t, "replace a=1 b=4")
	write(t, s, "a=2")
	m.want(t, "apply a=2 b=4")
}

func TestFollowDetaches(t *testing.T) {
	for _, c := range []struct {
		name    string
		restore func(t *testing.T, s *memory.Store, backup datastore.Snapshot)
		want    string
	}{
		{"emptied", func(_ *testing.T, s *memory.Store, _ datastore.Snapshot) {
			s.Restore(datastore.Snapshot{Revision: 1})
		}, "no cluster identity"},
		{"restored", func(_ *testing.T, s *memory.Store, b datastore.Snapshot) { s.Restore(b) }, "another etcd"},
		{"restored with a bumped revision", func(_ *testing.T, s *memory.Store, b datastore.Snapshot) {
			b.Revision += 1 << 30
			s.Restore(b)
		}, "another etcd"},
		{"another cluster's", func(t *testing.T, s *memory.Store, _ datastore.Snapshot) {
			writeCluster(t, s, "other", 1)
		}, "holds cluster other"},
		{"key deleted", func(t *testing.T, s *memory.Store, _ datastore.Snapshot) {
			write(t, s, "a", "b", "cluster")
		}, "no cluster identity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, m := memory.New(), newModel()
			writeCluster(t, s, "u", 1)
			write(t, s, "a=1")
			backup, err := s.List(t.Context(), datastore.Prefix)
			if err != nil {
				t.Fatal(err)
			}
			follow(t, s, &remember{}, m)
			m.want(t, "replace a=1")
			write(t, s, "b=1")
			m.want(t, "apply a=1 b=1")
			before := maps.Clone(m.entries)
			c.restore(t, s, backup)
			if got := m.want(t, "detached: "); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if !maps.Equal(before, m.entries) {
				t.Errorf("something was taken away: %v", m.entries)
			}
			// Whatever happens there is of no interest, until it is adopted.
			write(t, s, "c=1")
			m.silent(t)
			writeCluster(t, s, "u", 2)
			m.want(t, "replace")
			if m.entries[datastore.Prefix+"c"] != "1" {
				t.Errorf("after adoption: %v", m.entries)
			}
			write(t, s, "c=2")
			m.want(t, "apply")
		})
	}
}

func TestFollowDoubts(t *testing.T) {
	s, m := memory.New(), newModel()
	writeCluster(t, s, "u", 1)
	write(t, s, "a=1", "b=1")
	m.doubt = func(b datastore.Batch) bool {
		for _, e := range b.Events {
			if e.Value == nil {
				return true
			}
		}
		return false
	}
	follow(t, s, &remember{}, m)
	m.want(t, "replace a=1 b=1")
	write(t, s, "a")
	m.want(t, "replace b=1") // read again, and it is so
	write(t, s, "c=1")
	m.want(t, "apply b=1 c=1")
}

func TestFollowEndsWithItsFollower(t *testing.T) {
	s, m := memory.New(), newModel()
	m.applyFail = errors.New("enough")
	write(t, s, "a=1")
	ended := make(chan error, 1)
	go func() { ended <- datastore.Follow(t.Context(), s, datastore.Prefix, nil, m) }()
	m.want(t, "replace")
	write(t, s, "a=2")
	if err := <-ended; !errors.Is(err, m.applyFail) {
		t.Errorf("ended with %v", err)
	}
	if err := datastore.Follow(t.Context(), s, datastore.Prefix+"nodes/", &remember{}, m); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("a guarded prefix without the cluster key: %v", err)
	}
}
