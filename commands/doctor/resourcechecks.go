package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// port is one that a role listens on.
type port struct {
	role string
	udp  bool
	at   netip.AddrPort // an address that is not valid: every one
	key  string         // the setting that chooses another
}

// ports are those of the roles that are to run here, and of the tunnels that pools have.
func (s *scene) ports() (list []port) {
	every := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, n) }
	for _, role := range []string{roleSpeaker, roleReflector} {
		if s.has(role) {
			list = append(list, port{role, false, every(s.cfg.BGPPort), "speaker: {port: N}"})
		}
	}
	if s.has(roleDatastore) {
		for _, a := range s.cfg.EtcdListen {
			list = append(list, port{roleDatastore, false, a, "etcd: {listen: […], peerURL: …}"})
		}
	}
	if s.cfg.MayFound {
		for _, n := range []uint16{2378, 2379, 2380} { // of joining, of clients, of members
			list = append(list, port{mayBeMember, false, every(n), ""})
		}
	}
	if s.has(roleAgent) && s.cfg.Cluster != nil {
		if len(s.cfg.Cluster.tunnelled(datastore.TunnelVXLAN)) > 0 {
			list = append(list, port{roleAgent, true, every(vxlanPort), ""})
		}
		if len(s.cfg.Cluster.tunnelled(datastore.TunnelWireGuard)) > 0 {
			list = append(list, port{roleAgent, true, every(s.cfg.WireGuardPort), "tunnels: {wireguardPort: N}"})
		}
	}
	return list
}

const vxlanPort = 4789

// mayBeMember is who needs the ports of etcd on a machine of which nobody said yet what it
// is to be.
const mayBeMember = "datastore of `netctl init` and of `join --datastore`"

func ports(_ context.Context, s *scene) (found []Finding, err error) {
	wanted := s.ports()
	if len(wanted) == 0 {
		return nil, skip("no role that listens is to run here")
	}
	sockets, err := s.sockets()
	if err != nil {
		return nil, err
	}
	for _, p := range wanted {
		for _, x := range sockets {
			meets := !p.at.Addr().IsValid() || x.Addr.Addr().IsUnspecified() || p.at.Addr().IsUnspecified() || x.Addr.Addr() == p.at.Addr()
			if x.UDP != p.udp || x.Addr.Port() != p.at.Port() || !meets || strings.HasPrefix(x.Name, "netctl") {
				continue
			}
			if p.role == mayBeMember && x.Addr.Addr().IsLoopback() {
				continue // a member listens on the machine's address
			}
			if p.udp && x.PID == 0 {
				continue // the kernel's own, of a tunnel: devices share a port
			}
			protocol := "TCP"
			if p.udp {
				protocol = "UDP"
			}
			holder := "another program (in a container?)"
			fix := []string{fmt.Sprintf("ss -lnp 'sport = :%d'", p.at.Port())}
			if x.PID != 0 {
				holder = fmt.Sprintf("%s (PID %d)", x.Name, x.PID)
				fix = []string{fmt.Sprintf("systemctl disable --now $(ps -o unit= -p %d)", x.PID), fmt.Sprintf("# or, in no unit (-): kill %d", x.PID)}
			}
			if p.key != "" {
				fix = append(fix, "# or `"+p.key+"` in /etc/netctl.yaml")
			}
			if p.role == mayBeMember {
				fix = append(fix, "# not needed where the cluster is in an external etcd (`init --datastore-endpoints`), or the machine just joins")
			}
			found = append(found, Finding{What: fmt.Sprintf("%s port %d, which the %s needs, is held by %s at %s", protocol, p.at.Port(), p.role, holder, x.Addr), Fix: fix, Fatal: p.role != mayBeMember})
			break
		}
	}
	return found, nil
}

// What has to be free on the disk, in bytes: the datastore compacts into a second file,
// and its log has segments of 64 MB; other roles keep some kilobytes.
const (
	leastDatastore = 1 << 30
	leastRole      = 64 << 20
	leastFiles     = 1000
)

// folder is the state folder, or the nearest one above it that exists.
func (s *scene) folder(dir string) (string, Disk, error) {
	for {
		d, err := s.Disk(dir)
		if !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return dir, d, err
		}
		dir = path.Dir(dir)
	}
}

func diskSpace(_ context.Context, s *scene) (found []Finding, err error) {
	dir, d, err := s.folder(s.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("file system of %s: %w", dir, err)
	}
	if d.ReadOnly {
		return []Finding{{What: fmt.Sprintf("%s, for %s, cannot be written: its file system is read-only", dir, s.cfg.StateDir), Fatal: true,
			Fix: []string{"findmnt --target " + dir, "mount -o remount,rw $(findmnt -no TARGET --target " + dir + ")", "dmesg | tail   # a file system with errors becomes so by itself"}}}, nil
	}
	least := uint64(leastRole)
	if s.has(roleDatastore) {
		least = leastDatastore
	}
	least = min(least, d.Size/2) // of a small one
	fix := []string{"du -xh --max-depth=3 $(findmnt -no TARGET --target " + dir + ") | sort -h | tail", "# or `stateDir: FOLDER` in /etc/netctl.yaml, on a larger one"}
	if d.Free < least {
		found = append(found, Finding{What: fmt.Sprintf("%s has %s free of %s, for %s: %s are needed", dir, size(d.Free), size(d.Size), s.cfg.StateDir, size(least)), Fix: fix, Fatal: d.Free < least/16})
	}
	if d.Files > 0 && d.FreeFiles < leastFiles && d.FreeFiles < d.Files/2 {
		found = append(found, Finding{What: fmt.Sprintf("the file system of %s has room for %d more files", dir, d.FreeFiles), Fatal: d.FreeFiles < leastFiles/16,
			Fix: []string{"du -x --inodes --max-depth=3 $(findmnt -no TARGET --target " + dir + ") | sort -n | tail", fix[1]}})
	}
	return found, nil
}

func size(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// How long a write may take: members of etcd tell each other that they live each 100 ms,
// and look for another leader after a second.
const (
	slowSync  = 50 * time.Millisecond
	worstSync = 500 * time.Millisecond
)

func diskSync(ctx context.Context, s *scene) ([]Finding, error) {
	if !s.has(roleDatastore) {
		return nil, skip("no datastore is to run here")
	}
	dir, d, err := s.folder(s.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	if d.ReadOnly || d.Free < 1<<20 {
		return nil, errors.New("there is no room to write to: see disk-space")
	}
	t, err := s.Sync(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("write to %s: %w", dir, err)
	}
	if t.Median <= slowSync && t.Worst <= worstSync {
		return nil, nil
	}
	return []Finding{{What: fmt.Sprintf("a write to %s is on the disk after %s (half of them; the slowest %s): etcd wants %s at most", dir, t.Median.Round(time.Millisecond), t.Worst.Round(time.Millisecond), slowSync),
		Fix: []string{"iostat -x 1 5   # who writes?", "# put " + s.cfg.StateDir + " on an SSD of its own, or run the datastore role on another machine"}}}, nil
}

// nearlyFull is the part of a table from which on it is told, in percent.
const nearlyFull = 80

func neighbourTable(_ context.Context, s *scene) (found []Finding, err error) {
	tables, err := s.Neighbours()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		if t.Entries*100 < t.Most*nearlyFull {
			continue
		}
		family := "ipv4"
		if t.Name == "ndisc_cache" {
			family = "ipv6"
		}
		found = append(found, setting("net/"+family+"/neigh/default/gc_thresh3", fmt.Sprint(t.Most*4), fmt.Sprintf("the table of %s neighbours has %d entries of %d at most (net.%s.neigh.default.gc_thresh3)", family, t.Entries, t.Most, family)))
	}
	return found, nil
}

func conntrackTable(_ context.Context, s *scene) ([]Finding, error) {
	most, ok := s.number("net/netfilter/nf_conntrack_max")
	have, counted := s.number("net/netfilter/nf_conntrack_count")
	if !ok || !counted || most == 0 {
		return nil, skip("no connection is tracked here")
	}
	if have*100 < most*nearlyFull {
		return nil, nil
	}
	return []Finding{setting("net/netfilter/nf_conntrack_max", fmt.Sprint(most*4), fmt.Sprintf("%d flows are tracked of %d at most (net.netfilter.nf_conntrack_max)", have, most))}, nil
}

// leastOpen is how many files a role has to be allowed at least; it raises its limit
// itself where the hard one lets it.
const leastOpen = 1024

func openFiles(_ context.Context, s *scene) (found []Finding, err error) {
	if text := strings.Fields(s.sysctl("fs/file-nr")); len(text) == 3 {
		var have, most int
		if _, err := fmt.Sscan(text[0]+" "+text[2], &have, &most); err == nil && most > 0 && have > most/100*nearlyFull {
			found = append(found, setting("fs/file-max", fmt.Sprint(most*4), fmt.Sprintf("the machine has %d files open of %d at most (fs.file-max)", have, most)))
		}
	}
	for _, role := range []string{roleAgent, roleSpeaker, roleReflector, roleDatastore} {
		p, runs := s.running(role)
		unit := "netctl-" + role + ".service"
		fix := []string{fmt.Sprintf("prlimit --pid %d --nofile=65536:65536", p.PID), "systemctl edit " + unit + "   # and under [Service]: LimitNOFILE=65536"}
		switch {
		case !runs || p.MostFiles == 0:
		case p.MostFiles < leastOpen:
			found = append(found, Finding{What: fmt.Sprintf("the %s (PID %d) may open %d files", role, p.PID, p.MostFiles), Fix: fix})
		case p.Files > p.MostFiles/100*nearlyFull:
			found = append(found, Finding{What: fmt.Sprintf("the %s (PID %d) has %d files open of %d at most", role, p.PID, p.Files, p.MostFiles), Fix: fix})
		}
	}
	if text, err := s.Read("/proc/self/limits"); err == nil {
		for line := range strings.Lines(text) {
			rest, ok := strings.CutPrefix(line, "Max open files")
			var soft, hard int
			if _, err := fmt.Sscan(rest, &soft, &hard); ok && err == nil && hard < leastOpen {
				found = append(found, Finding{What: fmt.Sprintf("what is started here may open %d files (hard limit)", hard),
					Fix: []string{"ulimit -Hn 65536", "echo 'DefaultLimitNOFILE=1024:524288' >> /etc/systemd/system.conf && systemctl daemon-reexec"}})
			}
		}
	}
	return found, nil
}

func watches(_ context.Context, s *scene) ([]Finding, error) {
	err := s.Watches()
	if err == nil {
		return nil, nil
	}
	most, _ := s.number("fs/inotify/max_user_instances")
	return []Finding{setting("fs/inotify/max_user_instances", fmt.Sprint(max(most*4, 512)), fmt.Sprintf("no more files can be watched: %v (fs.inotify.max_user_instances is %d)", err, most))}, nil
}

func pools(_ context.Context, s *scene) (found []Finding, err error) {
	c, err := s.cluster()
	if err != nil {
		return nil, err
	}
	links, err := s.foreign()
	if err != nil {
		return nil, err
	}
	routes, err := s.routes()
	if err != nil {
		return nil, err
	}
	for _, p := range c.Pools {
		cidr := p.Spec.CIDR
		fix := func(what string) []string {
			return []string{fmt.Sprintf("netctl pool remove %s   # and netctl pool add one that no network here has", cidr), "# or renumber " + what}
		}
		said := map[netip.Prefix]bool{}
		for _, l := range links {
			for _, a := range l.Addresses {
				if subnet := a.Masked(); subnet.Overlaps(cidr) && !said[subnet] {
					said[subnet] = true
					found = append(found, Finding{What: fmt.Sprintf("pool %s lies over %s, which this host is connected to by %s", cidr, subnet, l.Name), Fix: fix(l.Name), Fatal: true})
				}
			}
		}
		for _, r := range routes {
			ours := r.Protocol == s.cfg.AgentProtocol || r.Protocol == s.cfg.SpeakerProtocol
			if ours || r.Prefix.Bits() == 0 || !r.Prefix.Overlaps(cidr) || said[r.Prefix] || r.Link == "lo" || r.Link == "" {
				continue
			}
			if r.Prefix.Bits() < cidr.Bits() {
				continue // the way to more than the pool, which its blocks are more specific than
			}
			if slices.ContainsFunc(sortedPrefixes(said), func(p netip.Prefix) bool { return p.Contains(r.Prefix.Addr()) }) {
				continue
			}
			said[r.Prefix] = true
			found = append(found, Finding{What: fmt.Sprintf("pool %s: this host has a route of another program's to %s in it, by %s", cidr, r.Prefix, r.Link), Fix: append([]string{fmt.Sprintf("ip route del %s dev %s", r.Prefix, r.Link)}, fix("that network")...)})
		}
	}
	return found, nil
}

func sortedPrefixes(m map[netip.Prefix]bool) (list []netip.Prefix) {
	for p := range m {
		list = append(list, p)
	}
	return list
}

func gateway(_ context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	links, err := s.foreign()
	if err != nil {
		return nil, err
	}
	routes, err := s.routes()
	if err != nil {
		return nil, err
	}
	g, fix := s.cfg.Gateway, []string{"# set `agent: {gateway: ADDRESS}` in /etc/netctl.yaml to an IPv4 address that nothing has, such as 169.254.77.1, and restart netctl"}
	for _, l := range links {
		for _, a := range l.Addresses {
			if a.Masked().Contains(g) {
				return []Finding{{What: fmt.Sprintf("%s, the gateway of workloads, lies in %s of %s", g, a.Masked(), l.Name), Fix: fix}}, nil
			}
		}
	}
	for _, r := range routes {
		if r.Prefix.Bits() > 8 && r.Prefix.Contains(g) && r.Protocol != s.cfg.AgentProtocol && r.Link != "lo" {
			return []Finding{{What: fmt.Sprintf("%s, the gateway of workloads, lies in %s, which this host has a route to by %s", g, r.Prefix, r.Link), Fix: append([]string{fmt.Sprintf("ip route del %s dev %s", r.Prefix, r.Link)}, fix...)}}, nil
		}
	}
	if s.cfg.Cluster != nil {
		for _, p := range s.cfg.Cluster.Pools {
			if p.Spec.CIDR.Contains(g) {
				return []Finding{{What: fmt.Sprintf("%s, the gateway of workloads, lies in pool %s", g, p.Spec.CIDR), Fix: fix}}, nil
			}
		}
	}
	return nil, nil
}

func linkNames(_ context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	links, err := s.foreign()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, s.cfg.LinkPrefix) {
			found = append(found, Finding{What: fmt.Sprintf("interface %s, which is not netctl's, begins with %q as those of endpoints do", l.Name, s.cfg.LinkPrefix), Fatal: hasFamily(l, false) || hasFamily(l, true),
				Fix: []string{fmt.Sprintf("ip link set %s down; ip link set %s name x%s; ip link set x%s up", l.Name, l.Name, l.Name[:min(14, len(l.Name))], l.Name[:min(14, len(l.Name))]), "# or `agent: {linkPrefix: PREFIX}` in /etc/netctl.yaml, with one that no interface has"}})
		}
		for _, name := range s.cfg.Tunnels {
			if l.Name == name {
				found = append(found, Finding{What: fmt.Sprintf("interface %s is another program's, and netctl's tunnels are to be called so", l.Name), Fix: []string{"ip link del " + l.Name, "# or another name in the setting tunnels of /etc/netctl.yaml"}})
			}
		}
	}
	return found, nil
}

func routeProtocols(_ context.Context, s *scene) (found []Finding, err error) {
	names := map[int]string{s.cfg.AgentProtocol: "netctl", s.cfg.SpeakerProtocol: "netctl-bgp"}
	fix := []string{"# set `routes: {agentProtocol: N, speakerProtocol: N}` in /etc/netctl.yaml to numbers that nobody has (grep -r . /etc/iproute2/rt_protos*)"}
	files, err := s.Names("/etc/iproute2/rt_protos.d/*.conf")
	if err != nil {
		return nil, err
	}
	for _, f := range append([]string{"/usr/share/iproute2/rt_protos", "/etc/iproute2/rt_protos"}, files...) {
		text, err := s.Read(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			var number int
			var name string
			if _, err := fmt.Sscan(line, &number, &name); err == nil && names[number] != "" && name != names[number] {
				found = append(found, Finding{What: fmt.Sprintf("%s: route protocol %d is that of %s", f, number, name), Fix: fix})
			}
		}
	}
	if ids, err := s.Names(s.cfg.StateDir + "/*"); err != nil || len(ids) > 0 {
		return found, err // netctl has been here: they may be its own
	}
	routes, err := s.routes()
	if err != nil {
		return found, err
	}
	var foreign []kernel.Route
	for _, r := range routes {
		if names[r.Protocol] == "" {
			continue
		}
		// The gateway's route is made by the agent alone: netctl ran, and its folder was moved.
		if r.Prefix.Addr() == s.cfg.Gateway && r.Prefix.IsSingleIP() {
			return append(found, Finding{What: fmt.Sprintf("routes of an earlier netctl are here (to %s, protocol number %d), and what it knew of them in %s is not", r.Prefix, r.Protocol, s.cfg.StateDir), Fatal: true,
				Fix: []string{"netctl cleanup", "netctl cleanup --dry-run   # says what that takes off"}}), nil
		}
		foreign = append(foreign, r)
	}
	if len(foreign) > 0 {
		r := foreign[0]
		found = append(found, Finding{What: fmt.Sprintf("netctl has never run here, and the route to %s has its protocol number %d", r.Prefix, r.Protocol), Fatal: true,
			Fix: append(fix, "netctl cleanup --dry-run   # if an earlier netctl left it: without --dry-run it is taken off")})
	}
	return found, nil
}
