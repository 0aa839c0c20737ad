// Package etcd owns the datastore.Store that is an etcd cluster, netctl's own
// (datastore/embed) or an external one, reached by the same four settings.
//
// It never interprets a value. Every call ends within a bounded time, and a store
// that does not answer is an ErrUnavailable that says why, endpoint by endpoint.
// One grpc connection per endpoint serves every call and every watch; after
// Close nothing is left running.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"netctl/datastore"
)

// DefaultEndpoint is the socket of the node's own datastore role.
const DefaultEndpoint = "unix:///run/netctl-node/etcd.sock"

// Bounds; those of calls include finding out why nobody answers. etcd itself gives
// a write up after about 7 s. A dead peer is noticed after
// keepAlive+keepAliveTimeout; etcd refuses clients that ask more often than every
// 5 s.
const (
	defaultDialTimeout = 3 * time.Second
	readTimeout        = 5 * time.Second
	writeTimeout       = 10 * time.Second
	keepAlive          = 10 * time.Second
	keepAliveTimeout   = 5 * time.Second
	redialFirst        = 50 * time.Millisecond
	redialMax          = 2 * time.Second
)

// Options say where the store is and who we are.
type Options struct {
	// Endpoints is one unix:///path or a list of https://host:port; empty:
	// DefaultEndpoint.
	Endpoints []string
	// CA, Cert and Key are the names of PEM files, all or none; https needs them. They are read again for every connection.
	CA, Cert, Key string
	// User, and the file with its password, are for an etcd that asks for them; Cert and
	// Key may be left out then.
	User, PasswordFile string
	// Members is the name of a file in which the endpoints of the cluster's members are
	// kept (FollowMembers), in the place of https Endpoints; it need not be there.
	Members string
	// DialTimeout bounds one attempt to connect; default 3 s.
	DialTimeout time.Duration
	// Log may be nil.
	Log *slog.Logger
}

// Store is an etcd cluster.
type Store struct {
	secure    bool
	files     Options // what to read, and to name in messages; its Endpoints are as configured
	dial      time.Duration
	log       *slog.Logger
	login     *login // nil: nobody asks for a user
	closed    atomic.Bool
	endpoints atomic.Pointer[[]string] // see where

	opening sync.Mutex // held while what follows is made; see connect
	client  *clientv3.Client
	kv      etcdserverpb.KVClient
	watch   etcdserverpb.WatchClient
}

var _ datastore.Store = (*Store)(nil)

// Open prepares a store; the server need not be up. An error wraps
// datastore.ErrInvalid and names the endpoint. Files that cannot be used are no such
// error: each call reads them again and says what is wrong with them, until they can.
func Open(ctx context.Context, o Options) (*Store, error) {
	if len(o.Endpoints) == 0 {
		o.Endpoints = []string{DefaultEndpoint}
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = defaultDialTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	secure, err := o.check()
	if err != nil {
		return nil, fmt.Errorf("datastore endpoints: %w", err)
	}
	s := &Store{secure: secure, files: o, dial: o.DialTimeout, log: o.Log}
	s.endpoints.Store(s.known())
	if o.User != "" {
		s.login = &login{user: o.User, file: o.PasswordFile}
	}
	if err := s.connect(ctx); errors.Is(err, datastore.ErrInvalid) {
		return nil, err
	}
	return s, nil
}

// connect makes the connection, which dials by itself, unless it is made. Until it is,
// nothing but this may use it.
func (s *Store) connect(ctx context.Context) (err error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	switch {
	case s.client != nil:
		return nil
	case s.closed.Load():
		return errors.New("store closed")
	}
	options := []grpc.DialOption{}
	if s.secure {
		if _, err := clientTLS(s.files); err != nil {
			return err
		}
		options = append(options, grpc.WithTransportCredentials(fresh{s.files}))
	}
	if s.login != nil {
		options = append(options, grpc.WithPerRPCCredentials(s.login))
	}
	redial := backoff.Config{BaseDelay: redialFirst, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax}
	s.client, err = clientv3.New(clientv3.Config{
		Endpoints:            s.where(),
		DialKeepAliveTime:    keepAlive,
		DialKeepAliveTimeout: keepAliveTimeout,
		MaxUnaryRetries:      1, // none: see try
		Context:              context.WithoutCancel(ctx),
		Logger:               zap.NewNop(), // says the same as the errors, many times
		DialOptions: append(options,
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: redial, MinConnectTimeout: s.dial}),
			grpc.WithIdleTimeout(0),
			grpc.WithNoProxy(), // HTTPS_PROXY is for the way out, not for this
			grpc.WithReadBufferSize(8<<10), grpc.WithWriteBufferSize(8<<10),
		),
	})
	if err != nil {
		s.client = nil
		return fmt.Errorf("datastore %v: %w: %w", s.where(), err, datastore.ErrInvalid)
	}
	// The plain clients: clientv3's own wait for a connection until the deadline
	// and its watches go on silently on whatever etcd answers next.
	s.kv = etcdserverpb.NewKVClient(s.client.ActiveConnection())
	s.watch = etcdserverpb.NewWatchClient(s.client.ActiveConnection())
	return nil
}

// Check refuses what Open would, and touches nothing.
func (o Options) Check() error {
	_, err := o.check()
	return err
}

func (o Options) check() (secure bool, err error) {
	if secure, err = checkEndpoints(o.Endpoints); err != nil {
		return false, err
	}
	return secure, checkFiles(o, secure)
}

// checkEndpoints reports whether the endpoints are https.
func checkEndpoints(endpoints []string) (secure bool, err error) {
	for _, e := range endpoints {
		u, err := url.Parse(e)
		switch {
		case err != nil:
			return false, fmt.Errorf("%q: %w: want unix:///path or https://host:port", e, datastore.ErrInvalid)
		case u.Scheme == "https" && u.Hostname() != "" && u.Port() != "" && u.Path == "" && u.User == nil:
			secure = true
		case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
			if len(endpoints) > 1 {
				return false, fmt.Errorf("%q: %w: want one unix socket or a list of https URLs", endpoints, datastore.ErrInvalid)
			}
		case u.Scheme == "http":
			return false, fmt.Errorf("%q: %w: plain http is not offered, use https://host:port with ca, cert and key", e, datastore.ErrInvalid)
		default:
			return false, fmt.Errorf("%q: %w: want unix:///path or https://host:port", e, datastore.ErrInvalid)
		}
	}
	return secure, nil
}

// Get implements datastore.Store.
func (s *Store) Get(ctx context.Context, key string) (datastore.Entry, error) {
	var r *etcdserverpb.RangeResponse
	err := s.read(ctx, "read "+key, func(ctx context.Context) (err error) {
		r, err = s.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(key)}, callOptions()...)
		return err
	})
	if err != nil {
		return datastore.Entry{}, err
	}
	if len(r.Kvs) == 0 {
		return datastore.Entry{}, fmt.Errorf("read %s: %w", key, datastore.ErrNotFound)
	}
	return entry(r.Kvs[0]), nil
}

// A listing is read in pages, so that no message is large and no deadline is one
// for all of it. For each page etcd counts what is left of the prefix, so pages are
// not small either: of pageBytes, judged by the page before.
const (
	pageFirst = 1000 // entries
	pageMost  = 10000
	pageBytes = 1 << 20
)

// pageAfter is the number of entries of the page that follows one of these.
func pageAfter(page []*mvccpb.KeyValue) int64 {
	size := 1
	for _, kv := range page {
		size += len(kv.Key) + len(kv.Value)
	}
	return int64(min(max(len(page)*pageBytes/size, 1), pageMost))
}

// listAttempts is how often a list starts again because its revision was
// compacted between two pages.
const listAttempts = 3

// List implements datastore.Store. Pages after the first are read at the first
// one's revision.
func (s *Store) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	prefixes = slices.Sorted(slices.Values(prefixes))
	for attempt := 1; ; attempt++ {
		var snap datastore.Snapshot
		var err error
		for _, p := range prefixes {
			if err = s.list(ctx, p, &snap); err != nil {
				snap = datastore.Snapshot{}
				break
			}
		}
		if err == nil || attempt == listAttempts || !errors.Is(err, datastore.ErrCompacted) {
			return snap, err
		}
	}
}

// rangeEnd is where the range of a prefix ends; one key has none.
func rangeEnd(prefix string) []byte {
	if !strings.HasSuffix(prefix, "/") {
		return nil
	}
	return []byte(clientv3.GetPrefixRangeEnd(prefix))
}

// list appends what is under a prefix to snap, at its revision; 0 is the present.
func (s *Store) list(ctx context.Context, prefix string, snap *datastore.Snapshot) error {
	next, end := []byte(prefix), rangeEnd(prefix)
	for limit := int64(pageFirst); ; {
		var r *etcdserverpb.RangeResponse
		err := s.read(ctx, "list "+prefix, func(ctx context.Context) (err error) {
			r, err = s.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: next, RangeEnd: end, Limit: limit, Revision: snap.Revision}, callOptions()...)
			return err
		})
		if err != nil {
			return err
		}
		if snap.Revision == 0 {
			snap.Revision = r.Header.Revision
		}
		snap.Entries = slices.Grow(snap.Entries, int(r.Count))
		for _, kv := range r.Kvs {
			snap.Entries = append(snap.Entries, entry(kv))
		}
		if !r.More || len(r.Kvs) == 0 {
			return nil
		}
		next, limit = append(r.Kvs[len(r.Kvs)-1].Key, 0), pageAfter(r.Kvs)
	}
}

// ID implements datastore.Store: etcd's cluster ID.
func (s *Store) ID(ctx context.Context) (uint64, error) {
	var r *etcdserverpb.RangeResponse
	err := s.read(ctx, "read identity", func(ctx context.Context) (err error) {
		r, err = s.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(datastore.Prefix), CountOnly: true}, callOptions()...)
		return err
	})
	if err != nil {
		return 0, err
	}
	return r.Header.ClusterId, nil
}

// Close implements datastore.Store.
func (s *Store) Close() error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.closed.Swap(true) || s.client == nil {
		return nil
	}
	if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close datastore: %w", err)
	}
	return nil
}

// callOptions let a call fail at once when no endpoint can be reached, rather
// than at its deadline, and take answers of any size.
func callOptions() []grpc.CallOption {
	return []grpc.CallOption{grpc.WaitForReady(false), grpc.MaxCallRecvMsgSize(1 << 30), grpc.MaxCallSendMsgSize(8 << 20)}
}
