package agent

import (
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/identity"
	"netctl/netdev/netlab"
)

// TestOneHost runs everything that needs one host in one lab, since a lab and an
// etcd cost a second each.
func TestOneHost(t *testing.T) {
	s := newSite(t, netlab.Options{Nodes: 2, IPv6: true}, func(c *Config) { c.LostAfter = 2 * time.Second })
	s.pool("10.0.0.0/24")
	c1, a1 := s.attach("c1", "dataman", wish("10.0.0.48"))
	c2, a2 := s.attach("c2", "dataman", nil)
	c3, a3 := s.attach("c3", "app", nil)
	to := a2.Addresses[0]

	t.Run("ping and deny", func(t *testing.T) {
		s := s.in(t)
		s.has("kernel", "169.254.1.1 dev lo scope link", "blackhole 10.0.0.0/26", "10.0.0.48 dev "+a1.Link+" scope link")
		s.reaches(c1, to)
		if s.ping(c3, to) {
			t.Error("another profile's endpoint gets through")
		}
		p := change(t, s, "dataman", func(p *datastore.Profile) {
			p.Spec.Inbound = append(p.Spec.Inbound, datastore.Rule{Action: datastore.Allow, From: datastore.Side{Tag: datastore.Term{Value: "app"}}})
		})
		s.reaches(c3, to)
		p.Spec.Inbound = p.Spec.Inbound[:1]
		if err := datastore.Update(t.Context(), s.store, p); err != nil {
			t.Fatal(err)
		}
		s.until("closed again", func() string {
			if s.ping(c3, to) {
				return "still answered"
			}
			return ""
		})
		text := netlab.Must(t, c1, "sh", "-c", "ip route; ip neigh")
		for _, want := range []string{"default via 169.254.1.1 dev eth0", "169.254.1.1 dev eth0 scope link", "lladdr ee:ee:ee:ee:ee:ee"} {
			if !strings.Contains(text, want) {
				t.Errorf("the container lacks %q:\n%s", want, text)
			}
		}
	})
	t.Run("restart", func(t *testing.T) {
		s := s.in(t)
		before := s.settled()
		s.across("SIGTERM", c1, c2, to, func() { s.kill(unix.SIGTERM) })
		s.across("SIGKILL", c1, c2, to, func() { s.kill(unix.SIGKILL) })
		s.until("the kernel is as before", func() string { return differ(before, s.kernel()) })
	})
	t.Run("opened", func(t *testing.T) { opened(t, s.in(t), c1, c3, to) })
	t.Run("begun in the gap", func(t *testing.T) { begunInTheGap(t, s.in(t), c1, c3, c2, a1.Addresses[0], to) })
	t.Run("answers under way", func(t *testing.T) { answersUnderWay(t, s.in(t), c3, c2, to) })
	t.Run("cut by a change", func(t *testing.T) {
		cutByChange(t, s.in(t), c1, c3, c2, "node1/cni/"+c3.ID+"/eth0", a3.Addresses[0], to)
	})
	t.Run("limits", func(t *testing.T) { limits(t, s.in(t), c1, c2, "node1/cni/"+c2.ID+"/eth0", a2.Link, to) })
	t.Run("flooded", func(t *testing.T) { flooded(t, s.in(t), c1, c2, a1.Addresses[0], to, a3.Addresses[0]) })
	t.Run("gateway never loops", func(t *testing.T) {
		s := s.in(t)
		neighbour := s.lab.Hosts[1]
		netlab.Must(t, neighbour, "ip", "route", "add", "169.254.1.1", "via", s.node.Addr.Addr().String())
		for name, from := range map[string]netlab.Place{"container": c1, "neighbour": neighbour} {
			before := s.packets("lo")
			netlab.Try(t, from, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "1", "-t", "255", "169.254.1.1")
			if n := s.packets("lo") - before; n >= 3 {
				t.Errorf("from the %s: %d packets on lo", name, n)
			}
		}
	})
	t.Run("foreign changes are repaired", func(t *testing.T) {
		s := s.in(t)
		before := s.settled()
		for _, foreign := range []string{
			"nft flush ruleset",
			"nft delete table inet netctl",
			"ip route flush proto 87",
			"ip route add 10.9.9.9 dev eth1 proto 87",
			"ip link set " + a1.Link + " down",
			"nft add rule inet netctl fwd_to accept",
		} {
			netlab.Must(t, s.node, "sh", "-c", foreign)
			s.until(foreign, func() string {
				if now := s.kernel(); now != before {
					return differ(before, now)
				}
				return ""
			})
		}
		s.reaches(c1, to)
	})
	t.Run("detach", func(t *testing.T) {
		s := s.in(t)
		if err := s.detach(c3); err != nil {
			t.Fatal(err)
		}
		s.until("gone from the kernel", func() string {
			if k := s.kernel(); strings.Contains(k, a3.Link) || strings.Contains(k, a3.Addresses[0].String()+" ") {
				return k
			}
			return ""
		})
		if got := s.endpoints(); len(got) != 2 {
			t.Errorf("endpoints = %v", got)
		}
		// The same workload again: its old link may still be on its way out.
		for range 5 {
			if _, err := s.tryAttach(c3, "app", nil); err != nil {
				t.Fatal(err)
			}
			if err := s.detach(c3); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("killed at every step", func(t *testing.T) { killed(t, s.in(t)) })
	t.Run("dropped by others", func(t *testing.T) {
		s := s.in(t)
		droppedByOthers(t, s, func() { s.reaches(c1, to) })
	})
	t.Run("second interface", func(t *testing.T) { second(t, s.in(t)) })
	t.Run("renamed", func(t *testing.T) { startedRenamed(t, s.in(t), c1, c2, to) })
	t.Run("own address gone", func(t *testing.T) { ownAddressGone(t, s.in(t)) })
	t.Run("bad requests", func(t *testing.T) { badRequests(t, s.in(t), c1, a1) })
	t.Run("namespace gone", func(t *testing.T) {
		s := s.in(t)
		c4, _ := s.attach("c4", "dataman", nil)
		if err := c4.Remove(); err != nil {
			t.Fatal(err)
		}
		s.until("released", func() string {
			if got := s.endpoints(); len(got) != 2 {
				return strings.Join(got, " ")
			}
			return ""
		})
	})
	t.Run("role started twice", func(t *testing.T) {
		s := s.in(t)
		second := s.startAgent(s.node, s.cfg)
		<-second.Done()
		if out := second.Output(); !strings.Contains(out, "PID "+strconv.Itoa(s.agent.PID)) {
			t.Errorf("second agent says:\n%s", out)
		}
	})
	t.Run("name taken", func(t *testing.T) {
		s := s.in(t)
		cfg := s.cfg
		cfg.Store.Endpoints = []string{"unix://" + s.node.Path("/run/netctl-node/etcd.sock")}
		second := s.startAgent(s.lab.Hosts[1], cfg)
		<-second.Done()
		if out := second.Output(); !strings.Contains(out, "name taken: registered by host") || !strings.Contains(out, s.node.Addr.Addr().String()) {
			t.Errorf("second node1 says:\n%s", out)
		}
		if left := netlab.Must(t, s.lab.Hosts[1], "sh", "-c", "nft list ruleset; ip route show proto 87"); left != "" {
			t.Errorf("it left:\n%s", left)
		}
	})
	t.Run("store away", func(t *testing.T) {
		s := s.in(t)
		s.stopStore()
		s.until("missed", func() string {
			if s.status().Store == "" {
				return "not missed"
			}
			return ""
		})
		c := s.container("c5")
		_, err := s.tryAttach(c, "nowhere", nil)
		if e := control.ErrorOf(err); e == nil || e.Code != control.CodeUnavailable || !strings.Contains(e.Message, "etcd.sock") {
			t.Errorf("attach: %v", err)
		}
		if _, err := s.tryAttach(c, "dataman", nil); err != nil {
			t.Errorf("attach: %v", err)
		}
		s.across("agent restarted without a store", c1, c2, to, func() {
			_ = s.agent.Signal(unix.SIGKILL)
			<-s.agent.Done()
			s.agent = s.startAgent(s.node, s.cfg)
			s.until("serving", func() string {
				if st := s.status(); st.PID != s.agent.PID || st.Store == "" {
					return "not yet"
				}
				return ""
			})
		})
		if err := control.StorePending(s.node.Path("/run/netctl-node/pending"), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "nobody"}}); err != nil {
			t.Fatal(err)
		}
		s.across("store back", c1, c2, to, func() { s.startStore(); s.synced() })
		s.until("pending", func() string {
			if left, err := control.ReadPending(s.node.Path("/run/netctl-node/pending")); err != nil || len(left) > 0 {
				return "not worked off"
			}
			return ""
		})
		if _, err := s.tryAttach(c, "dataman", nil); err != nil {
			t.Error(err)
		}
		if err := s.detach(c); err != nil {
			t.Error(err)
		}
	})
	t.Run("store emptied", func(t *testing.T) { emptied(t, s.in(t), c1, c2, to) })
	t.Run("killed again and again", func(t *testing.T) { retried(t, s.in(t), 30) })
	t.Run("started anew", func(t *testing.T) { startedAnew(t, s.in(t), 60) })
	t.Run("ipv6", func(t *testing.T) { ipv6(t, s.in(t)) })
}

// in is the site in a subtest.
func (s *site) in(t *testing.T) *site { s.t = t; return s }

// differ is the lines that only one of two texts has.
func differ(before, after string) string {
	var out []string
	b, a := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, l := range b {
		if i := slices.Index(a, l); i >= 0 {
			a = slices.Delete(a, i, i+1)
		} else {
			out = append(out, "- "+l)
		}
	}
	for _, l := range a {
		out = append(out, "+ "+l)
	}
	return strings.Join(out, "\n")
}

func wish(addrs ...string) func(*control.AttachRequest) {
	return func(r *control.AttachRequest) {
		for _, a := range addrs {
			r.Addresses = append(r.Addresses, netip.MustParseAddr(a))
		}
	}
}

func change(t *testing.T, s *site, profile string, fn func(*datastore.Profile)) *datastore.Profile {
	t.Helper()
	p, err := datastore.Modify(t.Context(), s.store, profile, func(p *datastore.Profile) error { fn(p); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// packets is how many packets an interface of the host received.
func (s *site) packets(link string) int {
	s.t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(netlab.Must(s.t, s.node, "cat", "/sys/class/net/"+link+"/statistics/rx_packets")))
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

func badRequests(t *testing.T, s *site, c1 *netlab.Container, a1 control.Attachment) {
	code := func(err error) string {
		if err == nil {
			return "none"
		}
		return control.ErrorOf(err).Code
	}
	c := s.container("bad")
	netlab.Must(t, c, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0p")
	for name, try := range map[string]struct {
		want   string
		change func(*control.AttachRequest)
	}{
		"no namespace":          {control.CodeNamespace, func(r *control.AttachRequest) { r.NetnsFD = 0 }},
		"bad descriptor":        {control.CodeNamespace, func(r *control.AttachRequest) { r.NetnsFD = 9999 }},
		"interface name":        {control.CodeInvalid, func(r *control.AttachRequest) { r.Interface = "a/b" }},
		"workload":              {control.CodeInvalid, func(r *control.AttachRequest) { r.Workload = "a b" }},
		"mac":                   {control.CodeInvalid, func(r *control.AttachRequest) { r.MAC = "x" }},
		"mtu":                   {control.CodeInvalid, func(r *control.AttachRequest) { r.MTU = 5 }},
		"address in no pool":    {control.CodeInvalid, wish("10.77.0.1")},
		"address in use":        {control.CodeConflict, wish("10.0.0.48")},
		"unknown profile":       {control.CodeNotFound, func(r *control.AttachRequest) { r.Profiles = []string{"nobody"} }},
		"interface taken there": {control.CodeExists, func(r *control.AttachRequest) { r.Interface = "lo" }},
		"eth0 taken there":      {control.CodeExists, nil},
	} {
		before, kernel := len(s.endpoints()), s.settled()
		_, err := s.tryAttach(c, "dataman", try.change)
		if got := code(err); got != try.want || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %s: %v", name, got, err)
		}
		if n := len(s.endpoints()); n != before {
			t.Errorf("%s: left an endpoint", name)
		}
		s.until("nothing left", func() string { return differ(kernel, s.kernel()) })
	}
	if err := s.client().Detach(t.Context(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "never-seen", Interface: "eth0"}}); err != nil {
		t.Errorf("detach of what was never attached: %v", err)
	}
	again, err := s.tryAttach(c1, "dataman", nil)
	if err != nil || again.MAC != a1.MAC || again.Link != a1.Link {
		t.Errorf("attached again: %+v, %v", again, err)
	}
	ns, err := os.Open(c1.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	check := control.CheckRequest{Target: control.Target{Orchestrator: "cni", Workload: c1.ID, Interface: "eth0"}, NetnsFD: int(ns.Fd()), Addresses: a1.Addresses}
	if err := s.client().Check(t.Context(), check); err != nil {
		t.Errorf("check: %v", err)
	}
	netlab.Must(t, c1, "ip", "addr", "del", "10.0.0.48/32", "dev", "eth0")
	if err := s.client().Check(t.Context(), check); err == nil || !strings.Contains(err.Error(), "10.0.0.48") {
		t.Errorf("check of a container without its address: %v", err)
	}
	if _, err := s.tryAttach(c1, "dataman", nil); code(err) != control.CodeExists || !strings.Contains(err.Error(), "10.0.0.48 is missing") {
		t.Errorf("attached again without its address: %v", err)
	}
	netlab.Must(t, c1, "sh", "-c", "ip addr add 10.0.0.48/32 dev eth0; ip route replace 169.254.1.1 dev eth0 scope link; ip route replace default via 169.254.1.1")
}

// second gives one container interfaces in two networks: both are reachable, from
// outside too, and either can go first.
func second(t *testing.T, s *site) {
	iface := func(name string) func(*control.AttachRequest) {
		return func(r *control.AttachRequest) { r.Interface = name }
	}
	c, first := s.attach("two", "dataman", nil)
	other, err := s.tryAttach(c, "app", iface("eth1"))
	if err != nil {
		t.Fatal(err)
	}
	db, dbAt := s.attach("two-db", "dataman", nil)
	app, appAt := s.attach("two-app", "app", nil)
	reach := func(from netlab.Place, source string, to netip.Addr) {
		t.Helper()
		netlab.Must(t, from, "ping", "-n", "-c", "1", "-W", "5", "-I", source, to.String())
	}
	reach(c, first.Addresses[0].String(), dbAt.Addresses[0])
	reach(c, other.Addresses[0].String(), appAt.Addresses[0])
	reach(db, "eth0", first.Addresses[0])
	reach(app, "eth0", other.Addresses[0])
	without := func(name string) {
		t.Helper()
		if err := s.client().Detach(t.Context(), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: c.ID, Interface: name}}); err != nil {
			t.Fatal(err)
		}
	}
	without("eth0")
	reach(c, "eth1", appAt.Addresses[0])
	reach(app, "eth0", other.Addresses[0])
	if first, err = s.tryAttach(c, "dataman", nil); err != nil {
		t.Fatal(err)
	}
	reach(db, "eth0", first.Addresses[0])
	reach(app, "eth0", other.Addresses[0])
	without("eth1")
	if rules := netlab.Must(t, c, "ip", "rule"); strings.Contains(rules, other.Addresses[0].String()) {
		t.Errorf("a rule is left:\n%s", rules)
	}
	reach(db, "eth0", first.Addresses[0])
	for _, gone := range []*netlab.Container{c, db, app} {
		if err := s.detach(gone); err != nil {
			t.Error(err)
		}
	}
}

func emptied(t *testing.T, s *site, c1, c2 *netlab.Container, to netip.Addr) {
	before := s.settled()
	alive := len(s.endpoints())
	s.across("store emptied", c1, c2, to, func() {
		s.emptyStore()
		s.until("detached", func() string {
			if s.status().Detached == "" {
				return "not yet"
			}
			return ""
		})
	})
	_, err := s.tryAttach(s.container("c6"), "dataman", nil)
	if e := control.ErrorOf(err); e == nil || e.Code != control.CodeDetached {
		t.Errorf("attach: %v", err)
	}
	s.across("restarted while detached", c1, c2, to, func() {
		_ = s.agent.Signal(unix.SIGKILL)
		<-s.agent.Done()
		s.agent = s.startAgent(s.node, s.cfg)
		s.until("detached", func() string {
			if st := s.status(); st.PID != s.agent.PID || st.Detached == "" {
				return "not yet"
			}
			return ""
		})
	})
	if snap, err := s.store.List(t.Context(), datastore.Prefix); err != nil || len(snap.Entries) != 0 {
		t.Errorf("written while detached: %v, %v", snap.Entries, err)
	}
	s.across("adopted", c1, c2, to, func() {
		if _, err := identity.Adopt(t.Context(), s.store, s.node.Path("/var/lib/netctl-node")); err != nil {
			t.Fatal(err)
		}
		s.synced()
	})
	if n := len(s.endpoints()); n != alive {
		t.Errorf("%d endpoints were written back, not %d", n, alive)
	}
	s.pool("10.0.0.0/24")
	s.until("the kernel is as before", func() string { return differ(before, s.kernel()) })
	s.until("pool seen", func() string {
		_, err := s.tryAttach(s.container("c7-"+strconv.Itoa(int(time.Now().UnixNano()))), "dataman", wish(to.String()))
		if e := control.ErrorOf(err); e == nil || e.Code != control.CodeConflict {
			return "attach with a live address: " + e.Message
		}
		return ""
	})
}
