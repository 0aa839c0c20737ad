//go:build !bundled

package datastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/pki"
)

// How long until the door is tried again, and until a certificate that was not renewed
// is.
const (
	doorAgain  = 5 * time.Second
	renewAgain = time.Minute
	renewMost  = time.Hour
)

// door lets nodes in: what a member with JoinPort does beside etcd.
type door struct {
	c      Config
	log    *slog.Logger
	server pki.Node // whose certificate it shows
	authorities
	followed string // the rotation in which nothing is left to do here
	peers    []byte // the members' authorities that the server started with
	restart  func() // has the role start again

	renewing sync.Mutex // held while the server's certificate is looked at
	next     time.Time  // when it is due
}

// newDoor makes the server's certificate if need be; without JoinPort it does nothing.
func (c Config) newDoor(log *slog.Logger) (*door, error) {
	d := &door{c: c, log: log}
	if c.JoinPort == 0 {
		return d, nil
	}
	err := pki.Promote(d.clientDir())
	if err == nil {
		err = d.load("")
	}
	if err != nil {
		return nil, fmt.Errorf("datastore: joinPort needs the authority's key beside its certificate: %w", err)
	}
	d.server = pki.Node{Name: c.Node, Use: pki.UseServer}
	for _, text := range c.Listen {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("datastore: %w: %w", err, datastore.ErrInvalid)
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && !slices.Contains(d.server.Addresses, addr) {
			d.server.Addresses = append(d.server.Addresses, addr)
		}
	}
	if err := d.certify(); err != nil {
		return nil, fmt.Errorf("datastore: %w", err)
	}
	return d, nil
}

// certify makes or renews the server's certificate if that is due. Once members show
// certificates of a new authority it is that one's.
func (d *door) certify() error {
	d.renewing.Lock()
	defer d.renewing.Unlock()
	sign := pki.Signer
	if d.now().Phase.Reached(datastore.PhaseServers) {
		sign = func(dir, _ string) (*pki.Authority, error) { return newest(dir) }
	}
	ca, err := sign(d.clientDir(), d.c.Cert)
	if err != nil {
		return err
	}
	next, err := ca.Renew(d.files(), d.server, d.c.CertificateLife, time.Now())
	if err == nil && next != d.next && !d.next.IsZero() {
		d.log.Info("certificate renewed", "file", d.c.Cert, datastore.EventCertificate.Mark())
	}
	if err == nil {
		d.next = next
	}
	return err
}

// due is in what time the server's certificate is.
func (d *door) due() time.Duration {
	d.renewing.Lock()
	defer d.renewing.Unlock()
	return time.Until(d.next)
}

func (d *door) files() pki.Files { return pki.Files{CA: d.c.CA, Cert: d.c.Cert, Key: d.c.Key} }

// runAfter runs the door, and what else is beside etcd, once it may; the channel that it returns says that it ended.
func (d *door) runAfter(ctx context.Context, begin <-chan struct{}) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-begin:
			var shared sync.WaitGroup
			shared.Go(func() { d.c.share(ctx, d.log) })
			d.run(ctx)
			shared.Wait()
		case <-ctx.Done():
		}
	}()
	return ended
}

// run lets nodes in and keeps the certificate good until ctx ends.
func (d *door) run(ctx context.Context) {
	if d.c.JoinPort == 0 {
		return
	}
	var beside sync.WaitGroup
	beside.Go(func() { d.renew(ctx) })
	if !d.external() {
		beside.Go(func() { d.follow(ctx) })
	}
	defer beside.Wait()
	for ctx.Err() == nil {
		if err := d.open(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("nodes cannot join here", "error", err, "again", doorAgain)
		}
		select {
		case <-ctx.Done():
		case <-time.After(doorAgain):
		}
	}
}

// renew renews the server's certificate in time.
func (d *door) renew(ctx context.Context) {
	for wait := d.due(); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(wait, time.Second), renewMost)):
		}
		if err := d.certify(); err != nil {
			d.log.Warn("certificate not renewed", "file", d.c.Cert, "error", err, "again", renewAgain, datastore.EventCertificate.Mark())
			wait = renewAgain
		} else {
			wait = d.due()
		}
	}
}

func (d *door) open(ctx context.Context) error {
	store, err := etcd.Open(ctx, d.reached())
	if err != nil {
		return err
	}
	defer store.Close()
	if err := d.first(ctx, store); err != nil {
		return err
	}
	var listeners []net.Listener
	for _, addr := range d.server.Addresses {
		l, err := net.Listen("tcp", netip.AddrPortFrom(addr, uint16(d.c.JoinPort)).String())
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		listeners = append(listeners, l)
	}
	if err := d.load(d.now().Phase); err != nil {
		return err
	}
	service := &join.Service{
		Store: store, Cluster: store, Keys: d.now, Server: d.files(), Life: d.c.CertificateLife,
		Own: d.c.Listen, Port: d.c.JoinPort, Log: d.log,
	}
	if d.external() {
		service.Users, service.EtcdCA, service.Own = store, d.c.External.CA, d.c.External.Endpoints
	}
	return service.Serve(ctx, listeners...)
}

// external says whether the cluster's etcd is not netctl's.
func (d *door) external() bool { return d.c.External.User != "" }

// reached is how the door reaches the datastore.
func (d *door) reached() etcd.Options {
	o := etcd.Options{Endpoints: []string{"unix://" + d.c.Socket}}
	if d.external() {
		o = d.c.External
	}
	o.Log = d.log
	return o
}

// publish writes where the members are, for nodes to follow.
func (d *door) publish(ctx context.Context, urls []string) error {
	if d.c.JoinPort == 0 || len(urls) == 0 {
		return nil
	}
	store, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{"unix://" + d.c.Socket}, Log: d.log})
	if err != nil {
		return err
	}
	defer store.Close()
	var have datastore.Members
	revision, err := datastore.Record(ctx, store, datastore.MembersKey, &have)
	if err != nil && !errors.Is(err, datastore.ErrInvalid) {
		return err
	}
	if slices.Equal(have.Endpoints, urls) && have.JoinPort == d.c.JoinPort {
		return nil
	}
	op, err := datastore.RecordOp(datastore.MembersKey, datastore.Members{Endpoints: urls, JoinPort: d.c.JoinPort})
	if err != nil {
		return err
	}
	_, err = store.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: datastore.MembersKey, Revision: revision}}, Then: []datastore.Op{op}})
	return err
}

// joins reads which cluster a new member joins, where nothing else is said. Once it is
// one that is noted: without its data it must not come back as the member that it was.
func (c *Config) joins() error {
	file := filepath.Join(c.StateDir, JoinsFile)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || len(c.Members) > 0 {
		_, member := os.Lstat(filepath.Join(c.StateDir, joinedFile))
		_, data := os.Lstat(filepath.Join(c.StateDir, "etcd", "member"))
		if member == nil && errors.Is(data, fs.ErrNotExist) {
			return fmt.Errorf("datastore: the data of this member is gone: `netctl datastore member remove %s` on another one, then let this machine join anew (docs/datastore.md): %w", c.Node, datastore.ErrNotFound)
		}
		return nil
	}
	if err == nil {
		err = json.Unmarshal(text, &c.Members)
	}
	if err != nil {
		return fmt.Errorf("datastore: %s: %w", file, err)
	}
	return nil
}

// joined notes that this member is one.
func (c *Config) joined() error {
	err := os.Rename(filepath.Join(c.StateDir, JoinsFile), filepath.Join(c.StateDir, joinedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// first writes what a new cluster begins with, once.
func (d *door) first(ctx context.Context, store datastore.Store) error {
	file := filepath.Join(d.c.StateDir, FirstFile)
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var f First
	if err == nil {
		err = json.Unmarshal(text, &f)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	nodeAt, err := datastore.JoinedKey(f.Node.Name)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	tokenAt, err := datastore.TokenKey(f.Token.ID)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	node, err := datastore.RecordOp(nodeAt, f.Node)
	if err != nil {
		return err
	}
	token, err := datastore.RecordOp(tokenAt, f.Token)
	if err != nil {
		return err
	}
	_, err = store.Commit(ctx, datastore.Txn{
		If:   []datastore.Condition{{Key: nodeAt}, {Key: tokenAt}},
		Then: []datastore.Op{node, token},
	})
	if err != nil && !errors.Is(err, datastore.ErrExists) {
		return err
	}
	return os.Remove(file)
}
