package lab

import (
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/netdev"
	"netctl/netdev/netlab"
)

// TestCNI drives what networks and their chains may ask for beyond an address, with the
// reference runtime and Debian's plugins, on two nodes.
func TestCNI(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	h, there := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, h, "netctl", "pool", "add", "10.0.0.0/24", "10.2.0.0/24")
	netlab.Must(t, h, "netctl", "pool", "add", "fd00:77::/64")
	// One has the plugin as it is installed, the other a link to the whole program.
	link := h.Path("/opt/cni/bin/netctl")
	if err := errors.Join(os.Remove(link), os.Symlink(netlab.Plugin(t), link)); err != nil {
		t.Fatal(err)
	}
	r := newRuntime(t, h)
	elsewhere := &runtime{t: t, host: there, tool: r.tool}
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *runtime, *runtime)
	}{{"ipv6", onlyIPv6}, {"wishes", wishes}, {"rates", rates}, {"ipam", ofAnotherIPAM}, {"chain", wholeChain}, {"gc", collected}, {"killed", pluginKilled}} {
		t.Run(tt.name, func(t *testing.T) {
			here, away := *r, *elsewhere
			here.t, away.t = t, t
			tt.run(t, &here, &away)
			for _, r := range []*runtime{&here, &away} {
				netlab.Until(t, patience, "nothing left", func() string {
					if endpoints, addresses := r.held(); endpoints != 0 || addresses != 0 {
						return fmt.Sprintf("%d endpoints and %d addresses are left", endpoints, addresses)
					}
					if out := netlab.Must(t, r.host, "ip", "-br", "link"); strings.Contains(out, "nc") || strings.Contains(out, "ni") {
						return out
					}
					return ""
				})
			}
		})
	}
}

func containerOf(t *testing.T, h *netlab.Host, name string) *netlab.Container {
	t.Helper()
	c, err := h.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Remove() })
	return c
}

// onlyIPv6: a network may be of IPv6 alone, by itself or by the configuration, where
// there are pools of both.
func onlyIPv6(t *testing.T, r, away *runtime) {
	netlab.Must(t, r.host, "netctl", "network", "create", "six", "--ipv4=false")
	r.network("six", "1.0.0", "")
	r.network("by-conf", "1.0.0", `,"ipv4":false`)
	away.network("six", "1.0.0", "")
	c, d := containerOf(t, r.host, "six"), containerOf(t, away.host, "six")
	for _, network := range []string{"by-conf", "six"} {
		out := r.must("add", network, c.Path())
		if v4, v6 := addresses(t, out); v4.IsValid() || !v6.IsValid() {
			t.Errorf("%s: %s", network, out)
		}
		r.must("check", network, c.Path())
		if network != "six" {
			r.must("del", network, c.Path())
		}
	}
	if out := netlab.Must(t, c, "ip", "-4", "-br", "addr", "show", "dev", "eth0"); strings.Contains(out, "/32") {
		t.Error(out)
	}
	_, to := addresses(t, away.must("add", "six", d.Path()))
	pings(t, c, to)
	r.must("del", "six", c.Path())
	away.must("del", "six", d.Path())
	r.fails("is of IPv6 alone", "add", "six", c.Path(), "CNI_ARGS=IP=10.0.0.9")
	r.must("del", "six", c.Path())
	netlab.Must(t, r.host, "netctl", "network", "remove", "six")
}

// wishes: ranges, names and labels.
func wishes(t *testing.T, r, _ *runtime) {
	r.network("wish", "1.1.0", `,"capabilities":{"ipRanges":true,"aliases":true,"ips":true,"mac":true}`)
	c := containerOf(t, r.host, "wish")
	const podman = "CNI_ARGS=IgnoreUnknown=1;NOMAD_JOB_ID=shop;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=db-0"
	caps := `CAP_ARGS={"ipRanges":[[{"subnet":"10.2.0.0/24","rangeStart":"10.2.0.77","rangeEnd":"10.2.0.78"}]],"aliases":["db","store"],"mac":"02:00:00:00:00:78"}`
	out := r.must("add", "wish", c.Path(), caps, podman)
	if v4, _ := addresses(t, out); v4.String() != "10.2.0.77" && v4.String() != "10.2.0.78" || !strings.Contains(out, "02:00:00:00:00:78") {
		t.Errorf("result %s", out)
	}
	labels := netlab.Must(t, r.host, "netctl", "get", "endpoints", "-o", "yaml")
	for _, want := range []string{"nomad.job: shop", "k8s.namespace: prod", "k8s.pod: db-0", "netctl/aliases: db,store"} {
		if !strings.Contains(labels, want) {
			t.Errorf("no %q in\n%s", want, labels)
		}
	}
	d := containerOf(t, r.host, "wish2")
	reserved := filepath.Join(t.TempDir(), "r.yaml")
	if err := os.WriteFile(reserved, []byte("apiVersion: netctl/v1\nkind: Reservation\nmetadata: {name: printer}\nspec: {cidrs: [10.2.0.200/32]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, r.host, "netctl", "apply", "-f", reserved)
	netlab.Until(t, patience, "reservation", func() string { // the agent hears of it a moment later
		out, err := r.do("add", "wish", d.Path(), `CAP_ARGS={"ips":["10.2.0.200"]}`)
		if err == nil || !strings.Contains(err.Error(), "printer") {
			r.must("del", "wish", d.Path())
			return fmt.Sprint(out, err)
		}
		return ""
	})
	netlab.Must(t, r.host, "netctl", "delete", "-f", reserved)
	for caps, says := range map[string]string{
		`{"ips":["10.2.0.9"],"ipRanges":[[{"subnet":"10.2.0.64/26"}]]}`: "outside of 10.2.0.64/26",
		`{"ipRanges":[[{"subnet":"192.0.2.0/24"}]]}`:                    "outside of 192.0.2.0/24",
	} {
		r.fails(says, "add", "wish", d.Path(), "CAP_ARGS="+caps)
		r.must("del", "wish", d.Path())
	}
	r.must("del", "wish", c.Path(), caps, podman)
}

// rates: held by us, changed while it runs, and gone with the container.
func rates(t *testing.T, r, _ *runtime) {
	r.network("rate", "1.0.0", `,"capabilities":{"bandwidth":true}`)
	c := containerOf(t, r.host, "rate")
	const caps = `CAP_ARGS={"bandwidth":{"ingressRate":8000000,"ingressBurst":262144,"egressRate":16000000}}`
	r.must("add", "rate", c.Path(), caps)
	r.must("check", "rate", c.Path(), caps)
	queues := func() string { return netlab.Must(t, r.host, "tc", "qdisc", "show") }
	if out := queues(); !strings.Contains(out, "rate 8Mbit") || !strings.Contains(out, "rate 16Mbit") {
		t.Errorf("queues: %s", out)
	}
	ep := netlab.Must(t, r.host, "netctl", "get", "endpoints", "-o", "yaml")
	if !strings.Contains(ep, "bits: 8000000") {
		t.Errorf("endpoint: %s", ep)
	}
	file := filepath.Join(t.TempDir(), "ep.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(ep, "bits: 8000000", "bits: 24000000", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	netlab.Must(t, r.host, "netctl", "apply", "-f", file)
	netlab.Until(t, patience, "another rate", func() string {
		if out := queues(); !strings.Contains(out, "rate 24Mbit") || strings.Contains(out, "rate 8Mbit") {
			return out
		}
		return ""
	})
	r.must("check", "rate", c.Path(), caps)
	r.must("del", "rate", c.Path(), caps)
	if out := queues(); strings.Contains(out, "tbf") && !strings.Contains(out, "ncgone") {
		t.Errorf("left: %s", out)
	}
}

// ofAnotherIPAM: Debian's host-local on two nodes, which know nothing of each other, with
// one range.
func ofAnotherIPAM(t *testing.T, r, away *runtime) {
	const own = `,"ipam":{"type":"host-local","dataDir":"/var/lib/cni/networks","ranges":[[{"subnet":"10.2.0.0/24","rangeStart":"10.2.0.10","rangeEnd":"10.2.0.13"}]],"routes":[{"dst":"0.0.0.0/0"}]}`
	had := map[netip.Addr]bool{}
	var made []*netlab.Container
	for i, rt := range []*runtime{r, away, away, r} {
		rt.network("hl", "1.0.0", own)
		c := containerOf(t, rt.host, fmt.Sprint("hl", i))
		made = append(made, c)
		out := rt.must("add", "hl", c.Path())
		v4, _ := addresses(t, out)
		if had[v4] || !netip.MustParsePrefix("10.2.0.8/29").Contains(v4) || !strings.Contains(out, "169.254.1.1") {
			t.Errorf("result %s after %v", out, had)
		}
		had[v4] = true
		rt.must("check", "hl", c.Path())
	}
	pings(t, made[0], firstOf(t, made[1]))
	extra := containerOf(t, r.host, "hl-extra")
	r.fails("in use: held by node2/cni/", "add", "hl", extra.Path())
	for i, rt := range []*runtime{r, away, away, r} {
		rt.must("del", "hl", made[i].Path())
		rt.must("del", "hl", made[i].Path())
	}
	if left, err := filepath.Glob(filepath.Join(r.host.Path("/var/lib/cni"), "networks/hl/10.*")); err != nil || len(left) > 0 {
		t.Errorf("host-local has %v, %v", left, err)
	}
	r.network("hl-outside", "1.0.0", `,"ipam":{"type":"host-local","dataDir":"/var/lib/cni/networks","subnet":"192.0.2.0/24"}`)
	r.fails("in none of the pools", "add", "hl-outside", extra.Path())
	r.must("del", "hl-outside", extra.Path())
}

func firstOf(t *testing.T, c *netlab.Container) netip.Addr {
	t.Helper()
	out := strings.Fields(netlab.Must(t, c, "ip", "-4", "-br", "addr", "show", "dev", "eth0"))
	return netip.MustParsePrefix(out[len(out)-1]).Addr()
}

// redirecting is a plugin such as a service mesh's, before or after ours: it leads a port
// to another one inside the namespace, and passes on what came before.
const redirecting = `#!/bin/sh
conf=$(cat)
prev=$(echo "$conf" | jq -c '.prevResult // empty')
[ -n "$prev" ] || prev=$(echo "$conf" | jq -c '{cniVersion, interfaces: [{name: "lo", sandbox: env.CNI_NETNS}], dns: {}}')
case $CNI_COMMAND in
ADD) nsenter --net=$CNI_NETNS nft "add table ip mesh$NAME; add chain ip mesh$NAME nat { type nat hook prerouting priority dstnat; }; add rule ip mesh$NAME nat tcp dport 8080 redirect to :80" >&2 || exit 1; echo "$prev" ;;
CHECK) nsenter --net=$CNI_NETNS nft list table ip mesh$NAME >/dev/null || exit 1 ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
`

// wholeChain: plugins before and after ours, and what they did stays as it is, whatever
// is checked, or restarted, in between.
func wholeChain(t *testing.T, r, away *runtime) {
	dir := t.TempDir()
	for _, name := range []string{"before", "after"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(redirecting, "$NAME", name)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plugins := []string{`{"type":"before"}`, `{"type":"netctl"}`, `{"type":"tuning","mac":"02:00:00:00:00:77","sysctl":{"net.ipv4.tcp_keepalive_time":"77"}}`,
		`{"type":"bandwidth","ingressRate":80000000,"ingressBurst":800000,"egressRate":80000000,"egressBurst":800000}`,
		`{"type":"firewall"}`, `{"type":"portmap","snat":false,"capabilities":{"portMappings":true}}`, `{"type":"after"}`}
	text := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"whole","plugins":[%s]}`, strings.Join(plugins, ","))
	if err := os.WriteFile(r.host.Path("/etc/cni/net.d/whole.conflist"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	c := containerOf(t, r.host, "whole")
	env := []string{`CAP_ARGS={"portMappings":[{"hostPort":9090,"containerPort":8080,"protocol":"tcp"}]}`, "CNI_PATH=" + dir + ":/opt/cni/bin:/usr/lib/cni"}
	out := r.must("add", "whole", c.Path(), env...)
	if !strings.Contains(out, "02:00:00:00:00:77") || !strings.Contains(out, `"lo"`) {
		t.Errorf("result %s", out)
	}
	serve(t, c, 80, "redirected")
	netlab.Must(t, r.host, "netctl", "profile", "whole", "rule", "add", "inbound", "allow", "tcp", "to", "ports", "8080")
	intact := func() {
		t.Helper()
		hearsAtLast(t, r.host, portOf(r.host, 9090), "redirected")
		hearsAtLast(t, away.host, portOf(r.host, 9090), "redirected")
		inside := netlab.Must(t, c, "nft", "list", "ruleset") + netlab.Must(t, c, "ip", "link", "show", "eth0")
		queues := netlab.Must(t, r.host, "tc", "qdisc", "show")
		for _, want := range []string{"table ip meshbefore", "table ip meshafter", "02:00:00:00:00:77"} {
			if !strings.Contains(inside, want) {
				t.Errorf("no %s: %s", want, inside)
			}
		}
		if strings.Count(queues, "tbf") != 2 {
			t.Errorf("queues: %s", queues)
		}
	}
	intact()
	stopNode(t, r.host)
	if _, err := StartNode(r.host); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "node", func() string {
		out, failed := netlab.Try(t, r.host, "netctl", "status")
		if failed != nil {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
	intact()
	r.must("del", "whole", c.Path(), env...)
	r.must("del", "whole", c.Path(), env...)
}

// collected: GC frees what is dead, of its own runtime and network, and nothing else.
func collected(t *testing.T, r, _ *runtime) {
	second := *r
	second.tool = filepath.Join(t.TempDir(), "another-runtime")
	if in, err := os.Open(r.tool); err != nil {
		t.Fatal(err)
	} else {
		out, err := os.OpenFile(second.tool, os.O_CREATE|os.O_WRONLY, 0o755)
		if err == nil {
			_, err = io.Copy(out, in)
		}
		if err != nil || out.Close() != nil || in.Close() != nil {
			t.Fatal(err)
		}
	}
	r.network("gc", "1.1.0", "")
	r.network("gc-other", "1.1.0", "")
	alive, dead := containerOf(t, r.host, "alive"), containerOf(t, r.host, "dead")
	theirs, other, cut := containerOf(t, r.host, "theirs"), containerOf(t, r.host, "other"), containerOf(t, r.host, "cut")
	r.must("add", "gc", alive.Path())
	r.must("add", "gc", dead.Path())
	r.must("add", "gc", cut.Path())
	second.must("add", "gc", theirs.Path())
	r.must("add", "gc-other", other.Path())
	for _, c := range []*netlab.Container{dead, theirs, other} {
		if err := c.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	netlab.Must(t, cut, "ip", "link", "del", "eth0") // its namespace lives
	netlab.Until(t, patience, "only one link", func() string {
		out := netlab.Must(t, r.host, "ip", "-br", "link", "show", "group", fmt.Sprint(netdev.Group))
		if strings.Count(out, "\n") != 1 {
			return out
		}
		return ""
	})
	if err := os.RemoveAll(r.host.Path("/var/lib/cni/results")); err != nil { // else libcni itself deletes
		t.Fatal(err)
	}
	r.must("gc", "gc", alive.Path())
	list := netlab.Must(t, r.host, "netctl", "get", "endpoints", "-o", "yaml")
	for _, c := range []*netlab.Container{alive, theirs, other, cut} {
		if !strings.Contains(list, r.workload(c)) {
			t.Errorf("%s is gone", c.Name)
		}
	}
	if strings.Contains(list, r.workload(dead)) {
		t.Error("what is dead was kept")
	}
	second.must("gc", "gc", alive.Path())
	if strings.Contains(netlab.Must(t, r.host, "netctl", "get", "endpoints", "-o", "yaml"), r.workload(theirs)) {
		t.Error("the second runtime's was kept")
	}
	netlab.Must(t, alive, "ip", "link", "show", "eth0")
	for _, c := range []*netlab.Container{alive, cut} {
		r.must("del", "gc", c.Path())
	}
	r.must("del", "gc-other", other.Path())
}

// workload is the container ID that cnitool makes of a namespace's path.
func (r *runtime) workload(c *netlab.Container) string {
	sum := sha512.Sum512([]byte(c.Path()))
	return fmt.Sprintf("cnitool-%x", sum[:10])
}

// pluginKilled: the plugin is killed at any point of an ADD; the DEL after that leaves
// nothing.
func pluginKilled(t *testing.T, r, _ *runtime) {
	conf := `{"cniVersion":"1.0.0","name":"killed","type":"netctl","ipam":{"type":"host-local","dataDir":"/var/lib/cni/networks","subnet":"10.2.0.0/24","rangeStart":"10.2.0.100"}}`
	c := containerOf(t, r.host, "killed")
	call := func(ctx context.Context, verb string) (string, error) {
		return r.host.Exec(ctx, netlab.Cmd{Args: []string{"/opt/cni/bin/netctl"}, Stdin: conf, Env: []string{
			"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + c.ID, "CNI_NETNS=" + c.Path(), "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin:/usr/lib/cni"}})
	}
	for i := range 12 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*3*time.Millisecond)
		_, _ = call(ctx, "ADD")
		cancel()
		if out, err := call(t.Context(), "DEL"); err != nil {
			t.Errorf("%d: DEL: %s, %v", i, out, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(r.host.Path("/var/lib/cni"), "networks/killed/10.*")); err != nil || len(left) > 0 {
		t.Errorf("host-local has %v, %v", left, err)
	}
}
