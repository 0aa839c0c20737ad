// Package speaker is the role that joins the BGP engine to this node: it tells
// the engine who the peers are (from the datastore) and what to announce (the
// agent's routes, from the kernel), and puts what peers announce into the
// kernel.
//
// It owns the kernel's routes of the speaker's protocol number,
// StateDir/speaker.json and the speaker's socket. It never writes another route
// and, of the datastore, only its own report and, as a reflector, whether another one is
// away.
//
// On a machine without endpoints, as the role reflector, it leaves the kernel alone.
//
// Invariants: it starts without the datastore from what it last ran with; it
// ends without deleting a route and without a BGP NOTIFICATION; while the
// datastore is away or not the right one, or its node is not this host's, nothing
// changes but what the kernel and the peers say.
package speaker

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"netctl/commands/control"
	"netctl/commands/join"
	"netctl/commands/serve"
	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/identity"
	"netctl/netdev"
	"netctl/routing"
	"netctl/routing/bfd"
	"netctl/routing/bgp"
	"netctl/routing/fib"
	"netctl/routing/ra"
)

// Config is what the role runs with.
type Config struct {
	Store etcd.Options
	// Node is this node's name.
	Node string
	// StateDir holds speaker.json and speaker.lock; RunDir is for the socket.
	StateDir, RunDir string
	// Socket is the control socket; "" is RunDir/speaker.sock.
	Socket string
	// Port is the TCP port of BGP on every node; 0 is 179.
	Port int
	// AgentProtocol and SpeakerProtocol are the kernel's route protocol
	// numbers; 0 is 87 and 88.
	AgentProtocol, SpeakerProtocol int
	// LinkPrefix begins the names of the host sides of endpoints; "" is "nc".
	LinkPrefix string
	// Adopt says which interfaces that others made are endpoints' too.
	Adopt []netdev.Adoption
	// Reflector starts without an agent: where that has no route in the kernel, nothing
	// is announced and installed, only reflected.
	Reflector bool
	// Table is the kernel's table that routes are in; 0 is the main one.
	Table int
	// MaxPaths is how many next hops a route has at most; 0 is 16.
	MaxPaths int
	// Resilient has few flows move when next hops of a route come and go.
	Resilient bool
	// Credentials is the folder of this service's systemd credentials; "": there is none.
	Credentials string
	// Tunnels are the names of the tunnels' devices.
	Tunnels map[datastore.TunnelKind]string
	// Metrics is where metrics are shown; zero: on the machine alone.
	Metrics netip.AddrPort
	// Version is told on the socket.
	Version string
	// BootFile holds the boot ID; "" is /proc/sys/kernel/random/boot_id.
	BootFile string
}

func (c *Config) setDefaults() error {
	if c.Socket == "" {
		c.Socket = filepath.Join(c.RunDir, "speaker.sock")
	}
	if c.Port == 0 {
		c.Port = bgp.Port
	}
	if c.AgentProtocol == 0 {
		c.AgentProtocol = routing.ProtocolAgent
	}
	if c.SpeakerProtocol == 0 {
		c.SpeakerProtocol = routing.ProtocolSpeaker
	}
	if c.MaxPaths == 0 {
		c.MaxPaths = 16
	}
	if c.LinkPrefix == "" {
		c.LinkPrefix = "nc"
	}
	if c.Tunnels == nil {
		c.Tunnels = netdev.DefaultTunnels()
	}
	if c.BootFile == "" {
		c.BootFile = "/proc/sys/kernel/random/boot_id"
	}
	return routing.CheckProtocols(c.AgentProtocol, c.SpeakerProtocol)
}

// endpointLink says whether an interface is an endpoint's, by its name.
func (c *Config) endpointLink(link string) bool {
	return strings.HasPrefix(link, c.LinkPrefix) || netdev.Adopts(c.Adopt, link)
}

// table is what the role needs of the kernel's routes; *fib.Table is one.
type table interface {
	Routes(ctx context.Context) ([]routing.Route, error)
	Connected(ctx context.Context) ([]routing.Route, error)
	Apply(ctx context.Context, c routing.Changes) error
	SetNeighbours(ctx context.Context, links []string, wanted []routing.Neighbour) error
	Adopt(routes []routing.Route)
	Gather(ctx context.Context) error
	Reach(ctx context.Context, addr netip.Addr) (hop routing.NextHop, source netip.Addr, err error)
	Watch(ctx context.Context, ignore fib.Ignore, fn func(fib.Event)) error
	Missing() []routing.Route
	Compare(ctx context.Context) (routing.Changes, error)
}

// Run is the role; it blocks until ctx ends. A second one on the same state
// folder is refused, naming the first.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.setDefaults(); err != nil {
		return err
	}
	lock, err := control.Lock(cfg.StateDir, "speaker")
	if err != nil {
		return err
	}
	defer lock.Close()
	shown := telemetry.New(cfg.telemetry(), log)
	defer shown.Close()
	log = shown.Logger()
	agentTable, err := fib.Open(fib.Config{Protocol: cfg.AgentProtocol, Number: cfg.Table, Anywhere: true}, log)
	if err != nil {
		return err
	}
	defer agentTable.Close()
	ownTable, err := fib.Open(fib.Config{Protocol: cfg.SpeakerProtocol, Number: cfg.Table, Defaults: true, Groups: true, Resilient: cfg.Resilient}, log)
	if err != nil {
		return err
	}
	defer ownTable.Close()
	if cfg.Store.Log == nil {
		cfg.Store.Log = log
	}
	store, err := etcd.Open(ctx, cfg.Store)
	if err != nil {
		return err
	}
	defer store.Close()
	guard, err := identity.Open(cfg.StateDir, false, log)
	if err != nil {
		return err
	}
	listener, err := control.Listen(cfg.Socket, log)
	if err != nil {
		return err
	}
	var own table = ownTable
	if cfg.Reflector {
		switch routes, err := agentTable.Routes(ctx); {
		case err != nil:
			return err
		case len(routes) == 0:
			own = bare{}
		}
	}
	s := newSpeaker(ctx, cfg, agentTable, own, store, guard, log)
	shown.Alive, shown.Ready, shown.Collect = s.alive, s.ready, s.collect
	s.beside = append(join.Tasks(store, cfg.Store, cfg.StateDir, log), shown.Tasks()...)
	if s.bare { // else the agent does it
		sharer := &telemetry.Sharer{Node: cfg.Node, StateDir: cfg.StateDir, Store: s.store, Log: log, May: func(ctx context.Context) bool {
			_, ok := s.reporter.Status(ctx)
			return ok
		}}
		s.beside = append(s.beside, control.Task{Name: sharer.String(), Do: sharer.Run})
	}
	log.Info("speaker starts", "node", cfg.Node, "version", cfg.Version, "installs", !s.bare, datastore.EventRole.Mark())
	return s.run(ctx, listener, append(shown.Folders(), lock.Folder())...)
}

// speaker is the role's parts. What loop.go owns is documented there.
type speaker struct {
	cfg   Config
	log   *slog.Logger
	store datastore.Store
	guard datastore.Guard

	agent, own table
	bare       bool // own is: this machine has no agent
	kernel     chan kernelEvent
	follower   *follower
	nextHops   *tracker
	finder     *ra.Finder
	installer  *installer
	state      *state
	reporter   *control.Reporter
	manager    *control.Service
	looked     chan chan<- struct{} // is answered by the loop
	sessions   chan struct{}        // tells the loop that one changed
	warden     *warden
	detector   *bfd.Engine
	last       lastRun        // of the last run
	kept       *control.Kept  // lastRunFile
	beside     []control.Task // what keeps the way to the datastore open
	requests   *telemetry.Requests
	shown      telemetry.Shown
}

func newSpeaker(ctx context.Context, cfg Config, agent, own table, store datastore.Store, guard datastore.Guard, log *slog.Logger) *speaker {
	requests := &telemetry.Requests{}
	store = requests.Store(store)
	s := &speaker{cfg: cfg, log: log, requests: requests, store: store, guard: guard, agent: agent, own: own, kernel: make(chan kernelEvent), manager: control.NewService(log), looked: make(chan chan<- struct{}), sessions: make(chan struct{}, 1)}
	_, s.bare = own.(bare)
	s.state = &state{log: log}
	s.detector = bfd.New(bfd.Config{OnDown: s.state.pathDown, OnChange: s.sessionChanged, Log: log})
	s.state.detector = s.detector
	s.kept = control.Keep(cfg.StateDir, datastore.FileOptions{})
	s.shown.Log = log
	report := s.state.report(time.Now(), s.bare)
	s.reporter = control.NewReporter(cfg.Node, datastore.ReportSpeaker, store, func(ctx context.Context) (datastore.ReportStatus, bool) {
		s.tell()
		return report(ctx)
	}, log)
	s.follower = newFollower(cfg.Node, s.hostFile(), s.state, s.reporter.Wake, log)
	s.follower.agentless = cfg.Reflector
	s.warden = newWarden(cfg.Node, s.state, store, log)
	s.finder = ra.New(log)
	s.nextHops = newTracker(ctx, own, cfg.endpointLink, log)
	s.installer = newInstaller(own, s.nextHops, s.reporter.Wake, log)
	return s
}

// run is the role; what else of its files matters is in folders.
func (s *speaker) run(ctx context.Context, listener *control.Listener, folders ...control.Folder) error {
	last, err := recall(s.kept.Path(lastRunFile))
	if err != nil {
		s.log.Warn("last state unusable, starting without it", "error", err)
	}
	if host, err := readHost(s.hostFile()); err == nil && host != "" && last.Plan.Host != "" && host != last.Plan.Host {
		s.log.Warn("last state is another host's, starting without it", "host", last.Plan.Host)
		last = lastRun{}
	}
	s.last = last
	s.follower.resume(last.Plan)
	g, ctx := errgroup.WithContext(ctx)
	for _, t := range s.tasks(listener, append(folders, listener.Folder(), s.kept.Folder())) {
		g.Go(func() error { return t.Run(ctx) })
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// tasks are what runs until the role ends.
func (s *speaker) tasks(listener *control.Listener, folders []control.Folder) []control.Task {
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.SpeakerStatus, error) {
		return s.status(), nil
	}))
	// Who starts runs with what it last ran with once its loop takes turns.
	mux.Handle("POST /v1/bgp/routes", serve.Call(func(ctx context.Context, q control.BGPQuery) (control.BGPPaths, error) {
		if err := s.alive(ctx); err != nil {
			return control.BGPPaths{}, err
		}
		return s.state.paths(q)
	}))
	mux.Handle("POST /v1/bgp/session", serve.Call(func(ctx context.Context, q control.BGPQuery) (control.BGPSession, error) {
		if err := s.alive(ctx); err != nil {
			return control.BGPSession{}, err
		}
		return s.state.session(q.Peer, q.Refresh)
	}))
	agent := func(ctx context.Context) error {
		return s.agent.Watch(ctx, fib.Ignore{Foreign: true}, s.forward(ctx, true))
	}
	if s.bare {
		agent = func(ctx context.Context) error { return untilEndpoints(ctx, s.agent) }
	}
	// What endpoints come and go with is no news for next hops.
	endpoints := fib.Ignore{Protocols: []int{s.cfg.AgentProtocol}, Links: s.cfg.LinkPrefix}
	return append([]control.Task{
		{Name: "serve", Do: func(ctx context.Context) error { return serve.Serve(ctx, listener, mux) }},
		{Name: "watch files", Do: func(ctx context.Context) error { return control.WatchFolders(ctx, s.log, folders...) }},
		{Name: "watch the agent's routes", Do: agent},
		{Name: "watch routes", Do: func(ctx context.Context) error { return s.own.Watch(ctx, endpoints, s.forward(ctx, false)) }},
		{Name: "install routes", Do: s.installer.run},
		{Name: "find neighbours", Do: s.finder.Run},
		{Name: s.reporter.String(), Do: s.reporter.Run},
		{Name: "watch the reflectors", Do: s.warden.run},
		{Name: "speak", Do: s.reconcile},
		{Name: "watch the paths", Do: s.detector.Run},
		{Name: "tell the service manager", Do: func(ctx context.Context) error { return s.manager.Run(ctx, s.alive) }},
		{Name: "follow the datastore", Do: func(ctx context.Context) error {
			err := datastore.Follow(ctx, s.store, kinds(), s.guard, s.follower)
			if ctx.Err() != nil {
				return nil
			}
			return err
		}},
	}, s.beside...)
}

// alive waits until the loop has taken a turn.
func (s *speaker) alive(ctx context.Context) error {
	turn := make(chan struct{}, 1)
	select {
	case s.looked <- turn:
	case <-ctx.Done():
		return ctx.Err()
	}
	<-turn
	return nil
}

// hostFile is where the agent keeps this machine's ID.
func (s *speaker) hostFile() string { return filepath.Join(s.cfg.StateDir, "host") }

// kernelEvent is an event of the agent's or the speaker's own table.
type kernelEvent struct {
	agent bool
	event fib.Event
}

func (s *speaker) forward(ctx context.Context, agent bool) func(fib.Event) {
	return func(e fib.Event) {
		select {
		case s.kernel <- kernelEvent{agent, e}:
		case <-ctx.Done():
		}
	}
}
