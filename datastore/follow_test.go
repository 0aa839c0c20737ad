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

func (m *model) Back() { m.calls <- "back" }

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
	go func() { ended <- datastore.Follow(ctx, s, nil, g, f) }()
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
	// Away for longer: told once for each reason, then only what changed meanwhile.
	s.Away("cable cut")
	m.want(t, "lost: cable cut")
	s.Away("power cut")
	m.want(t, "lost: power cut")
	s.Back()
	m.want(t, "back")
	write(t, s, "b=1")
	m.want(t, "apply a=2 b=1")
	// And once more, although the reason is the one that was told last.
	s.Away("power cut")
	m.want(t, "lost: power cut")
	s.Back()
	m.want(t, "back")
	m.silent(t)
}

// reading counts what is read of a store.
type reading struct {
	*memory.Store
	lists, bytes int
}

func (r *reading) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	snap, err := r.Store.List(ctx, prefixes...)
	r.lists++
	for _, e := range snap.Entries {
		r.bytes += len(e.Value)
	}
	return snap, err
}

func (r *reading) Watch(ctx context.Context, prefixes []string, after int64, fn func(datastore.Batch) error) error {
	return r.Store.Watch(ctx, prefixes, after, func(b datastore.Batch) error {
		for _, e := range b.Events {
			r.bytes += len(e.Value)
		}
		return fn(b)
	})
}

// TestAnOutageCostsWhatChanged: of a large store nothing is read again.
func TestAnOutageCostsWhatChanged(t *testing.T) {
	for _, objects := range []int{10, 10_000} {
		t.Run(fmt.Sprint(objects), func(t *testing.T) {
			s, m := &reading{Store: memory.New()}, newModel()
			writeCluster(t, s, "u", 1)
			for i := range objects {
				write(t, s, fmt.Sprintf("x%d=%s", i, strings.Repeat("x", 100)))
			}
			end := follow(t, s, &remember{}, m)
			m.want(t, "replace")
			s.Away("cable cut")
			m.want(t, "lost")
			before := s.bytes // nothing is read while it is away
			s.Back()
			m.want(t, "back")
			write(t, s, "a=1")
			m.want(t, "apply a=1")
			end()
			cluster, err := s.Get(context.Background(), datastore.ClusterKey)
			if err != nil {
				t.Fatal(err)
			}
			if got, most := s.bytes-before, 2*len(cluster.Value)+1; got > most {
				t.Errorf("%d bytes were read, more than the identity and what changed: %d", got, most)
			}
		})
	}
}

// TestFollowListsAnotherIdentity: the store went on under a raised generation, so
// what it holds may be anything.
func TestFollowListsAnotherIdentity(t *testing.T) {
	s, m := memory.New(), newModel()
	writeCluster(t, s, "u", 1)
	write(t, s, "a=1")
	follow(t, s, &remember{}, m)
	m.want(t, "replace a=1")
	s.Away("cable cut")
	m.want(t, "lost")
	value, err := datastore.Cluster{UUID: "u", Generation: 2}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s.Restore(datastore.Snapshot{Revision: 1000, Entries: []datastore.Entry{
		{Key: datastore.ClusterKey, Value: value, Revision: 900}, {Key: datastore.Prefix + "b", Value: []byte("1"), Revision: 900},
	}})
	s.Back()
	m.want(t, "replace b=1")
}

// overtaken gives the batches of two prefixes as etcd may: those of the second come
// with the revision that is known of the first, and again after a resume.
type overtaken struct {
	*memory.Store
	rounds [][]datastore.Batch
	after  []int64
	commit func() // brings the store's revision to that of the batches
}

func (s *overtaken) Watch(ctx context.Context, prefixes []string, after int64, fn func(datastore.Batch) error) error {
	if len(prefixes) == 1 || len(s.rounds) == 0 {
		return s.Store.Watch(ctx, prefixes, after, fn)
	}
	s.after = append(s.after, after)
	s.commit()
	round := s.rounds[0]
	s.rounds = s.rounds[1:]
	for _, b := range round {
		if err := fn(b); err != nil {
			return err
		}
	}
	return fmt.Errorf("cut: %w", datastore.ErrUnavailable)
}

// TestFollowAppliesOnce: what is given again after a resume is not applied again,
// and never what is older than what was applied.
func TestFollowAppliesOnce(t *testing.T) {
	node := func(name, value string, revision int64) datastore.Entry {
		e := datastore.Entry{Key: datastore.KindPrefix(datastore.KindNode) + name, Revision: revision}
		if value != "" {
			e.Value = []byte(value)
		}
		return e
	}
	pool := datastore.Entry{Key: datastore.KindPrefix(datastore.KindPool) + "p", Value: []byte("1"), Revision: 7}
	s := &overtaken{Store: memory.New(), rounds: [][]datastore.Batch{
		{
			{Events: []datastore.Entry{node("a", "5", 5), node("a", "", 6)}, Revision: 2},
			{Events: []datastore.Entry{pool}, Revision: 6},
		},
		{
			{Events: []datastore.Entry{pool}, Revision: 6},
			{Events: []datastore.Entry{node("a", "5", 5), node("a", "", 6), node("b", "8", 8)}, Revision: 7},
		},
	}}
	writeCluster(t, s, "u", 1)
	s.commit = func() {
		for range 4 {
			write(t, s.Store, "x=1")
		}
	}
	var got []string
	f := &batches{apply: func(b datastore.Batch) {
		for _, e := range b.Events {
			got = append(got, fmt.Sprintf("%s=%s", e.Key[len(datastore.Prefix):], e.Value))
		}
	}, stop: func() bool { return len(s.rounds) == 0 && len(got) >= 4 }}
	err := datastore.Follow(t.Context(), s, []datastore.Kind{datastore.KindNode, datastore.KindPool}, nil, f)
	if !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	if want := "nodes/a=5 nodes/a= pools/p=1 nodes/b=8"; strings.Join(got, " ") != want {
		t.Errorf("applied %q, want %q", got, want)
	}
	if s.after[1] != 6 {
		t.Errorf("resumed after %d, want 6", s.after[1])
	}
}

var errStop = errors.New("seen enough")

// batches is a follower that looks at changes only.
type batches struct {
	apply func(datastore.Batch)
	stop  func() bool
}

func (*batches) Replace(datastore.Snapshot) error { return nil }
func (*batches) Lost(error)                       {}
func (*batches) Back()                            {}
func (b *batches) Apply(batch datastore.Batch) error {
	b.apply(batch)
	if b.stop() {
		return errStop
	}
	return nil
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

func (s *compacting) Watch(ctx context.Context, prefixes []string, after int64, fn func(datastore.Batch) error) error {
	if s.watches++; s.watches == 2 {
		for i := range 5 {
			s.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "b", Value: fmt.Append(nil, i)}}})
		}
		s.Compact(after + 3)
	}
	return s.Store.Watch(ctx, prefixes, after, fn)
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
	go func() { ended <- datastore.Follow(t.Context(), s, nil, nil, m) }()
	m.want(t, "replace")
	write(t, s, "a=2")
	if err := <-ended; !errors.Is(err, m.applyFail) {
		t.Errorf("ended with %v", err)
	}
}
