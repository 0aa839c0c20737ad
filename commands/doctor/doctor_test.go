package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

func state(r *Report, name string) Result {
	i := slices.IndexFunc(r.Checks, func(c Result) bool { return c.Name == name })
	return r.Checks[i]
}

func examine(t *testing.T, f *fake, c Config, fix bool) *Report {
	t.Helper()
	r, err := Run(t.Context(), f, c, fix)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestClean: a healthy node has no finding, and everything about it can be told; neither
// has a machine that nothing is installed on.
func TestClean(t *testing.T) {
	f, c := clean()
	for _, res := range examine(t, f, c, false).Checks {
		if res.State == Wrong || res.State == Unknown {
			t.Errorf("running: %s is %s: %v %s", res.Name, res.State, res.Findings, res.Reason)
		}
	}
	f, _ = clean()
	for name := range f.files {
		if strings.Contains(name, "netctl") {
			delete(f.files, name)
		}
	}
	f.files["/proc/sys/net/ipv4/ip_forward"], f.processes, f.interfaces, f.routes, f.sockets = "0\n", nil, f.interfaces[:3], f.routes[:2], nil
	for _, res := range examine(t, f, Config{Node: "node1"}, false).Checks {
		if res.State == Wrong || res.State == Unknown {
			t.Errorf("bare: %s is %s: %v %s", res.Name, res.State, res.Findings, res.Reason)
		}
	}
}

// TestFaults makes one thing wrong at a time. It is found, by its check alone; its fix can
// be pasted into a shell; what --fix mends is mended, with old and new value, and nothing
// else is changed.
func TestFaults(t *testing.T) {
	list := faults()
	if len(list) < 25 {
		t.Fatalf("%d faults", len(list))
	}
	for _, x := range list {
		t.Run(x.check+"/"+x.what, func(t *testing.T) {
			f, c := clean()
			x.inject(f, &c)
			r := examine(t, f, c, false)
			res := state(r, x.check)
			i := slices.IndexFunc(res.Findings, func(f Finding) bool { return strings.Contains(f.What, x.what) })
			if res.State != Wrong || i < 0 || r.Healthy {
				t.Fatalf("%s: %+v", res.State, res)
			}
			found := res.Findings[i]
			if all := strings.Join(found.Fix, "\n"); !strings.Contains(all, x.fix) {
				t.Errorf("fix:\n%s\nwithout %q", all, x.fix)
			}
			if found.Fatal != x.fatal || found.Fixable != x.mends {
				t.Errorf("fatal %v, fixable %v, want %v and %v", found.Fatal, found.Fixable, x.fatal, x.mends)
			}
			for _, line := range found.Fix {
				if out, err := exec.Command("bash", "-n", "-c", line).CombinedOutput(); err != nil {
					t.Errorf("fix %q is no command: %s", line, out)
				}
			}
			_, err := Preflight(t.Context(), f, c)
			if refused := (*RefusedError)(nil); errors.As(err, &refused) != x.fatal {
				t.Errorf("preflight: %v", err)
			}
			before := len(f.files)
			mended := state(examine(t, f, c, true), x.check)
			if !x.mends {
				if mended.State != Wrong || len(mended.Changes) > 0 || len(f.files) != before {
					t.Errorf("--fix changed what is the operator's: %+v", mended)
				}
				return
			}
			if mended.State != Fine || len(mended.Changes) == 0 {
				t.Fatalf("--fix left it %s: %+v", mended.State, mended)
			}
			for _, change := range mended.Changes {
				if !strings.Contains(change, ", was ") {
					t.Errorf("change without the old value: %q", change)
				}
			}
			if again := examine(t, f, c, true); len(state(again, x.check).Changes) > 0 {
				t.Errorf("--fix twice: %v", state(again, x.check).Changes)
			}
		})
	}
	for _, check := range Checks() {
		if !slices.ContainsFunc(list, func(x fault) bool { return x.check == check.Name }) {
			t.Errorf("no fault for check %s", check.Name)
		}
	}
}

// TestNoFalseAlarm: what looks like a fault and is none.
func TestNoFalseAlarm(t *testing.T) {
	for what, inject := range map[string]func(*fake, *Config){
		"a node that is off": func(f *fake, c *Config) { f.machines[addr2()] = nil; silence(c) },
		"a file switched off": func(f *fake, _ *Config) {
			f.files["/usr/lib/sysctl.d/10-x.conf"] = "net.ipv4.ip_forward=0\n"
			f.files["/etc/sysctl.d/10-x.conf"] = ""
		},
		"the last file wins": func(f *fake, _ *Config) {
			f.files["/etc/sysctl.d/10-x.conf"] = "net.ipv4.ip_forward=0\n"
			f.files["/etc/sysctl.d/20-y.conf"] = "net.ipv4.ip_forward=1\n"
		},
		"strict, and one interface": func(f *fake, _ *Config) {
			f.files["/proc/sys/net/ipv4/conf/eth1/rp_filter"] = "1"
			f.interfaces = slices.Delete(f.interfaces, 1, 2)
		},
		"an input chain that drops": func(f *fake, _ *Config) {
			f.chains = append(f.chains, nft.BaseChain{Family: "inet", Table: "x", Name: "i", Hook: "input", Drop: true})
		},
		"a chain that accepts ours": func(f *fake, _ *Config) {
			f.chains = append(f.chains, nft.BaseChain{Family: "inet", Table: "x", Name: "f", Hook: "forward", Drop: true, In: true, Out: true})
		},
		"iptables' chain": func(f *fake, _ *Config) {
			f.chains = append(f.chains, nft.BaseChain{Family: "ip", Table: "filter", Name: "FORWARD", Hook: "forward", Drop: true})
		},
		"a signed session": func(f *fake, c *Config) {
			f.machines[addr2()].tcp[179] = Silent
			c.Cluster.Peers = []*datastore.Peer{{Spec: datastore.PeerSpec{Address: addr2(), Password: &datastore.PeerPassword{File: "/x"}}}}
		},
		"no peer of this one": func(f *fake, c *Config) {
			f.machines[addr2()].tcp[179] = Silent
			c.Cluster.Reports[3].Status.Sessions = nil
		},
		"a session that is up": func(f *fake, c *Config) {
			f.machines[addr2()].tcp[179] = Silent
			c.Cluster.Reports[1].Status.Sessions[0].State = "Established"
		},
		"a kernel without unused": func(f *fake, c *Config) {
			f.lacks[FeatureWireGuard] = unix.EOPNOTSUPP
			c.Cluster.Pools = c.Cluster.Pools[:1]
		},
		"networkd leaves ours alone": func(f *fake, c *Config) {
			runsToo("systemd-networkd")(f, c)
			f.files["/etc/systemd/network/05-x.network"] = "[Match]\nName=nc* tunl0 *.netctl\n[Link]\nUnmanaged=yes\n"
			f.files["/etc/systemd/network/10-all.network"] = "[Match]\nName=*\n[Network]\nDHCP=yes\n"
		},
		"networkd has real ones only": func(f *fake, c *Config) {
			runsToo("systemd-networkd")(f, c)
			f.files["/etc/systemd/network/10-en.network"] = "[Match]\nName=en*\n[Network]\nDHCP=yes\n"
		},
		"NetworkManager leaves ours": runsToo("NetworkManager"),
		"a route to more than a pool": func(f *fake, _ *Config) {
			f.routes = append(f.routes, kernel.Route{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Protocol: 4, Link: "eth0"})
		},
		"an etcd of loopback": func(f *fake, c *Config) {
			c.MayFound = true
			f.sockets = append(f.sockets, Socket{Addr: netip.MustParseAddrPort("127.0.0.1:2380"), PID: 301, Name: "etcd"})
		},
		"a small disk":       func(f *fake, _ *Config) { f.disk = Disk{Free: 400 << 20, Size: 600 << 20} },
		"one slow write":     func(f *fake, _ *Config) { f.timing.Worst = 400 * time.Millisecond },
		"firewalld forwards": firewalldForwards,
		"a lossy small skew": func(f *fake, _ *Config) { f.machines[addr2()].ahead = -time.Second },
		"its address is on lo": func(f *fake, c *Config) {
			f.interfaces[0].Addresses = prefixes("10.255.0.1/32")
			c.Addresses = []netip.Addr{netip.MustParseAddr("10.255.0.1")}
			c.Cluster.Nodes[0].Spec.Addresses = prefixes("10.255.0.1/32")
		},
	} {
		f, c := clean()
		inject(f, &c)
		for _, res := range examine(t, f, c, false).Checks {
			if res.State == Wrong || res.State == Unknown {
				t.Errorf("%s: %s is %s: %v %s", what, res.Name, res.State, res.Findings, res.Reason)
			}
		}
	}
}

// silence has node2 report nothing for an hour.
func silence(c *Config) {
	for _, r := range c.Cluster.Reports[2:] {
		r.Status.Seen = now().Add(-time.Hour)
	}
}

// TestCouldNotTell: a check that cannot be made is neither fine nor wrong.
func TestCouldNotTell(t *testing.T) {
	away := fmt.Errorf("datastore unavailable: unix:///x: %w", datastore.ErrUnavailable)
	for what, x := range map[string]struct {
		inject func(*fake, *Config)
		checks []string
	}{
		"the datastore is away":     {func(_ *fake, c *Config) { c.Cluster, c.ClusterErr = nil, away }, []string{"node-name", "node-address", "clock", "pools", "path-mtu", "path-bgp", "path-ipip", "path-vxlan", "path-wireguard"}},
		"nobody may ping":           {func(f *fake, _ *Config) { f.machines[addr2()].mute = true }, []string{"path-mtu"}},
		"no program for a flavour":  {func(f *fake, _ *Config) { f.iptErr = errors.New("no iptables-legacy-save"); f.flavours = nil }, []string{"forward-policy", "iptables-flavours"}},
		"no socket for probes":      {func(f *fake, _ *Config) { f.pathErr = unix.EPERM }, []string{"path-mtu", "path-bgp", "path-ipip", "path-vxlan"}},
		"the disk is not read":      {func(f *fake, _ *Config) { f.diskErr = unix.EIO }, []string{"disk-space", "disk-sync"}},
		"a version of another kind": {func(f *fake, _ *Config) { f.docker = "master" }, []string{"docker"}},
	} {
		f, c := clean()
		x.inject(f, &c)
		r := examine(t, f, c, false)
		if r.Healthy {
			t.Errorf("%s: healthy", what)
		}
		for _, name := range x.checks {
			if res := state(r, name); res.State != Unknown || res.Reason == "" {
				t.Errorf("%s: %s is %s: %q", what, name, res.State, res.Reason)
			}
		}
		if r.Count(Wrong) > 0 {
			t.Errorf("%s: %d wrong", what, r.Count(Wrong))
		}
	}
	f, c := clean()
	c.Cluster, c.ClusterErr = nil, away
	if r, err := Preflight(t.Context(), f, c); err != nil || r.Healthy || r.Count(Unknown) == 0 {
		t.Errorf("preflight without the datastore: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, f, c, false); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestPreflight: the error is one line with what to do.
func TestPreflight(t *testing.T) {
	f, c := clean()
	if _, err := Preflight(t.Context(), f, c); err != nil {
		t.Fatal(err)
	}
	c.Node, f.disk.ReadOnly = "localhost", true
	_, err := Preflight(t.Context(), f, c)
	if err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "localhost") || !strings.Contains(err.Error(), "read-only") || !strings.Contains(err.Error(), "hostnamectl") {
		t.Errorf("%v", err)
	}
}

// TestFixFails: what --fix cannot do is said, and stays wrong.
func TestFixFails(t *testing.T) {
	f, c := clean()
	f.files["/proc/sys/net/ipv4/conf/eth1/rp_filter"] = "1"
	f.readOnly["/proc/sys/net/ipv4/conf/eth1/rp_filter"] = unix.EROFS
	res := state(examine(t, f, c, true), "rp-filter")
	if res.State != Wrong || !strings.Contains(res.Reason, "set net.ipv4.conf.eth1.rp_filter=2: read-only") {
		t.Errorf("%+v", res)
	}
}

// TestSysctlNames: an interface's name may have dots, and then slashes part the levels.
func TestSysctlNames(t *testing.T) {
	for key, want := range map[string]string{"net/ipv4/ip_forward": "net.ipv4.ip_forward", "net/ipv4/conf/eth0.100/rp_filter": "net/ipv4/conf/eth0.100/rp_filter"} {
		if got := sysctlName(key); got != want {
			t.Errorf("%s: %s", key, got)
		}
	}
}

// TestTo: machines that are no nodes are tried by all paths, without a datastore too.
func TestTo(t *testing.T) {
	f, c := clean()
	c.Cluster, c.To = nil, []netip.Addr{addr2()}
	f.machines[addr2()].tcp[179], f.machines[addr2()].udp[4789], f.machines[addr2()].udp[51820], f.machines[addr2()].tunnel[datastore.TunnelIPIP] = Refused, Silent, Silent, Silent
	r := examine(t, f, c, false)
	for name, want := range map[string]State{"path-mtu": Fine, "path-bgp": Fine, "path-ipip": Wrong, "path-vxlan": Wrong, "path-wireguard": Wrong} {
		if got := state(r, name); got.State != want {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// A node answers peers alone: to a machine that is none yet its silence says nothing.
	f.machines[addr2()].tcp[179], f.machines[addr2()].udp[51820] = Silent, Refused
	r = examine(t, f, c, false)
	for name, want := range map[string]State{"path-mtu": Fine, "path-bgp": Unknown, "path-ipip": Unknown, "path-vxlan": Unknown, "path-wireguard": Fine} {
		if got := state(r, name); got.State != want || want == Unknown && !strings.Contains(got.Reason, "once this machine is one") {
			t.Errorf("of a stranger: %s: %+v", name, got)
		}
	}
	// Where it has this one as a peer, it means something.
	f, c = clean()
	c.To, f.machines[addr2()].tcp[179] = []netip.Addr{addr2()}, Silent
	if got := state(examine(t, f, c, false), "path-bgp"); got.State != Wrong {
		t.Errorf("of a peer: %+v", got)
	}
	// One that is a node is tried once, as no node: whatever its session says.
	f, c = clean()
	c.To = []netip.Addr{addr2()}
	list, err := newScene(f, c).others()
	if n := len(slices.DeleteFunc(list, func(o other) bool { return o.v4 != addr2() || o.node != nil || !o.alive })); n != 1 || len(list) != len(c.Cluster.Nodes)-1 || err != nil {
		t.Errorf("%d of %d: %v", n, len(list), err)
	}
}

// TestBetween: sizes that are tried together lie between those that are known, and leave none
// out in the end.
func TestBetween(t *testing.T) {
	for low := 576; low < 580; low++ {
		for high := low + 1; high < low+3*atOnce; high++ {
			all := append(append([]int{low}, between(low, high)...), high)
			if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) || high > low+1 && len(all) == 2 {
				t.Fatalf("%d to %d: %v", low, high, all)
			}
		}
	}
}

// firewalldForwards has firewalld's default zone, which the uplink is in too, let pass
// what stays in it.
func firewalldForwards(f *fake, _ *Config) {
	f.chains = append(f.chains, nft.BaseChain{Family: "inet", Table: "firewalld", Name: "filter_FORWARD", Hook: "forward"})
	f.programs["firewall-cmd --query-forward"] = "yes\n"
	f.programs["firewall-cmd --get-default-zone"] = "public\n"
	f.programs["firewall-cmd --get-zone-of-interface=eth1"] = "public\n"
}

// TestSample: nodes of a large cluster try others, each the next ones behind it.
func TestSample(t *testing.T) {
	var nodes []*datastore.Node
	for i := range 40 {
		nodes = append(nodes, &datastore.Node{Metadata: datastore.Metadata{Name: fmt.Sprintf("n%02d", i)}})
	}
	got := Sample(nodes, "n30")
	if len(got) != mostOthers || got[0] != "n31" || got[len(got)-1] != "n06" || slices.Contains(got, "n30") {
		t.Errorf("%v", got)
	}
	if got := Sample(nodes[:2], "n01"); !slices.Equal(got, []string{"n00"}) {
		t.Errorf("%v", got)
	}
	if got := Sample(nodes[:2], "new"); !slices.Equal(got, []string{"n00", "n01"}) {
		t.Errorf("%v", got)
	}
}

// TestPage: the page for operators has every check, and those that are made before a
// machine becomes a node.
func TestPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	_, before, _ := strings.Cut(string(text), "## Before install and join")
	seen := map[string]bool{}
	for _, c := range Checks() {
		if !strings.Contains(string(text), "`"+c.Name+"`") || seen[c.Name] {
			t.Errorf("check %s is not told there, or is there twice", c.Name)
		}
		seen[c.Name] = true
		if c.First != strings.Contains(before, "`"+c.Name+"`") {
			t.Errorf("check %s before install: %v, and the page says otherwise", c.Name, c.First)
		}
		if strings.HasSuffix(c.Meaning, ".") || c.Meaning == "" {
			t.Errorf("check %s means %q", c.Name, c.Meaning)
		}
	}
}

// TestDate: the date of who answers with HTTPS, whatever certificate that shows.
func TestDate(t *testing.T) {
	there := time.Now().AddDate(-1, 0, 0).UTC().Truncate(time.Second)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", there.Format(http.TimeFormat))
	}))
	of := netip.MustParseAddrPort(server.Listener.Addr().String())
	if got := (&machine{}).Date(t.Context(), of); !got.Equal(there) {
		t.Errorf("%s, want %s", got, there)
	}
	server.Close()
	if got := (&machine{}).Date(t.Context(), of); !got.IsZero() {
		t.Errorf("of nobody: %s", got)
	}
}
