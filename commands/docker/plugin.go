// Package docker owns the role that Docker asks for networks and addresses: the
// network driver and the IPAM driver of libnetwork's plugin protocol, on a unix socket.
//
// It never touches the datastore or the kernel's networking, which are the agent's,
// and never asks Docker's API inside a call of the driver: Docker holds locks there.
// Names and labels come after the call.
//
// Invariants: every call is answered in bounded time, in words if the agent or the
// datastore is away; every call may come again, or not at all; what Docker says once
// is written down before it is answered.
package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/netdev"
)

// Config is the role's settings; the zero value of a field is its default.
type Config struct {
	// StateDir survives a reboot, RunDir does not.
	StateDir, RunDir string
	// Socket is where Docker finds the plugin: its name is the driver's.
	Socket string
	// Aliases are further names of the driver: sockets beside Socket.
	Aliases []string
	// AgentSocket is the agent's control socket.
	AgentSocket string
	// API is the socket of Docker's own API, as a path.
	API string
	// Scope is whose the networks are: ScopeLocal ("" too) or ScopeGlobal.
	Scope string
	// Gateway is the workloads' first IPv4 next hop, as the agent has it.
	Gateway netip.Addr
	// Telemetry says what is shown of the role; without a role in it nothing is.
	Telemetry telemetry.Config
	Log       *slog.Logger
}

// DefaultSocket is in the folder that Docker looks for plugins in.
const DefaultSocket = "/run/docker/plugins/netctl.sock"

// DefaultAPI is where dockerd listens.
const DefaultAPI = "/run/docker.sock"

// The scopes of networks: a node's own, or a swarm's. The swarm's managers choose addresses
// then, and each node is told of a network when it gets the first container in it.
const (
	ScopeLocal  = "local"
	ScopeGlobal = "global"
)

// folder is the name of what is remembered in: a node may have a driver of each scope, which
// share the agent's RunDir.
func folder(scope string) string {
	if scope == ScopeGlobal {
		return "docker-swarm"
	}
	return "docker"
}

// How long calls may take. Docker waits 30 s, and with it whoever uses Docker.
const (
	// callTimeout is for everything that a call does, if the agent or the datastore is
	// away; writeTimeout if they are there and have much to do.
	callTimeout  = 1800 * time.Millisecond
	writeTimeout = 6 * time.Second
	// bodyTimeout is for the request's body and, apart from it, for the answer.
	bodyTimeout = 5 * time.Second
	// maxBody bounds a request, in bytes.
	maxBody = 1 << 20
)

// plugin is the role's parts.
type plugin struct {
	cfg   Config
	log   *slog.Logger
	state *state
	agent *control.AgentClient
	names *names

	took   *telemetry.Histogram // of calls that succeeded
	failed *telemetry.Counter   // calls, by their path
}

// Run is the role; it blocks until ctx ends (nil) or it cannot go on.
func Run(ctx context.Context, cfg Config) (err error) {
	lock, err := control.Lock(cfg.StateDir, "docker")
	if err != nil {
		return err
	}
	defer lock.Close()
	var shown *telemetry.Role
	if cfg.Telemetry.Role != "" {
		shown = telemetry.New(cfg.Telemetry, cfg.Log)
		defer shown.Close()
		cfg.Log = shown.Logger()
	}
	p := open(cfg)
	own, err := control.Listen(cfg.Socket, cfg.Log)
	if err != nil {
		return err
	}
	folders := append(p.state.folders(), lock.Folder(), own.Folder())
	sockets := []*control.Listener{own}
	for _, name := range cfg.Aliases {
		path := filepath.Join(filepath.Dir(cfg.Socket), name+".sock")
		l, err := control.Listen(path, cfg.Log)
		if err != nil { // it may be the original's
			cfg.Log.Warn("no alias of the driver", "name", name, "error", err)
			continue
		}
		sockets, folders = append(sockets, l), append(folders, l.Folder())
	}
	// Docker waits for a socket that refuses, not for one that is not there.
	defer func() {
		for _, l := range sockets {
			if e := os.Remove(l.Addr().String()); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}()
	manager := control.NewService(cfg.Log)
	manager.Synced() // the sockets are there, which is all that Docker waits for
	group, inner := errgroup.WithContext(ctx)
	tasks := []control.Task{
		{Name: "tell the service manager", Do: func(ctx context.Context) error { return manager.Run(ctx, nil) }},
		{Name: "watch files", Do: func(ctx context.Context) error { return control.WatchFolders(ctx, cfg.Log, folders...) }},
		{Name: "learn names", Do: p.names.run},
		{Name: "release what Docker forgot", Do: (&tidier{p: p, soon: tidySoon}).run},
	}
	if shown != nil {
		shown.Ready, shown.Collect = p.ready, p.collect
		folders = append(folders, shown.Folders()...)
		tasks = append(tasks, shown.Tasks()...)
	}
	for _, l := range sockets {
		tasks = append(tasks, control.Task{Name: "serve " + l.Addr().String(), Do: func(ctx context.Context) error { return serve.Serve(ctx, l, p.handler()) }})
	}
	for _, t := range tasks {
		group.Go(func() error { return t.Run(inner) })
	}
	cfg.Log.Info("docker driver started", "socket", cfg.Socket, datastore.EventRole.Mark())
	if err := group.Wait(); err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	return nil
}

// open joins the parts; it starts nothing.
func open(cfg Config) *plugin {
	if !cfg.Gateway.IsValid() {
		cfg.Gateway = netdev.Gateway4()
	}
	cfg.Scope = cmp.Or(cfg.Scope, ScopeLocal)
	s, err := openState(cfg.StateDir, cfg.RunDir, folder(cfg.Scope))
	if err != nil {
		cfg.Log.Warn("networks or endpoints not remembered", "error", err)
	}
	p := &plugin{cfg: cfg, log: cfg.Log, state: s, agent: control.NewAgentClient(cfg.AgentSocket), took: &telemetry.Histogram{}, failed: &telemetry.Counter{}}
	p.names = newNames(p)
	return p
}

// calls are the protocol's paths.
func (p *plugin) calls() map[string]func(context.Context, []byte) (any, error) {
	return map[string]func(context.Context, []byte) (any, error){
		"/Plugin.Activate": answer(activation{Implements: []string{"NetworkDriver", "IpamDriver"}}),

		"/NetworkDriver.GetCapabilities":             answer(driverCapabilities{Scope: p.cfg.Scope, ConnectivityScope: "global", GwAllocChecker: true}),
		"/NetworkDriver.GwAllocCheck":                answer(gatewayCheck{SkipIPv4: true, SkipIPv6: true}),
		"/NetworkDriver.CreateNetwork":               call(p.createNetwork),
		"/NetworkDriver.DeleteNetwork":               call(p.deleteNetwork),
		"/NetworkDriver.AllocateNetwork":             answer(map[string]any{"Options": map[string]string{}}),
		"/NetworkDriver.FreeNetwork":                 answer(nothing{}),
		"/NetworkDriver.CreateEndpoint":              call(p.createEndpoint),
		"/NetworkDriver.DeleteEndpoint":              call(p.deleteEndpoint),
		"/NetworkDriver.EndpointOperInfo":            answer(operInfo{Value: map[string]any{}}),
		"/NetworkDriver.Join":                        call(p.join),
		"/NetworkDriver.Leave":                       call(p.leave),
		"/NetworkDriver.DiscoverNew":                 answer(nothing{}),
		"/NetworkDriver.DiscoverDelete":              answer(nothing{}),
		"/NetworkDriver.ProgramExternalConnectivity": call(p.expose),
		"/NetworkDriver.RevokeExternalConnectivity":  call(p.unexpose),

		"/IpamDriver.GetCapabilities":         answer(ipamCapabilities{}),
		"/IpamDriver.GetDefaultAddressSpaces": answer(addressSpaces{localSpace, globalSpace}),
		"/IpamDriver.RequestPool":             call(p.requestPool),
		"/IpamDriver.ReleasePool":             answer(nothing{}),
		"/IpamDriver.RequestAddress":          call(p.requestAddress),
		"/IpamDriver.ReleaseAddress":          call(p.releaseAddress),
	}
}

// heed waits for what the agent is asked to write, longer than for all else as long as
// the agent says that it works and has a datastore.
func heed[T any](ctx context.Context, p *plugin, ask func(context.Context) (T, error)) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan outcome, 1)
	go func() {
		v, err := ask(ctx)
		done <- outcome{v, err}
	}()
	const most = callTimeout / 3 // of the time for one look at the agent
	look := time.NewTimer(callTimeout - most)
	defer look.Stop()
	for {
		select {
		case o := <-done:
			return o.value, o.err
		case <-look.C:
		}
		var none T
		asked, end := context.WithTimeout(ctx, most)
		err := p.ready(asked)
		end()
		if err != nil {
			return none, err
		}
		look.Reset(callTimeout - most)
	}
}

// short is a call that the agent answers without writing.
func short(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callTimeout)
}

// answer is a call that is always answered the same.
func answer(a any) func(context.Context, []byte) (any, error) {
	return func(context.Context, []byte) (any, error) { return a, nil }
}

// call makes a call of a function of a body.
func call[Q any](fn func(context.Context, Q) (any, error)) func(context.Context, []byte) (any, error) {
	return func(ctx context.Context, body []byte) (any, error) {
		var q Q
		if err := json.Unmarshal(body, &q); err != nil {
			return nil, fmt.Errorf("request: %s", control.Unread(err))
		}
		return fn(ctx, q)
	}
}

// handler answers the protocol. The network driver's errors and the IPAM driver's have
// different keys.
func (p *plugin) handler() http.Handler {
	mux := http.NewServeMux()
	for path, fn := range p.calls() {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			began, deadlines := time.Now(), http.NewResponseController(w)
			_ = deadlines.SetReadDeadline(time.Now().Add(bodyTimeout))
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
			_ = deadlines.SetReadDeadline(time.Time{})
			var a any
			if err == nil {
				ctx, cancel := context.WithTimeout(r.Context(), writeTimeout)
				defer cancel()
				a, err = fn(ctx, body)
			}
			if err == nil {
				p.took.Observe(time.Since(began))
			} else {
				p.failed.Add(path[1:], 1)
				text := "netctl: " + strings.ReplaceAll(err.Error(), "\n", "; ")
				p.log.Warn("docker call failed", "call", path, "error", text)
				key := "Err"
				if strings.HasPrefix(path, "/Ipam") {
					key = "Error"
				}
				a = map[string]string{key: text}
			}
			p.log.Debug("docker call", "call", path, "body", string(body), "took", time.Since(began))
			text, err := json.Marshal(a)
			if err != nil {
				text = []byte(`{"Err":"netctl: answer cannot be encoded"}`)
			}
			_ = deadlines.SetWriteDeadline(time.Now().Add(bodyTimeout))
			w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
			_, _ = w.Write(text)
		})
	}
	return mux
}

// ready says why Docker's calls cannot be answered.
func (p *plugin) ready(ctx context.Context) error {
	s, err := p.agent.Status(ctx)
	switch {
	case err != nil:
		return err
	case s.Detached != "":
		return fmt.Errorf("agent of node %s is detached: %s", s.Node, s.Detached)
	case s.Store != "":
		return fmt.Errorf("agent of node %s: %s", s.Node, s.Store)
	}
	return nil
}

// collect puts the role's metrics on a page.
func (p *plugin) collect(_ context.Context, page *telemetry.Page) error {
	page.Durations("netctl_docker_call_seconds", p.took)
	page.Counts("netctl_docker_call_errors_total", p.failed)
	return nil
}
