package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"netctl/datastore"
	"netctl/datastore/embed"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
	"netctl/datastore/storetest"
	"netctl/netdev/netlab"
)

const patience = 30 * time.Second

// member is one embedded server and what reaches it.
type member struct {
	config embed.Config
	ca     *pki.Authority
	tls    string // folder of certificates
	url    string // https
	cancel context.CancelFunc
	ended  chan error
}

// newMember prepares a server; start starts it.
func newMember(t *testing.T) *member {
	t.Helper()
	dir := t.TempDir()
	m := &member{tls: filepath.Join(dir, "tls"), url: "https://" + netlab.FreeAddress(t)}
	var err error
	if m.ca, err = pki.Create(m.tls); err != nil {
		t.Fatal(err)
	}
	files := m.issue(t, pki.Node{Name: "node1"})
	m.config = embed.Config{
		Name: "node1", Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "run", "etcd.sock"),
		ListenTLS: []string{m.url}, PeerURL: "https://" + netlab.FreeAddress(t), CA: files.CA, Cert: files.Cert, Key: files.Key,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	t.Cleanup(func() { m.stop(t) })
	return m
}

func (m *member) issue(t *testing.T, n pki.Node) pki.Files {
	t.Helper()
	if n.Addresses == nil {
		n.Addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	}
	files, err := m.ca.Issue(m.tls, n)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (m *member) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	m.cancel, m.ended = cancel, make(chan error, 1)
	go func() { m.ended <- embed.Run(ctx, m.config, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-m.ended:
		m.cancel = nil
		t.Fatalf("ended at start: %v", err)
	case <-time.After(patience):
		t.Fatal("not ready")
	}
}

func (m *member) stop(t *testing.T) {
	t.Helper()
	if m.cancel == nil {
		return
	}
	m.cancel()
	m.cancel = nil
	if err := <-m.ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func (m *member) unix() etcd.Options {
	return etcd.Options{Endpoints: []string{"unix://" + m.config.Socket}}
}

func (m *member) secure(f pki.Files) etcd.Options {
	return etcd.Options{Endpoints: []string{m.url}, CA: f.CA, Cert: f.Cert, Key: f.Key}
}

// raw is etcd's own client, for what Store does not do.
func (m *member) raw(t *testing.T) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{"unix://" + m.config.Socket}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func open(t *testing.T, o etcd.Options) *etcd.Store {
	t.Helper()
	s, err := etcd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s datastore.Store, key, value string) int64 {
	t.Helper()
	rev, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + key, Value: []byte(value)}}})
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

// wipe deletes every key of netctl's.
func wipe(t *testing.T, s datastore.Store) {
	t.Helper()
	snap, err := s.List(t.Context(), datastore.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	for len(snap.Entries) > 0 {
		n := min(len(snap.Entries), datastore.MaxTxnOps)
		var txn datastore.Txn
		for _, e := range snap.Entries[:n] {
			txn.Then = append(txn.Then, datastore.Op{Key: e.Key})
		}
		if _, err := s.Commit(t.Context(), txn); err != nil {
			t.Fatal(err)
		}
		snap.Entries = snap.Entries[n:]
	}
}

func TestConformance(t *testing.T) {
	m := newMember(t)
	m.start(t)
	files := m.issue(t, pki.Node{Name: "client"})
	for name, o := range map[string]etcd.Options{"unix": m.unix(), "tls": m.secure(files)} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func() datastore.Store {
				s := open(t, o)
				wipe(t, s)
				return s
			})
		})
	}
}

func TestCompactionUnderAWatch(t *testing.T) {
	m := newMember(t)
	m.start(t)
	s, raw := open(t, m.unix()), m.raw(t)
	start := put(t, s, "a", "1")
	put(t, s, "a", "2")
	last := put(t, s, "a", "3")
	if _, err := raw.Compact(t.Context(), last, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	ignore := func(datastore.Batch) error { return nil }
	if err := s.Watch(t.Context(), []string{datastore.Prefix}, start, ignore); !errors.Is(err, datastore.ErrCompacted) {
		t.Errorf("watch from a compacted revision: %v", err)
	}
	// A watch that is up to date does not notice.
	seen := make(chan datastore.Batch, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go s.Watch(ctx, []string{datastore.Prefix}, last, func(b datastore.Batch) error { seen <- b; return nil })
	next := put(t, s, "a", "4")
	if b := <-seen; b.Revision != next {
		t.Errorf("got %+v", b)
	}
	if _, err := raw.Compact(t.Context(), next, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	next = put(t, s, "a", "5")
	if b := <-seen; b.Revision != next {
		t.Errorf("got %+v", b)
	}
}

func TestDeadEndpointAmongSeveral(t *testing.T) {
	m := newMember(t)
	m.start(t)
	o := m.secure(m.issue(t, pki.Node{Name: "client"}))
	o.Endpoints = []string{"https://" + netlab.FreeAddress(t), m.url, "https://" + netlab.FreeAddress(t)}
	s := open(t, o)
	for range 20 {
		rev := put(t, s, "a", "1")
		if e, err := s.Get(t.Context(), datastore.Prefix+"a"); err != nil || e.Revision != rev {
			t.Fatalf("%+v, %v", e, err)
		}
	}
	seen := make(chan datastore.Batch, 1)
	go s.Watch(t.Context(), []string{datastore.Prefix}, 1, func(b datastore.Batch) error { seen <- b; return nil })
	<-seen
	healthy := 0
	for i, h := range s.Health(t.Context()) {
		if h.Endpoint != o.Endpoints[i] {
			t.Errorf("endpoint %d is %s", i, h.Endpoint)
		}
		if h.Err == nil {
			healthy++
			if h.Version != "3.7.3" || !h.Leader || h.Member == 0 || h.Size == 0 {
				t.Errorf("%+v", h)
			}
		} else if !errors.Is(h.Err, datastore.ErrUnavailable) || !strings.Contains(h.Err.Error(), "connection refused") {
			t.Errorf("%v", h.Err)
		}
	}
	if healthy != 1 {
		t.Errorf("%d healthy", healthy)
	}
}

func TestRestart(t *testing.T) {
	m := newMember(t)
	m.start(t)
	s := open(t, m.secure(m.issue(t, pki.Node{Name: "client"})))
	rev := put(t, s, "a", "1")
	watched := make(chan error, 1)
	go func() {
		watched <- s.Watch(context.Background(), []string{datastore.Prefix}, rev, func(datastore.Batch) error { return nil })
	}()
	m.stop(t)
	if err := <-watched; !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("watch ended with %v", err)
	}
	if _, err := s.Get(t.Context(), datastore.Prefix+"a"); !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("while away: %v", err)
	}
	m.start(t)
	eventually(t, func() error {
		e, err := s.Get(t.Context(), datastore.Prefix+"a")
		if err == nil && e.Revision != rev {
			return fmt.Errorf("revision %d, not %d", e.Revision, rev)
		}
		return err
	})
}

// eventually tries until it succeeds.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestFull(t *testing.T) {
	m := newMember(t)
	m.config.QuotaBytes = embed.MinQuotaBytes
	m.start(t)
	s := open(t, m.unix())
	value := make([]byte, 256<<10)
	var err error
	n := 0
	for ; err == nil && n < 200; n++ {
		_, err = s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: fmt.Sprintf("%sfull/%03d", datastore.Prefix, n), Value: value}}})
	}
	if !errors.Is(err, datastore.ErrFull) || !strings.Contains(err.Error(), "quota") {
		t.Fatalf("after %d writes: %v", n, err)
	}
	eventually(t, func() error { // etcd refuses first and raises the alarm then
		if h := s.Health(t.Context()); !errors.Is(h[0].Err, datastore.ErrFull) || !strings.Contains(h[0].Err.Error(), "takes them again once at most 12.6 MiB are in use; it is 1") {
			return errors.New(fmt.Sprint("health: ", h[0].Err))
		}
		return nil
	})
	// Reading and deleting go on, and deleting is all it takes.
	if _, err := s.List(t.Context(), datastore.Prefix+"full/00"); err != nil {
		t.Error(err)
	}
	wipe(t, s)
	eventually(t, func() error {
		_, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "full/again", Value: value}}})
		return err
	})
}
