package docker

import (
	"path/filepath"
	"strings"
	"sync"

	"netctl/netdev/netlab"
)

// swarm has Docker manage the plugin on two nodes, as docs/docker.md shows, beside the one
// that is a role, and both are a swarm that runs a service on a network of the plugin's.
func (s *site) swarm(manager, worker *netlab.Host, subnet string) {
	s.Helper()
	config, err := filepath.Abs("../../docs/docker-plugin.json")
	if err != nil {
		s.Fatal(err)
	}
	// A task asks a registry for its image first, and hears at once that there is none.
	script := `mkdir -p /run/docker/swarm/rootfs; cp ` + config + ` /run/docker/swarm/config.json; cp $(command -v netctl) /run/docker/swarm/rootfs/
export DOCKER_HOST=unix:///run/docker.sock; docker plugin create netctl-swarm /run/docker/swarm; docker plugin enable netctl-swarm
docker tag bb:1 127.0.0.1:9/bb:1`
	var both sync.WaitGroup
	for _, h := range []*netlab.Host{manager, worker} {
		both.Go(func() {
			if out, failed := netlab.Try(s, h, "sh", "-ec", script); failed != nil {
				s.Error(out, failed)
			}
		})
	}
	both.Wait()
	s.docker(manager, "swarm", "init", "--advertise-addr", manager.Addr.Addr().String())
	s.docker(worker, "swarm", "join", "--token", s.docker(manager, "swarm", "join-token", "-q", "worker"), manager.Addr.Addr().String()+":2377")
	s.docker(manager, "network", "create", "-d", "netctl-swarm:latest", "--ipam-driver", "netctl-swarm:latest", "--subnet", subnet, "--attachable", "swarmed")
	s.docker(manager, "service", "create", "-d", "--no-resolve-image", "--mode", "global", "--endpoint-mode", "dnsrr", "--stop-signal", "KILL", "--name", "svc", "--network", "swarmed", "127.0.0.1:9/bb:1")
	task := func(h *netlab.Host) (id string) {
		netlab.Until(s, patience, "a task on "+h.Name, func() string {
			if id = s.docker(h, "ps", "-q", "--filter", "name=svc", "--filter", "status=running"); id == "" {
				return s.docker(manager, "service", "ps", "--no-trunc", "svc")
			}
			return ""
		})
		return strings.Fields(id)[0]
	}
	here, there := task(manager), task(worker)
	s.reaches(manager, here, s.address(worker, there, "swarmed"), 62)
	s.docker(worker, "run", "-d", "--stop-signal", "KILL", "--net", "swarmed", "--name", "beside", "bb:1")
	s.reaches(manager, here, s.address(worker, "beside", "swarmed"), 62)
	if eps := s.endpoints(); strings.Count(eps, "  network: swarmed\n") != 3 || !strings.Contains(eps, "com.docker.swarm.service.name: svc\n") {
		s.Errorf("endpoints of the swarm:\n%s", eps)
	}
	s.docker(worker, "rm", "-f", "beside")
	s.docker(manager, "service", "rm", "svc")
	netlab.Until(s, patience, "end of the swarm's network", func() string {
		out, failed := s.tryDocker(manager, "network", "rm", "swarmed")
		if failed != nil && !strings.Contains(failed.Error(), "not found") {
			return out + failed.Error()
		}
		return ""
	})
}
