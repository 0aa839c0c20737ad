package doctor

import (
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// fault is something that is made wrong with a machine, and what is to be said of it.
type fault struct {
	check  string
	inject func(*fake, *Config)
	what   string // is said
	fix    string // is to be done
	mends  bool   // --fix does it
	fatal  bool
}

func setFile(name, text string) func(*fake, *Config) {
	return func(f *fake, _ *Config) { f.files[name] = text }
}

func runsToo(name string) func(*fake, *Config) {
	return func(f *fake, _ *Config) { f.processes = append(f.processes, Process{PID: 300, Name: name}) }
}

func faults() []fault {
	ipv6 := "/proc/sys/net/ipv6/conf/"
	return []fault{
		{check: "kernel", what: "the packet filter", fix: "modprobe -a nf_tables", fatal: true, inject: func(f *fake, _ *Config) { f.lacks[FeatureFilter] = unix.EOPNOTSUPP }},
		{check: "kernel", what: "veth", fix: "modprobe -a veth", fatal: true, inject: func(f *fake, _ *Config) { f.lacks[FeatureLinks] = unix.EOPNOTSUPP }},
		{check: "kernel", what: "pool 10.66.0.0/16 needs them", fix: "modprobe -a ipip", inject: func(f *fake, _ *Config) { f.lacks[FeatureIPIP] = unix.EOPNOTSUPP }},
		{check: "kernel", what: "pool 10.67.0.0/16 needs them", fix: "netctl get pools 10.67.0.0-16", inject: func(f *fake, _ *Config) { f.lacks[FeatureWireGuard] = unix.EOPNOTSUPP }},
		{check: "kernel-settings", what: "read-only", fix: "mount -o remount,rw /proc/sys", fatal: true, inject: func(f *fake, _ *Config) { f.readOnly["/proc/sys/net/ipv4/ip_forward"] = unix.EROFS }},
		{check: "forwarding", what: "net.ipv4.ip_forward is 0", fix: "sysctl -w net.ipv4.ip_forward=1", mends: true, inject: setFile("/proc/sys/net/ipv4/ip_forward", "0\n")},
		{check: "forwarding", what: "what comes in by eth1 is not forwarded", fix: "sysctl -w net.ipv4.conf.eth1.forwarding=1", mends: true, inject: setFile("/proc/sys/net/ipv4/conf/eth1/forwarding", "0\n")},
		{check: "forwarding", what: "/etc/sysctl.d/60-hardening.conf sets", fix: "sysctl --system", mends: true, inject: setFile("/etc/sysctl.d/60-hardening.conf", "net/ipv4/ip_forward = 0\n")},
		{check: "forwarding", what: "/etc/sysctl.conf sets net.ipv4.conf.all.forwarding = 0", fix: "net[./]ipv4[./]conf[./]all[./]forwarding", inject: setFile("/etc/sysctl.conf", "net.ipv4.conf.all.forwarding=0\n")},
		{check: "forwarding-ipv6", what: "forwarding is 0", fix: "sysctl -w net.ipv6.conf.all.forwarding=1", mends: true, inject: setFile(ipv6+"all/forwarding", "0\n")},
		{check: "ipv6", what: "net.ipv6.conf.all.disable_ipv6 is 1", fix: "disable_ipv6=0", mends: true, inject: setFile(ipv6+"all/disable_ipv6", "1\n")},
		{check: "ipv6", what: "started without IPv6", fix: "update-grub", inject: func(f *fake, _ *Config) { delete(f.files, ipv6+"all/disable_ipv6") }},
		{check: "router-advertisements", what: "net.ipv6.conf.eth0.accept_ra is 1", fix: "sysctl -w net.ipv6.conf.eth0.accept_ra=2", mends: true, inject: func(f *fake, _ *Config) {
			f.files[ipv6+"eth0/accept_ra"] = "1\n"
			f.routes = append(f.routes, kernel.Route{Prefix: netip.MustParsePrefix("::/0"), Protocol: 9, Link: "eth0"})
		}},
		{check: "rp-filter", what: "rp_filter of eth1 is 1", fix: "sysctl -w net.ipv4.conf.eth1.rp_filter=2", mends: true, inject: setFile("/proc/sys/net/ipv4/conf/eth1/rp_filter", "1\n")},
		{check: "bridge-netfilter", what: "bridge br0 has ports (eth2)", fix: "sysctl -w net.bridge.bridge-nf-call-iptables=0", inject: func(f *fake, _ *Config) {
			f.interfaces = append(f.interfaces, kernel.Interface{Name: "br0", Index: 20, Kind: "bridge", Up: true}, kernel.Interface{Name: "eth2", Index: 21, Master: "br0"})
		}},
		{check: "forward-policy", what: "iptables-nft: the policy of FORWARD is DROP", fix: "iptables-nft -w -I DOCKER-USER -i nc+", mends: true, inject: func(f *fake, _ *Config) { f.flavours[0].Accepts = false }},
		{check: "forward-policy", what: "iptables-legacy: the policy", fix: "iptables-legacy -w -I FORWARD -o nc+", mends: true, inject: func(f *fake, _ *Config) { f.flavours[1].ForwardDrop = true }},
		{check: "forward-policy", what: "iptables-legacy: FORWARD ends with a rule that is REJECT", fix: "iptables-legacy -w -I FORWARD -o nc+", inject: func(f *fake, _ *Config) { f.flavours[1].ForwardEnds = "REJECT" }},
		{check: "foreign-chains", what: "chain ip guard fwd (hook forward, priority 0) rejects", fix: `nft insert rule ip guard fwd oifname "nc*" accept`, inject: func(f *fake, _ *Config) {
			f.chains = append(f.chains, nft.BaseChain{Family: "ip", Table: "guard", Name: "fwd", Hook: "forward", Refuses: "reject", Surely: true})
		}},
		{check: "foreign-chains", what: "chain inet guard fwd (hook forward, priority 0) drops", fix: `nft insert rule inet guard fwd iifname "nc*" accept`, inject: func(f *fake, _ *Config) {
			f.chains = append(f.chains, nft.BaseChain{Family: "inet", Table: "guard", Name: "fwd", Hook: "forward", Drop: true})
		}},
		{check: "firewalld", what: "does not trust the addresses of pools: 10.66.0.0/16", fix: "firewall-cmd --permanent --zone=trusted --add-source=10.66.0.0/16", inject: func(f *fake, _ *Config) {
			f.chains = append(f.chains, nft.BaseChain{Family: "inet", Table: "firewalld", Name: "filter_FORWARD", Hook: "forward"})
			f.programs["firewall-cmd --zone=trusted --list-sources"] = "10.65.0.0/16 10.67.0.0/16 fd65::/64\n"
		}},
		{check: "iptables-flavours", what: "both flavours of iptables have rules: iptables-nft (10 rules, FORWARD drops), iptables-legacy (3 rules)", fix: "iptables-legacy-save > /root/iptables-legacy.rules", inject: func(f *fake, _ *Config) {
			f.flavours[1].Rules, f.flavours[1].InUse = 3, true
		}},
		{check: "node-name", what: `"localhost"`, fix: "hostnamectl set-hostname", fatal: true, inject: func(_ *fake, c *Config) { c.Node = "localhost" }},
		{check: "node-name", what: "registered by host 1111111111111111", fix: "netctl node remove node1", fatal: true, inject: func(_ *fake, c *Config) { c.Cluster.Nodes[0].Status.Host = "1111111111111111" }},
		{check: "node-name", what: "registered as node node2", fix: "rm /var/lib/netctl-node/host", fatal: true, inject: func(f *fake, c *Config) {
			f.files["/var/lib/netctl-node/host"], c.Node = "8899aabbccddeeff\n", "node3"
		}},
		{check: "node-address", what: "192.168.99.102, on eth1 here, is the address of node node2", fix: "ip address del 192.168.99.102 dev eth1", inject: func(_ *fake, c *Config) {
			c.Cluster.Nodes[1].Spec.Addresses = prefixes("192.168.99.102/24")
		}},
		{check: "node-address", what: "answered for by another machine, 02:00:00:00:00:07", fix: "ip address del", inject: func(f *fake, _ *Config) { f.claimed[addr1()] = "02:00:00:00:00:07" }},
		{check: "node-address", what: "fd00:99::102 on eth1: the kernel found another machine", fix: "ip address del", inject: func(f *fake, _ *Config) {
			f.interfaces[2].Duplicates = []netip.Addr{netip.MustParseAddr("fd00:99::102")}
		}},
		{check: "clock", what: "is 1m30s ahead of this one", fix: "chrony", inject: func(f *fake, _ *Config) { f.machines[addr2()].ahead = 90 * time.Second }},
		{check: "clock", what: "node node2 reported at 2027-", fix: "chrony", inject: func(_ *fake, c *Config) { c.Cluster.Reports[2].Status.Seen = now().AddDate(1, 0, 0) }},
		{check: "clock", what: "the clock says 1970-", fix: "chrony", fatal: true, inject: func(f *fake, _ *Config) { f.now = time.Unix(1000, 0) }},
		{check: "clock", what: "that of 192.168.99.103:2378, where nodes join, 2027-", fix: "chronyc makestep", inject: func(f *fake, c *Config) {
			c.Cluster, c.To = nil, []netip.Addr{addr2()}
			f.machines[addr2()].ahead, f.machines[addr2()].dated = 365*24*time.Hour, true
		}},
		{check: "clock", what: "one of them is wrong by 8760h0m0s", fix: "chronyc makestep", inject: func(f *fake, c *Config) {
			c.Cluster, c.ClusterErr, c.Members = nil, datastore.ErrUnavailable, []netip.AddrPort{netip.AddrPortFrom(addr1(), joinPort), netip.AddrPortFrom(addr2(), joinPort)}
			f.machines[addr2()].ahead, f.machines[addr2()].dated = -365*24*time.Hour, true
		}},
		{check: "certificates", what: "and the clock here says 2026-", fix: "date -u", fatal: true, inject: certificate(now().AddDate(-1, 0, 0), now().AddDate(0, 0, -1))},
		{check: "certificates", what: "ended 2026-03-03", fix: "openssl x509", fatal: true, inject: certificate(now().AddDate(-1, 0, 0), now().AddDate(0, 0, -1))},
		{check: "certificates", what: "and every certificate of the cluster with it", fix: "netctl datastore ca rotate", inject: authority(now().AddDate(0, 5, 0))},
		{check: "certificates", what: "ends 2026-03-05", fix: "openssl x509", inject: certificate(now().AddDate(-1, 0, 0), now().AddDate(0, 0, 1))},
		{check: "clock", what: "is valid from 2026-03-05", fix: "chronyc makestep", fatal: true, inject: certificate(now().AddDate(0, 0, 1), now().AddDate(1, 0, 0))},
		{check: "networkmanager", what: "NetworkManager (PID 300) runs", fix: "nmcli general reload", mends: true, inject: func(f *fake, c *Config) {
			runsToo("NetworkManager")(f, c)
			delete(f.files, "/etc/NetworkManager/conf.d/netctl.conf")
		}},
		{check: "networkd", what: "ManageForeignRoutes", fix: "systemctl restart systemd-networkd", mends: true, inject: func(f *fake, c *Config) {
			runsToo("systemd-networkd")(f, c)
			delete(f.files, "/etc/systemd/networkd.conf.d/k.conf")
		}},
		{check: "networkd", what: "by /etc/systemd/network/10-all.network", fix: "networkctl reload", mends: true, inject: func(f *fake, c *Config) {
			runsToo("systemd-networkd")(f, c)
			f.files["/etc/systemd/network/10-all.network"] = "[Match]\nName=*\n[Network]\nDHCP=yes\n"
		}},
		{check: "other-cni", what: "a network of plugin flannel", fix: "mv /etc/cni/net.d/00-flannel.conflist", inject: setFile("/etc/cni/net.d/00-flannel.conflist", `{"plugins":[{"type":"flannel"}]}`)},
		{check: "other-cni", what: "no CNI configuration", fix: "rm /etc/cni/net.d/20-bad.conf", inject: setFile("/etc/cni/net.d/20-bad.conf", `{"type":`)},
		{check: "other-cni", what: "cilium-agent (PID 300) runs", fix: "systemctl disable --now cilium-agent", inject: runsToo("cilium-agent")},
		{check: "other-cni", what: "takes the first file of /etc/cni/net.d, /etc/cni/net.d/05-lo.conf", fix: "/etc/cni/net.d/00-10-web.conflist", inject: func(f *fake, c *Config) {
			runsToo("containerd")(f, c)
			f.files["/etc/cni/net.d/05-lo.conf"] = `{"type":"loopback"}`
		}},
		{check: "calico", what: "/etc/cni/net.d/10-calico.conflist: a network of plugin calico", fix: "mv /etc/cni/net.d/10-calico.conflist", inject: setFile("/etc/cni/net.d/10-calico.conflist", `{"plugins":[{"type":"calico"},{"type":"portmap"}]}`)},
		{check: "calico", what: "calico-felix (PID 300) runs", fix: "systemctl disable", inject: runsToo("calico-felix")},
		{check: "calico", what: "interfaces of Calico's are here: cali1", fix: "ip link del", inject: func(f *fake, _ *Config) {
			f.interfaces = append(f.interfaces, kernel.Interface{Name: "cali1", Index: 30, Kind: "veth"})
		}},
		{check: "calico", what: "1 routes of Calico's", fix: "ip route flush proto 80", inject: func(f *fake, _ *Config) {
			f.routes = append(f.routes, kernel.Route{Prefix: netip.MustParsePrefix("10.99.0.1/32"), Protocol: 80, Link: "eth1"})
		}},
		{check: "bird", what: "bird (PID 300) runs: another speaker of BGP", fix: "systemctl disable --now bird", inject: runsToo("bird")},
		{check: "other-netctl", what: "of Arch Linux", fix: "apt-get remove netctl", inject: setFile("/usr/lib/netctl/globals", "")},
		{check: "other-netctl", what: "/usr/bin/netctl is a script", fix: "/usr/local/bin/netctl", inject: setFile("/usr/bin/netctl", "#! /bin/bash\n")},
		{check: "docker", what: "Docker 19.03.15 is older than 20.10", fix: "apt-get install docker.io", inject: func(f *fake, _ *Config) { f.docker = "19.03.15" }},
		{check: "podman", what: "Podman 3.0.1 is older than 4.0", fix: "apt-get install podman", inject: func(f *fake, _ *Config) { f.programs["podman --version"] = "podman version 3.0.1\n" }},
		{check: "ports", what: "TCP port 179, which the speaker needs, is held by bird (PID 300)", fix: "speaker: {port: N}", fatal: true, inject: func(f *fake, _ *Config) {
			f.sockets[0] = Socket{Addr: netip.MustParseAddrPort("0.0.0.0:179"), PID: 300, Name: "bird"}
		}},
		{check: "ports", what: "TCP port 2379, which the datastore needs, is held by etcd", fix: "etcd: {listen", fatal: true, inject: func(f *fake, _ *Config) {
			f.sockets = append(f.sockets, Socket{Addr: netip.MustParseAddrPort("[::]:2379"), PID: 301, Name: "etcd"})
		}},
		{check: "ports", what: "TCP port 2380, which the datastore of `netctl init`", fix: "in no unit (-): kill 301", inject: func(f *fake, c *Config) {
			c.MayFound = true
			f.sockets = append(f.sockets, Socket{Addr: netip.MustParseAddrPort("192.168.99.102:2380"), PID: 301, Name: "etcd"})
		}},
		{check: "ports", what: "UDP port 51820", fix: "tunnels: {wireguardPort: N}", fatal: true, inject: func(f *fake, _ *Config) {
			f.sockets = append(f.sockets, Socket{UDP: true, Addr: netip.MustParseAddrPort("0.0.0.0:51820"), PID: 301, Name: "boringtun"})
		}},
		{check: "disk-space", what: "12 MiB free of 100.0 GiB", fix: "du -xh", fatal: true, inject: func(f *fake, _ *Config) { f.disk.Free = 12 << 20 }},
		{check: "disk-space", what: "room for 3 more files", fix: "du -x --inodes", fatal: true, inject: func(f *fake, _ *Config) { f.disk.FreeFiles = 3 }},
		{check: "disk-space", what: "read-only", fix: "mount -o remount,rw", fatal: true, inject: func(f *fake, _ *Config) { f.disk.ReadOnly = true }},
		{check: "disk-sync", what: "after 180ms (half of them; the slowest 900ms)", fix: "iostat", inject: func(f *fake, _ *Config) {
			f.timing = Timing{Median: 180 * time.Millisecond, Worst: 900 * time.Millisecond}
		}},
		{check: "neighbour-table", what: "ipv4 neighbours has 1000 entries of 1024", fix: "sysctl -w net.ipv4.neigh.default.gc_thresh3=4096", mends: true, inject: func(f *fake, _ *Config) { f.neighbours[0].Entries = 1000 }},
		{check: "conntrack-table", what: "60000 flows are tracked of 65536", fix: "sysctl -w net.netfilter.nf_conntrack_max=262144", mends: true, inject: setFile("/proc/sys/net/netfilter/nf_conntrack_count", "60000\n")},
		{check: "open-files", what: "990000 files open of 1000000", fix: "fs.file-max=4000000", mends: true, inject: setFile("/proc/sys/fs/file-nr", "990000\t0\t1000000\n")},
		{check: "open-files", what: "the agent (PID 100) has 1000 files open of 1024", fix: "prlimit --pid 100", inject: func(f *fake, _ *Config) { f.processes[1].Files, f.processes[1].MostFiles = 1000, 1024 }},
		{check: "open-files", what: "may open 256 files (hard limit)", fix: "ulimit -Hn", inject: setFile("/proc/self/limits", "Max open files            256                 256              files\n")},
		{check: "watches", what: "too many open files", fix: "sysctl -w fs.inotify.max_user_instances=512", mends: true, inject: func(f *fake, _ *Config) { f.watch = unix.EMFILE }},
		{check: "pools", what: "pool 10.65.0.0/16 lies over 10.65.4.0/24, which this host is connected to by eth0", fix: "netctl pool remove 10.65.0.0/16", fatal: true, inject: func(f *fake, _ *Config) {
			f.interfaces[1].Addresses = append(f.interfaces[1].Addresses, netip.MustParsePrefix("10.65.4.1/24"))
		}},
		{check: "pools", what: "route of another program's to 10.66.3.0/24", fix: "ip route del 10.66.3.0/24 dev eth0", inject: func(f *fake, _ *Config) {
			f.routes = append(f.routes, kernel.Route{Prefix: netip.MustParsePrefix("10.66.3.0/24"), Protocol: 4, Link: "eth0"})
		}},
		{check: "gateway", what: "169.254.1.1, the gateway of workloads, lies in 169.254.0.0/16 of eth0", fix: "agent: {gateway: ADDRESS}", inject: func(f *fake, _ *Config) {
			f.interfaces[1].Addresses = append(f.interfaces[1].Addresses, netip.MustParsePrefix("169.254.3.3/16"))
		}},
		{check: "link-names", what: `interface nc9, which is not netctl's`, fix: "ip link set nc9 name xnc9", inject: func(f *fake, _ *Config) {
			f.interfaces = append(f.interfaces, kernel.Interface{Name: "nc9", Index: 40})
		}},
		{check: "route-protocols", what: "route protocol 87 is that of frr-x", fix: "routes: {agentProtocol: N", inject: setFile("/etc/iproute2/rt_protos.d/x.conf", "87 frr-x\n")},
		{check: "route-protocols", what: "netctl has never run here", fix: "routes: {agentProtocol: N", fatal: true, inject: func(f *fake, _ *Config) {
			for name := range f.files {
				if strings.HasPrefix(name, "/var/lib/netctl-node/") {
					delete(f.files, name)
				}
			}
		}},
		{check: "route-protocols", what: "routes of an earlier netctl are here (to 169.254.1.1/32, protocol number 87)", fix: "netctl cleanup", fatal: true, inject: func(f *fake, _ *Config) {
			for name := range f.files {
				if strings.HasPrefix(name, "/var/lib/netctl-node/") {
					delete(f.files, name)
				}
			}
			f.routes = append(f.routes, kernel.Route{Prefix: netip.MustParsePrefix("169.254.1.1/32"), Protocol: 87, Link: "lo"})
		}},
		{check: "path-mtu", what: "may have 1430 bytes, and eth1 lets them have 1500", fix: "spec: {mtu: 1350}", inject: func(f *fake, _ *Config) { f.machines[addr2()].mtu = 1430 }},
		{check: "path-mtu", what: "may have 1372 bytes", fix: "spec: {mtu: 1292}", inject: func(f *fake, _ *Config) { f.machines[addr2()].mtu, f.machines[addr2()].tells = 1372, true }},
		{check: "path-bgp", what: "no answer, though it answers echo requests", fix: "iptables -I INPUT -p tcp --dport 179 -j ACCEPT   # on node2", inject: func(f *fake, _ *Config) { f.machines[addr2()].tcp[179] = Silent }},
		{check: "path-bgp", what: "prohibited by 192.168.99.103", fix: "tcp dport 179", inject: func(f *fake, _ *Config) { f.machines[addr2()].tcp[179] = Prohibited }},
		{check: "path-bgp", what: "refused, though its speaker reports", fix: "tcp dport 179", inject: func(f *fake, _ *Config) { f.machines[addr2()].tcp[179] = Refused }},
		{check: "path-ipip", what: "IP protocol 4 from 192.168.99.102 to node2", fix: "iptables -I INPUT -p 4", inject: func(f *fake, _ *Config) { f.machines[addr2()].tunnel[datastore.TunnelIPIP] = Silent }},
		{check: "path-ipip", what: "nobody takes it there", fix: "systemctl restart netctl-agent", inject: func(f *fake, _ *Config) { f.machines[addr2()].tunnel[datastore.TunnelIPIP] = Refused }},
		{check: "path-vxlan", what: "UDP to port 4789", fix: "--dport 4789", inject: func(f *fake, _ *Config) { f.machines[addr2()].tunnel[datastore.TunnelVXLAN] = Silent }},
		{check: "path-wireguard", what: "UDP to port 51820", fix: "--dport 51820", inject: func(f *fake, _ *Config) { f.shaken = false }},
	}
}
