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
	ca     *pki.Authority
	server pki.Node // whose certificate it shows
	next   time.Time
}

// newDoor makes the server's certificate if need be; without JoinPort it does nothing.
func (c Config) newDoor(log *slog.Logger) (*door, error) {
	d := &door{c: c, log: log}
	if c.JoinPort == 0 {
		return d, nil
	}
	ca, err := pki.Open(filepath.Dir(c.CA))
	if err != nil {
		return nil, fmt.Errorf("datastore: joinPort needs the authority's key beside its certificate: %w", err)
	}
	d.ca, d.server = ca, pki.Node{Name: c.Node, Use: pki.UseServer}
	for _, text := range c.Listen {
		u, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("datastore: %w: %w", err, datastore.ErrInvalid)
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && !slices.Contains(d.server.Addresses, addr) {
			d.server.Addresses = append(d.server.Addresses, addr)
		}
	}
	if d.next, err = ca.Renew(d.files(), d.server, c.CertificateLife, time.Now()); err != nil {
		return nil, fmt.Errorf("datastore: %w", err)
	}
	return d, nil
}

func (d *door) files() pki.Files { return pki.Files{CA: d.c.CA, Cert: d.c.Cert, Key: d.c.Key} }

// run lets nodes in and keeps the certificate good until ctx ends.
func (d *door) run(ctx context.Context) {
	if d.ca == nil {
		return
	}
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		d.renew(ctx)
	}()
	for ctx.Err() == nil {
		if err := d.open(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("nodes cannot join here", "error", err, "again", doorAgain)
		}
		select {
		case <-ctx.Done():
		case <-time.After(doorAgain):
		}
	}
	<-renewed
}

// renew renews the server's certificate in time.
func (d *door) renew(ctx context.Context) {
	for {
		wait := min(max(time.Until(d.next), time.Second), renewMost)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		next, err := d.ca.Renew(d.files(), d.server, d.c.CertificateLife, time.Now())
		if err != nil {
			d.log.Warn("certificate not renewed", "file", d.c.Cert, "error", err, "again", renewAgain, datastore.EventCertificate.Mark())
			next = time.Now().Add(renewAgain)
		} else if next != d.next {
			d.log.Info("certificate renewed", "file", d.c.Cert, datastore.EventCertificate.Mark())
		}
		d.next = next
	}
}

func (d *door) open(ctx context.Context) error {
	store, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{"unix://" + d.c.Socket}, Log: d.log})
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
	peers, err := pki.Open(PeerFolder(d.c.StateDir))
	if err != nil {
		peers = nil // it lets in nodes all the same
	}
	service := &join.Service{
		Store: store, Cluster: store, CA: d.ca, PeerCA: peers, Server: d.files(), Life: d.c.CertificateLife,
		Own: d.c.Listen, Port: d.c.JoinPort, Log: d.log,
	}
	return service.Serve(ctx, listeners...)
}

// publish writes where the members are, for nodes to follow.
func (d *door) publish(ctx context.Context, urls []string) error {
	if d.ca == nil || len(urls) == 0 {
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
