package join

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/pki"
)

// Cluster are the members of the datastore.
type Cluster interface {
	// AddLearner adds a member that does not vote yet and returns all as NAME=PEERURL,
	// the new one under name, and how many will vote.
	AddLearner(ctx context.Context, name, peerURL string) (members []string, voters int, err error)
}

// Users are those of an external etcd.
type Users interface {
	// CreateUser makes a node's; ErrExists: there is one of that name.
	CreateUser(ctx context.Context, node, password string, extras []string) error
	// RemoveUser takes a node's away; ErrNotFound: there is none.
	RemoveUser(ctx context.Context, node string) error
}

// Service lets nodes in.
type Service struct {
	Store   datastore.Store
	Cluster Cluster
	// Users, if not nil, are those of the external etcd that Store is: each node that joins
	// gets one, and none becomes a member. EtcdCA is the file of the authority by which it
	// knows that etcd.
	Users  Users
	EtcdCA string
	// Keys are the authorities, as they are now.
	Keys func() Keys
	// Server is the certificate that it shows, and the authorities that it takes.
	Server pki.Files
	// Life is how long the certificates hold that it signs.
	Life time.Duration
	// Own are this member's URLs for clients, said until Members are written, or those of
	// an external etcd.
	Own  []string
	Port int
	Now  func() time.Time // nil: time.Now
	Log  *slog.Logger
}

// Keys are the authorities of a member.
type Keys struct {
	// CA signs who joins.
	CA *pki.Authority
	// Next, if not nil, replaces CA in that phase.
	Next  *pki.Authority
	Phase datastore.Phase
	// Peer is the authority of the members' own certificates; nil: not known here.
	Peer *pki.Authority
}

// renews is the authority that renews the certificate of who trusts those.
func (k Keys) renews(trusts []string) *pki.Authority {
	if k.Next != nil && (k.Phase == datastore.PhaseDone || k.Phase.Reached(datastore.PhaseNodes) && slices.Contains(trusts, k.Next.Hash())) {
		return k.Next
	}
	return k.CA
}

// laterError is a refusal that may not be one a moment later.
type laterError struct{ err error }

func (e *laterError) Error() string { return e.err.Error() }
func (e *laterError) Unwrap() error { return e.err }

func asLater(err error, into **laterError) bool { return errors.As(err, into) }

func (s *Service) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

// TLS is what it listens with: who joins has no certificate, who has one shows it.
func (s *Service) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			trusted, err := pki.ReadCertificates(s.Server.CA)
			if err != nil {
				return nil, err
			}
			own, err := tls.LoadX509KeyPair(s.Server.Cert, s.Server.Key)
			if err != nil {
				return nil, err
			}
			conf := &tls.Config{
				MinVersion: tls.VersionTLS12, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: x509.NewCertPool(), SessionTicketsDisabled: true,
			}
			for _, ca := range trusted {
				conf.ClientCAs.AddCert(ca)
				// Who joins knows the authority by its hash alone.
				if own.Leaf.CheckSignatureFrom(ca) == nil {
					own.Certificate = append(own.Certificate, ca.Raw)
				}
			}
			conf.Certificates = []tls.Certificate{own}
			return conf, nil
		},
	}
}

// maxConnections is how many may ask at a time: who asks need not be known.
const maxConnections = 512

// Serve answers on the listeners until ctx ends, and closes them.
func (s *Service) Serve(ctx context.Context, listeners ...net.Listener) error {
	server := &http.Server{
		Handler: s.handler(), ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 30 * time.Second,
		MaxHeaderBytes: 8 << 10,
		ErrorLog:       stdlog.New(io.Discard, "", 0), // what a stranger sends is no news
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		go func() { failed <- server.Serve(tls.NewListener(control.Bound(l, maxConnections), s.TLS())) }()
	}
	var err error
	for range listeners {
		err = errors.Join(err, <-failed)
		_ = server.Close()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Service) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, do func(context.Context, Request, []*x509.Certificate) (*Answer, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			var q Request
			err := decode(http.MaxBytesReader(w, r.Body, maxBody), &q)
			var a *Answer
			if err == nil {
				var chain []*x509.Certificate
				if len(r.TLS.VerifiedChains) > 0 {
					chain = r.TLS.VerifiedChains[0]
				}
				a, err = do(r.Context(), q, chain)
			}
			if err != nil {
				s.Log.Warn("join refused", "from", r.RemoteAddr, "cause", err, datastore.EventDatastore.Mark())
			}
			answer(w, a, err)
		})
	}
	handle(joinPath, s.join)
	handle(renewPath, s.renew)
	handle(confirmPath, s.confirm)
	return mux
}

// request checks what every request has: a clock that is right, a name and a key.
func (s *Service) request(q Request) (name string, key string, sign func(ca *pki.Authority, member bool) ([]byte, error), err error) {
	if off := s.now().Sub(q.Time); off.Abs() > MaxSkew {
		return "", "", nil, fmt.Errorf("this machine's clock says %s, the cluster's %s: set it, then try again", clock(q.Time), clock(s.now()))
	}
	name, public, err := pki.ParseRequest(q.CSR)
	if err != nil {
		return "", "", nil, err
	}
	if err := datastore.CheckName(name); err != nil {
		return "", "", nil, fmt.Errorf("node %w", err)
	}
	if key, err = pki.KeyHash(public); err != nil {
		return "", "", nil, err
	}
	return name, key, func(ca *pki.Authority, member bool) ([]byte, error) {
		now := s.now()
		role := datastore.RoleNode
		if member {
			role = datastore.RoleMember
		}
		return ca.Sign(public, pki.Node{
			Name: name, Use: pki.UseClient, Role: role, NotBefore: pki.NotBeforeNow(now, s.Life), NotAfter: now.Add(s.Life),
		})
	}, nil
}

func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// join lets a node in that has a token.
func (s *Service) join(ctx context.Context, q Request, _ []*x509.Certificate) (*Answer, error) {
	name, key, sign, err := s.request(q)
	if err != nil {
		return nil, err
	}
	t, revision, err := s.token(ctx, q, name, key)
	if err != nil {
		return nil, err
	}
	keys := s.Keys()
	a, err := s.admit(ctx, q, t, keys)
	if err != nil {
		return nil, err
	}
	if err := s.enter(ctx, q, entry{name, key, t, revision}, a); err != nil {
		return nil, err
	}
	if a.Certificate, err = sign(keys.CA, a.Member != nil); err != nil {
		return nil, err
	}
	s.Log.Info("node joined", "node", name, "token", q.Token, "member", a.Member != nil, datastore.EventDatastore.Mark())
	return a, nil
}

// entry is who comes in by which token, as it was at a revision.
type entry struct {
	name, key string
	token     datastore.JoinToken
	revision  int64
}

// admit finds out whether the node may come in as what it asks to be, and what it is told.
func (s *Service) admit(ctx context.Context, q Request, t datastore.JoinToken, keys Keys) (*Answer, error) {
	if keys.Next != nil && (q.PeerURL != "" || keys.Phase.Reached(datastore.PhaseServers)) {
		return nil, &laterError{errors.New("the cluster's authority is being replaced (`netctl datastore ca show` there says how far that is): try again when it is")}
	}
	if q.PeerURL != "" && s.Users != nil {
		return nil, errors.New("the cluster's datastore is an external etcd, of which no node becomes a member: leave --datastore out")
	}
	if q.PeerURL != "" && !t.Member {
		return nil, errors.New("the token lets in a node, but no member of the datastore: make one with `netctl token create --datastore`")
	}
	var members datastore.Members
	if _, err := datastore.Record(ctx, s.Store, datastore.MembersKey, &members); err != nil {
		return nil, s.unavailable(err)
	}
	a := &Answer{Authority: keys.CA.CertPEM(), Endpoints: members.Endpoints, JoinPort: s.Port}
	if keys.Next != nil {
		a.Authority = append(a.Authority, keys.Next.CertPEM()...)
	}
	if len(a.Endpoints) == 0 {
		a.Endpoints = s.Own
	}
	if s.Users != nil {
		ca, err := os.ReadFile(s.EtcdCA)
		if err != nil {
			return nil, &laterError{err}
		}
		a.User = &User{Authority: ca}
	}
	if q.PeerURL == "" {
		return a, nil
	}
	if err := checkPeerURL(q.PeerURL); err != nil {
		return nil, err
	}
	if keys.Peer == nil {
		return nil, errors.New("this member does not have the key of the members' authority: ask another one")
	}
	var err error
	m := &Member{PeerCA: keys.Peer.CertPEM()}
	if m.AuthorityKey, err = keys.CA.KeyPEM(); err == nil {
		m.PeerCAKey, err = keys.Peer.KeyPEM()
	}
	a.Member = m
	return a, err
}

func checkPeerURL(text string) error {
	u, err := url.Parse(text)
	if err == nil && u.Scheme == "https" && u.Port() != "" && u.Path == "" {
		if _, err := netip.ParseAddr(u.Hostname()); err == nil {
			return nil
		}
	}
	return fmt.Errorf("peer URL %q: want https://ADDRESS:PORT", text)
}

// token finds a request's token, if it is good for that node and key.
func (s *Service) token(ctx context.Context, q Request, name, key string) (datastore.JoinToken, int64, error) {
	var t datastore.JoinToken
	at, err := datastore.TokenKey(q.Token)
	if err != nil {
		return t, 0, err
	}
	revision, err := datastore.Record(ctx, s.Store, at, &t)
	if err != nil {
		return t, 0, s.unavailable(err)
	}
	whole := datastore.Token{}
	id, _ := hex.DecodeString(q.Token)
	copy(whole.ID[:], id)
	same := len(q.Secret) == copy(whole.Secret[:], q.Secret) && subtle.ConstantTimeCompare([]byte(whole.Hash()), []byte(t.Hash)) == 1
	switch {
	case revision == 0 || !same:
		return t, 0, errors.New("the token is not known here: it was revoked, expired long ago, or is another cluster's (`netctl token create` makes one)")
	case t.UsedBy != "" && (t.UsedBy != name || t.Key != key):
		return t, 0, fmt.Errorf("the token was used by node %s at %s, and each lets in one: `netctl token create` makes another", t.UsedBy, clock(t.Used))
	case !s.now().Before(t.Expires):
		return t, 0, fmt.Errorf("the token expired at %s: `netctl token create` makes another", clock(t.Expires))
	}
	return t, revision, nil
}

// enter uses the token up and gives the node its name, in one transaction; then a member
// becomes one, or etcd gets the node's user. Who asks again with the same key, because an answer was lost, is let in
// again.
func (s *Service) enter(ctx context.Context, q Request, e entry, a *Answer) error {
	name, key, t := e.name, e.key, e.token
	tokenAt, err := datastore.TokenKey(q.Token)
	if err != nil {
		return err
	}
	nodeAt, err := datastore.JoinedKey(name)
	if err != nil {
		return err
	}
	var have datastore.JoinedNode
	had, err := datastore.Record(ctx, s.Store, nodeAt, &have)
	if err != nil {
		return s.unavailable(err)
	}
	if had != 0 && have.Key != key && have.Removed.IsZero() {
		return fmt.Errorf("node %s is in the cluster since %s: take another name (--node-name), or, if that one is gone, `netctl node remove %s` first", name, clock(have.Since), name)
	}
	again := t.UsedBy != ""
	if again && !have.Removed.IsZero() {
		return fmt.Errorf("node %s was removed from the cluster at %s, and the token let it in before that: `netctl token create` makes another", name, clock(have.Removed))
	} else if again && a.Member != nil && !have.Member {
		return fmt.Errorf("node %s is no member of the datastore any more, and the token made it one before that: `netctl token create --datastore` makes another", name)
	}
	if had == 0 || !have.Removed.IsZero() {
		if err := s.unregistered(ctx, name); err != nil {
			return err
		}
	}
	unused, joined := t, datastore.JoinedNode{Name: name, Key: key, Member: a.Member != nil, User: a.User != nil, Since: s.now().UTC().Truncate(time.Second)}
	t.UsedBy, t.Key, t.Used = name, key, joined.Since
	written, err := s.swap(ctx, records{tokenAt, e.revision, nodeAt, had}, t, &joined)
	if err != nil {
		return err
	}
	switch {
	case a.Member != nil:
		if a.Member.Members, a.Member.Voters, err = s.Cluster.AddLearner(ctx, name, q.PeerURL); err != nil {
			err = fmt.Errorf("node %s did not become a member: %w", name, err)
		}
	case a.User != nil:
		err = s.user(ctx, a.User, name, again)
	}
	if err == nil {
		return nil
	}
	// Nothing half-done: token and name are again what they were, a removed node's removed.
	before := &have
	if had == 0 {
		before = nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if _, failed := s.swap(undo, records{tokenAt, written, nodeAt, written}, unused, before); failed != nil {
		s.Log.Warn("token stays used", "token", q.Token, "error", failed)
	}
	return err
}

// user makes a node's user in an external etcd, with a password of its own. One that comes
// again because an answer was lost gets another password.
func (s *Service) user(ctx context.Context, u *User, node string, again bool) error {
	if again {
		if err := s.Users.RemoveUser(ctx, node); err != nil && !errors.Is(err, datastore.ErrNotFound) {
			return s.unavailable(err)
		}
	}
	u.Name, u.Password = node, rand.Text()
	err := s.Users.CreateUser(ctx, node, u.Password, nil)
	switch {
	case errors.Is(err, datastore.ErrExists):
		return fmt.Errorf("etcd has a user %s, who may be somebody else: take another name (--node-name), or `netctl datastore user remove %s` first", node, node)
	case err != nil:
		return s.unavailable(err)
	}
	return nil
}

// unregistered refuses the name of a node that somebody else registered.
func (s *Service) unregistered(ctx context.Context, name string) error {
	at, err := datastore.Key(datastore.KindNode, name)
	if err != nil {
		return err
	}
	switch _, err := s.Store.Get(ctx, at); {
	case errors.Is(err, datastore.ErrNotFound):
		return nil
	case err != nil:
		return s.unavailable(err)
	}
	return fmt.Errorf("node %s is in the cluster: take another name (--node-name), or, if that one is gone, `netctl node remove %s` first", name, name)
}

// records are a token's and a node's, and in which revisions they are expected.
type records struct {
	tokenAt string
	token   int64
	nodeAt  string
	node    int64
}

// swap writes a token and a node (nil: deletes it) if neither changed, and returns the
// revision that both have then.
func (s *Service) swap(ctx context.Context, at records, t datastore.JoinToken, n *datastore.JoinedNode) (int64, error) {
	one, err := datastore.RecordOp(at.tokenAt, t)
	if err != nil {
		return 0, err
	}
	two := datastore.Op{Key: at.nodeAt}
	if n != nil {
		if two, err = datastore.RecordOp(at.nodeAt, n); err != nil {
			return 0, err
		}
	}
	revision, err := s.Store.Commit(ctx, datastore.Txn{
		If:   []datastore.Condition{{Key: at.tokenAt, Revision: at.token}, {Key: at.nodeAt, Revision: at.node}},
		Then: []datastore.Op{one, two},
	})
	if errors.Is(err, datastore.ErrConflict) || errors.Is(err, datastore.ErrExists) {
		return 0, &laterError{errors.New("somebody else used the token, or the name, at the same time: try again")}
	}
	if err != nil {
		return 0, s.unavailable(err)
	}
	return revision, nil
}

// unavailable is said of a datastore that does not answer itself.
func (s *Service) unavailable(err error) error {
	if errors.Is(err, datastore.ErrInvalid) {
		return err
	}
	return &laterError{fmt.Errorf("the datastore does not take it now: %s", strings.TrimSpace(err.Error()))}
}
