package docker

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

// joinSwarm has Docker manage the plugin on two nodes, as docs/docker.md shows, beside the one
// that is a role, and both are a swarm with a network of the plugin's.
func (s *site) joinSwarm(manager, worker *netlab.Host, subnet string) {
	s.Helper()
	config, err := filepath.Abs("../../docs/docker-plugin.json")
	if err != nil {
		s.Fatal(err)
	}
	// A task asks a registry for its image first, and hears at once that there is none.
	script := `mkdir -p /run/docker/swarm/rootfs; cp ` + config + ` /run/docker/swarm/config.json; cp $(command -v netctl) /run/docker/swarm/rootfs/
export DOCKER_HOST=unix:///run/docker.sock; docker plugin create netctl-swarm /run/docker/swarm; docker plugin enable netctl-swarm || docker plugin enable netctl-swarm
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
}

// swarm runs a service on a network of a swarm.
func (s *site) swarm(manager, worker *netlab.Host, subnet string) {
	s.Helper()
	s.joinSwarm(manager, worker, subnet)
	s.docker(manager, "service", "create", "-d", "--no-resolve-image", "--mode", "global", "--endpoint-mode", "dnsrr", "--stop-signal", "KILL", "--name", "svc", "--network", "swarmed", "127.0.0.1:9/bb:1")
	here, there := s.task(manager, "svc"), s.task(worker, "svc")
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

// task waits for a task of a service on a host and returns its container.
func (s *site) task(h *netlab.Host, service string) (id string) {
	s.Helper()
	netlab.Until(s, patience, "a task on "+h.Name, func() string {
		if id = s.docker(h, "ps", "-q", "--filter", "name="+service+".", "--filter", "status=running"); id == "" {
			return s.docker(s.lab.Hosts[0], "service", "ps", "--no-trunc", service)
		}
		return ""
	})
	return strings.Fields(id)[0]
}

// TestSwarm is what docs/docker.md says of a swarm's services: their virtual addresses, ports
// of nodes, updates, scaling, a node that is drained and a manager that is killed.
func TestSwarm(t *testing.T) {
	if os.Getenv("NETCTL_SWARM") == "" {
		t.Skip("`make test-all` has it, or set NETCTL_SWARM")
	}
	s := newSite(t, lab.Config{Nodes: 2})
	manager, worker := s.lab.Hosts[0], s.lab.Hosts[1]
	netlab.Must(t, manager, "netctl", "pool", "add", "192.168.0.0/16")
	s.joinSwarm(manager, worker, "192.168.0.0/16")
	create := func(args ...string) {
		t.Helper()
		s.docker(manager, append([]string{"service", "create", "-d", "--no-resolve-image", "--stop-signal", "KILL", "--network", "swarmed", "--restart-delay", "1s"}, args...)...)
	}
	// has waits until a service has so many tasks on a host, and the network as many endpoints there.
	has := func(what string, h *netlab.Host, tasks, endpoints int) {
		t.Helper()
		netlab.Until(t, patience, what, func() string {
			ran := s.docker(h, "ps", "-q", "--filter", "name=web.", "--filter", "status=running")
			eps := netlab.Must(t, h, "netctl", "get", "endpoints", "-o", "yaml")
			if len(strings.Fields(ran)) != tasks || strings.Count(eps, "  node: "+h.Name+"\n") != endpoints {
				return ran + eps + s.docker(manager, "service", "ps", "--no-trunc", "web")
			}
			return ""
		})
	}
	calls := func(id, name string) (string, *netlab.ExecError) {
		return s.tryDocker(manager, "exec", id, "ping", "-c1", "-W1", name)
	}

	create("--mode", "global", "--name", "virtual", "127.0.0.1:9/bb:1") // its endpoint mode is vip
	id := s.task(manager, "virtual")
	netlab.Until(t, patience, "the tasks by their name", func() string {
		if out, failed := calls(id, "tasks.virtual"); failed != nil {
			return out + failed.Error()
		}
		return ""
	})
	if out, failed := calls(id, "virtual"); failed == nil || !strings.Contains(out+failed.Error(), "PING virtual (192.168.") {
		t.Errorf("the virtual address of a service: %s %v", out, failed)
	}
	s.docker(manager, "service", "rm", "virtual")

	create("--mode", "global", "--endpoint-mode", "dnsrr", "--name", "port", "--publish", "mode=host,published=8081,target=80", "127.0.0.1:9/bb:1", "httpd", "-f", "-h", "/etc")
	create("--replicas", "1", "--endpoint-mode", "dnsrr", "--constraint", "node.role==worker", "--name", "web", "127.0.0.1:9/bb:1")
	id = s.task(worker, "web")
	s.task(manager, "port")
	serves := func(what string) {
		t.Helper()
		netlab.Until(t, patience, what, func() string {
			out, failed := netlab.Try(t, worker, "busybox", "sh", "-c", fetch(netip.AddrPortFrom(manager.Addr.Addr(), 8081)))
			if failed != nil {
				return out + failed.Error() + s.docker(manager, "service", "ps", "--no-trunc", "port")
			}
			return ""
		})
	}
	if _, failed := netlab.Try(t, worker, "busybox", "sh", "-c", fetch(netip.AddrPortFrom(manager.Addr.Addr(), 8081))); failed == nil {
		t.Error("a task's port is reached that no rule allows")
	}
	netlab.Must(t, manager, "netctl", "profile", "swarmed", "rule", "add", "inbound", "allow", "tcp", "to", "ports", "80")
	serves("a port of a node")

	s.docker(manager, "service", "scale", "-d", "web=4")
	has("scaled up", worker, 4, 5)
	s.docker(manager, "service", "scale", "-d", "web=2")
	has("scaled down", worker, 2, 3)
	s.docker(manager, "service", "update", "-d", "--env-add", "V=2", "--update-parallelism", "0", "web")
	netlab.Until(t, patience, "the update", func() string {
		if out := s.docker(manager, "service", "inspect", "-f", "{{.UpdateStatus.State}}", "web"); out != "completed" {
			return out
		}
		return ""
	})
	has("updated", worker, 2, 3)
	if now := s.docker(worker, "ps", "-q", "--filter", "name=web."); strings.Contains(now, id) {
		t.Errorf("after the update %s is there still: %s", id, now)
	}
	s.docker(manager, "service", "update", "-d", "--constraint-rm", "node.role==worker", "web")
	s.docker(manager, "node", "update", "--availability", "drain", worker.Name)
	has("drained", worker, 0, 0)
	has("moved", manager, 2, 3)
	s.reaches(manager, s.task(manager, "port"), s.address(manager, s.task(manager, "web"), "swarmed"), 63)

	s.kill(s.dockers[manager])
	s.startDocker(manager)
	has("after the manager's death", manager, 2, 3)
	s.docker(manager, "node", "update", "--availability", "active", worker.Name)
	serves("the port after the manager's death")
	s.reaches(worker, s.task(worker, "port"), s.address(manager, s.task(manager, "web"), "swarmed"), 62)
	s.docker(manager, "service", "rm", "web", "port")
	for _, h := range s.lab.Hosts {
		s.wantNothing(h)
	}
}
