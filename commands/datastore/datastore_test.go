package datastore_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	role "netctl/commands/datastore"
	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

const patience = 30 * time.Second

func config(t *testing.T) role.Config {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return role.Config{
		Node: "node1", StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "run", "etcd.sock"),
		PeerURL: "https://" + l.Addr().String(),
	}
}

func run(t *testing.T, c role.Config) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	c.Ready = func() { close(ready) }
	go func() { ended <- role.Run(ctx, c, slog.New(slog.DiscardHandler)) }()
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		t.Fatalf("ended at start: %v", err)
	case <-time.After(patience):
		cancel()
		t.Fatal("not ready")
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestRole(t *testing.T) {
	c := config(t)
	stop := run(t, c)
	s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + c.Socket}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "a", Value: []byte("1")}}}); err != nil {
		t.Fatal(err)
	}
	// Who holds the folder is named, whatever socket the second one would use.
	second := c
	second.Socket += "2"
	if err := role.Run(t.Context(), second, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("PID %d", os.Getpid())) {
		t.Errorf("a second one: %v", err)
	}
	for path, mode := range map[string]os.FileMode{"etcd": 0o700, "etcd-tls": 0o700, "etcd-tls/ca.key": 0o600, "etcd-tls/peer.key": 0o600} {
		if st, err := os.Stat(filepath.Join(c.StateDir, path)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, st, err)
		}
	}
	// The peer port of a single member is as closed as every other.
	conn, err := tls.Dial("tcp", strings.TrimPrefix(c.PeerURL, "https://"), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("peer port without a certificate: %v", err)
	}
	stop()
	run(t, c)
	if _, err := s.Get(t.Context(), datastore.Prefix+"a"); err != nil {
		t.Error(err)
	}
}

// TestSharesEvents: a machine that is a member alone tells the others what happens on it, in
// a datastore that holds a cluster.
func TestSharesEvents(t *testing.T) {
	c := config(t)
	c.Shares, c.Telemetry = true, telemetry.Config{Role: "datastore", Node: c.Node, StateDir: c.StateDir, RunDir: filepath.Dir(c.Socket)}
	run(t, c)
	s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + c.Socket}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.ClusterKey, Value: []byte("{}")}}}); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "events", func() string {
		list, _, err := datastore.ListEvents(t.Context(), s)
		if err != nil || len(list) == 0 || list[0].Node != c.Node || list[0].Role != "datastore" {
			return fmt.Sprint(list, err)
		}
		return ""
	})
}

// TestSocketRemoved: a server that nobody can reach any more ends, so that it is
// started again.
func TestSocketRemoved(t *testing.T) {
	for what, remove := range map[string]func(c role.Config) error{
		"socket": func(c role.Config) error { return os.Remove(c.Socket) },
		"folder": func(c role.Config) error { return os.RemoveAll(filepath.Dir(c.Socket)) },
	} {
		c := config(t)
		ready, ended := make(chan struct{}), make(chan error, 1)
		c.Ready = func() { close(ready) }
		go func() { ended <- role.Run(t.Context(), c, slog.New(slog.DiscardHandler)) }()
		<-ready
		if err := remove(c); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil || !strings.Contains(err.Error(), c.Socket) {
			t.Errorf("%s: ended with %v", what, err)
		}
		run(t, c)()
	}
}

// TestNodesAreNoMembers: what makes a node a client does not make it a member, nor the
// other way round.
func TestNodesAreNoMembers(t *testing.T) {
	c := config(t)
	dir := t.TempDir()
	ca, err := pki.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(name string) pki.Files {
		f, err := ca.Issue(dir, pki.Node{Name: name, Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	own, node := issue("node1"), issue("node2")
	c.Listen = []string{"https://" + netlab.FreeAddress(t)}
	c.CA, c.Cert, c.Key = own.CA, own.Cert, own.Key
	run(t, c)
	s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: c.Listen, CA: node.CA, Cert: node.Cert, Key: node.Key})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.Prefix + "a", Value: []byte("1")}}}); err != nil {
		t.Errorf("as a client: %v", err)
	}
	knock := func(url string, f pki.Files) error {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{
			InsecureSkipVerify:   true,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil },
		})
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("\n\n")); err != nil { // with TLS 1.3 the server's verdict comes later
			return err
		}
		_, err = conn.Read(make([]byte, 1))
		return err
	}
	peer := pki.In(filepath.Join(c.StateDir, "etcd-tls"), "peer")
	for name, k := range map[string]struct {
		url   string
		files pki.Files
		taken bool
	}{
		"a node as member":          {c.PeerURL, node, false},
		"the server as member":      {c.PeerURL, own, false},
		"a member as member":        {c.PeerURL, peer, true},
		"a node as client":          {c.Listen[0], node, true},
		"the peer port's as client": {c.Listen[0], peer, false},
	} {
		err := knock(k.url, k.files)
		if refused := err != nil && strings.Contains(err.Error(), "remote error: tls:"); refused == k.taken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCertificatesInterrupted(t *testing.T) {
	c := config(t)
	dir := filepath.Join(c.StateDir, "etcd-tls")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, c)()
}

func TestRefusedConfig(t *testing.T) {
	for want, change := range map[string]func(*role.Config){
		"https://127.0.0.1:2379 needs tls": func(c *role.Config) { c.Listen = []string{"https://127.0.0.1:2379"} },
		"all three":                        func(c *role.Config) { c.CA, c.Cert = "/a", "/b" },
		"the clients' authority /dev/null": func(c *role.Config) {
			c.CA, c.Cert, c.Key, c.PeerCA, c.PeerCert, c.PeerKey = "/dev/null", "/a", "/b", "/dev/null", "/c", "/d"
		},
		"/none": func(c *role.Config) { c.CA, c.Cert, c.Key = "/none", "/none", "/none" },
	} {
		c := config(t)
		change(&c)
		if err := role.Run(t.Context(), c, slog.New(slog.DiscardHandler)); !errors.Is(err, datastore.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}
