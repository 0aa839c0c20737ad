package embed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"netctl/datastore"
)

// stopTimeout bounds how long open calls may take to end.
const stopTimeout = 2 * time.Second

// server is one etcd member with its listeners. It is put together here and not
// by etcd's own embed package, which brings an HTTP gateway, tracing and
// multiplexers that netctl does not serve but that every start of this binary,
// each CNI call included, would initialise.
type server struct {
	*etcdserver.EtcdServer
	peers   *http.Server
	clients []*grpc.Server
	failed  chan error // a listener broke; capacity: one for each
}

// listeners are the open sockets of a member: peers are TLS already.
type listeners struct {
	peer    net.Listener
	plain   net.Listener   // the unix socket
	clients []net.Listener // TCP; the gRPC server does TLS
	tls     *tls.Config
}

func (l *listeners) close() {
	for _, each := range append([]net.Listener{l.peer, l.plain}, l.clients...) {
		if each != nil {
			_ = each.Close()
		}
	}
}

// listen opens every listener of the configuration, or none.
func (c *Config) listen(peer url.URL, clients []url.URL, ofPeers, ofClients *transport.TLSInfo) (_ *listeners, err error) {
	l := &listeners{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	peers, err := current(ofPeers) // HTTP/1.1, which members speak
	if err != nil {
		return nil, err
	}
	plain, err := transport.NewListenerWithOpts(peer.Host, "http", transport.WithTimeout(rafthttp.ConnReadTimeout, rafthttp.ConnWriteTimeout))
	if err != nil {
		return nil, err
	}
	l.peer = tls.NewListener(plain, peers)
	// etcd's unix listener takes a stale socket's place; prepare has looked.
	if l.plain, err = transport.NewUnixListener(c.Socket); err != nil {
		return nil, err
	}
	if err = os.Chmod(c.Socket, 0o600); err != nil {
		return nil, err
	}
	if l.tls, err = current(ofClients, "h2"); err != nil {
		return nil, err
	}
	for _, u := range clients {
		lis, err := net.Listen("tcp", u.Host)
		if err != nil {
			return nil, err
		}
		l.clients = append(l.clients, lis)
	}
	return l, nil
}

// current is etcd's TLS of a server that reads its authorities anew for each connection:
// they are replaced while it runs. What they no longer say is not taken from a ticket.
func current(info *transport.TLSInfo, protocols ...string) (*tls.Config, error) {
	base, err := info.ServerConfig()
	if err != nil {
		return nil, err
	}
	base.NextProtos, base.SessionTicketsDisabled = protocols, true
	conf := base.Clone()
	conf.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		text, err := os.ReadFile(info.TrustedCAFile)
		if err != nil {
			return nil, err
		}
		now := base.Clone()
		now.ClientCAs = x509.NewCertPool()
		now.ClientCAs.AppendCertsFromPEM(text) // of none nobody is let in
		return now, nil
	}
	return conf, nil
}

// start makes the member from its folder, or a new one, and serves peers; clients
// are served by serveClients. etcd panics on a damaged folder: that is an error here.
func (c *Config) start(log *zap.Logger, l *listeners, peer url.URL, clients []url.URL, ofPeers transport.TLSInfo) (s *server, err error) {
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, fmt.Errorf("folder %s: %v", c.Dir, p)
		}
	}()
	conf, err := c.serverConfig(log, peer, clients, ofPeers)
	if err != nil {
		return nil, err
	}
	etcd, err := etcdserver.NewServer(conf)
	if err != nil {
		return nil, err
	}
	s = &server{EtcdServer: etcd, failed: make(chan error, 2+len(clients))}
	etcd.Start()
	s.peers = &http.Server{
		Handler: etcdhttp.NewPeerHandler(log, etcd), ReadTimeout: 5 * time.Minute,
		ErrorLog: stdlog.New(io.Discard, "", 0), // what a stranger sends is no news
	}
	go func() { s.failed <- s.peers.Serve(l.peer) }()
	return s, nil
}

// serverConfig is the configuration in etcd's terms, its defaults where netctl
// has no opinion.
func (c *Config) serverConfig(log *zap.Logger, peer url.URL, clients []url.URL, ofPeers transport.TLSInfo) (config.ServerConfig, error) {
	conf := config.ServerConfig{
		Name: c.Name, DataDir: c.Dir, Logger: log,
		ClientURLs: types.URLs(append([]url.URL{{Scheme: "unix", Path: c.Socket}}, clients...)), PeerURLs: types.URLs{peer},
		SnapshotCount: snapshotEvery, SnapshotCatchUpEntries: catchUp, MaxSnapFiles: keepFiles, MaxWALFiles: keepFiles,
		BackendFreelistType: "hashmap", QuotaBackendBytes: pageQuota(c.QuotaBytes),
		PeerTLSInfo: ofPeers, ClientCertAuthEnabled: true, NewCluster: true,
		TickMs: 100, ElectionTicks: 10, InitialElectionTickAdvance: true, PreVote: true, StrictReconfigCheck: true,
		MaxTxnOps: 128, MaxRequestBytes: 1536 << 10, MaxConcurrentStreams: 1 << 20, MaxLearners: 1,
		WarningApplyDuration: 100 * time.Millisecond, WarningUnaryRequestDuration: 300 * time.Millisecond,
		DowngradeCheckTime: 5 * time.Second, CompactHashCheckTime: time.Minute, WatchProgressNotifyInterval: time.Minute,
		AuthToken: "simple", BcryptCost: 10, TokenTTL: 300,
		V2Deprecation: config.V2DeprDefault, Metrics: "basic",
		ServerFeatureGate: features.NewDefaultServerFeatureGate(c.Name, log),
	}
	if wal.Exist(filepath.Join(c.Dir, "member", "wal")) {
		return conf, nil // the folder knows the members
	}
	members, err := types.NewURLsMap(strings.Join(c.Members, ","))
	if err != nil {
		return conf, fmt.Errorf("members %v: %w: %w", c.Members, err, datastore.ErrInvalid)
	}
	conf.InitialPeerURLsMap, conf.InitialClusterToken, conf.NewCluster = members, c.Token, !c.Joins
	return conf, nil
}

// serveClients answers clients on every listener; the server must be ready.
func (s *server) serveClients(l *listeners, log *slog.Logger, options ...grpc.ServerOption) {
	options = append(options,
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 2 * time.Hour, Timeout: 20 * time.Second}))
	serve := func(lis net.Listener, conf *tls.Config, options ...grpc.ServerOption) {
		g := v3rpc.Server(s.EtcdServer, conf, nil, options...)
		s.clients = append(s.clients, g)
		go func() { s.failed <- g.Serve(lis) }()
	}
	serve(l.plain, nil, options...)
	judge := &gate{store: s.EtcdServer, log: log}
	judged := append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(judge.unary), grpc.ChainStreamInterceptor(judge.stream)}, options...)
	for _, lis := range l.clients {
		serve(lis, l.tls, judged...)
	}
}

// stop ends clients, then the member, then its peers' connections.
func (s *server) stop(log *slog.Logger) {
	for _, g := range s.clients {
		hard := time.AfterFunc(stopTimeout, g.Stop)
		g.GracefulStop()
		hard.Stop()
	}
	s.Stop()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := s.peers.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		log.Debug("peer listener not closed", "error", err)
	}
}
