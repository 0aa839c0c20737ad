package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// TestLXD: a container of a real LXD with a routed NIC, as docs/vms.md writes it, is an endpoint
// as long as it runs; Incus has the same NIC.
func TestLXD(t *testing.T) {
	if os.Getenv("NETCTL_GUEST") == "" {
		t.Skip("`make test-all` has it, or set NETCTL_GUEST")
	}
	needs(t, "lxd", "lxc", "busybox")
	l := forTest(t, Config{Nodes: 2, Settings: "agent:\n    adopt: [\"veth-in*=web\"]\n"})
	waitHealthy(t, l)
	one, two := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, one, "netctl", "pool", "add", "10.0.0.0/16")
	c, c4, _ := attach(t, two, "c", "web")
	other, _, _ := attach(t, two, "other", "db")
	m := newMachine(t, one)
	// The cgroups are this machine's, so the container's name is to be of this test alone.
	name := fmt.Sprintf("netctl-%d", os.Getpid())
	const address, link = "10.0.3.9", "veth-in1"
	script := fmt.Sprintf(`set -e; cd %[1]s; for d in /var/lib/lxd /var/log/lxd /var/cache/lxd; do mkdir -p $d; mount -t tmpfs none $d; done
for f in subuid subgid; do { cat /etc/$f; echo root:1000000:65536; } >$f; mount --bind $f /etc/$f; done
exec lxd --group root`, m.dir)
	p, err := one.Start("lxd", netlab.Cmd{Args: []string{"unshare", "-m", "--propagation", "slave", "sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	lxc := func(args string) string {
		return fmt.Sprintf("HOME=%[1]s LXD_CONF=%[1]s/conf nsenter -t %[2]d -m lxc %[3]s </dev/null", m.dir, p.PID, args)
	}
	netlab.Until(t, patience, "lxd", func() string {
		out, err := m.sh(lxc("list"))
		if err != nil {
			return fmt.Sprint(out, err, p.Output())
		}
		return ""
	})
	m.must(fmt.Sprintf(`cd %s; for d in bin sbin etc proc sys dev tmp run var root; do mkdir -p rootfs/$d; done
cp $(command -v busybox) rootfs/bin/; for a in sh sleep ping; do ln -s busybox rootfs/bin/$a; done
printf '#!/bin/sh\ntrap "exit 0" PWR\nwhile :; do sleep 1; done\n' >rootfs/sbin/init; chmod 755 rootfs/sbin/init
echo root:x:0:0:root:/root:/bin/sh >rootfs/etc/passwd
echo '{architecture: x86_64, creation_date: 1700000000, properties: {os: busybox}}' >metadata.yaml
tar -cf image.tar metadata.yaml rootfs`, m.dir))
	for _, args := range []string{
		"storage create d dir", "image import -q " + filepath.Join(m.dir, "image.tar") + " --alias bb", "profile device add default root disk path=/ pool=d",
		"init -q bb " + name + " -c security.privileged=true -c raw.lxc=lxc.apparmor.profile=unconfined",
		"config device add " + name + " eth0 nic nictype=routed name=eth0 host_name=" + link + " ipv4.address=" + address,
	} {
		m.must(lxc(args))
	}
	t.Cleanup(func() { _, _ = m.sh(lxc("delete -f " + name)) })
	gone := func(what string) {
		t.Helper()
		netlab.Until(t, patience, what, func() string {
			if out := netlab.Must(t, one, "netctl", "endpoint", "show"); strings.Contains(out, address) {
				return out
			}
			return ""
		})
	}
	for _, what := range []string{"started", "started again"} {
		m.must(lxc("start " + name))
		pings(t, c, netip.MustParseAddr(address))
		m.must(lxc("exec -n " + name + " -- ping -c1 -W5 " + c4.String()))
		if out, err := netlab.Try(t, other, "ping", "-n", "-c1", "-W1", address); err == nil {
			t.Errorf("%s: a member of another network reaches it:\n%s", what, out)
		}
		if out := netlab.Must(t, one, "netctl", "endpoint", "show", "--detailed"); !strings.Contains(out, "adopted") || !strings.Contains(out, link) {
			t.Errorf("%s:\n%s", what, out)
		}
		m.must(lxc("stop -f " + name))
		gone("the end of one that was " + what)
	}
	// Without its interface it is none, too.
	m.must(lxc("start " + name))
	pings(t, c, netip.MustParseAddr(address))
	m.must(lxc("config device remove " + name + " eth0"))
	gone("the end of an interface that is taken away")
}
