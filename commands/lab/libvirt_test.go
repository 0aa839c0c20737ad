package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
	"netctl/netdev/qemulab"
)

// TestLibvirt: a real libvirtd starts a machine on a TAP of netctl's, and one on a TAP of its
// own that is adopted, both as docs/vms.md writes them.
func TestLibvirt(t *testing.T) {
	if os.Getenv("NETCTL_GUEST") == "" {
		t.Skip("`make test-all` has it, or set NETCTL_GUEST")
	}
	needs(t, "libvirtd", "virsh")
	l := forTest(t, Config{Nodes: 2, Settings: "agent:\n    adopt: [\"vnet*=web\"]\n"})
	waitHealthy(t, l)
	one, two := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, one, "netctl", "pool", "add", "10.0.0.0/16")
	v, addrs := addTap(t, one, "vm1", "--network", "web")
	c, c4, _ := attach(t, two, "c", "web")
	other, _, _ := attach(t, two, "other", "db")
	m := newMachine(t, one)
	const adopted = "10.0.3.9"
	machine := func(name, network, nic, then string) {
		t.Helper()
		g := qemulab.Guest{
			Modules: []string{"virtio_pci", "virtio_net"}, MemoryMiB: 256,
			Script: network + "\nip addr show dev eth0\nping -c 3 -W 5 " + c4.String() + "\necho serving\n" + then + "\nsleep 600",
		}
		if err := g.Image(filepath.Join(m.dir, name+".initrd")); err != nil {
			t.Fatal(err)
		}
		domain := fmt.Sprintf(`<domain type='qemu'>
  <name>%[1]s</name><memory unit='MiB'>256</memory><vcpu>1</vcpu><cpu mode='maximum'/><features><acpi/></features>
  <os><type arch='x86_64' machine='pc'>hvm</type><kernel>%[2]s/vmlinuz</kernel><initrd>%[3]s/%[1]s.initrd</initrd><cmdline>%[4]s</cmdline></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='ethernet'>%[5]s<model type='virtio'/></interface>
    <serial type='file'><source path='%[3]s/%[1]s.console'/></serial>
  </devices>
</domain>`, name, qemulab.KernelDir, m.dir, qemulab.CommandLine, nic)
		if err := os.WriteFile(filepath.Join(m.dir, name+".xml"), []byte(domain), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	machine("vm1", `cat >/client <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev eth0
ip link set eth0 mtu $mtu
ip route add $router dev eth0
ip route add default via $router
END
chmod 755 /client
ip link set eth0 up
udhcpc -i eth0 -f -q -n -t 10 -T 2 -O mtu -s /client`,
		"<mac address='"+v.mac+"'/><target dev='vm1' managed='no'/>",
		`up=1
while sleep 0.2; do
	if [ ! -e /sys/class/net/eth0 ]; then
		[ -z "$up" ] || echo "eth0 is gone"
		up=
	elif [ -z "$up" ]; then
		up=1
		ip link set eth0 up
		if udhcpc -i eth0 -f -q -n -t 4 -T 1 -O mtu -s /client && ping -c 1 -W 5 `+c4.String()+`; then
			echo "plugged in: $(cat /sys/class/net/eth0/address)"
		else
			echo "no address: $(cat /sys/class/net/eth0/address)"
			ip addr add `+addrs[0].String()+`/32 dev eth0; ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1
			ping -c 2 -W 2 `+c4.String()+` || echo "no way out"
		fi
	fi
done`)
	machine("vm2", "ip link set eth0 up; ip addr add "+adopted+"/32 dev eth0; ip route add 169.254.0.1 dev eth0; ip route add default via 169.254.0.1",
		"<source><ip address='169.254.0.1' prefix='32' peer='"+adopted+"'/></source><target dev='vnet0'/>", "")
	for name, text := range map[string]string{
		"libvirtd.conf": "unix_sock_dir = \"" + m.dir + "\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n",
		"qemu.conf":     "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\ncgroup_controllers = []\nnamespaces = []\ndynamic_ownership = 0\nremember_owner = 0\nstdio_handler = \"file\"\n",
	} {
		if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`set -e; for d in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt; do mkdir -p $d; mount -t tmpfs none $d; done
cp %[1]s/qemu.conf /etc/libvirt/
for f in passwd group; do cp /etc/$f %[1]s; done; echo libvirt-qemu:x:64055:64055::/:/bin/false >>%[1]s/passwd; echo libvirt-qemu:x:64055: >>%[1]s/group; echo kvm:x:64056: >>%[1]s/group
for f in passwd group; do mount --bind %[1]s/$f /etc/$f; done; exec libvirtd --config %[1]s/libvirtd.conf`, m.dir)
	p, err := one.Start("libvirtd", netlab.Cmd{Args: []string{"unshare", "-m", "--propagation", "slave", "sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	virsh := func(args string) string {
		return fmt.Sprintf("nsenter -t %d -m virsh -c 'qemu+unix:///system?socket=%s/libvirt-sock' %s", p.PID, m.dir, args)
	}
	netlab.Until(t, patience, "libvirtd", func() string {
		out, err := m.sh(virsh("version"))
		if err != nil {
			return fmt.Sprint(out, err, p.Output())
		}
		return ""
	})
	boot := func(name, address string) {
		t.Helper()
		console := filepath.Join(m.dir, name+".console")
		_ = os.Remove(console)
		m.must(virsh("start " + name))
		var said string
		netlab.Until(t, patience, "the machine "+name, func() string {
			text, _ := os.ReadFile(console)
			if said = string(text); !strings.Contains(said, "serving") {
				return "it says: " + said
			}
			return ""
		})
		for _, want := range []string{"inet " + address + "/32", "3 packets received"} {
			if !strings.Contains(said, want) {
				t.Errorf("the machine does not say %q:\n%s", want, said)
			}
		}
		pings(t, c, netip.MustParseAddr(address))
		if out, err := netlab.Try(t, other, "ping", "-n", "-c1", "-W1", address); err == nil {
			t.Errorf("a member of another network reaches %s:\n%s", name, out)
		}
	}
	for _, name := range []string{"vm1", "vm2"} {
		m.must(virsh("define " + m.dir + "/" + name + ".xml"))
		t.Cleanup(func() { _, _ = m.sh(virsh("destroy " + name)) })
	}
	boot("vm1", addrs[0].String())
	says(t, one, "1 TAP, 1 open by a virtual machine\n")
	m.must(virsh("destroy vm1"))
	says(t, one, "1 TAP, 0 open by a virtual machine; not "+one.Name+"/manual/vm1/eth0\n")
	boot("vm1", addrs[0].String())
	// The interface is taken out of the running machine and put in again, and one with a MAC that
	// is not the endpoint's, which is told nothing and reaches nobody.
	heard := 0
	hears := func(what string) {
		t.Helper()
		netlab.Until(t, patience, "the machine says "+what, func() string {
			text, _ := os.ReadFile(filepath.Join(m.dir, "vm1.console"))
			at := strings.Index(string(text[heard:]), what)
			if at < 0 {
				return string(text[heard:])
			}
			heard += at + len(what)
			return ""
		})
	}
	nic := func(mac string) string {
		file := filepath.Join(m.dir, "nic.xml")
		text := "<interface type='ethernet'><mac address='" + mac + "'/><target dev='vm1' managed='no'/><model type='virtio'/></interface>"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	unplug := func(mac string) {
		t.Helper()
		m.must(virsh("detach-interface vm1 ethernet --mac " + mac))
		hears("eth0 is gone")
	}
	const strange = "52:54:00:12:34:56"
	unplug(v.mac)
	says(t, one, "1 TAP, 0 open by a virtual machine; not "+one.Name+"/manual/vm1/eth0\n")
	m.must(virsh("attach-device vm1 " + nic(strange)))
	hears("no address: " + strange)
	hears("no way out")
	unplug(strange)
	m.must(virsh("attach-device vm1 " + nic(v.mac)))
	hears("plugged in: " + v.mac)
	pings(t, c, addrs[0])
	boot("vm2", adopted)
	m.must(virsh("destroy vm2"))
	netlab.Until(t, patience, "the end of the adopted one", func() string {
		if out := netlab.Must(t, one, "netctl", "endpoint", "show"); strings.Contains(out, adopted) {
			return out
		}
		return ""
	})
	// The machine outlives libvirtd, and so does its network.
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	pings(t, c, addrs[0])
}
