package lab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// serve answers every TCP connection to a port with a word, until the test ends.
func serve(t *testing.T, p netlab.Place, port int, word string) {
	t.Helper()
	var l net.Listener
	if err := p.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, word)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
}

// hears is what a server says, or why it says nothing. Who is not let through waits for
// all of the time.
func hears(t *testing.T, p netlab.Place, at netip.AddrPort, wait time.Duration) (word string) {
	t.Helper()
	err := p.Do(func() error {
		c, err := (&net.Dialer{Timeout: wait}).DialContext(t.Context(), "tcp", at.String())
		if err != nil {
			return err
		}
		defer c.Close()
		all, err := io.ReadAll(c)
		word = string(all)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return word
}

// hearsAtLast waits for a word.
func hearsAtLast(t *testing.T, p netlab.Place, at netip.AddrPort, word string) {
	t.Helper()
	netlab.Until(t, patience, word+" at "+at.String(), func() string {
		if got := hears(t, p, at, time.Second); got != word {
			return got
		}
		return ""
	})
}

// portOf is a port of a host's first address.
func portOf(h *netlab.Host, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(h.Addr.Addr(), port)
}

// leads has a port of a host lead to a container whose network's rules do not let the
// other host through, until there is one that does.
func leads(t *testing.T, here, there *netlab.Host, network string, port uint16, word string) {
	t.Helper()
	at := portOf(here, port)
	hearsAtLast(t, here, at, word)
	if got := hears(t, there, at, time.Second); !strings.Contains(got, "timeout") {
		t.Errorf("%s: the other host, which no rule lets through: %s", at, got)
	}
	netlab.Must(t, here, "netctl", "profile", network, "rule", "add", "inbound", "allow", "tcp", "to", "ports", "80")
	hearsAtLast(t, there, at, word)
}

// noPorts waits until a host publishes none.
func noPorts(t *testing.T, h *netlab.Host) {
	t.Helper()
	netlab.Until(t, patience, "published ports go", func() string {
		if out := netlab.Must(t, h, "nft", "list", "table", "inet", "netctl"); strings.Contains(out, "chain ports_") {
			return out
		}
		return ""
	})
}

// portsOfPodman are published with a setup and gone with its teardown.
func portsOfPodman(t *testing.T, p *podman, there *netlab.Host) {
	network := p.network("public", "")
	c, d := p.container("q5"), p.container("q6")
	const eth0 = `"interface_name":"eth0"`
	in := input(c, "q5", network, eth0, `,"port_mappings":[{"container_port":80,"host_ip":"","host_port":8081,"protocol":"tcp","range":1},`+
		`{"container_port":7000,"host_ip":"`+p.host.Addr.Addr().String()+`","host_port":7000,"protocol":"udp,sctp","range":3}]`)
	// Podman itself listens on what it publishes, to keep others off; after `podman
	// network reload` it does so before the setup.
	serve(t, p.host, 8081, "Podman")
	p.setup(c, in, "eth0")
	p.setup(c, in, "eth0")
	serve(t, c, 80, "q5")
	leads(t, p.host, there, "public", 8081, "q5")
	rules := netlab.Must(t, p.host, "nft", "list", "table", "inet", "netctl")
	for _, want := range []string{"udp dport 7002 ", "sctp dport 7000 ", ":7002"} {
		if !strings.Contains(rules, want) {
			t.Errorf("no %q in\n%s", want, rules)
		}
	}
	for more, says := range map[string]string{
		`"host_ip":"","host_port":8081,"protocol":"tcp"`:          "port 8081/tcp of this node: in use: node1/podman/" + c.ID + "/eth0 publishes it",
		`"host_ip":"","host_port":7001,"protocol":"sctp"`:         "port 7001/sctp of this node: in use: node1/podman/" + c.ID + "/eth0",
		`"host_ip":"127.0.0.1","host_port":8082,"protocol":"tcp"`: "127.0.0.1 cannot lead to a container",
		`"host_ip":"fd00::1","host_port":8082,"protocol":"tcp"`:   "the container has no address of that family",
		`"host_ip":"","host_port":0,"protocol":"tcp"`:             "must be from 1 to 65535",
	} {
		out, refusal := p.call(input(d, "q6", network, eth0, `,"port_mappings":[{"container_port":80,`+more+`}]`), "setup", d.Path())
		if out != "" || !strings.Contains(refusal, says) || strings.Contains(refusal, "\n") {
			t.Errorf("%s: %s%s, want %q", more, out, refusal, says)
		}
	}
	if out := netlab.Must(t, p.host, "netctl", "get", "endpoints"); strings.Contains(out, d.ID) {
		t.Errorf("left of what could not be published:\n%s", out)
	}
	netlab.Until(t, patience, "the interface goes", func() string { // it is deleted after the answer
		if out := netlab.Must(t, d, "ip", "-br", "link"); strings.Contains(out, "eth0") {
			return out
		}
		return ""
	})
	p.teardown(in)
	noPorts(t, p.host)
	if got := hears(t, there, portOf(p.host, 8081), time.Second); strings.Contains(got, "q5") {
		t.Errorf("after teardown: %s", got)
	}
}

// TestCNIPorts has the reference runtime publish ports by our plugin, and by the
// reference's own after it, which has the capability then.
func TestCNIPorts(t *testing.T) {
	l := forTest(t, Config{Nodes: 2})
	h, there := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, h, "netctl", "pool", "add", "10.0.0.0/24")
	r := newRuntime(t, h)
	const capable = `"capabilities":{"portMappings":true}`
	r.network("ours", "1.0.0", ","+capable)
	r.network("theirs", "1.0.0", "", `{"type":"portmap",`+capable+`}`)
	caps := func(port int) string {
		return fmt.Sprintf(`CAP_ARGS={"portMappings":[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]}`, port)
	}
	for i, network := range []string{"ours", "theirs"} {
		c, err := h.Container(network)
		if err != nil {
			t.Fatal(err)
		}
		r.must("add", network, c.Path(), caps(8080+i))
		if network == "ours" { // portmap's CHECK wants IPv6 rules of a container without IPv6
			r.must("check", network, c.Path(), caps(8080+i))
		}
		serve(t, c, 80, network)
		leads(t, h, there, network, uint16(8080+i), network)
		if rules := netlab.Must(t, h, "nft", "list", "table", "inet", "netctl"); strings.Contains(rules, "chain ports_") != (network == "ours") {
			t.Errorf("%s:\n%s", network, rules)
		}
		if network == "ours" {
			d, err := h.Container("other")
			if err != nil {
				t.Fatal(err)
			}
			r.fails("port 8080/tcp of this node: in use: node1/cni/", "add", network, d.Path(), caps(8080))
			r.fails("published port 0 to 80/tcp", "add", network, d.Path(), caps(0))
			if endpoints, addresses := r.held(); endpoints != 1 || addresses != 1 {
				t.Errorf("%d endpoints and %d addresses, want 1", endpoints, addresses)
			}
		}
		r.must("del", network, c.Path(), caps(8080+i))
		noPorts(t, h)
	}
}
