package commands

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"github.com/spf13/cobra"

	"netctl/acl"
	"netctl/commands/agent"
	"netctl/commands/control"
	"netctl/commands/docker"
	"netctl/commands/runtimes"
	"netctl/commands/speaker"
	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/netdev"
)

func newAgentCommand(a *app) *cobra.Command {
	return roleCommand(a, "agent", "Run this node's agent: it wires, routes and protects endpoints",
		"  netctl agent --config /etc/netctl.yaml\n  netctl agent --config /etc/netctl.yaml --log-level debug",
		[]string{"metrics", "agent", "routes", "tunnels"},
		func(ctx context.Context, s *settings) error {
			cfg, err := s.agentConfig()
			if err != nil {
				return usageError{err}
			}
			return agent.Run(ctx, cfg, newLogger(a.err, "agent", s))
		})
}

func newSpeakerCommand(a *app) *cobra.Command {
	return roleCommand(a, "speaker", "Run this node's BGP speaker: it announces and learns blocks",
		"  netctl speaker --config /etc/netctl.yaml\n  netctl speaker --config /etc/netctl.yaml --speaker-port 1179",
		[]string{"metrics", "speaker", "routes", "tunnels"},
		func(ctx context.Context, s *settings) error {
			log := newLogger(a.err, "speaker", s)
			if os.Getenv(control.SupervisorVariable) == "" { // the supervisor does it
				defer s.guard(ctx, log)()
			}
			return speaker.Run(ctx, s.speakerConfig(), log)
		})
}

// guard keeps the packet filter closed beside an agent that is another process, until what
// it returns is called.
func (s *settings) guard(ctx context.Context, log *slog.Logger) (end func()) {
	cfg, err := s.agentConfig()
	if err != nil {
		return func() {} // no agent runs with that either
	}
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { agent.Guard(ctx, cfg, log) })
	return func() { stop(); running.Wait() }
}

func newReflectorCommand(a *app) *cobra.Command {
	return roleCommand(a, "reflector", "Run a BGP route reflector on a machine without an agent",
		"  netctl reflector --config /etc/netctl.yaml\n  netctl reflector --config /etc/netctl.yaml --speaker-port 1179",
		[]string{"metrics", "speaker", "routes", "tunnels"},
		func(ctx context.Context, s *settings) error {
			cfg := s.speakerConfig()
			cfg.Reflector = true
			return speaker.Run(ctx, cfg, newLogger(a.err, "reflector", s))
		})
}

func newDockerCommand(a *app) *cobra.Command {
	return roleCommand(a, "docker", "Run Docker's network and IPAM driver on this node",
		"  netctl docker --config /etc/netctl.yaml\n  netctl docker --docker-socket /run/docker/plugins/netctl.sock",
		[]string{"metrics", "docker"},
		func(ctx context.Context, s *settings) error {
			return docker.Run(ctx, docker.Config{
				StateDir: s.StateDir, RunDir: s.RunDir, Socket: s.Docker.Socket, Aliases: s.Docker.Aliases, API: s.Docker.API, Scope: s.Docker.Scope,
				AgentSocket: s.Agent.Socket, Gateway: netip.MustParseAddr(s.Agent.Gateway), // checked by settings.finish
				Telemetry: s.telemetry("docker"), Log: newLogger(a.err, "docker", s),
			})
		})
}

func (s *settings) agentConfig() (agent.Config, error) {
	cfg := agent.Config{
		Node: s.Node, Labels: s.labelMap(), Version: version, Store: s.storeOptions(),
		StateDir: s.StateDir, RunDir: s.RunDir, Socket: s.Agent.Socket,
		Interface: s.Agent.Interface, LinkPrefix: s.Agent.LinkPrefix, MTU: s.Agent.MTU,
		Gateway: netip.MustParseAddr(s.Agent.Gateway), // checked by settings.finish
		Metrics: s.metricsAt("agent"), LostAfter: s.Agent.LostAfter, NewFlows: s.Agent.NewFlows, Backend: s.Agent.Backend, ReversePath: s.Agent.ReversePath, Established: datastore.Established(s.Agent.Established), RouteProtocol: s.Routes.AgentProtocol, RouteTable: s.Routes.Table, Tunnels: s.tunnels(), Adopt: s.adoptions(),
		WireGuardPort: uint16(s.Tunnels.WireGuardPort), BGPPort: uint16(s.Speaker.Port), DatastorePorts: s.datastorePorts(),
		Runtimes: runtimes.Config{Runtimes: s.Agent.Runtimes, DockerAPI: s.Docker.API, DockerDriver: s.Docker.Socket},
	}
	for _, text := range s.Agent.Addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return cfg, s.wrong("agent::addresses", err)
		}
		cfg.Addresses = append(cfg.Addresses, addr)
	}
	for _, list := range []struct {
		key   string
		texts []string
		ports *[]acl.HostPort
	}{
		{"agent::workloadToHost", s.Agent.WorkloadToHost, &cfg.WorkloadToHost},
		{"agent::failsafeInbound", s.Agent.FailsafeInbound, &cfg.FailsafeInbound},
		{"agent::failsafeOutbound", s.Agent.FailsafeOutbound, &cfg.FailsafeOutbound},
	} {
		for _, text := range list.texts {
			port, err := agent.ParseHostPort(text)
			if err != nil {
				return cfg, s.wrong(list.key, err)
			}
			*list.ports = append(*list.ports, port)
		}
	}
	return cfg, nil
}

// adoptions are which interfaces that others make are endpoints.
func (s *settings) adoptions() (list []netdev.Adoption) {
	for _, text := range s.Agent.Adopt {
		if a, err := netdev.ParseAdoption(text); err == nil { // checked by settings.finish
			list = append(list, a)
		}
	}
	return list
}

// datastorePorts are the TCP ports at which this node reaches the datastore, or serves it.
func (s *settings) datastorePorts() (list []uint16) {
	if s.Etcd.JoinPort > 0 {
		list = append(list, uint16(s.Etcd.JoinPort))
	}
	return append(list, agent.PortsOf(slices.Concat(s.Datastore.Endpoints, s.Etcd.Listen, []string{s.Etcd.PeerURL})...)...)
}

func (s *settings) speakerConfig() speaker.Config {
	return speaker.Config{
		Store: s.storeOptions(), Node: s.Node, StateDir: s.StateDir, RunDir: s.RunDir, Socket: s.Speaker.Socket, Port: s.Speaker.Port,
		AgentProtocol: s.Routes.AgentProtocol, SpeakerProtocol: s.Routes.SpeakerProtocol, LinkPrefix: s.Agent.LinkPrefix, Adopt: s.adoptions(), Tunnels: s.tunnels(), Version: version,
		Table: s.Routes.Table, MaxPaths: s.Routes.MaxPaths, Resilient: s.Routes.Resilient,
		Metrics:     s.metricsAt("speaker"),
		Credentials: os.Getenv("CREDENTIALS_DIRECTORY"), // systemd.exec(5)
	}
}

// metricsAt is where a role shows its metrics; zero: nowhere.
func (s *settings) metricsAt(role string) netip.AddrPort {
	addr, err := netip.ParseAddr(s.Metrics.Listen)
	if err != nil || role == "node" {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, uint16(s.Metrics.Port+telemetry.Port(role)))
}

// telemetry is what is shown of a role.
func (s *settings) telemetry(role string) telemetry.Config {
	return telemetry.Config{Role: role, Node: s.Node, Version: version, StateDir: s.StateDir, RunDir: s.RunDir, Listen: s.metricsAt(role)}
}

func (s *settings) tunnels() map[datastore.TunnelKind]string {
	return map[datastore.TunnelKind]string{
		datastore.TunnelIPIP: s.Tunnels.IPIP, datastore.TunnelVXLAN: s.Tunnels.VXLAN, datastore.TunnelVXLAN6: s.Tunnels.VXLAN6, datastore.TunnelWireGuard: s.Tunnels.WireGuard,
	}
}
