package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// kernelFeatures: the modules are those of Linux 5.10 and later.
func kernelFeatures(ctx context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent, roleSpeaker, roleReflector) {
		return nil, skip("no role here touches the kernel's network")
	}
	o := Features{LinkPrefix: s.cfg.LinkPrefix, Protocol: s.cfg.AgentProtocol}
	for _, kind := range []datastore.TunnelKind{datastore.TunnelIPIP, datastore.TunnelVXLAN, datastore.TunnelWireGuard} {
		if s.cfg.Cluster != nil && len(s.cfg.Cluster.tunnelled(kind)) > 0 {
			o.Tunnels = append(o.Tunnels, kind)
		}
	}
	lacks, err := s.Lacks(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		feature Feature
		modules string
		tunnel  datastore.TunnelKind
	}{
		{FeatureLinks, "veth", ""},
		{FeatureRoutes, "", ""},
		{FeatureFilter, "nf_tables nf_conntrack nft_ct nft_limit nft_log nf_log_syslog", ""},
		{FeatureConntrack, "nf_conntrack nf_conntrack_netlink", ""},
		{FeatureIPIP, "ipip", datastore.TunnelIPIP},
		{FeatureVXLAN, "vxlan", datastore.TunnelVXLAN},
		{FeatureWireGuard, "wireguard", datastore.TunnelWireGuard},
	} {
		why, lacking := lacks[f.feature]
		if !lacking || f.tunnel == "" && !s.has(roleAgent) {
			continue
		}
		what := fmt.Sprintf("the kernel lacks %s: %v", f.feature, why)
		if f.tunnel != "" {
			var pools []string
			if s.cfg.Cluster != nil {
				pools = s.cfg.Cluster.tunnelled(f.tunnel)
			}
			if len(pools) == 0 {
				continue // nobody asks for it
			}
			what += ", and pool " + strings.Join(pools, ", ") + " needs them"
		}
		fix := []string{"apt-get install linux-image-$(dpkg --print-architecture) && reboot"}
		if f.modules != "" {
			fix = append([]string{"modprobe -a " + f.modules}, fix...)
		}
		if f.tunnel != "" {
			fix = append(fix, s.otherEncap(f.tunnel)...)
		}
		found = append(found, Finding{What: what, Fix: fix, Fatal: f.tunnel == ""})
	}
	return found, nil
}

// otherEncap has pools do without a kind of tunnels.
func (s *scene) otherEncap(kind datastore.TunnelKind) (fix []string) {
	for _, p := range s.cfg.Cluster.Pools {
		if kinds, _ := p.Spec.Encap.Tunnels(); slices.Contains(kinds, kind) {
			fix = append(fix, fmt.Sprintf("netctl get pools %s -o yaml | sed 's/encap: .*/encap: none/' | netctl apply -f -   # or do without", datastore.PoolName(p.Spec.CIDR)))
		}
	}
	return fix
}

func writableSettings(_ context.Context, s *scene) ([]Finding, error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	err := s.Writable(procFile("net/ipv4/ip_forward"))
	if err == nil {
		return nil, nil
	}
	return []Finding{{What: fmt.Sprintf("/proc/sys cannot be written: %v", err), Fatal: true,
		Fix: []string{"mount -o remount,rw /proc/sys"}}}, nil
}

// sysctlFolders are where sysctl(8) --system and systemd-sysctl(8) read files: one of an
// earlier folder replaces those of its name in later ones.
func sysctlFolders() []string {
	return []string{"/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d"}
}

// configured is what the files of sysctl(8) set one of some settings to, the last one that
// they set, and which of them does; "": none does.
func (s *scene) configured(keys ...string) (key, value, file string, err error) {
	byName := map[string]string{}
	for _, dir := range sysctlFolders() {
		names, err := s.Names(dir + "/*.conf")
		if err != nil {
			return "", "", "", err
		}
		for _, n := range names {
			base := n[strings.LastIndex(n, "/")+1:]
			if _, is := byName[base]; !is {
				byName[base] = n
			}
		}
	}
	var bases, files []string
	for b := range byName {
		bases = append(bases, b)
	}
	slices.Sort(bases)
	for _, b := range bases {
		files = append(files, byName[b])
	}
	for _, f := range append(files, sysctlLast) {
		text, err := s.Read(f)
		if err != nil {
			continue // a link to nowhere is a file that is switched off
		}
		for line := range strings.Lines(text) {
			k, v, ok := strings.Cut(strings.TrimSpace(line), "=")
			k = strings.ReplaceAll(strings.TrimPrefix(strings.TrimSpace(k), "-"), "/", ".")
			if ok && slices.Contains(keys, k) {
				key, value, file = k, strings.TrimSpace(v), f
			}
		}
	}
	return key, value, file, nil
}

// sysctlLast is read behind all files of the folders.
const sysctlLast = "/etc/sysctl.conf"

// keptOff is a finding where a file has sysctl --system set a setting to 0, though the agent
// sets it to 1 when it starts.
func (s *scene) keptOff(key string, names ...string) ([]Finding, error) {
	set, value, file, err := s.configured(names...)
	if err != nil || value != "0" {
		return nil, err
	}
	name := sysctlName(key)
	f := Finding{
		What: fmt.Sprintf("%s sets %s = 0: each boot, and each `sysctl --system`, switches forwarding off until the agent sets it again", file, set),
		Fix: []string{fmt.Sprintf("sed -i 's|^\\(-\\?%s *=\\)|# \\1|' %s", strings.ReplaceAll(set, ".", "[./]"), file),
			fmt.Sprintf("echo '%s = 1' >> %s && sysctl --system", name, sysctlFile)},
	}
	if file != sysctlLast {
		f.repairs = []repair{keepSysctl(name, "1")}
	}
	return []Finding{f}, nil
}

func forwarding(_ context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	on, ok := s.number("net/ipv4/ip_forward")
	if !ok {
		return nil, fmt.Errorf("net.ipv4.ip_forward cannot be read")
	}
	if _, runs := s.running(roleAgent); runs && on == 0 {
		found = append(found, setting("net/ipv4/ip_forward", "1", "net.ipv4.ip_forward is 0, and the agent runs that needs 1"))
	}
	if on != 0 { // it sets that of each interface
		links, err := s.uplinks()
		if err != nil {
			return found, err
		}
		for _, l := range links {
			if key := "net/ipv4/conf/" + l.Name + "/forwarding"; s.sysctl(key) == "0" && hasFamily(l, false) {
				found = append(found, setting(key, "1", fmt.Sprintf("%s is 0: what comes in by %s is not forwarded", sysctlName(key), l.Name)))
			}
		}
	}
	off, err := s.keptOff("net/ipv4/ip_forward", "net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding")
	return append(found, off...), err
}

func hasFamily(l kernel.Interface, v6 bool) bool {
	return slices.ContainsFunc(l.Addresses, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 && !p.Addr().IsLinkLocalUnicast() })
}

// pools6 are the cluster's IPv6 pools.
func (s *scene) pools6() (list []string) {
	if s.cfg.Cluster == nil {
		return nil
	}
	for _, p := range s.cfg.Cluster.Pools {
		if p.Spec.CIDR.Addr().Is6() {
			list = append(list, p.Spec.CIDR.String())
		}
	}
	return list
}

func forwarding6(_ context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	if len(s.pools6()) == 0 {
		return nil, skip("no IPv6 pool is known")
	}
	if _, has, err := s.address(true); err != nil || !has {
		return nil, cmpErr(err, skip("this host has no IPv6 address"))
	}
	on, ok := s.number("net/ipv6/conf/all/forwarding")
	if !ok {
		return nil, skip("the kernel has no IPv6")
	}
	endpoints, err := s.Names(s.cfg.RunDir + "/endpoints/*.json")
	if err != nil {
		return nil, err
	}
	if _, runs := s.running(roleAgent); runs && on == 0 && len(endpoints) > 0 && s.anyIPv6() {
		found = append(found, setting("net/ipv6/conf/all/forwarding", "1", "net.ipv6.conf.all.forwarding is 0, and workloads here have IPv6 addresses"))
	}
	off, err := s.keptOff("net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding")
	return append(found, off...), err
}

func cmpErr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// anyIPv6 says whether a workload here has an IPv6 address: the agent then has a route to it.
func (s *scene) anyIPv6() bool {
	routes, _ := s.routes()
	return slices.ContainsFunc(routes, func(r kernel.Route) bool {
		return r.Protocol == s.cfg.AgentProtocol && r.Prefix.Addr().Is6() && r.Prefix.IsSingleIP()
	})
}

func ipv6Off(_ context.Context, s *scene) (found []Finding, err error) {
	list := s.pools6()
	if len(list) == 0 || !s.has(roleAgent) {
		return nil, skip("no IPv6 pool is known")
	}
	what := "pool " + strings.Join(list, ", ") + " has IPv6 addresses, and "
	if s.sysctl("net/ipv6/conf/all/disable_ipv6") == "" {
		return []Finding{{What: what + "the kernel was started without IPv6",
			Fix: []string{`sed -i 's/ipv6\.disable=1//' /etc/default/grub && update-grub && reboot`}}}, nil
	}
	for _, name := range []string{"all", "default"} {
		if key := "net/ipv6/conf/" + name + "/disable_ipv6"; s.sysctl(key) == "1" {
			found = append(found, setting(key, "0", what+sysctlName(key)+" is 1"))
		}
	}
	return found, nil
}

// advertisements: see networking/ip-sysctl, accept_ra.
func advertisements(_ context.Context, s *scene) (found []Finding, err error) {
	on, ok := s.number("net/ipv6/conf/all/forwarding")
	if !ok || on == 0 {
		return nil, skip("this host does not forward IPv6")
	}
	routes, err := s.routes()
	if err != nil {
		return nil, err
	}
	const fromRouter = 9 // RTPROT_RA
	for _, r := range routes {
		key := "net/ipv6/conf/" + r.Link + "/accept_ra"
		if r.Protocol == fromRouter && r.Prefix.Bits() == 0 && s.sysctl(key) == "1" {
			found = append(found, setting(key, "2", fmt.Sprintf("%s is 1, its router told this host its default route, and the host forwards IPv6: the route is not told again", sysctlName(key))))
		}
	}
	return found, nil
}

// reversePath: the kernel takes the larger of a setting of all and of the interface
// (networking/ip-sysctl, rp_filter); 1 is strict, 2 loose.
func reversePath(_ context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	links, err := s.uplinks()
	if err != nil {
		return nil, err
	}
	links = slices.DeleteFunc(links, func(l kernel.Interface) bool { return !hasFamily(l, false) })
	if len(links) < 2 {
		return nil, skip("one interface leads to other machines")
	}
	all, _ := s.number("net/ipv4/conf/all/rp_filter")
	for _, l := range links {
		key := "net/ipv4/conf/" + l.Name + "/rp_filter"
		if own, ok := s.number(key); ok && max(all, own) == 1 {
			f := setting(key, "2", fmt.Sprintf("rp_filter of %s is 1 (strict; all %d, %s %d), and %d interfaces lead to other machines", l.Name, all, l.Name, own, len(links)))
			found = append(found, f)
		}
	}
	return found, nil
}

func bridgeNetfilter(_ context.Context, s *scene) (found []Finding, err error) {
	links, err := s.foreign()
	if err != nil {
		return nil, err
	}
	bridged := map[string][]string{}
	for _, l := range links {
		if l.Master != "" {
			bridged[l.Master] = append(bridged[l.Master], l.Name)
		}
	}
	for _, l := range links {
		if l.Kind != "bridge" || len(bridged[l.Name]) == 0 || runtimeBridge(l.Name) {
			continue
		}
		for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
			if s.sysctl("net/bridge/"+name) == "1" {
				f := setting("net/bridge/"+name, "0", fmt.Sprintf("net.bridge.%s is 1, and bridge %s has ports (%s)", name, l.Name, strings.Join(bridged[l.Name], ", ")))
				if runs, err := s.named("dockerd"); err != nil || len(runs) > 0 {
					f.repairs = nil // networks of Docker's without inter-container traffic count on it
				}
				found = append(found, f)
			}
		}
		return found, nil
	}
	return nil, skip("no bridge but of container runtimes has ports")
}

// runtimeBridge knows bridges whose makers count on that setting.
func runtimeBridge(name string) bool {
	return slices.ContainsFunc([]string{"docker", "br-", "podman", "cni", "virbr", "lxcbr", "lxdbr"}, func(p string) bool { return strings.HasPrefix(name, p) })
}
