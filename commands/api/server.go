package api

import (
	"cmp"
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
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"netctl/commands/control"
	"netctl/commands/telemetry"
	"netctl/datastore"
)

// SocketName is the unix socket in the folder of sockets.
const SocketName = "api.sock"

// How long a client may take: for a request's head, for its body, for the next request,
// and for each piece of an answer.
const (
	headTime  = 10 * time.Second
	bodyTime  = 20 * time.Second
	idleTime  = time.Minute
	writeTime = 10 * time.Second
	// maxPiece is how large a piece is, in bytes.
	maxPiece = 256 << 10
	// actionTime bounds an action: a drain waits for as long as it was told to.
	actionTime = 15 * time.Minute
	// turnWait is how long who reads or writes objects waits for its turn, turnTime how long
	// a turn is at most: who takes its answer slowly keeps nobody out.
	turnWait = 10 * time.Second
	turnTime = 20 * time.Second
)

// How much at the same time.
const (
	maxConnections = 8192
	maxActions     = 32
	maxTurns       = 32
)

// Config is the role's settings.
type Config struct {
	Node, Version    string
	StateDir, RunDir string
	// Listen are https URLs beside the unix socket; CA, Cert and Key are PEM files: of the
	// clients' authority, and of the server. They are read again for each connection.
	Listen        []string
	CA, Cert, Key string
	// Granted says that the clients' authority is netctl's own, which keeps records of its
	// certificates: one without is not good. Restored datastores have none.
	Granted bool
	Store   datastore.Store
	Backend Backend
	Actions []Action
	// BodyTime is how long a client may take for its request's body; default 20 s.
	BodyTime time.Duration
	// Telemetry is shown if it names the role.
	Telemetry telemetry.Config
	Log       *slog.Logger
}

// server is the role's parts.
type server struct {
	Config
	actions     map[string]Action
	busy        chan struct{} // of actions
	turns       chan struct{} // of who reads or writes objects
	watch       *hub
	description []byte
	meters      meters
}

// Run is the role; it blocks until ctx ends (nil) or it cannot go on.
func Run(ctx context.Context, c Config) error {
	lock, err := control.Lock(c.StateDir, "api")
	if err != nil {
		return err
	}
	defer lock.Close()
	var shown *telemetry.Role
	if c.Telemetry.Role != "" {
		shown = telemetry.New(c.Telemetry, c.Log)
		defer shown.Close()
		c.Log = shown.Logger()
	}
	local, err := control.Listen(filepath.Join(c.RunDir, SocketName), c.Log)
	if err != nil {
		return err
	}
	defer local.Close()
	listeners, err := c.listen(ctx)
	if err != nil {
		return err
	}
	s, err := newServer(c)
	if err != nil {
		return err
	}
	manager := control.NewService(c.Log)
	manager.Synced() // the sockets are there: what it serves is the datastore's
	group, inner := errgroup.WithContext(ctx)
	folders := []control.Folder{lock.Folder(), local.Folder()}
	var beside []control.Task
	if shown != nil {
		shown.Ready, shown.Collect = s.ready, s.collect
		folders, beside = append(folders, shown.Folders()...), shown.Tasks()
	}
	tasks := append([]control.Task{
		{Name: "tell the service manager", Do: func(ctx context.Context) error { return manager.Run(ctx, nil) }},
		{Name: "watch files", Do: func(ctx context.Context) error {
			return control.WatchFolders(ctx, c.Log, folders...)
		}},
		{Name: "follow the datastore", Do: s.watch.run},
		{Name: "tell watchers", Do: s.watch.tell},
	}, beside...)
	for _, l := range append(listeners, connListener{local}) {
		tasks = append(tasks, control.Task{Name: "serve " + l.Addr().String(), Do: func(ctx context.Context) error { return s.serve(ctx, l) }})
	}
	for _, t := range tasks {
		group.Go(func() error { return t.Run(inner) })
	}
	c.Log.Info("api started", "socket", local.Addr().String(), "listen", c.Listen, datastore.EventRole.Mark())
	if err := group.Wait(); err != nil {
		return fmt.Errorf("api: %w", err)
	}
	return nil
}

func newServer(c Config) (*server, error) {
	c.BodyTime = cmp.Or(c.BodyTime, bodyTime)
	s := &server{Config: c, actions: map[string]Action{}, busy: make(chan struct{}, maxActions), turns: make(chan struct{}, maxTurns), watch: newHub(c.Store, c.Log)}
	for _, a := range c.Actions {
		s.actions[a.Path] = a
	}
	var err error
	s.description, err = Description(c.Actions)
	return s, err
}

// listen opens the TCP listeners. What is wrong with the files is said at once.
func (c Config) listen(ctx context.Context) (list []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range list {
				_ = l.Close()
			}
			list = nil
		}
	}()
	if len(c.Listen) > 0 {
		if _, err := c.tls(); err != nil {
			return nil, fmt.Errorf("api: %w", err)
		}
	}
	for _, text := range c.Listen {
		u, err := url.Parse(text)
		if err != nil {
			return list, fmt.Errorf("api: listen %s: %w", text, err)
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", u.Host)
		if err != nil {
			return list, fmt.Errorf("api: listen %s: %w", text, err)
		}
		list = append(list, tls.NewListener(connListener{control.Bound(l, maxConnections)}, &tls.Config{
			MinVersion:         tls.VersionTLS12,
			GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.tls() },
		}))
	}
	return list, nil
}

// tls is what a connection is made with: files change while the role runs.
func (c Config) tls() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		return nil, fmt.Errorf("clients' authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("clients' authority: %s: no certificate in it: %w", c.CA, datastore.ErrInvalid)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, NextProtos: []string{"http/1.1"},
		DynamicRecordSizingDisabled: true, // a change is one write
	}, nil
}

// serve answers on one listener until ctx ends.
func (s *server) serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: headTime, IdleTimeout: idleTime, MaxHeaderBytes: 32 << 10,
		ErrorLog:    stdlog.New(io.Discard, "", 0), // what a stranger sends is no news
		BaseContext: func(net.Listener) context.Context { return ctx }, ConnContext: withConn,
	}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	err := srv.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// caller finds out who asks: root on the unix socket, else whom the certificate names.
func (s *server) caller(r *http.Request) (Caller, error) {
	if r.TLS == nil {
		return Caller{Name: "root", Role: datastore.APIAdmin}, nil
	}
	if len(r.TLS.VerifiedChains) == 0 {
		return Caller{}, fmt.Errorf("no certificate: %w", datastore.ErrDenied)
	}
	cert := r.TLS.VerifiedChains[0][0]
	who := Caller{Name: cert.Subject.CommonName, Serial: cert.SerialNumber.Text(16)}
	if now := time.Now(); now.After(cert.NotAfter) { // since the connection was made
		return who, fmt.Errorf("the certificate of %s expired at %s: %w", who.Name, cert.NotAfter.UTC().Format(time.DateTime), datastore.ErrDenied)
	}
	var says bool
	who.Role, says = datastore.APIRoleOf(cert.Subject.Organization)
	if who.Role == datastore.APINone && says {
		return who, fmt.Errorf("the certificate of %q says a role that there is not: %q, and there are read, operate and admin: %w", who.Name, cert.Subject.Organization, datastore.ErrDenied)
	}
	if who.Role == datastore.APINone {
		return who, fmt.Errorf("the certificate of %q says no role for the API (`netctl api grant` makes one that does): %w", who.Name, datastore.ErrDenied)
	}
	return who, s.known(r.Context(), who)
}

// known refuses a certificate that was taken back, that another of the name replaced, or
// that has no record where it should.
func (s *server) known(ctx context.Context, who Caller) error {
	at, err := datastore.APIUserKey(who.Name)
	if err != nil {
		return fmt.Errorf("the certificate of %q: %w: %w", who.Name, err, datastore.ErrDenied)
	}
	var u datastore.APIUser
	revision, err := datastore.Record(ctx, s.Store, at, &u)
	if err != nil {
		return err
	}
	if revision == 0 && s.Granted {
		return fmt.Errorf("the certificate of %s is not on record, as after a restore (`netctl api grant %s --role %s` on a member makes another): %w", who.Name, who.Name, who.Role, datastore.ErrDenied)
	}
	if revision != 0 && u.Serial != who.Serial {
		return fmt.Errorf("the certificate of %s was revoked or replaced (`netctl api list`): %w", who.Name, datastore.ErrDenied)
	}
	return nil
}

// may refuses a caller without the role.
func (c Caller) may(need datastore.APIRole, what string) error {
	if c.Role >= need {
		return nil
	}
	return fmt.Errorf("%s needs the role %s, and %s has %s: %w", what, need, c.Name, c.Role, datastore.ErrDenied)
}

// isUnanswerable says of an error that there is nobody to tell it to.
func isUnanswerable(err error) bool {
	return errors.Is(err, http.ErrAbortHandler) || errors.Is(err, net.ErrClosed)
}

// readOnly are the methods that change nothing.
func readOnly(method string) bool {
	return slices.Contains([]string{http.MethodGet, http.MethodHead}, method)
}
