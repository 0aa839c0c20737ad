package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// trixieEnv is the folder of a tree of Debian 13 with its container runtimes (.ci/trixie).
const trixieEnv = "NETCTL_TRIXIE"

// trixie is a lab's host as seen from Debian 13: its network and its netctl, and that tree
// instead of its files. What is written there goes with the test.
type trixie struct {
	*machine
	anchor *netlab.Process
}

func newTrixie(t *testing.T, h *netlab.Host, tree string) *trixie {
	t.Helper()
	m := newMachine(t, h)
	newRootfs(t, m.dir)
	// A root of its own by pivot_root: runc enters the mount namespace by its root.
	// What runtimes mount below /run/docker and /run/netns the agent sees, too, as on a machine
	// of its own: the agent sets the rules of a container with several interfaces.
	netlab.Must(t, h, "sh", "-ec", "for d in /run/docker /run/netns; do mkdir -p $d; mount -t tmpfs none $d; mount --make-shared $d; done")
	script := fmt.Sprintf(`set -e
mount --make-private /; mount --make-private /run || true; mkdir -p %[1]s/mem; mount -t tmpfs tmpfs %[1]s/mem; cd %[1]s/mem; mkdir up work root
mount -t overlay overlay -o lowerdir=%[2]s,upperdir=$PWD/up,workdir=$PWD/work root; cd root
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp; mount -t tmpfs tmpfs srv
mkdir -p run/lock run/netns run/netctl-node run/docker srv/plugins opt/cni/bin etc/cni/net.d .old
mount --rbind /run/netctl-node run/netctl-node; for d in docker netns; do mount --rbind /run/$d run/$d; done; mkdir -p run/docker/plugins; cp /etc/netctl.yaml etc/; mkdir -p var/lib/netctl-node; mount --rbind /var/lib/netctl-node var/lib/netctl-node
cp %[3]s usr/local/bin/netctl; ln -s /usr/local/bin/netctl srv/plugins/netctl; ln -s /usr/local/bin/netctl opt/cni/bin/netctl
tar -C %[1]s/rootfs -cf srv/bb.tar .; mkdir srv/rootfs; tar -C srv/rootfs -xf srv/bb.tar
pivot_root . .old; cd /; umount -l /.old; touch /run/ready; exec sleep infinity`, m.dir, tree, netlab.Binary(t))
	p, err := h.Start("trixie", netlab.Cmd{Args: []string{"unshare", "-m", "--propagation", "unchanged", "sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	x := &trixie{m, p}
	x.until("a root of its own", "test -e /run/ready")
	return x
}

// args is a script in the tree.
func (x *trixie) args(script string) []string {
	return []string{"nsenter", "-t", fmt.Sprint(x.anchor.PID), "-m", "-n", "-r", "-w", "env", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", script}
}

func (x *trixie) must(script string) string {
	x.t.Helper()
	return netlab.Must(x.t, x.host, x.args(script)...)
}

func (x *trixie) until(what, script string) {
	x.t.Helper()
	netlab.Until(x.t, patience, what, func() string {
		if out, failed := netlab.Try(x.t, x.host, x.args(script)...); failed != nil {
			return out + failed.Error()
		}
		return ""
	})
}

// start starts a daemon that is to say something to ready's script.
func (x *trixie) start(name, script, ready string) {
	x.t.Helper()
	p, err := x.host.Start(name, netlab.Cmd{Args: x.args("exec " + script)})
	if err != nil {
		x.t.Fatal(err)
	}
	x.t.Cleanup(func() { _ = p.Stop() })
	x.until(name, ready)
}

// TestTrixie runs the runtimes of Debian 13: Docker 26, Podman 5 by netavark, containerd.
// Each has two containers that reach each other, and leaves nothing.
func TestTrixie(t *testing.T) {
	tree := os.Getenv(trixieEnv)
	if tree == "" {
		t.Skip("set " + trixieEnv + " to the tree that .ci/trixie makes")
	}
	l := forTest(t, Config{Nodes: 1, Settings: "agent:\n    lostAfter: 2s\n    runtimes: []\n"})
	waitHealthy(t, l)
	netlab.Must(t, l.Hosts[0], "netctl", "pool", "add", "10.0.0.0/16")
	x := newTrixie(t, l.Hosts[0], tree)
	t.Run("docker", x.docker)
	t.Run("podman", x.podman)
	t.Run("ctr", x.ctr)
}

func (x *trixie) docker(t *testing.T) {
	x.t, x.machine.t = t, t
	x.start("netctl docker", "netctl docker --config /etc/netctl.yaml", "test -S /run/docker/plugins/netctl.sock")
	x.start("dockerd", "dockerd --data-root /srv/docker", "docker version")
	t.Log(x.must("docker version --format '{{.Server.Version}}'"))
	x.must("docker import -c 'CMD [\"/bin/sleep\",\"100000\"]' -c 'ENV PATH=/bin' /srv/bb.tar bb:1; docker network create -d netctl --ipam-driver netctl net1; docker network create -d netctl --ipam-driver netctl net2")
	x.must("docker run -d --name ca --network net1 bb:1; docker run -d --name cb --network net1 bb:1; docker run -d --name cc --network net2 bb:1; docker network connect net2 ca")
	address := func(name, network string) string {
		return strings.TrimSpace(x.must(fmt.Sprintf("docker inspect -f '{{(index .NetworkSettings.Networks \"%s\").IPAddress}}' %s", network, name)))
	}
	x.must("docker exec ca ping -c1 -W5 cb") // by Docker's own DNS
	// Of its two networks Docker makes one the default. Calls to either, by that network's
	// address, go out of its interface, and come in as members of it.
	x.until("net2 by its second interface", "docker exec ca ping -c1 -W1 -I "+address("ca", "net2")+" "+address("cc", "net2"))
	x.must("docker exec cc ping -c1 -W5 " + address("ca", "net2") + " && docker exec cb ping -c1 -W5 " + address("ca", "net1"))
	x.must("! docker exec cb ping -c1 -W1 " + address("cc", "net2"))
	x.must("docker restart -t0 ca && docker exec ca ping -c1 -W5 cb")
	x.must("docker rm -f ca cb cc; docker network rm net1 net2")
	x.nothingLeft()
}

func (x *trixie) podman(t *testing.T) {
	x.t, x.machine.t = t, t
	x.must(`cat >/srv/containers.conf <<E
[engine]
cgroup_manager="cgroupfs"
events_logger="file"
runtime="runc"
[containers]
cgroupns="host"
default_ulimits=["nofile=16384:16384","nproc=30000:30000"]
[network]
network_backend="netavark"
network_config_dir="/srv/podnet"
netavark_plugin_dirs=["/srv/plugins"]
E`)
	podman := "CONTAINERS_CONF=/srv/containers.conf PODMAN_IGNORE_CGROUPSV1_WARNING=1 podman --root /srv/podman --runroot /run/podman "
	t.Log(x.must(podman + "--version"))
	x.must(podman + "import -q /srv/bb.tar localhost/bb:1; " + podman + "network create --driver netctl nv1")
	for _, name := range []string{"q1", "q2"} {
		x.must(podman + "run -d --name " + name + " --network nv1 --cap-add NET_RAW localhost/bb:1 /bin/sleep 1000 </dev/null >/dev/null 2>/tmp/err || { cat /tmp/err; exit 1; }")
	}
	x.must(podman + "exec q1 /bin/ping -c1 -W5 $(" + podman + "inspect -f '{{(index .NetworkSettings.Networks \"nv1\").IPAddress}}' q2)")
	x.must(podman + "network reload q1 && " + podman + "exec q2 /bin/ping -c1 -W5 $(" + podman + "inspect -f '{{(index .NetworkSettings.Networks \"nv1\").IPAddress}}' q1)")
	// One container in two networks, from the start and connected later.
	x.must(podman + "network create --driver netctl nv2")
	for name, networks := range map[string]string{"q3": "nv2", "q4": "nv1,nv2"} {
		x.must(podman + "run -d --name " + name + " --network " + networks + " --cap-add NET_RAW localhost/bb:1 /bin/sleep 1000 </dev/null >/dev/null 2>/tmp/err || { cat /tmp/err; exit 1; }")
	}
	x.must(podman + "network connect nv2 q1")
	address := func(name, network string) string {
		return strings.TrimSpace(x.must(podman + "inspect -f '{{(index .NetworkSettings.Networks \"" + network + "\").IPAddress}}' " + name))
	}
	for _, name := range []string{"q1", "q4"} {
		x.until(name+" calls by both interfaces", podman+"exec "+name+" /bin/ping -c1 -W1 -I "+address(name, "nv2")+" "+address("q3", "nv2")+
			" && "+podman+"exec "+name+" /bin/ping -c1 -W1 -I "+address(name, "nv1")+" "+address("q2", "nv1"))
		x.must(podman + "exec q3 /bin/ping -c1 -W5 " + address(name, "nv2") + " && " + podman + "exec q2 /bin/ping -c1 -W5 " + address(name, "nv1"))
	}
	x.must("! " + podman + "exec q2 /bin/ping -c1 -W1 " + address("q3", "nv2"))
	x.must(podman + "rm -f -t0 q1 q2 q3 q4; " + podman + "network rm nv1 nv2")
	x.nothingLeft()
}

func (x *trixie) ctr(t *testing.T) {
	x.t, x.machine.t = t, t
	x.must(`echo '{"cniVersion":"1.0.0","name":"netctl","plugins":[{"type":"netctl"}]}' >/etc/cni/net.d/10-netctl.conflist
printf 'version = 2\nroot = "/srv/containerd"\nstate = "/run/ctr"\n[grpc]\n  address = "/run/ctr.sock"\n' >/srv/containerd.toml`)
	x.start("containerd", "containerd -c /srv/containerd.toml", "ctr -a /run/ctr.sock version")
	ctr := "ctr -a /run/ctr.sock "
	t.Log(x.must("containerd --version"))
	for _, id := range []string{"t1", "t2"} {
		x.must(ctr + "run -d --cni --rootfs /srv/rootfs " + id + " /bin/sleep 1000 </dev/null >/dev/null 2>/tmp/err || { cat /tmp/err; exit 1; }")
	}
	x.must(ctr + "t exec --exec-id x t1 /bin/ping -c1 -W5 " + x.address("cni", "default-t2"))
	for _, id := range []string{"t1", "t2"} {
		x.must(ctr + "t kill -s 9 " + id)
		x.until("end of "+id, ctr+"c rm "+id)
	}
	x.nothingLeft()
}
