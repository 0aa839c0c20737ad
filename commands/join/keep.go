package join

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"sync/atomic"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
)

// How often a certificate that cannot be renewed is tried, and how long at most until one
// that is good is looked at again: clocks are set, and files replaced.
const (
	keepFirst = time.Second
	keepMost  = time.Minute
	lookMost  = 10 * time.Minute
)

// Keeper renews the certificate of this node while it is good. Certificates that no node
// joined with it leaves alone.
type Keeper struct {
	Files pki.Files
	// Where says where to ask.
	Where func() []netip.AddrPort
	// Lock keeps others of this node from doing the same at the same time; its error is
	// that one does.
	Lock func() (io.Closer, error)
	Log  *slog.Logger

	succession atomic.Pointer[datastore.Rotation] // what was heard last
	changed    chan struct{}                      // of capacity 1
	confirmed  string                             // the Rotation of which the cluster knows that this node follows it
}

// NewKeeper makes a keeper of those files.
func NewKeeper(files pki.Files, log *slog.Logger) *Keeper {
	return &Keeper{Files: files, Log: log, changed: make(chan struct{}, 1)}
}

// Tasks are what every role does to keep its way to the datastore open: to follow its
// members, and to renew the certificate of store's client. dir is the node's state folder.
func Tasks(store *etcd.Store, o etcd.Options, dir string, log *slog.Logger) []control.Task {
	k := NewKeeper(pki.Files{CA: o.CA, Cert: o.Cert, Key: o.Key}, log)
	k.Lock = func() (io.Closer, error) { return control.Lock(dir, "certificate") }
	k.Where = func() []netip.AddrPort {
		return Endpoints(store.Endpoints(), etcd.ReadMembers(o.Members, o.Endpoints).JoinPort)
	}
	return []control.Task{
		{Name: "follow the datastore's members", Do: store.FollowMembers},
		{Name: "keep the certificate", Do: k.Run},
		{Name: "follow the cluster's authority", Do: func(ctx context.Context) error {
			if o.Cert == "" {
				<-ctx.Done()
				return nil
			}
			return store.FollowRecord(ctx, datastore.AuthorityKey, k.Heard)
		}},
	}
}

// Run keeps the certificate until ctx ends. What fails is told and tried again.
func (k *Keeper) Run(ctx context.Context) error {
	if k.Files.Cert == "" { // a unix socket wants none
		<-ctx.Done()
		return nil
	}
	for wait := keepFirst; ; {
		next, err := k.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			k.Log.Warn("certificate not renewed", "file", k.Files.Cert, "error", err, "again", wait, datastore.EventCertificate.Mark())
			next, wait = wait, min(2*wait, keepMost)
		default:
			wait = keepFirst
		}
		select {
		case <-ctx.Done():
			return nil
		case <-k.changed:
		case <-time.After(next):
		}
	}
}

// look renews the certificate if it is time, and says when to look again.
func (k *Keeper) look(ctx context.Context) (time.Duration, error) {
	due, renewable, err := k.due()
	if err != nil || !renewable {
		return lookMost, err
	}
	if next, err := k.succeed(ctx); next != 0 || err != nil {
		return next, err
	}
	if left := time.Until(due); left > 0 {
		// Not all nodes that were made at once at the same moment.
		return min(left+time.Duration(rand.Int64N(int64(left)/20+1)), lookMost), nil
	}
	lock, err := k.Lock()
	if err != nil {
		return keepFirst, nil // somebody is at it
	}
	defer lock.Close()
	if due, renewable, err = k.due(); err != nil || !renewable || time.Until(due) > 0 {
		return keepFirst, err
	}
	return keepFirst, k.renew(ctx)
}

// due is when the certificate is to be renewed, if it is one that is.
func (k *Keeper) due() (due time.Time, renewable bool, err error) {
	cert, err := pki.ReadCertificate(k.Files.Cert)
	if err != nil {
		return due, false, err
	}
	if !slices.Contains(cert.Subject.Organization, datastore.RoleNode) && !slices.Contains(cert.Subject.Organization, datastore.RoleMember) {
		return due, false, nil
	}
	if now := time.Now(); now.After(cert.NotAfter) {
		return due, false, fmt.Errorf("it expired at %s, and only a good one is renewed: let the node join again (docs/datastore.md)", clock(cert.NotAfter))
	}
	return pki.RenewAt(cert), true, nil
}

// renew asks for another certificate of the same key: files that belong together are
// never there by halves.
func (k *Keeper) renew(ctx context.Context) error {
	c, name, key, err := k.client()
	if err != nil {
		return err
	}
	a, err := c.Renew(ctx, name, key)
	if err != nil {
		return err
	}
	if err := datastore.WriteFile(k.Files.Cert, a.Certificate, datastore.FileOptions{Mode: 0o644}); err != nil {
		return err
	}
	k.Log.Info("certificate renewed", "file", k.Files.Cert, datastore.EventCertificate.Mark())
	return nil
}

// client asks with the certificate and the authorities as they are in the files.
func (k *Keeper) client() (*Client, string, *ecdsa.PrivateKey, error) {
	trusted, err := pki.ReadCertificates(k.Files.CA)
	if err != nil {
		return nil, "", nil, err
	}
	pair, err := tls.LoadX509KeyPair(k.Files.Cert, k.Files.Key)
	if err != nil {
		return nil, "", nil, err
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, "", nil, fmt.Errorf("%s: not an ECDSA key: %w", k.Files.Key, datastore.ErrInvalid)
	}
	c := &Client{Endpoints: k.Where(), Certificate: &pair}
	for _, ca := range trusted {
		c.Authorities = append(c.Authorities, sha256.Sum256(ca.Raw))
	}
	return c, pair.Leaf.Subject.CommonName, key, nil
}

// Endpoints are where members with those https URLs let nodes in.
func Endpoints(urls []string, port int) (list []netip.AddrPort) {
	if port == 0 {
		port = DefaultPort
	}
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
			list = append(list, netip.AddrPortFrom(addr, uint16(port)))
		}
	}
	return list
}
