package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// podman calls the plugin as netavark does, by a link in a folder of its plugins.
type podman struct {
	t      *testing.T
	host   *netlab.Host
	plugin string
}

func newPodman(t *testing.T, h *netlab.Host) *podman {
	t.Helper()
	p := &podman{t: t, host: h, plugin: filepath.Join(t.TempDir(), "netctl")}
	if err := os.Symlink(netlab.Binary(t), p.plugin); err != nil {
		t.Fatal(err)
	}
	return p
}

// call returns what the plugin prints, or the text of its error object.
func (p *podman) call(stdin string, args ...string) (stdout, refusal string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	out, err := p.host.Exec(ctx, netlab.Cmd{Args: append([]string{p.plugin}, args...), Stdin: stdin})
	if err == nil {
		return out, ""
	}
	var failed *netlab.ExecError
	var e struct{ Error string }
	if !errors.As(err, &failed) || json.Unmarshal([]byte(failed.Stdout), &e) != nil || e.Error == "" {
		p.t.Fatalf("%v: %v", args, err)
	}
	return "", e.Error
}

// network is one that `podman network create` makes, as Podman keeps it.
func (p *podman) network(name, more string) string {
	p.t.Helper()
	out, refusal := p.call(fmt.Sprintf(`{"name":%q,"id":"53ce4390f2ad","driver":"netctl","created":"0001-01-01T00:00:00Z","ipv6_enabled":false,"internal":false,"dns_enabled":true%s}`, name, more), "create")
	if refusal != "" {
		p.t.Fatalf("create %s: %s", name, refusal)
	}
	return out
}

// input is what netavark sends for a container in a network; options are
// network_options.
func input(c *netlab.Container, name, network, options, more string) string {
	return fmt.Sprintf(`{"container_id":%q,"container_name":%q,"network":%s,"network_options":{"aliases":["x"],%s}%s}`, c.ID, name, network, options, more)
}

// setup returns the addresses of the interface, IPv4's first.
func (p *podman) setup(c *netlab.Container, in, link string) (all []netip.Addr) {
	p.t.Helper()
	out, refusal := p.call(in, "setup", c.Path())
	var s struct {
		Interfaces map[string]struct {
			Subnets []struct {
				IPNet   netip.Prefix `json:"ipnet"`
				Gateway netip.Addr   `json:"gateway"`
			} `json:"subnets"`
		} `json:"interfaces"`
	}
	if refusal != "" || json.Unmarshal([]byte(out), &s) != nil || len(s.Interfaces[link].Subnets) == 0 {
		p.t.Fatalf("setup %s: %s%s", in, out, refusal)
	}
	inside := netlab.Must(p.t, c, "ip", "-o", "addr", "show", "dev", link)
	for _, a := range s.Interfaces[link].Subnets {
		if !strings.Contains(inside, " "+a.IPNet.String()+" ") || !a.IPNet.IsSingleIP() {
			p.t.Errorf("%s has no %s: %s", link, a.IPNet, inside)
		}
		if routes := netlab.Must(p.t, c, "ip", "route", "show", "default"); a.Gateway.Is4() && !strings.Contains(routes, "via "+a.Gateway.String()+" ") {
			p.t.Errorf("gateway %s: %s", a.Gateway, routes)
		}
		all = append(all, a.IPNet.Addr())
	}
	return all
}

// teardown names a path that is gone: the plugin must not need it.
func (p *podman) teardown(in string) {
	p.t.Helper()
	if out, refusal := p.call(in, "teardown", "/run/netns/gone"); out+refusal != "" {
		p.t.Errorf("teardown: %s%s", out, refusal)
	}
}

// held waits until there are so many endpoints, and addresses of endpoints.
func (p *podman) held(want int) {
	p.t.Helper()
	r := &runtime{t: p.t, host: p.host}
	netlab.Until(p.t, patience, "release", func() string {
		if endpoints, addresses := r.held(); endpoints != want || addresses != want {
			return fmt.Sprintf("%d endpoints and %d addresses, want %d", endpoints, addresses, want)
		}
		return ""
	})
}

func (p *podman) container(name string) *netlab.Container {
	p.t.Helper()
	c, err := p.host.Container(name)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = c.Remove() })
	return c
}

// TestPodman makes the calls of Podman 5's netavark, which needs no Podman.
func TestPodman(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	h := l.Hosts[0]
	netlab.Must(t, h, "netctl", "pool", "add", "10.0.0.0/24", "10.1.0.0/26", "fd00:77::/64")
	netlab.Must(t, h, "netctl", "profile", "add", "web")
	p := newPodman(t, h)
	if out, _ := p.call("", "info"); !strings.Contains(out, `"api_version":"1.0.0"`) {
		t.Errorf("info: %s", out)
	}
	one, two := p.network("one", `,"subnets":[{"subnet":"10.0.0.0/24"}]`), p.network("two", `,"options":{"profile":"web","pool":"10.1.0.0/26"}`)
	q1, q2 := p.container("q1"), p.container("q2")

	first := input(q1, "q1", one, `"interface_name":"net7","static_ips":["10.0.0.5"],"static_mac":"92:d0:c6:0a:29:33"`, "")
	if a := p.setup(q1, first, "net7"); len(a) != 1 || a[0].String() != "10.0.0.5" {
		t.Errorf("--ip: %s", a)
	}
	if out := netlab.Must(t, q1, "ip", "link", "show", "net7"); !strings.Contains(out, "92:d0:c6:0a:29:33") {
		t.Errorf("--mac-address: %s", out)
	}
	p.setup(q1, first, "net7") // again, as after an answer that was lost
	in0, in1 := input(q2, "q2", one, `"interface_name":"eth0"`, ""), input(q2, "q2", two, `"interface_name":"eth1"`, "")
	p.setup(q2, in0, "eth0")
	if a := p.setup(q2, in1, "eth1"); len(a) != 1 || !netip.MustParsePrefix("10.1.0.0/26").Contains(a[0]) {
		t.Errorf("-o pool: %s", a)
	}
	reaches(t, q2, "10.0.0.5")
	text := netlab.Must(t, h, "netctl", "get", "endpoints", "-o", "yaml")
	for _, want := range []string{"node1/podman/" + q2.ID + "/eth1", "podman.name: q2", "- web"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s among\n%s", want, text)
		}
	}

	// podman network reload: what was gone is back.
	p.teardown(first)
	p.setup(q1, strings.Replace(first, `"10.0.0.5"`, `"10.0.0.5","10.0.0.5"`, 1), "net7")
	reaches(t, q2, "10.0.0.5")

	six := p.network("six", `,"subnets":[{"subnet":"10.0.0.0/24"},{"subnet":"fd00:77::/64"}]`)
	q4 := p.container("q4")
	in6 := input(q4, "q4", six, `"interface_name":"eth0","static_ips":["fd00:77::5"]`, "")
	if a := p.setup(q4, in6, "eth0"); len(a) != 2 || a[1].String() != "fd00:77::5" {
		t.Errorf("IPv6: %s", a)
	}
	reaches(t, h, "fd00:77::5")
	p.teardown(in6)

	portsOfPodman(t, p, l.Hosts[1])
	refusalsOfPodman(t, p, one)

	// Without the roles teardown is kept, and worked off.
	stopNode(t, h)
	p.teardown(first)
	p.teardown(first)
	if _, err := StartNode(h); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	p.held(2)
	for _, in := range []string{in0, in1, in1, first} {
		p.teardown(in)
	}
	p.held(0)
	for _, c := range []*netlab.Container{q1, q2} {
		if out := netlab.Must(t, c, "ip", "-br", "link"); strings.Contains(out, "eth") || strings.Contains(out, "net7") {
			t.Errorf("left: %s", out)
		}
	}
}

// refusalsOfPodman are what an operator gets wrong; each leaves nothing behind.
func refusalsOfPodman(t *testing.T, p *podman, network string) {
	c := p.container("q3")
	const eth0 = `"interface_name":"eth0"`
	strange := p.network("three", `,"options":{"pool":"192.0.2.0/24"}`)
	none := p.network("four", `,"options":{"profile":"nobody"}`)
	for _, r := range []struct{ path, in, says string }{
		{c.Path(), input(c, "q3", network, eth0+`,"static_ips":["10.0.0.5"]`, ""), "10.0.0.5: in use: held by node1/podman/"},
		{c.Path(), input(c, "q3", network, eth0+`,"static_ips":["192.0.2.1"]`, ""), "in none of the pools 10.0.0.0/24"},
		{c.Path(), input(c, "q3", strange, eth0, ""), "192.0.2.0"},
		{c.Path(), input(c, "q3", none, eth0, ""), "netctl profile add nobody"},
		{"/proc/self/ns/net", input(c, "q3", network, eth0, ""), "the host's own"},
		{"/etc/hostname", input(c, "q3", network, eth0, ""), "not a namespace"},
	} {
		out, refusal := p.call(r.in, "setup", r.path)
		if out != "" || !strings.Contains(refusal, r.says) || strings.Contains(refusal, "\n") {
			t.Errorf("%s: %s%s, want %q", r.in, out, refusal, r.says)
		}
	}
	if out := netlab.Must(t, c, "ip", "-br", "link"); strings.Contains(out, "eth0") {
		t.Errorf("left: %s", out)
	}
}

// reaches waits until an echo request is answered.
func reaches(t *testing.T, from netlab.Place, to string) {
	t.Helper()
	netlab.Until(t, patience, "ping "+to, func() string {
		if out, failed := netlab.Try(t, from, "ping", "-n", "-c1", "-W1", to); failed != nil {
			return out
		}
		return ""
	})
}
