// Package embed owns the etcd server inside netctl: one member, or one of
// several. It serves clients on a unix socket in a folder that is root's alone
// and, with TLS and client certificates, on TCP; it compacts, defragments and
// clears its own quota alarm, so that it runs for years untouched.
//
// It never listens on plain TCP, loopback included, and never on an abstract
// socket (which is what etcd makes of a unix peer URL).
package embed

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"netctl/datastore"
)

// Defaults of Config.
const (
	DefaultPeerURL    = "https://127.0.0.1:2380"
	DefaultQuotaBytes = 2 << 30
	MinQuotaBytes     = 16 << 20
)

// What etcd keeps in memory and on disk for members that lag behind; its own
// defaults are made for much larger stores.
const (
	snapshotEvery = 2000 // transactions
	catchUp       = 500  // transactions
	keepFiles     = 2    // write-ahead logs and snapshots
)

// Config is what one member is told.
type Config struct {
	Name string // the member's name: the node's
	Dir  string // data folder, made 0700
	// Socket is the path on which clients are served without TLS, 0600. Its
	// folder is made 0700 and refused if others may enter it.
	Socket string
	// ListenTLS are further URLs for clients, https://address:port.
	ListenTLS []string
	// PeerURL is where the other members reach this one; default DefaultPeerURL.
	PeerURL string
	// Members are all members at the start, NAME=PeerURL each; empty: this one.
	Members []string
	// Joins says that Members are a cluster that has this one as a new member already.
	Joins bool
	// Token tells clusters of the same members apart; empty: random for a
	// single member. All members need the same.
	Token string
	// CA, Cert and Key are the names of PEM files. Clients on TCP must show a
	// certificate of CA.
	CA, Cert, Key string
	// PeerCA, PeerCert and PeerKey are the same for the other members; empty: those of
	// the clients. Whoever has a certificate of PeerCA may rewrite what is stored
	// unseen, so that it should sign members alone.
	PeerCA, PeerCert, PeerKey string
	// QuotaBytes is the largest size of the database file; default
	// DefaultQuotaBytes, at least MinQuotaBytes. The file grows in steps of
	// 16 MiB, so what it can hold is up to 18 MiB less (2 MiB at the least).
	QuotaBytes int64
	// OnMembers, if set, is told by the member that leads where the voters serve clients,
	// when that changed; after an error, again.
	OnMembers func(ctx context.Context, urls []string) error `json:"-"`
	Log       *slog.Logger
}

// Run serves until ctx ends; ready (may be nil) is called once when clients are
// served. The error names what is wrong with the configuration, the folder or
// the port.
func Run(ctx context.Context, c Config, ready func()) error {
	if err := c.complete(); err != nil {
		return err
	}
	if err := c.prepare(); err != nil {
		return err
	}
	stopping, stop := context.WithCancel(context.Background())
	defer stop()
	k := newKeeper(pageQuota(c.QuotaBytes), c.Log)
	least := new(slog.LevelVar)
	least.Set(slog.LevelError) // it warns of every setting that is as it should be
	server, sockets, err := c.open(bridge(c.Log, least))
	if err != nil {
		return err
	}
	defer server.stop(c.Log)
	defer sockets.close()
	defer func() {
		least.Set(silent)
		stop() // streams end first: etcd would wait for them
	}()
	select {
	case <-server.ReadyNotify():
	case <-server.StopNotify():
		return server.stopped("datastore: etcd stopped while it started")
	case err := <-server.failed:
		return fmt.Errorf("datastore: %w", err)
	case <-ctx.Done():
		return nil
	}
	least.Set(slog.LevelWarn)
	server.serveClients(sockets, c.Log, grpc.ChainUnaryInterceptor(k.unary), grpc.ChainStreamInterceptor(endWith(stopping)))
	if ready != nil {
		ready()
	}
	c.Log.Info("datastore serves", "socket", c.Socket, "urls", strings.Join(c.ListenTLS, " "), "cluster", server.Cluster().ID().String(), datastore.EventRole.Mark())
	keeping, end := context.WithCancel(ctx)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		var tending sync.WaitGroup
		tending.Go(func() { c.tend(keeping, server.EtcdServer) })
		k.run(keeping, server.EtcdServer)
		tending.Wait()
	}()
	defer func() { end(); <-kept }()
	select {
	case <-ctx.Done():
		return nil
	case <-server.StopNotify():
		return server.stopped("datastore: etcd stopped")
	case err := <-server.failed:
		return fmt.Errorf("datastore: %w", err)
	}
}

// open listens and starts the member; what fails leaves no socket behind.
func (c *Config) open(log *zap.Logger) (*server, *listeners, error) {
	peer, err := httpsURL(c.PeerURL)
	if err != nil {
		return nil, nil, err
	}
	var clients []url.URL
	for _, listen := range c.ListenTLS {
		u, err := httpsURL(listen)
		if err != nil {
			return nil, nil, err
		}
		clients = append(clients, u)
	}
	ofClients, ofPeers := secured(c.CA, c.Cert, c.Key), secured(c.PeerCA, c.PeerCert, c.PeerKey)
	sockets, err := c.listen(peer, clients, &ofPeers, &ofClients)
	if err != nil {
		return nil, nil, fmt.Errorf("datastore: %w", explain(err))
	}
	server, err := c.start(log, sockets, peer, clients, ofPeers)
	if err != nil {
		sockets.close()
		return nil, nil, fmt.Errorf("datastore: %w", err)
	}
	return server, sockets, nil
}

// secured is TLS with a certificate that takes only those that show one of ca.
func secured(ca, cert, key string) transport.TLSInfo {
	return transport.TLSInfo{
		CertFile: cert, KeyFile: key, TrustedCAFile: ca,
		ClientCertAuth: true, MinVersion: tls.VersionTLS12,
		// A node with two interfaces may connect from either.
		SkipClientSANVerify: true,
	}
}

func explain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "listen" {
		return fmt.Errorf("listen on %v: %w (is another datastore running?)", op.Addr, op.Err)
	}
	return err
}

// complete fills in the defaults and checks the rest.
func (c *Config) complete() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.PeerURL == "" {
		c.PeerURL = DefaultPeerURL
	}
	if c.QuotaBytes == 0 {
		c.QuotaBytes = DefaultQuotaBytes
	}
	switch {
	case c.Name == "":
		return fmt.Errorf("datastore: no name: %w", datastore.ErrInvalid)
	case !filepath.IsAbs(c.Dir) || !filepath.IsAbs(c.Socket):
		return fmt.Errorf("datastore: folder %q and socket %q must be absolute paths: %w", c.Dir, c.Socket, datastore.ErrInvalid)
	case c.QuotaBytes < MinQuotaBytes:
		return fmt.Errorf("datastore: quota of %d bytes: at least %d: %w", c.QuotaBytes, int64(MinQuotaBytes), datastore.ErrInvalid)
	case len(c.Members) > 1 && c.Token == "" && !c.Joins:
		return fmt.Errorf("datastore: several members need a token, the same on all: %w", datastore.ErrInvalid)
	}
	if len(c.Members) == 0 {
		c.Members = []string{c.Name + "=" + c.PeerURL}
	}
	if c.Token == "" {
		// etcd derives its cluster ID from token and peer URL alone: a folder
		// made anew must not look like the one that was lost.
		c.Token = rand.Text()
	}
	if c.PeerCA == "" && c.PeerCert == "" && c.PeerKey == "" {
		c.PeerCA, c.PeerCert, c.PeerKey = c.CA, c.Cert, c.Key
	}
	for _, file := range []string{c.CA, c.Cert, c.Key, c.PeerCA, c.PeerCert, c.PeerKey} {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("datastore tls: %w: %w", err, datastore.ErrInvalid)
		}
		f.Close()
	}
	return nil
}

// prepare makes the folders and refuses a socket that is somebody's.
func (c *Config) prepare() error {
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fmt.Errorf("datastore folder: %w", err)
	}
	if err := os.Chmod(c.Dir, 0o700); err != nil {
		return fmt.Errorf("datastore folder: %w", err)
	}
	folder := filepath.Dir(c.Socket)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("datastore socket: %w", err)
	}
	st, err := os.Stat(folder)
	if err != nil {
		return fmt.Errorf("datastore socket: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("datastore socket %s: %w: its folder is open to others (%v): chmod 700 %s", c.Socket, datastore.ErrInvalid, st.Mode().Perm(), folder)
	}
	if conn, err := net.DialTimeout("unix", c.Socket, time.Second); err == nil {
		conn.Close()
		return fmt.Errorf("datastore socket %s: %w: another process serves it", c.Socket, datastore.ErrInUse)
	} else if st, err := os.Lstat(c.Socket); err == nil && st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("datastore socket %s: %w and is no socket", c.Socket, datastore.ErrExists)
	}
	return nil
}

// pageQuota is how many bytes of pages may be used so that the file does not exceed
// the quota. bbolt grows a file that is mapped with more than 16 MiB by 16 MiB
// beyond what it needs, and a smaller one to the mapping's size, a power of two
// (bbolt, DB.growSize), so that the least quota is all there; etcd lets the
// transaction that exceeds its own pass.
func pageQuota(file int64) int64 {
	const step, slack = 16 << 20, 2 << 20
	return max(file-step-slack, step-slack)
}

// httpsURL parses https://address:port; etcd takes nothing else for TCP here.
func httpsURL(text string) (url.URL, error) {
	u, err := url.Parse(text)
	if err != nil {
		return url.URL{}, fmt.Errorf("datastore url %q: %w: %w", text, err, datastore.ErrInvalid)
	}
	if u.Scheme != "https" || u.Port() == "" || net.ParseIP(u.Hostname()) == nil || u.Path != "" {
		return url.URL{}, fmt.Errorf("datastore url %q: want https://address:port (plain http is not offered): %w", text, datastore.ErrInvalid)
	}
	return *u, nil
}

// endWith ends streams (watches) when ctx does.
func endWith(ctx context.Context) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		streamCtx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return next(srv, endingStream{stream, streamCtx})
	}
}

type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s endingStream) Context() context.Context { return s.ctx }
