package nft

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"netctl/acl"
	"netctl/datastore"
)

// TestPublishedPorts: a port of the host leads to an endpoint, both families, from
// others as far as its rules allow, from the host and from itself; and no more once it
// is not published.
func TestPublishedPorts(t *testing.T) { onEach(t, testPublishedPorts) }

func testPublishedPorts(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	l.router.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	l.router.Run("ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	publish := func(ports ...datastore.HostPort) {
		t.Helper()
		c := endpoint("n1", "n1/cni/a/eth0", "nca", []string{"web"}, "10.0.0.1", "fd00::1")
		c.New.(*datastore.Endpoint).Spec.HostPorts = ports
		x.Apply(c)
		l.apply(x.Flush())
	}
	for _, addr := range []string{"10.0.0.1", "fd00::1"} {
		var in net.Listener
		var err error
		l.hosts["a"].Do(func() { in, err = net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(addr), 80).String()) })
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		go func() {
			for {
				c, err := in.Accept()
				if err != nil {
					return
				}
				_, _ = io.WriteString(c, addr)
				_ = c.Close()
			}
		}()
	}
	answer := func(do func(func()), to string, patience time.Duration) string {
		var text []byte
		do(func() {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(netip.MustParseAddr(to), 8080).String(), patience)
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			text, _ = io.ReadAll(c)
		})
		return string(text)
	}
	web := datastore.HostPort{Protocol: "tcp", HostPort: 8080, Port: 80}
	publish(web)
	hosts := map[string]string{"192.0.2.1": "10.0.0.1", "2001:db8::1": "fd00::1"}
	check := func(who string, do func(func()), allowed bool) {
		t.Helper()
		for to, want := range hosts {
			patience := 20 * time.Second
			if !allowed {
				want, patience = "", 2*time.Second
			}
			if got := answer(do, to, patience); got != want {
				t.Errorf("%s at %s: %q answers, not %q", who, to, got, want)
			}
		}
	}
	check("the host", l.router.Do, true)
	check("a neighbour", l.hosts["b"].Do, true)
	check("itself", l.hosts["a"].Do, true)
	check("another network", l.hosts["c"].Do, false)
	check("a stranger", l.hosts["n"].Do, false)
	x.Apply(profile(t, "web", []string{"web"}, []string{"allow tcp to ports 80"}, []string{"allow"}))
	l.apply(x.Flush())
	check("a stranger, allowed", l.hosts["n"].Do, true)
	l.list()
	publish()
	check("nobody", l.hosts["n"].Do, false)
	if l.rules.Chains[acl.ChainPortsIn] != nil {
		t.Error("the chains are there and nothing is published")
	}
}
