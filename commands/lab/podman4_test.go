package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// podman4 is the real Podman 4 of one lab host, with CNI and everything it writes in one folder.
type podman4 struct {
	*machine
}

func newPodman4(t *testing.T, h *netlab.Host) *podman4 {
	t.Helper()
	needs(t, "podman", "runc", "conmon")
	m := newMachine(t, h)
	newRootfs(t, m.dir)
	p := &podman4{m}
	for _, dir := range []string{"net", "plugins"} {
		if err := os.Mkdir(filepath.Join(m.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Hosts of the lab share /dev/shm: locks are files.
	conf := fmt.Sprintf(`[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
[containers]
cgroupns = "host"
log_driver = "k8s-file"
default_ulimits = ["nofile=16384:16384", "nproc=30000:30000"]
default_capabilities = ["NET_RAW", "NET_BIND_SERVICE", "KILL"]
[network]
network_backend = "cni"
network_config_dir = %q
cni_plugin_dirs = [%q]
`, m.dir+"/net", m.dir+"/plugins")
	if err := os.WriteFile(m.dir+"/containers.conf", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(netlab.Binary(t), m.dir+"/plugins/netctl"); err != nil {
		t.Fatal(err)
	}
	p.network("web")
	p.network("db")
	// Its mounts are the lab host's and go with that.
	p.must("mkdir -p /run/netns; mount -t tmpfs none /run/netns; mount --make-shared /run/netns")
	t.Cleanup(func() { _, _ = p.podman("rm -f -a -t0") })
	p.run("import -q " + m.dir + "/bb.tar localhost/bb:1")
	return p
}

// network is one of docs/cni.md.
func (p *podman4) network(name string) {
	p.t.Helper()
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"netctl","capabilities":{"ips":true,"mac":true,"aliases":true,"portMappings":true}}]}`, name)
	if err := os.WriteFile(filepath.Join(p.dir, "net", name+".conflist"), []byte(conf), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

func (p *podman4) podman(args string) (string, error) {
	p.t.Helper()
	return p.sh(fmt.Sprintf("test -e %[1]s/bb.tar || tar -C %[1]s/rootfs -cf %[1]s/bb.tar .; CONTAINERS_CONF=%[1]s/containers.conf PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman --root %[1]s/lib --runroot %[1]s/run --tmpdir %[1]s/tmp --storage-driver vfs %[2]s </dev/null 2>%[1]s/err || { cat %[1]s/err; exit 1; }", p.dir, args))
}

func (p *podman4) run(args string) string {
	p.t.Helper()
	out, err := p.podman(args)
	if err != nil {
		p.t.Fatalf("podman %s: %s%v", args, out, err)
	}
	return strings.TrimSpace(out)
}

func (p *podman4) address(name, network string) string {
	p.t.Helper()
	return p.run(fmt.Sprintf("inspect -f '{{(index .NetworkSettings.Networks %q).IPAddress}}' %s", network, name))
}

// TestPodman4 has the real Podman 4 on two nodes, by CNI: addresses and MACs asked for, a
// published port, a pod in two networks, and one whose runtime is taken away under it.
func TestPodman4(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, Settings: "agent:\n    lostAfter: 2s\n"})
	waitHealthy(t, l)
	netlab.Must(t, l.Hosts[0], "netctl", "pool", "add", "10.0.0.0/16")
	x, y := newPodman4(t, l.Hosts[0]), newPodman4(t, l.Hosts[1])
	t.Log(x.run("--version"))
	x.run("run -d --name a --network web localhost/bb:1 /bin/sleep 1000")
	y.run("run -d --name b --network web --ip 10.0.3.7 --mac-address 92:d0:c6:0a:29:33 -p 8080:80 --label tier=front localhost/bb:1 /bin/busybox httpd -f -p 80 -h /etc")
	y.run("run -d --name c --network db localhost/bb:1 /bin/sleep 1000")
	if got := y.run("exec b /bin/ip -o addr show dev eth0") + y.run("exec b /bin/ip -o link show dev eth0"); !strings.Contains(got, "10.0.3.7/32") || !strings.Contains(got, "92:d0:c6:0a:29:33") {
		t.Errorf("the address and MAC asked for: %s", got)
	}
	netlab.Until(t, patience, "ping across nodes", func() string {
		out, err := x.podman("exec a /bin/ping -c1 -W1 10.0.3.7")
		if err != nil {
			return out
		}
		return ""
	})
	if out, err := y.podman("exec c /bin/ping -c1 -W1 10.0.3.7"); err == nil {
		t.Errorf("a member of another network: %s", out)
	}
	// A published port is the endpoint's affair: its network's members, and who a rule lets in.
	outside := func() (string, error) {
		return x.sh("curl -sS -m 1 http://" + l.Hosts[1].Addr.Addr().String() + ":8080/passwd")
	}
	if out, err := outside(); err == nil {
		t.Errorf("the published port without a rule: %s", out)
	}
	netlab.Must(t, l.Hosts[0], "netctl", "profile", "web", "rule", "add", "inbound", "allow", "tcp", "to", "ports", "80")
	netlab.Until(t, patience, "the published port", func() string {
		out, err := outside()
		if err != nil || !strings.Contains(out, "root:") {
			return fmt.Sprint(out, err)
		}
		return ""
	})
	if labels := netlab.Must(t, l.Hosts[0], "netctl", "get", "endpoints", "-o", "yaml"); !strings.Contains(labels, "podman.name: b") {
		t.Errorf("labels: %s", labels)
	}
	y.run("network reload b")
	x.run("exec a /bin/ping -c1 -W5 10.0.3.7")
	y.run("restart -t0 b")
	x.run("exec a /bin/ping -c1 -W5 10.0.3.7")
	y.run("pod create --name p --network web,db --infra-image localhost/bb:1 --infra-command \"/bin/sleep 1000\"")
	y.run("run -d --pod p --name p1 localhost/bb:1 /bin/busybox httpd -f -p 80 -h /etc")
	y.run("run -d --pod p --name p2 localhost/bb:1 /bin/sleep 1000")
	if one, other := y.run("exec p1 /bin/ip -o -4 addr"), y.run("exec p2 /bin/ip -o -4 addr"); one != other || strings.Count(one, "/32 ") != 2 {
		t.Errorf("two containers of one pod in two networks:\n%s\n%s", one, other)
	}
	pod := y.run("pod inspect -f '{{.InfraContainerID}}' p")
	y.run("exec p2 /bin/ping -c1 -W5 -I " + y.address(pod, "web") + " " + x.address("a", "web"))
	y.run("exec p2 /bin/ping -c1 -W5 -I " + y.address(pod, "db") + " " + y.address("c", "db"))
	y.run("pod rm -f -t0 p")
	y.run("rm -f -t0 b c")
	// Killed, its namespace gone and all that Podman knew: nobody asks for the release.
	sandbox := x.run("inspect -f '{{.NetworkSettings.SandboxKey}}' a")
	x.must("kill -9 " + x.run("inspect -f '{{.State.ConmonPid}} {{.State.Pid}}' a") + "; umount -l " + sandbox + "; rm " + sandbox + "; umount -l " + x.dir + "/lib/vfs-containers/*/userdata/shm; rm -r " + x.dir + "/lib " + x.dir + "/run " + x.dir + "/tmp")
	x.nothingLeft()
}
