package doctor

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// childVariable has the test's own program examine the host that it is started in.
const childVariable = "DOCTOR_TEST_CHILD"

// order is what the child is to do.
type order struct {
	Config Config
	Fix    bool
	Only   []string // checks
}

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	if err := child(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child() error {
	var o order
	if err := json.NewDecoder(os.Stdin).Decode(&o); err != nil {
		return err
	}
	h, closer, err := Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer closer()
	checks := slices.DeleteFunc(Checks(), func(c Check) bool { return len(o.Only) > 0 && !slices.Contains(o.Only, c.Name) })
	r, err := run(context.Background(), h, o.Config, o.Fix, checks)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// hurt is a fault that is really made in a lab: on node1 unless it says otherwise.
type hurt struct {
	check  string
	inject string // with sh(1)
	undo   string
	on     string // the host; "": node1
	config func(*Config)
	also   func(t *testing.T, l *netlab.Lab) (undo func()) // what a shell cannot do
	limits string                                          // prlimit(1) for the child
	what   string
	mends  bool
	paste  bool // the fix's commands mend it, as they are told
}

// runsAs starts a process that is called name, and ends it.
func runsAs(name string) (inject, undo string) {
	return "exec -a " + name + " sleep 1000 & echo $! >/run/" + name + ".pid; until grep -qa ^" + name + " /proc/$!/cmdline; do sleep 0.01; done", "kill $(cat /run/" + name + ".pid)"
}

func hurts(node1 netip.Addr) []hurt {
	managerOn, managerOff := runsAs("NetworkManager")
	networkdOn, networkdOff := runsAs("systemd-networkd")
	birdOn, birdOff := runsAs("bird")
	felixOn, felixOff := runsAs("calico-felix")
	dropped := func(rule string) (string, string) {
		return "nft 'add table inet hurt; add chain inet hurt in { type filter hook input priority 0; }; add rule inet hurt in " + rule + " drop'", "nft delete table inet hurt"
	}
	ipipOn, ipipOff := dropped("ip protocol 4")
	vxlanOn, vxlanOff := dropped("udp dport 4789")
	wgOn, wgOff := dropped("udp dport 51820")
	bgpOn, bgpOff := dropped("tcp dport 179")
	return []hurt{
		{check: "kernel-settings", inject: "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys", undo: "umount /proc/sys", what: "read-only", paste: true},
		{check: "forwarding", inject: "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/conf/eth1/forwarding", undo: "echo 0 >/proc/sys/net/ipv4/ip_forward", what: "what comes in by eth1", mends: true},
		{check: "forwarding", inject: "echo 'net.ipv4.ip_forward=0' >/etc/sysctl.d/50-hard.conf", undo: "rm /etc/sysctl.d/50-hard.conf", what: "/etc/sysctl.d/50-hard.conf sets", mends: true},
		{check: "ipv6", inject: "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6", undo: "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6; ip addr add fd00:99::102/64 dev eth1 nodad", what: "disable_ipv6 is 1", mends: true},
		{check: "router-advertisements", inject: "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra; ip -6 route add default via fe80::1 dev eth0 proto ra", undo: "ip -6 route del default; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding", what: "eth0.accept_ra is 1", mends: true},
		{check: "rp-filter", inject: "echo 1 >/proc/sys/net/ipv4/conf/eth1/rp_filter", undo: "echo 0 >/proc/sys/net/ipv4/conf/eth1/rp_filter", what: "rp_filter of eth1 is 1", mends: true},
		{check: "bridge-netfilter", inject: "ip link add br0 type bridge; ip link add p0 type veth peer name p1; ip link set p0 master br0; echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables", undo: "ip link del br0; ip link del p0", what: "bridge br0 has ports (p0)", mends: true},
		{check: "forward-policy", inject: "iptables-nft -P FORWARD DROP", undo: "iptables-nft -F FORWARD; iptables-nft -P FORWARD ACCEPT", what: "iptables-nft: the policy", mends: true},
		{check: "forward-policy", inject: "iptables-legacy -P FORWARD DROP", undo: "iptables-legacy -F FORWARD; iptables-legacy -P FORWARD ACCEPT", what: "iptables-legacy: the policy", mends: true},
		{check: "iptables-flavours", inject: "iptables-nft -A INPUT -p 99 -j DROP; iptables-legacy -A INPUT -p 99 -j DROP", undo: "iptables-nft -F INPUT; iptables-legacy -F INPUT", what: "iptables-nft (1 rules), iptables-legacy (1 rules)"},
		{check: "foreign-chains", inject: "nft 'add table inet guard; add chain inet guard guarded { type filter hook forward priority 5; policy drop; }'", undo: "nft delete table inet guard", what: "nftables chain inet guard guarded (hook forward, priority 5)", paste: true},
		{check: "foreign-chains", inject: `nft 'add table inet guard; add chain inet guard guarded { type filter hook forward priority 5; policy drop; }; add rule inet guard guarded iifname "nc*" accept'`, undo: "nft delete table inet guard", what: "no rule in it accepts nc*", paste: true},
		{check: "firewalld", inject: "nft 'add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }'", undo: "nft delete table inet firewalld", config: func(c *Config) { c.Cluster = nil }, what: "firewalld filters here"},
		{check: "node-name", config: func(c *Config) { c.Node = "localhost.localdomain" }, what: "every machine without a name"},
		{check: "node-name", inject: "echo 1111111111111111 >/var/lib/netctl-node/host", undo: "echo 0011223344556677 >/var/lib/netctl-node/host", what: "registered by host 0011223344556677"},
		{check: "node-address", on: "node2", inject: "ip addr add " + node1.String() + "/24 dev eth1", undo: "ip addr del " + node1.String() + "/24 dev eth1", what: "is answered for by another machine, 02:6e:63:01:00:01"},
		{check: "node-address", config: func(c *Config) { c.Cluster.Nodes[1].Spec.Addresses = c.Cluster.Nodes[0].Spec.Addresses }, what: "is the address of node node2"},
		{check: "clock", config: func(c *Config) { c.Cluster.Reports[2].Status.Seen = time.Now().AddDate(1, 0, 0) }, what: "node node2 reported at"},
		{check: "certificates", config: func(c *Config) { c.Certificates = []string{"/run/old.crt"} }, also: file("/run/old.crt", certificateText(time.Unix(0, 0), time.Unix(1e9, 0)), 0o600), what: "ended 2001-"},
		{check: "clock", config: func(c *Config) { c.Certificates = []string{"/run/new.crt"} }, also: file("/run/new.crt", certificateText(time.Now().AddDate(1, 0, 0), time.Now().AddDate(2, 0, 0)), 0o600), what: "it is slow"},
		{check: "networkmanager", inject: managerOn, undo: managerOff, what: "NetworkManager (PID ", mends: true},
		{check: "networkd", inject: networkdOn + "; mkdir -p /etc/systemd/network; printf '[Match]\\nName=*\\n' >/etc/systemd/network/50-all.network", undo: networkdOff + "; rm /etc/systemd/network/50-all.network", what: "by /etc/systemd/network/50-all.network", mends: true},
		{check: "other-cni", inject: `mkdir -p /etc/cni/net.d; echo '{"plugins":[{"type":"weave-net"}]}' >/etc/cni/net.d/00-weave.conflist`, undo: "rm /etc/cni/net.d/00-weave.conflist", what: "a network of plugin weave-net"},
		{check: "calico", inject: "ip link add cali123 type veth peer name x123", what: "cali123", paste: true},
		{check: "calico", inject: "ip route add 10.99.0.0/26 via " + node1.Next().String() + " proto 80", what: "1 routes of Calico's", paste: true},
		{check: "calico", inject: felixOn, undo: felixOff, what: "calico-felix (PID "},
		{check: "bird", inject: birdOn, undo: birdOff, what: "another speaker of BGP"},
		{check: "other-netctl", inject: "mkdir -p /etc/netctl && touch /etc/netctl/ethernet-static", undo: "rm -r /etc/netctl", what: "with profiles /etc/netctl/ethernet-static"},
		{check: "docker", also: oldDocker, what: "Docker 18.09.1 is older"},
		{check: "podman", also: file("/run/netctl-lab/podman", "#!/bin/sh\necho podman version 3.4.4\n", 0o700), what: "Podman 3.4.4 is older"},
		{check: "ports", also: listen("0.0.0.0:179"), what: "TCP port 179, which the speaker needs, is held by"},
		{check: "ports", also: listen("127.0.0.1:2380"), config: func(c *Config) {
			c.Roles, c.EtcdListen = []string{"datastore"}, []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:2380")}
		}, what: "TCP port 2380"},
		{check: "disk-space", inject: "mount -t tmpfs -o size=2m tmpfs /var/lib/netctl-node; dd if=/dev/zero of=/var/lib/netctl-node/full bs=1k count=4000 2>/dev/null || true", undo: "umount /var/lib/netctl-node", what: "0 KiB free of 2 MiB"},
		{check: "disk-space", inject: "mount -t tmpfs -o size=2m,nr_inodes=20 tmpfs /var/lib/netctl-node; for i in $(seq 30); do touch /var/lib/netctl-node/$i || true; done 2>/dev/null", undo: "umount /var/lib/netctl-node", what: "room for 0 more files"},
		{check: "disk-space", inject: "mount -t tmpfs -o ro tmpfs /var/lib/netctl-node", undo: "umount /var/lib/netctl-node", what: "read-only"},
		{check: "open-files", limits: "--nofile=200:200", what: "may open 200 files"},
		{check: "pools", config: addPool("192.168.0.0/16"), what: "pool 192.168.0.0/16 lies over 192.168.99.0/24, which this host is connected to by eth1"},
		{check: "pools", inject: "ip route add 10.65.3.0/24 via " + node1.Next().String(), undo: "ip route del 10.65.3.0/24 || true", what: "route of another program's to 10.65.3.0/24", paste: true},
		{check: "gateway", inject: "ip addr add 169.254.9.9/16 dev eth0", undo: "ip addr del 169.254.9.9/16 dev eth0", what: "lies in 169.254.0.0/16 of eth0"},
		{check: "link-names", inject: "ip link add nc7 type veth peer name x7", undo: "ip link del x7", what: "interface nc7", paste: true},
		{check: "route-protocols", inject: "echo '88 other' >/etc/iproute2/rt_protos.d/other.conf", undo: "rm /etc/iproute2/rt_protos.d/other.conf", what: "route protocol 88 is that of other"},
		{check: "route-protocols", inject: "rm /var/lib/netctl-node/host; ip route add 10.88.0.0/24 via " + node1.Next().String() + " proto 87", undo: "ip route flush proto 87; echo 0011223344556677 >/var/lib/netctl-node/host", what: "netctl has never run here"},
		{check: "path-mtu", on: "fabric", inject: "ip link set n2.1 mtu 1400", undo: "ip link set n2.1 mtu 1500", what: "may have 1400 bytes, and eth1 lets them have 1500"},
		{check: "path-bgp", on: "node2", inject: bgpOn, undo: bgpOff, what: "no answer, though it answers echo requests"},
		{check: "path-ipip", on: "node2", inject: ipipOn, undo: ipipOff, what: "no answer, though it answers echo requests"},
		{check: "path-vxlan", on: "node2", inject: vxlanOn, undo: vxlanOff, what: "no answer, though it answers echo requests"},
		{check: "path-wireguard", on: "node2", inject: wgOn, undo: wgOff, what: "no answer, though it answers echo requests"},
		{check: "path-vxlan", inject: "nft 'add table inet hurt; add chain inet hurt out { type filter hook output priority 0; }; add rule inet hurt out udp dport 4789 drop'", undo: "nft delete table inet hurt", what: "prohibited by this host's own packet filter"},
		{check: "path-wireguard", on: "node2", inject: "nft 'add table inet hurt; add chain inet hurt in { type filter hook input priority 0; }; add rule inet hurt in udp dport 51820 reject with icmpx admin-prohibited'", undo: "nft delete table inet hurt", what: "prohibited by"},
	}
}

func addPool(cidr string) func(*Config) {
	p := netip.MustParsePrefix(cidr)
	return func(c *Config) {
		c.Cluster.Pools = append(c.Cluster.Pools, &datastore.Pool{Metadata: datastore.Metadata{Name: datastore.PoolName(p)}, Spec: datastore.PoolSpec{CIDR: p}})
	}
}

func file(name, text string, mode os.FileMode) func(*testing.T, *netlab.Lab) func() {
	return func(t *testing.T, l *netlab.Lab) func() {
		path := l.Hosts[0].Path(name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return func() { _ = os.Remove(path) }
	}
}

// listen holds a port of node1 by a process of another namespace.
func listen(at string) func(*testing.T, *netlab.Lab) func() {
	return func(t *testing.T, l *netlab.Lab) func() {
		var held net.Listener
		err := l.Hosts[0].Do(func() (err error) {
			held, err = net.Listen("tcp", at)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return func() { _ = held.Close() }
	}
}

// oldDocker answers as its daemon does.
func oldDocker(t *testing.T, l *netlab.Lab) func() {
	var held net.Listener
	err := l.Hosts[0].Do(func() (err error) {
		held, err = net.Listen("unix", dockerSock)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = http.Serve(held, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"Version":"18.09.1"}`)
		}))
	}()
	return func() {
		_ = held.Close()
		<-done
	}
}

// examined is what the checks find on node1.
func examined(t *testing.T, l *netlab.Lab, o order, limits string) *Report {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	args := []string{self}
	if limits != "" {
		args = []string{"prlimit", limits, self}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := l.Hosts[0].Exec(ctx, netlab.Cmd{Args: args, Env: []string{childVariable + "=1"}, Stdin: string(text)})
	if err != nil {
		t.Fatal(err)
	}
	var r Report
	if err := json.NewDecoder(bytes.NewReader([]byte(out))).Decode(&r); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	return &r
}

// labConfig is what is known on node1 of a cluster whose roles do not run: what the
// nodes say of their kernels' paths is enough.
func labConfig(l *netlab.Lab) Config {
	c := Config{Node: "node1", Roles: []string{"agent", "speaker"}, Cluster: twoNodes(time.Now())}
	for i, n := range c.Cluster.Nodes {
		n.Spec.Addresses, n.Status.Tunnels = []netip.Prefix{l.Hosts[i].Addr, l.Hosts[i].Addr6}, nil
	}
	c.Cluster.Reports[1].Status.Sessions[0].Peer, c.Cluster.Reports[3].Status.Sessions[0].Peer = l.Hosts[1].Addr.Addr(), l.Hosts[0].Addr.Addr()
	c.Cluster.Reports[2].Status.Seen, c.Cluster.Reports[3].Status.Seen = time.Now(), time.Now()
	return c
}

// labFaults is a lab whose first node has an /etc of its own, and listens as a node does.
func labFaults(t *testing.T) *netlab.Lab {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l := netlab.ForTest(t, netlab.Options{IPv6: true})
	netlab.Must(t, l.Hosts[0], "sh", "-ec", `mkdir /run/etc && mount -t tmpfs tmpfs /run/etc && cp -a /etc/. /run/etc/ && cd /run/etc
		rm -rf sysctl.d cni netctl NetworkManager systemd/network systemd/networkd.conf.d
		mkdir -p sysctl.d iproute2/rt_protos.d
		mount --bind /run/etc /etc
		for p in systemctl networkctl nmcli; do printf '#!/bin/sh\necho "$0 $@" >>/run/told\n' >/run/netctl-lab/$p; chmod 700 /run/netctl-lab/$p; done
		echo 0011223344556677 >/var/lib/netctl-node/host`)
	return l
}

// TestLabFaults makes each fault for real, on hosts of a lab: it is found, what --fix
// mends is mended, and once it is undone nothing is found. A clean host has none.
func TestLabFaults(t *testing.T) {
	l := labFaults(t)
	var held net.Listener // node2's speaker
	if err := l.Hosts[1].Do(func() (err error) {
		held, err = net.Listen("tcp", netip.AddrPortFrom(l.Hosts[1].Addr.Addr(), 179).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	alarm := func(when string, r *Report) {
		t.Helper()
		for _, c := range r.Checks {
			// The kernel of this machine may lack what pools of the cluster have.
			lacking := c.Name == "kernel" && !slices.ContainsFunc(c.Findings, func(f Finding) bool { return f.Fatal })
			if c.State == Wrong && !lacking || c.State == Unknown {
				t.Errorf("%s: %s is %s: %+v %s", when, c.Name, c.State, c.Findings, c.Reason)
			}
		}
	}
	alarm("clean", examined(t, l, order{Config: labConfig(l)}, ""))
	if t.Failed() {
		return
	}
	list := hurts(l.Hosts[0].Addr.Addr())
	list = append(list, hurt{check: "path-mtu", on: "fabric", inject: "ip link set n2.1 mtu 1400", undo: "ip link set n2.1 mtu 1500", what: "packets from " + l.Hosts[0].Addr6.Addr().String() + " to node2 (" + l.Hosts[1].Addr6.Addr().String() + ") may have 1400 bytes"})
	if len(list) < 25 {
		t.Fatalf("%d faults", len(list))
	}
	for _, x := range list {
		t.Run(x.check+"/"+x.what, func(t *testing.T) { x.try(t, l) })
	}
	alarm("clean again", examined(t, l, order{Config: labConfig(l)}, ""))
}

func (x hurt) try(t *testing.T, l *netlab.Lab) {
	host, err := l.Host(cmp.Or(x.on, "node1"))
	if err != nil {
		t.Fatal(err)
	}
	shell := func(script string) {
		t.Helper()
		if script == "" {
			return
		}
		if _, err := host.Exec(t.Context(), netlab.Cmd{Args: []string{"bash", "-ec", "exec >/run/doctor-test.log 2>&1; " + script}}); err != nil {
			log, _ := os.ReadFile(filepath.Join(host.Dir(), "run/doctor-test.log"))
			t.Fatalf("%v\n%s", err, log)
		}
	}
	shell(x.inject)
	undo := func() {}
	if x.also != nil {
		undo = x.also(t, l)
	}
	c := labConfig(l)
	if x.config != nil {
		x.config(&c)
	}
	o := order{Config: c, Only: []string{x.check}}
	res := examined(t, l, o, x.limits).Checks[0]
	if res.State != Wrong || !slices.ContainsFunc(res.Findings, func(f Finding) bool { return strings.Contains(f.What, x.what) && len(f.Fix) > 0 }) {
		t.Errorf("%+v", res)
	}
	if x.paste {
		for _, f := range res.Findings {
			for _, line := range f.Fix {
				if strings.HasPrefix(line, "netctl ") || strings.HasPrefix(line, "#") {
					break
				}
				shell(line)
			}
		}
		if res := examined(t, l, o, x.limits).Checks[0]; res.State != Fine {
			t.Errorf("after its fix: %+v", res)
		}
	}
	if x.mends {
		o.Fix = true
		if res := examined(t, l, o, x.limits).Checks[0]; res.State != Fine || len(res.Changes) == 0 {
			t.Errorf("--fix: %+v", res)
		} else {
			t.Log(strings.Join(res.Changes, "; "))
		}
	}
	undo()
	shell(x.undo)
	o = order{Config: labConfig(l), Only: []string{x.check}}
	if res := examined(t, l, o, "").Checks[0]; res.State == Wrong || res.State == Unknown {
		t.Errorf("undone: %+v", res)
	}
}
