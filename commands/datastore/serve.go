//go:build !bundled

package datastore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/embed"
	"netctl/datastore/pki"
)

// gcPercent keeps the heap of a server that mostly idles small.
const gcPercent = 50

// Run serves until ctx ends.
func Run(ctx context.Context, c Config, log *slog.Logger) error {
	// Started from a bundle this process is called after a descriptor.
	_ = os.WriteFile("/proc/self/comm", []byte("netctl"), 0)
	// etcd asks its peers through the proxy that these name.
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		_ = os.Unsetenv(name)
	}
	lock, err := control.Lock(c.StateDir, "datastore")
	if err != nil {
		return err
	}
	defer lock.Close()
	files, err := c.certificates()
	if err != nil {
		return err
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	served, watched := make(chan struct{}), make(chan error, 1)
	go func() {
		defer stop()
		select {
		case <-served:
			watched <- control.WatchFolders(ctx, log, lock.Folder(), there(c.Socket))
		case <-ctx.Done():
			watched <- nil
		}
	}()
	err = embed.Run(ctx, embed.Config{
		Name: c.Node, Dir: filepath.Join(c.StateDir, "etcd"), Socket: c.Socket,
		ListenTLS: c.Listen, PeerURL: c.PeerURL, Members: c.Members, Token: c.Token,
		CA: files.CA, Cert: files.Cert, Key: files.Key,
		QuotaBytes: c.QuotaBytes, Log: log,
	}, func() {
		close(served)
		if c.Ready != nil {
			c.Ready()
		}
	})
	stop()
	if why := <-watched; err == nil {
		err = why
	}
	return err
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

// certificates are those that were given, or ones of our own for the peer port
// alone: nobody else can have a certificate of that authority.
func (c Config) certificates() (pki.Files, error) {
	given := pki.Files{CA: c.CA, Cert: c.Cert, Key: c.Key}
	switch {
	case c.CA != "" && c.Cert != "" && c.Key != "":
		return given, nil
	case given != pki.Files{}:
		return given, fmt.Errorf("datastore: tls needs ca, cert and key, all three: %w", datastore.ErrInvalid)
	case len(c.Listen) > 0:
		return given, fmt.Errorf("datastore: %s needs tls ca, cert and key: %w", c.Listen[0], datastore.ErrInvalid)
	case len(c.Members) > 1:
		return given, fmt.Errorf("datastore: several members need tls ca, cert and key of one authority: %w", datastore.ErrInvalid)
	}
	return c.own(filepath.Join(c.StateDir, "etcd-tls"))
}

func (c Config) own(dir string) (pki.Files, error) {
	ca, err := pki.Open(dir)
	if errors.Is(err, datastore.ErrNotFound) {
		// What is left of an interrupted start signed nothing.
		if err := os.RemoveAll(dir); err != nil {
			return pki.Files{}, fmt.Errorf("datastore: %w", err)
		}
		ca, err = pki.Create(dir)
	}
	if err != nil {
		return pki.Files{}, fmt.Errorf("datastore: %w", err)
	}
	peer := c.PeerURL
	if peer == "" {
		peer = embed.DefaultPeerURL
	}
	n := pki.Node{Name: "peer"}
	if u, err := url.Parse(peer); err == nil {
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
			n.Addresses = []netip.Addr{addr}
		}
	}
	// Anew at each start, so that it does not expire.
	files, err := ca.Issue(dir, n)
	if err != nil {
		return files, fmt.Errorf("datastore: %w", err)
	}
	return files, nil
}
