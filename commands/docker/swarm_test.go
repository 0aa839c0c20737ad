package docker

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

// TestSwarm has Docker manage the plugin on two nodes, as docs/docker.md shows, beside the
// one that runs as a role, and a swarm of both run a service on a network of its.
func TestSwarm(t *testing.T) {
	s := newSite(t, lab.Config{Nodes: 2})
	manager, worker := s.lab.Hosts[0], s.lab.Hosts[1]
	netlab.Must(t, manager, "netctl", "pool", "add", "10.79.0.0/16")
	s.swarm(manager, worker)
}

func (s *site) swarm(manager, worker *netlab.Host) {
	s.Helper()
	config, err := filepath.Abs("../../docs/docker-plugin.json")
	if err != nil {
		s.Fatal(err)
	}
	for _, h := range []*netlab.Host{manager, worker} {
		netlab.Must(s, h, "sh", "-ec", "mkdir -p /run/docker/mp/rootfs; cp "+config+" /run/docker/mp/config.json; cp $(command -v netctl) /run/docker/mp/rootfs/")
		s.docker(h, "plugin", "create", "netctl-swarm", "/run/docker/mp")
		s.docker(h, "plugin", "enable", "netctl-swarm")
	}
	s.docker(manager, "swarm", "init", "--advertise-addr", manager.Addr.Addr().String())
	token := s.docker(manager, "swarm", "join-token", "-q", "worker")
	s.docker(worker, "swarm", "join", "--advertise-addr", worker.Addr.Addr().String(), "--token", token, manager.Addr.Addr().String()+":2377")
	const driver = "netctl-swarm:latest"
	s.docker(manager, "network", "create", "-d", driver, "--ipam-driver", driver, "--subnet", "10.79.0.0/16", "--attachable", "swn")
	s.docker(manager, "service", "create", "-d", "--no-resolve-image", "--mode", "global", "--endpoint-mode", "dnsrr", "--name", "svc", "--network", "swn", "bb:1")
	container := func(h *netlab.Host) (id string) {
		netlab.Until(s, patience, "a task on "+h.Name, func() string {
			if id = s.docker(h, "ps", "-q", "--filter", "name=svc", "--filter", "status=running"); id == "" {
				out, _ := s.tryDocker(manager, "service", "ps", "--no-trunc", "svc")
				return out
			}
			return ""
		})
		return strings.Fields(id)[0]
	}
	here, there := container(manager), container(worker)
	to, err := netip.ParseAddr(s.address(worker, there, "swn").String())
	if err != nil {
		s.Fatal(err)
	}
	s.reaches(manager, here, to, 62)
	s.docker(manager, "service", "rm", "svc")
}
