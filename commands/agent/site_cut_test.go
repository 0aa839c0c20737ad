package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// cutByChange has flows of every kind begin that are allowed, and then a change of each kind
// deny them, while others go on, and policy changes all the time, without a packet lost. What
// the server sends on and on begins none anew.
func cutByChange(t *testing.T, s *site, allowed, other, server *netlab.Container, endpoint string, from, to netip.Addr) {
	answered := map[string]*atomic.Int64{}
	in := func(c *netlab.Container, fn func() error) {
		t.Helper()
		if err := c.Do(fn); err != nil {
			t.Fatal(err)
		}
	}
	port := uint16(9100)
	begin := func() {
		t.Helper()
		port += 2
		answered = map[string]*atomic.Int64{"datagrams": {}, "a stream": {}, "protocol 253": {}}
		in(server, func() error { return talker(t, "udp", netip.AddrPortFrom(to, port).String()) })
		in(server, func() error { return pusher(t, netip.AddrPortFrom(to, port+1)) })
		in(server, func() error { return talker(t, "ip4:253", to.String()) })
		in(other, func() error {
			return dial(t, "udp", ":0", netip.AddrPortFrom(to, port).String(), true, answered["datagrams"])
		})
		in(other, func() error {
			return dial(t, "tcp", ":0", netip.AddrPortFrom(to, port+1).String(), false, answered["a stream"])
		})
		in(other, func() error { return dial(t, "ip4:253", "", to.String(), true, answered["protocol 253"]) })
	}
	count := func() map[string]int64 {
		now := map[string]int64{}
		for what, n := range answered {
			now[what] = n.Load()
		}
		return now
	}
	goOn := func(what string) {
		t.Helper()
		before := count()
		s.until(what, func() string {
			for kind, n := range count() {
				if n < before[kind]+20 {
					return kind + " does not go on"
				}
			}
			return ""
		})
	}
	tracked := func() string {
		return netlab.Must(t, s.node, "sh", "-c", fmt.Sprintf("conntrack -L 2>/dev/null | grep -E 'src=%s dst=%s ' || :", from, to))
	}
	ended := func(what string) {
		t.Helper()
		s.until(what+": cut", tracked)
		before, dropped := count(), s.unseen("was cut")
		s.until(what+": what the server sends is dropped", func() string {
			if s.unseen("was cut") < dropped+50 {
				return "nothing"
			}
			return ""
		})
		for kind, n := range count() {
			if n > before[kind] {
				t.Errorf("%s: %d answers of %s after it was cut", what, n-before[kind], kind)
			}
		}
	}
	rule := func(texts ...string) (list []datastore.Rule) {
		for _, text := range texts {
			r, err := datastore.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, r)
		}
		return list
	}
	profile := func(rules ...string) {
		change(t, s, "dataman", func(p *datastore.Profile) { p.Spec.Inbound = rule(rules...) })
	}
	profiles := func(names ...string) {
		t.Helper()
		if _, err := datastore.Modify(t.Context(), s.store, endpoint, func(e *datastore.Endpoint) error { e.Spec.Profiles = names; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	write := func(o datastore.Object) {
		t.Helper()
		if err := datastore.Create(t.Context(), s.store, o); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(o datastore.Object) {
		t.Helper()
		if err := datastore.Delete(t.Context(), s.store, o); err != nil {
			t.Fatal(err)
		}
	}
	set := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: "blocked"}}
	set.Spec.CIDRs = []netip.Prefix{netip.PrefixFrom(from, 32)}
	policy := &datastore.Policy{Metadata: datastore.Metadata{Name: "closed"}}
	policy.Spec.Selector, policy.Spec.Ingress = "all()", rule("allow from tag dataman")
	const own, others = "allow from tag dataman", "allow from tag app"
	config := &datastore.Config{Metadata: datastore.Metadata{Name: datastore.DefaultName}}
	write(config)
	established := func(e datastore.Established) {
		t.Helper()
		if _, err := datastore.Modify(t.Context(), s.store, datastore.DefaultName, func(c *datastore.Config) error { c.Spec.Established = e; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		what        string
		open, close func()
	}{
		{"a rule goes", func() { profile(own, others) }, func() { profile(own) }},
		{"a rule comes before", func() { profile(own, others) }, func() { profile(own, "deny from tag app", others) }},
		{"a member loses its tag", func() { profile(own, others) }, func() { profiles("none") }},
		{"a policy comes", func() { profiles("app") }, func() { write(policy) }},
		{"a set gets a member", func() { remove(policy); profile(own, "deny from set blocked", others) }, func() { write(set) }},
	} {
		c.open()
		begin()
		goOn(c.what + ": allowed")
		s.across(c.what, allowed, server, to, func() {
			c.close()
			ended(c.what)
		})
	}
	remove(set)
	begin()
	goOn("allowed again")
	established(datastore.EstablishedKeep)
	s.until("known", func() string {
		s.across("what is kept", allowed, server, to, func() { profile(own) })
		if s.ping(other, to) {
			return "new ones pass"
		}
		return ""
	})
	goOn("kept")
	s.across("made strict", allowed, server, to, func() {
		established(datastore.EstablishedStrict)
		ended("made strict")
	})
	s.has("strict", "ct direction reply accept")
	s.across("changes all the time", allowed, server, to, func() {
		for i := range 40 {
			if i%2 == 0 {
				profile(own, others)
			} else {
				profile(own, "deny from set blocked")
			}
		}
		established("")
	})
	s.until("not strict any more", func() string {
		if strings.Contains(netlab.Must(t, s.node, "nft", "list", "chain", "inet", "netctl", "fwd_to"), "ct direction") {
			return "strict"
		}
		return ""
	})
	profile(own)
}
