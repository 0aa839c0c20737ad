package nft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"netctl/acl"
	"netctl/datastore"
)

// put makes a change of an object.
func put(t *testing.T, o datastore.Object) datastore.Change {
	t.Helper()
	o.SetDefaults()
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	return datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o}
}

func policy(t *testing.T, name, tier string, order int, selector string, in, out []string) datastore.Change {
	t.Helper()
	return put(t, &datastore.Policy{Metadata: datastore.Metadata{Name: name}, Spec: datastore.PolicySpec{
		Tier: tier, Order: &order, Selector: selector, Ingress: parseRules(t, in...), Egress: parseRules(t, out...),
	}})
}

func networkSet(t *testing.T, name, kind string, cidrs ...string) datastore.Change {
	t.Helper()
	n := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: name, Labels: map[string]string{"kind": kind}}}
	for _, c := range cidrs {
		n.Spec.CIDRs = append(n.Spec.CIDRs, netip.MustParsePrefix(c))
	}
	return put(t, n)
}

// TestKernelAgreesWithEvalOnPolicies applies random tiers, policies and network sets, and
// sends random packets.
func TestKernelAgreesWithEvalOnPolicies(t *testing.T) { onEach(t, testKernelAgreesWithEvalOnPolicies) }

func testKernelAgreesWithEvalOnPolicies(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	rng := rand.New(rand.NewPCG(3, 4))
	texts := []string{
		"allow", "deny", "pass", "pass", "reject tcp", "reject udp to ports 53", "allow tcp to ports 80,443", "pass udp to not ports 53", "deny from set office", "allow from set office",
		"allow from not set lab", "allow from selector \"kind == 'lab'\"", "deny from not selector \"kind == 'lab' || role == 'web'\"", "allow icmp type echo-request", "log tcp",
		"allow to set lab", "deny icmpv6 from set lab", "pass from selector \"role == 'web'\"",
	}
	pick := func() (out []string) {
		for range rng.IntN(4) {
			out = append(out, texts[rng.IntN(len(texts))])
		}
		return out
	}
	x.Apply(profile(t, "web", []string{"web"}, []string{"allow from tag web", "allow udp"}, []string{"allow"}))
	x.Apply(profile(t, "db", []string{"db"}, []string{"allow tcp"}, []string{"allow"}))
	addresses := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.9", "fd00::1", "fd00::2", "fd00::3", "2001:db8::9"}
	owner := []string{"a", "b", "c", "n"}
	nets := []string{"10.0.0.0/30", "10.0.0.0/8", "10.0.0.2/31", "192.0.2.0/25", "192.0.2.128/25", "192.0.2.8/29", "0.0.0.0/0", "fd00::/127", "fd00::2/127", "2001:db8::/32", "::/0"}
	passed, refused := 0, 0
	for range 40 {
		for range 2 {
			switch name := fmt.Sprint("p", rng.IntN(4)); rng.IntN(6) {
			case 0:
				x.Apply(datastore.Change{Kind: datastore.KindPolicy, Name: name})
			case 1:
				var some []string
				for _, i := range rng.Perm(len(nets))[:rng.IntN(4)] {
					some = append(some, nets[i])
				}
				set := []string{"office", "lab"}[rng.IntN(2)]
				x.Apply(networkSet(t, set, set, some...))
			case 2:
				tier := &datastore.Tier{Metadata: datastore.Metadata{Name: "first"}}
				tier.Spec.Order, tier.Spec.DefaultAction = new(rng.IntN(2)), []datastore.Action{datastore.TierDeny, datastore.TierPass}[rng.IntN(2)]
				x.Apply(put(t, tier))
			default:
				c := policy(t, name, []string{"first", "default"}[rng.IntN(2)], rng.IntN(3), []string{"all()", "role == 'web'", "role != 'web'"}[rng.IntN(3)], pick(), pick())
				c.New.(*datastore.Policy).Spec.Staged = rng.IntN(4) == 0
				x.Apply(c)
			}
		}
		l.apply(x.Flush())
		var probes []probe
		for range 30 {
			family := 4 * rng.IntN(2)
			from, to := rng.IntN(4), rng.IntN(4)
			if from == to {
				continue
			}
			p := acl.Packet{Src: netip.MustParseAddr(addresses[from+family]), Dst: netip.MustParseAddr(addresses[to+family])}
			if rng.IntN(4) == 0 {
				p = echo(addresses[from+family], addresses[to+family])
			} else {
				p.Protocol = []uint8{6, 17}[rng.IntN(2)]
				p.SrcPort = uint16(20000 + len(probes) + int(l.sent)%40000)
				p.DstPort = []uint16{53, 80, 443, 8080}[rng.IntN(4)]
			}
			probes = append(probes, probe{owner[from], p})
		}
		l.router.Run("conntrack", "-F")
		for _, ok := range l.check(probes) {
			if ok {
				passed++
			} else {
				refused++
			}
		}
	}
	l.list()
	if wrote, err := l.filter.Sync(t.Context(), l.rules); wrote || err != nil {
		t.Errorf("what the deltas made is not what is wanted: wrote %v, %v", wrote, err)
	}
	if passed < 100 || refused < 100 {
		t.Errorf("only %d passed and %d were refused", passed, refused)
	}
}

// TestRejectTells: a sender of either family, and each protocol, learns at once that it is refused.
func TestRejectTells(t *testing.T) { onAll(t, testRejectTells) }

func testRejectTells(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	x.Apply(policy(t, "closed", "", 1, "role == 'web'", []string{"reject tcp to ports 81", "reject udp", "pass"}, nil))
	l.apply(x.Flush())
	l.router.Run("ip", "addr", "add", "fd99::1/128", "dev", "lo") // what its ICMP comes from
	refused := func(network, to string) (err error) {
		l.hosts["a"].Do(func() {
			var c net.Conn
			if c, err = (&net.Dialer{Timeout: 10 * time.Second}).Dial(network, to); err != nil || network == "tcp" {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err = c.Write([]byte("x")); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
		})
		return err
	}
	for network, want := range map[string]syscall.Errno{"tcp": syscall.ECONNREFUSED, "udp": syscall.EHOSTUNREACH} {
		for _, to := range []string{"10.0.0.2", "fd00::2"} {
			if network == "udp" && to == "fd00::2" {
				want = syscall.EACCES // icmpv6(7): administratively prohibited
			}
			if err := refused(network, net.JoinHostPort(to, "81")); !errors.Is(err, want) {
				t.Errorf("%s to %s: %v, want %v", network, to, err, want)
			}
		}
	}
	l.expect(true, "a", l.uniquePort(tcp("10.0.0.1", "10.0.0.2", 82)))
	x.Apply(datastore.Change{Kind: datastore.KindPolicy, Name: "closed"})
	l.apply(x.Flush())
	if l.rules.Chains["reject_in"] != nil {
		t.Error("the chain that rejects is left")
	}
	l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 81)))
}

// TestTenants: between endpoints of two tenants nothing passes, whatever their profiles say;
// within one, and with endpoints of none, they decide.
func TestTenants(t *testing.T) { onAll(t, testTenants) }

func testTenants(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	l.addHost("d", "ncd", testGroup, "10.0.0.4", "fd00::4")
	x.Apply(endpoint("n1", "n1/cni/d/eth0", "ncd", []string{"shared"}, "10.0.0.4", "fd00::4"))
	x.Apply(profile(t, "shared", nil, []string{"allow"}, []string{"allow"}))
	for name, tenant := range map[string]string{"web": "acme", "db": "globex"} {
		p := profile(t, name, nil, []string{"allow"}, []string{"allow"})
		p.New.(*datastore.Profile).Spec.Labels = map[string]string{datastore.LabelTenant: tenant}
		x.Apply(p)
	}
	x.Apply(policy(t, "open", "", 1, "all()", []string{"allow"}, []string{"allow"}))
	l.apply(x.Flush())
	l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.3", 7)))
	x.Apply(put(t, datastore.NewTenantTier()))
	x.Apply(put(t, datastore.NewTenantPolicy("acme")))
	x.Apply(put(t, datastore.NewTenantPolicy("globex")))
	l.apply(x.Flush())
	for _, six := range []bool{false, true} {
		addr := func(n int) string {
			if six {
				return fmt.Sprint("fd00::", n)
			}
			return fmt.Sprint("10.0.0.", n)
		}
		l.expect(true, "a", l.uniquePort(udp(addr(1), addr(2), 7)))
		l.expect(false, "a", l.uniquePort(udp(addr(1), addr(3), 7)))
		l.expect(false, "c", l.uniquePort(tcp(addr(3), addr(2), 7)))
		l.expect(true, "a", l.uniquePort(udp(addr(1), addr(4), 7)))
		l.expect(true, "d", l.uniquePort(udp(addr(4), addr(3), 7)))
	}
	l.expect(true, "n", udp("192.0.2.9", "10.0.0.1", 8))
}
