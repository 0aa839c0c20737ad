package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// nameServer answers questions about addresses at port 53: each record is
// "TTL ADDRESS|NAME…", by name.
type nameServer struct {
	net.PacketConn
	zone map[string]string
}

func (n *nameServer) serve() {
	for b := make([]byte, 1500); ; {
		size, from, err := n.ReadFrom(b)
		if err != nil {
			return
		}
		var p dnsmessage.Parser
		h, err := p.Start(b[:size])
		if err != nil {
			continue
		}
		if q, err := p.Question(); err == nil {
			_, _ = n.WriteTo(n.answer(h.ID, q), from)
		}
	}
}

// answer is the whole way from a name to its addresses.
func (n *nameServer) answer(id uint16, q dnsmessage.Question) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, Response: true})
	b.EnableCompression()
	_, _, _ = b.StartQuestions(), b.Question(q), b.StartAnswers()
	for name := q.Name; ; {
		var ttl uint32
		var to string
		if _, err := fmt.Sscan(n.zone[strings.ToLower(name.String())], &ttl, &to); err != nil {
			break
		}
		head := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}
		if a, err := netip.ParseAddr(to); err == nil {
			_ = b.AResource(head, dnsmessage.AResource{A: a.As4()})
			break
		}
		name = dnsmessage.MustNewName(to)
		_ = b.CNAMEResource(head, dnsmessage.CNAMEResource{CNAME: name})
	}
	out, _ := b.Finish()
	return out
}

// resolve asks a name server for the addresses of a name.
func resolve(server netip.Addr, name string) error {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: 7, RecursionDesired: true})
	_, _ = b.StartQuestions(), b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	question, err := b.Finish()
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("udp", netip.AddrPortFrom(server, 53).String(), time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(question); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = c.Read(make([]byte, 1500))
	return err
}

// world80 is machines of the rest of the world that send back what comes to port 80.
func world80(t *testing.T, addrs ...netip.Addr) error {
	for _, a := range addrs {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a, 80).String())
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
			}
		}()
	}
	return nil
}

func connect(to netip.Addr) (net.Conn, error) {
	return net.DialTimeout("tcp", netip.AddrPortFrom(to, 80).String(), 5*time.Second)
}

// TestDomains has an endpoint reach what the names of a network set stand for, as the server that
// it asks says, and nobody else: by nftables and iptables, across the agent's death.
func TestDomains(t *testing.T) {
	s := newSite(t, netlab.Options{}, nil)
	s.pool("10.0.0.0/24")
	world := func(n byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, n}) }
	good, bad := world(53), world(66)
	script := "ip route add 10.0.0.0/24 via " + s.node.Addr.Addr().String()
	for _, n := range []byte{1, 2, 3, 4, 5, 53, 66} {
		script += fmt.Sprintf("\nip addr add %s/32 dev lo", world(n))
	}
	netlab.Must(t, s.lab.Fabric, "sh", "-ec", script)
	netlab.Must(t, s.node, "ip", "route", "add", "198.51.100.0/24", "via", netlab.Must(t, s.lab.Fabric, "sh", "-c", "ip -o -4 addr show | grep -o '192\\.168\\.99\\.[0-9]*' | head -1 | tr -d '\\n'"))
	var servers []*nameServer
	if err := s.lab.Fabric.Do(func() error {
		for at, zone := range map[netip.Addr]map[string]string{
			good: {
				"www.example.com.": "3600 a.cdn.example.", "a.cdn.example.": "3600 " + world(1).String(),
				"short.example.org.": "1 " + world(3).String(), "later.example.org.": "60 " + world(4).String(),
				"again.example.org.": "60 " + world(5).String(), "example.org.": "60 " + world(2).String(), "other.example.": "60 " + world(2).String(),
			},
			bad: {"www.example.com.": "60 " + world(2).String()},
		} {
			c, err := net.ListenPacket("udp", netip.AddrPortFrom(at, 53).String())
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = c.Close() })
			n := &nameServer{c, zone}
			if at == good {
				servers = append(servers, n)
			}
			go n.serve()
		}
		return world80(t, world(1), world(2), world(3), world(4), world(5))
	}); err != nil {
		t.Fatal(err)
	}
	rules := func(profile string, out ...string) {
		change(t, s, profile, func(p *datastore.Profile) {
			p.Spec.Outbound = nil
			for _, text := range out {
				r, err := datastore.ParseRule(text)
				if err != nil {
					t.Fatal(err)
				}
				p.Spec.Outbound = append(p.Spec.Outbound, r)
			}
			p.Spec.Inbound = []datastore.Rule{{Action: datastore.Allow}}
		})
	}
	names := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: "names"}, Spec: datastore.NetworkSetSpec{Domains: []string{"www.example.com", "*.example.org"}}}
	names.SetDefaults()
	if err := datastore.Create(t.Context(), s.store, names); err != nil {
		t.Fatal(err)
	}
	c1, a1 := s.attach("c1", "dataman", nil)
	c2, _ := s.attach("c2", "app", nil)
	// Who is refused is told so at once.
	rules("dataman", "allow udp to cidr 198.51.100.53/32 and ports 53", "allow tcp to set names and ports 80", "reject")
	rules("app", "allow")
	s.has("answers are logged", "log prefix \"NPI|dns\" group 2", "reject")
	ask := func(c *netlab.Container, server netip.Addr, name string) {
		t.Helper()
		if err := c.Do(func() error { return resolve(server, name) }); err != nil {
			t.Fatalf("%s asks %s for %s: %v", c.ID, server, name, err)
		}
	}
	refused := func(to netip.Addr) string {
		err := c1.Do(func() error {
			c, err := connect(to)
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		switch {
		case err == nil:
			return to.String() + " is reached"
		case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ECONNREFUSED):
			return ""
		}
		return err.Error()
	}
	reached := func(to netip.Addr) {
		t.Helper()
		s.until(to.String()+" is reached", func() string {
			if why := refused(to); why != to.String()+" is reached" {
				return "refused " + why
			}
			return ""
		})
	}
	known := func() (list []string) {
		t.Helper()
		l, err := s.client().Waiting(10*time.Second).Learned(t.Context(), control.LearnedRequest{Set: "names"})
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range l.Addresses {
			list = append(list, a.Name+" "+a.Address.String())
		}
		return list
	}
	s.until("the rules are there", func() string { return refused(world(1)) })

	ask(c1, good, "WWW.example.com.")
	reached(world(1))
	// What the set does not name, and what it names is told to who does not use it, or by somebody
	// whom nobody asked.
	ask(c1, good, "example.org.")
	ask(c1, good, "other.example.")
	ask(c2, bad, "www.example.com.")
	forged(t, s, servers[0], c1, a1.Addresses[0], world(2))
	ask(c1, good, "later.example.org.")
	reached(world(4))
	if got, want := known(), []string{"later.example.org 198.51.100.4", "www.example.com 198.51.100.1"}; !slices.Equal(got, want) {
		t.Errorf("learned %v, want %v", got, want)
	}
	if why := refused(world(2)); why != "" {
		t.Error(why)
	}
	toldOf(t, s, a1.Addresses[0], world(1), world(2))

	ask(c1, good, "short.example.org.")
	var flow net.Conn
	s.until("a flow begins", func() string {
		if err := c1.Do(func() (err error) { flow, err = connect(world(3)); return err }); err != nil {
			return err.Error()
		}
		return ""
	})
	defer flow.Close()
	s.until("the time of an address is over", func() string { return refused(world(3)) })
	if slices.Contains(known(), "short.example.org 198.51.100.3") {
		t.Error(known())
	}
	_ = flow.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := flow.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := flow.Read(make([]byte, 1)); err != nil {
		t.Errorf("a flow that goes on when the time is over: %v", err)
	}

	across := func(what string, fault func()) {
		t.Helper()
		var lost, tried atomic.Int64
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if why := refused(world(1)); why != world(1).String()+" is reached" {
					lost.Add(1)
				}
				tried.Add(1)
			}
		}()
		fault()
		close(stop)
		<-ended
		if lost.Load() > 0 || tried.Load() == 0 {
			t.Errorf("%s: %d of %d flows to a learned address are refused", what, lost.Load(), tried.Load())
		}
		if got := known(); !slices.Contains(got, "www.example.com 198.51.100.1") {
			t.Errorf("%s: %v", what, got)
		}
	}
	across("kill -9", func() { s.kill(unix.SIGKILL) })
	s.cfg.Backend = iptablesNFT
	across("move to iptables", func() { s.kill(unix.SIGTERM); s.alone(iptablesNFT) })
	ask(c1, good, "again.example.org.")
	reached(world(5))
	forged(t, s, servers[0], c1, a1.Addresses[0], world(2))
	if why := refused(world(2)); why != "" {
		t.Error(why)
	}
	rules("dataman", "allow udp to cidr 198.51.100.53/32 and ports 53", "reject")
	s.until("nobody names the set", func() string {
		if got := known(); len(got) > 0 {
			return fmt.Sprint(got)
		}
		return refused(world(1))
	})
	if text := netlab.Must(t, s.node, "iptables-nft-save"); strings.Contains(text, "NPI|dns") {
		t.Error("answers are still logged: " + text)
	}
	if st := s.status(); len(st.Problems) > 0 {
		t.Error(st.Problems)
	}
}

// toldOf wants what people are told of a learned address, and of one that is not.
func toldOf(t *testing.T, s *site, from, is, isNot netip.Addr) {
	t.Helper()
	netctl := func(code string, args ...string) string {
		t.Helper()
		return netlab.Must(t, s.node, append([]string{"sh", "-c", `"$@"; test $? = ` + code, "sh", netlab.Binary(t)}, args...)...)
	}
	for _, c := range []struct {
		told string
		want string
	}{
		{netctl("0", "networkset", "show", "names"), "www.example.com\n*.example.org\nLearned on node1: 2\n  later.example.org 198.51.100.4, "},
		{netctl("0", "explain", from.String(), is.String(), "tcp", "80"), "names network set names: 198.51.100.1 is www.example.com on node1, for "},
		{netctl("0", "explain", "--live", from.String(), is.String(), "tcp", "80"), "names network set names: 198.51.100.1 is www.example.com on node1, for "},
		{netctl("3", "explain", from.String(), isNot.String(), "tcp", "80"), "names network set names: of its domains node1 has learned 2 addresses, none of these two"},
	} {
		if !strings.Contains(c.told, c.want) {
			t.Errorf("lacks %q:\n%s", c.want, c.told)
		}
	}
}

// forged has a server that is asked say what nobody has asked it for.
func forged(t *testing.T, s *site, n *nameServer, c *netlab.Container, at, to netip.Addr) {
	t.Helper()
	var l net.PacketConn
	if err := c.Do(func() (err error) { l, err = net.ListenPacket("udp", netip.AddrPortFrom(at, 0).String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	lie := &nameServer{zone: map[string]string{"www.example.com.": "60 " + to.String()}}
	text := lie.answer(7, dnsmessage.Question{Name: dnsmessage.MustNewName("www.example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET})
	if _, err := n.WriteTo(text, l.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	_ = l.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, _, err := l.ReadFrom(make([]byte, 1500)); err != nil {
		t.Fatalf("what nobody asked for does not come: %v", err)
	}
}
