//go:build !bundled

package datastore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"netctl/commands/control"
	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/datastore/embed"
	"netctl/datastore/pki"
)

// gcPercent keeps the heap of a server that mostly idles small.
const gcPercent = 50

// Run serves until ctx ends.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	nameThreads()
	withoutProxy()
	lock, err := control.Lock(c.StateDir, "datastore")
	if err != nil {
		return err
	}
	defer lock.Close()
	shown := &telemetry.Role{}
	served := make(chan struct{})
	if c.Telemetry.Role != "" {
		shown = telemetry.New(c.Telemetry, log)
		defer shown.Close()
		log = shown.Logger()
		shown.Ready, shown.More = isServed(served), etcdMetrics
	}
	if c.External.User != "" {
		return c.enrol(ctx, lock, shown, served, log)
	}
	if err := c.joins(); err != nil {
		return err
	}
	d, err := c.newDoor(log)
	if err != nil {
		return err
	}
	clients, peers, err := c.certificates()
	if err != nil {
		return err
	}
	if d.peers, err = os.ReadFile(peers.CA); err != nil {
		return fmt.Errorf("datastore: %w", err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	again := atomic.Bool{}
	d.restart = func() {
		again.Store(true)
		stop()
	}
	manager, told := control.NewService(log), make(chan error, 1)
	go func() { told <- manager.Run(ctx, nil) }()
	watched, telling, beside := make(chan error, 1), shownUntil(ctx, shown), make(chan struct{})
	go func() {
		defer stop()
		select {
		case <-served:
			watched <- control.WatchFolders(ctx, log, append(shown.Folders(), lock.Folder(), there(c.Socket))...)
		case <-ctx.Done():
			watched <- nil
		}
	}()
	besideEnded := d.runAfter(ctx, beside)
	err = embed.Run(ctx, embed.Config{
		Name: c.Node, Dir: filepath.Join(c.StateDir, "etcd"), Socket: c.Socket,
		ListenTLS: c.Listen, PeerURL: c.PeerURL, Members: c.Members, Joins: len(c.Members) > 0, Token: c.Token,
		CA: clients.CA, Cert: clients.Cert, Key: clients.Key,
		PeerCA: peers.CA, PeerCert: peers.Cert, PeerKey: peers.Key,
		QuotaBytes: c.QuotaBytes, OnMembers: d.publish, Log: log,
	}, func() {
		if err := c.joined(); err != nil {
			log.Warn("that this member has joined is not noted", "error", err)
		}
		close(served)
		manager.Synced()
		close(beside)
		if c.Ready != nil {
			c.Ready()
		}
	})
	stop()
	<-besideEnded
	telling.Wait()
	if why := <-watched; err == nil {
		err = why
	}
	if err = errors.Join(err, <-told); err == nil && again.Load() {
		err = become("/proc/self/exe")
		runtime.KeepAlive(manager) // and the descriptor that the next one inherits
	}
	return err
}

// withoutProxy forgets the proxy through which etcd would ask its peers.
func withoutProxy() {
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		_ = os.Unsetenv(name)
	}
}

// there is the folder of a socket that is served. etcd cannot make it again: when it
// goes the role ends, and the next one does.
func there(socket string) control.Folder {
	var made fs.FileInfo
	return control.Folder{Dir: filepath.Dir(socket), Look: func(string) error {
		st, err := os.Lstat(socket)
		if err == nil && made == nil {
			made = st
		}
		if err != nil || !os.SameFile(st, made) {
			return fmt.Errorf("datastore: somebody removed the socket %s", socket)
		}
		return nil
	}}
}

// nameThreads calls every thread netctl: started from a bundle they are called after a
// descriptor, or after the memory behind it. A thread that comes later has the name of
// the one that makes it, so that a pass that finds nothing to do is the last.
func nameThreads() {
	const name = "netctl\n"
	for changed := true; changed; {
		changed = false
		threads, _ := filepath.Glob("/proc/self/task/*/comm")
		for _, file := range threads {
			if is, err := os.ReadFile(file); err == nil && string(is) != name {
				changed = os.WriteFile(file, []byte(name[:len(name)-1]), 0) == nil || changed
			}
		}
	}
}

// certificates are those for clients that were given (none listen without), and those for
// peers: of a single member ones of our own, which nobody else can have. A client's
// certificate is none for a peer: that may write anything into the log.
func (c Config) certificates() (clients, peers pki.Files, err error) {
	clients, peers = pki.Files{CA: c.CA, Cert: c.Cert, Key: c.Key}, pki.Files{CA: c.PeerCA, Cert: c.PeerCert, Key: c.PeerKey}
	whole := func(f pki.Files) bool { return f.CA != "" && f.Cert != "" && f.Key != "" }
	refused := func(format string, args ...any) (pki.Files, pki.Files, error) {
		return clients, peers, fmt.Errorf("datastore: "+format+": %w", append(args, datastore.ErrInvalid)...)
	}
	switch {
	case clients != pki.Files{} && !whole(clients), peers != pki.Files{} && !whole(peers):
		return refused("tls needs ca, cert and key, all three")
	case len(c.Listen) > 0 && !whole(clients):
		return refused("%s needs tls ca, cert and key", c.Listen[0])
	case whole(peers) && same(peers.CA, clients.CA):
		return refused("tls for peers has the clients' authority %s: each of them would be a member", clients.CA)
	}
	if !whole(peers) {
		if peers, err = c.own(PeerFolder(c.StateDir)); err != nil {
			return clients, peers, err
		}
	}
	if !whole(clients) {
		clients = peers // nobody listens
	}
	return clients, peers, nil
}

// same says whether two files hold the same.
func same(a, b string) bool {
	one, errA := os.ReadFile(a)
	two, errB := os.ReadFile(b)
	return errA == nil && errB == nil && bytes.Equal(one, two)
}

func (c Config) own(dir string) (pki.Files, error) {
	if err := pki.Promote(dir); err != nil {
		return pki.Files{}, fmt.Errorf("datastore: %w", err)
	}
	_, err := pki.Open(dir)
	if errors.Is(err, datastore.ErrNotFound) {
		// What is left of an interrupted start signed nothing.
		if err := os.RemoveAll(dir); err != nil {
			return pki.Files{}, fmt.Errorf("datastore: %w", err)
		}
		_, err = pki.Create(dir)
	}
	if err != nil {
		return pki.Files{}, fmt.Errorf("datastore: %w", err)
	}
	ca, err := pki.Signer(dir, pki.In(dir, peerName).Cert)
	if err == nil {
		err = c.peerCertificate(ca)
	}
	if err != nil {
		return pki.Files{}, fmt.Errorf("datastore: %w", err)
	}
	return pki.In(dir, peerName), nil
}

// peerName is the peer port's certificate.
const peerName = "peer"

// peerCertificate makes the certificate of the peer port, if there is none of that
// authority that is good for long.
func (c Config) peerCertificate(ca *pki.Authority) error {
	n := pki.Node{Name: peerName}
	if u, err := url.Parse(cmp.Or(c.PeerURL, embed.DefaultPeerURL)); err == nil {
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
			n.Addresses = []netip.Addr{addr}
		}
	}
	_, err := ca.Renew(pki.In(PeerFolder(c.StateDir), peerName), n, peerLife, time.Now())
	return err
}
