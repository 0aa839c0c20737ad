package embed_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/embed"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

const patience = 30 * time.Second

// config is a member with a certificate of its own, in a folder of the test.
func config(t *testing.T) embed.Config {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.Create(filepath.Join(dir, "tls"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(filepath.Join(dir, "tls"), pki.Node{Name: "node1", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	return embed.Config{
		Name: "node1", Dir: filepath.Join(dir, "etcd"), Socket: filepath.Join(dir, "run", "etcd.sock"),
		PeerURL: "https://" + netlab.FreeAddress(t), CA: files.CA, Cert: files.Cert, Key: files.Key,
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// freeAddress is a loopback address and port that nobody listens on.
// run starts the server and returns what stops it; it is stopped with the test.
func run(t *testing.T, c embed.Config) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- embed.Run(ctx, c, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("ended at start: %v", err)
	case <-time.After(patience):
		cancel()
		t.Fatal("not ready")
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
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

func put(t *testing.T, s *etcd.Store, key string, size int) {
	t.Helper()
	value := make([]byte, size)
	if _, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + key, Value: value}}}); err != nil {
		t.Fatal(err)
	}
}

func TestServesAndStops(t *testing.T) {
	c := config(t)
	begin := time.Now()
	stop := run(t, c)
	t.Log("start", time.Since(begin))
	s := open(t, etcd.Options{Endpoints: []string{"unix://" + c.Socket}})
	put(t, s, "a", 10)
	watched := make(chan error, 1)
	go func() {
		watched <- s.Watch(context.Background(), []string{datastore.Prefix}, 1, func(datastore.Batch) error { return nil })
	}()
	for path, mode := range map[string]os.FileMode{c.Dir: 0o700, filepath.Dir(c.Socket): 0o700, c.Socket: 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	if err := embed.Run(t.Context(), c, nil); !errors.Is(err, datastore.ErrInUse) {
		t.Errorf("a second one: %v", err)
	}
	first, err := s.ID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	stop()
	t.Log("stop", time.Since(begin))
	if err := <-watched; !errors.Is(err, datastore.ErrUnavailable) {
		t.Errorf("watch ended with %v", err)
	}
	if _, err := os.Stat(c.Socket); !os.IsNotExist(err) {
		t.Errorf("socket left behind: %v", err)
	}
	stop = run(t, c)
	if _, err := s.Get(t.Context(), datastore.Prefix+"a"); err != nil {
		t.Error(err)
	}
	if again, err := s.ID(t.Context()); err != nil || again != first {
		t.Errorf("identity %d, then %d: %v", first, again, err)
	}
	stop()
	if err := os.RemoveAll(c.Dir); err != nil {
		t.Fatal(err)
	}
	run(t, c)
	if anew, err := s.ID(t.Context()); err != nil || anew == first {
		t.Errorf("made anew under the same identity %d: %v", anew, err)
	}
}

// TestQuota writes ten times the quota to a few keys, then as much as fits to new ones:
// most of the quota.
func TestQuota(t *testing.T) {
	c := config(t)
	c.QuotaBytes = 16 << 20
	run(t, c)
	s := open(t, etcd.Options{Endpoints: []string{"unix://" + c.Socket}})
	const size = 64 << 10
	largest := int64(0)
	for i := range 10 * int(c.QuotaBytes) / size {
		put(t, s, "quota/"+strconv.Itoa(i%10), size)
		if st, err := os.Stat(filepath.Join(c.Dir, "member/snap/db")); err == nil {
			largest = max(largest, st.Size())
		}
	}
	fits := int64(0)
	for i := 10; ; i++ {
		_, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "quota/" + strconv.Itoa(i), Value: make([]byte, size)}}})
		if errors.Is(err, datastore.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		fits += size
	}
	if st, err := os.Stat(filepath.Join(c.Dir, "member/snap/db")); err == nil {
		largest = max(largest, st.Size())
	}
	if fits += 10 * size; largest > c.QuotaBytes || fits < c.QuotaBytes*3/4 {
		t.Errorf("the file reached %d bytes, %d fit into it", largest, fits)
	}
	t.Log("largest", largest, "fits", fits)
}

// TestHistoryLeavesRoom: however much is changed by those who may not tidy up, its record
// takes an eighth of the quota, the newest changes are on record, and nothing is refused.
func TestHistoryLeavesRoom(t *testing.T) {
	c := config(t)
	c.QuotaBytes = 16 << 20
	run(t, c)
	s := open(t, etcd.Options{Endpoints: []string{"unix://" + c.Socket}})
	r := &datastore.Recorder{Store: s, Who: datastore.HistoryRecord{Node: "node1"}}
	key := datastore.KindPrefix(datastore.KindProfile) + "web"
	last := int64(0)
	for i := range 300 { // 30 MiB
		value := []byte(strconv.Quote(strings.Repeat(strconv.Itoa(i%10), 52<<10)))
		revision, err := r.Commit(t.Context(), datastore.Txn{If: []datastore.Condition{{Key: key, Revision: last}}, Then: []datastore.Op{{Key: key, Value: value}}})
		if err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		last = revision
	}
	within := func(most int64, before func()) {
		t.Helper()
		for end := time.Now().Add(patience); ; <-time.After(50 * time.Millisecond) {
			before()
			snap, err := s.List(t.Context(), datastore.HistoryPrefix)
			if err != nil {
				t.Fatal(err)
			}
			size, newest := int64(0), int64(0)
			for _, e := range snap.Entries {
				size, newest = size+int64(len(e.Key)+len(e.Value)), max(newest, e.Revision)
			}
			if size <= most && newest == last {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d records have %d bytes, the newest is of revision %d, not %d", len(snap.Entries), size, newest, last)
			}
		}
	}
	within(c.QuotaBytes/8, func() { put(t, s, "poke", 256<<10) }) // the server looks after so much
	// Filled with what is needed, it gives way.
	var err error
	for i := 0; err == nil; i++ {
		_, err = s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "fill/" + strconv.Itoa(i), Value: make([]byte, 64<<10)}}})
	}
	if !errors.Is(err, datastore.ErrFull) {
		t.Fatal(err)
	}
	within(datastore.FullHistory(c.QuotaBytes/8), func() {})
}

// TestKilled starts over what a killed server leaves: a stale socket.
func TestKilled(t *testing.T) {
	c := config(t)
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	run(t, c)
	put(t, open(t, etcd.Options{Endpoints: []string{"unix://" + c.Socket}}), "a", 1)
}

// TestMembers runs three members over TLS and takes one away.
func TestMembers(t *testing.T) {
	first := config(t)
	configs := []embed.Config{first, first, first}
	for i := range configs {
		c := &configs[i]
		c.Name, c.Token = "node"+strconv.Itoa(i+1), "cluster"
		c.Dir = filepath.Join(filepath.Dir(first.Dir), c.Name)
		c.Socket = filepath.Join(c.Dir+"-run", "etcd.sock")
		c.PeerURL, c.ListenTLS = "https://"+netlab.FreeAddress(t), []string{"https://" + netlab.FreeAddress(t)}
	}
	o := etcd.Options{CA: first.CA, Cert: first.Cert, Key: first.Key}
	var members []string
	for _, c := range configs {
		members = append(members, c.Name+"="+c.PeerURL)
		o.Endpoints = append(o.Endpoints, c.ListenTLS...)
	}
	stops := make([]func(), len(configs))
	var wg sync.WaitGroup
	for i := range configs {
		configs[i].Members = members
		wg.Go(func() { stops[i] = run(t, configs[i]) })
	}
	wg.Wait()
	s := open(t, o)
	put(t, s, "a", 1)
	leader := 0
	for i, h := range s.Health(t.Context()) {
		if h.Err != nil {
			t.Error(h.Err)
		}
		if h.Leader {
			leader = i
		}
	}
	stops[leader]()
	for deadline := time.Now().Add(patience); ; {
		_, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "b", Value: []byte("v")}}})
		if err == nil {
			break
		}
		if !errors.Is(err, datastore.ErrUnavailable) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(t.Context(), datastore.Prefix+"a"); err != nil {
		t.Error(err)
	}
}
