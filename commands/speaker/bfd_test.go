package speaker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestBFD has BIRD and FRR as top of rack, and two nodes beside each other, watched by
// BFD. A path that drops everything while every carrier stays ends the sessions over it and
// no other, and routes go the other way; who restarts, or switches BFD off, keeps what it
// has. Detection times are longer than usual, so that a machine that is busy takes nobody
// for dead, and longest while somebody restarts.
func TestBFD(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 4, IPv6: true})
	r.pool("10.65.0.0/16")
	timers := &datastore.BFD{Interval: 100, Multiplier: 255}
	configure := func(bfd *datastore.BFD) {
		t.Helper()
		if _, err := datastore.Modify(r.ctx, r.store, datastore.DefaultName, func(c *datastore.BGPConfig) error {
			c.Spec.HoldTime, c.Spec.BFD = new(300), bfd
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	configure(timers)
	hosts := r.lab.Hosts
	n1, n2 := r.node(hosts[0]), r.node(hosts[1])
	more := []string{"bfd on;", `protocol bfd { interface "*" { interval 100 ms; multiplier 50; }; }`}
	for i, n := range hosts[:2] {
		more = append(more, fmt.Sprintf("protocol bgp six%d { local %s as 4200000001; neighbor %s as 64511; connect delay time 1; connect retry time 1; error wait time 1, 2; bfd on; ipv6 { import all; export none; }; }",
			i, hosts[2].Addr6.Addr(), n.Addr6.Addr()))
	}
	bird := startTorBIRD(r, hosts[2], 4200000001, hosts[:2], more...)
	frr := startTorFRR(r, hosts[3], 65002, hosts[:2], "timers 100 300", "bfd profile lab")
	secret := filepath.Join(r.dir, "secret")
	if err := os.WriteFile(secret, []byte(torSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*tor{bird, frr} {
		r.create(x.peer(func(s *datastore.PeerSpec) {
			if s.BFD = timers; x == frr {
				s.TTLSecurity = 0 // with that FRR takes us for being several hops away
			}
		}, secret))
	}
	for _, n := range hosts[:2] {
		a := "neighbor " + n.Addr6.Addr().String()
		frr.set("router bgp 65002", a+" remote-as 64511", a+" timers connect 1", a+" bfd profile lab", "address-family ipv6 unicast", a+" activate")
	}
	for i, as := range []uint32{4200000001, 65002} {
		r.create(&datastore.Peer{Spec: datastore.PeerSpec{Address: hosts[2+i].Addr6.Addr(), AS: as, Families: []string{datastore.FamilyIPv6}, BFD: timers}})
	}
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	all := func() {
		t.Helper()
		tors := []string{"172.31.2.0/24 via 192.168.99.104 dev eth1", "172.31.3.0/24 via 192.168.99.105 dev eth1"}
		for _, p := range []string{"default", "172.20.0.0/16"} {
			tors = append(tors, p+" nexthop via 192.168.99.104 dev eth1 weight 1 nexthop via 192.168.99.105 dev eth1 weight 1")
		}
		toN1, toN2 := "10.65.0.0/26 via 192.168.99.102 dev eth1", "10.65.1.0/26 via 192.168.99.103 dev eth1"
		r.has(n1, append(tors, toN2)...)
		r.has(n2, append(tors, toN1)...)
		for _, x := range []*tor{bird, frr} {
			r.expect(x.host, x.proto, x.routes(toN1, toN2)...)
		}
		r.settle(5)
		for _, n := range r.nodes {
			n.paths("up", "up", "up", "up", "up")
		}
	}
	all()
	s, err := control.NewSpeakerClient(filepath.Join(n1.cfg.RunDir, "speaker.sock")).BGPSession(r.ctx, "bird", false)
	if d := s.BFDSession; err != nil || d == nil || s.BFD != "up" || d.State != "Up" || d.RemoteState != "Up" || d.Interval != 100 || d.Detection != 5000 ||
		d.Ups == 0 || d.In == 0 || d.Out == 0 || d.Discriminator == 0 || d.RemoteDiscriminator == 0 {
		t.Errorf("session %+v, %v", d, err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		r.sub(signal.String(), func(t *testing.T) {
			before := n1.seen(bird)
			m := r.monitor(n2.host)
			if err := n1.proc.Signal(signal); err != nil {
				t.Fatal(err)
			}
			<-n1.proc.Done()
			n1.up()
			all()
			if gone := m.deletions(t); len(gone) > 0 {
				t.Errorf("node2 deleted routes:\n%s", strings.Join(gone, "\n"))
			}
			if after := n1.seen(bird); !slices.EqualFunc(after, before, sameSession) {
				t.Errorf("the others' BFD sessions were %q, and are %q", before, after)
			}
		})
	}
	r.sub("other timers", func(t *testing.T) {
		timers = &datastore.BFD{Interval: 100, Multiplier: 30}
		configure(timers)
		for _, name := range []string{"bird", "bgp", hosts[2].Addr6.Addr().String(), hosts[3].Addr6.Addr().String()} {
			if _, err := datastore.Modify(r.ctx, r.store, name, func(p *datastore.Peer) error { p.Spec.BFD = timers; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		netlab.Until(t, 20*time.Second, "all go by the new timers", func() string {
			s, err := control.NewSpeakerClient(filepath.Join(n2.cfg.RunDir, "speaker.sock")).BGPSession(r.ctx, n1.host.Name, false)
			if err != nil || s.BFDSession == nil || s.BFDSession.Detection != 3000 {
				return fmt.Sprintf("%+v, %v", s.BFDSession, err)
			}
			if out := bird.sessions(); strings.Count(out, "0.100    3.000") != 4 {
				return out
			}
			return ""
		})
	})
	r.sub("dead paths", func(t *testing.T) {
		// Of node2 to all, and of BIRD.
		for _, port := range []string{"n2.1", "n3.1"} {
			netlab.Must(t, r.lab.Fabric, "ip", "link", "set", port, "nomaster")
		}
		r.has(n1, "172.31.3.0/24 via 192.168.99.105 dev eth1", "default via 192.168.99.105 dev eth1", "172.20.0.0/16 via 192.168.99.105 dev eth1")
		r.has(n2)
		r.expect(bird.host, bird.proto)
		r.expect(frr.host, frr.proto, frr.routes("10.65.0.0/26 via 192.168.99.102 dev eth1")...)
		const dead = "down: control detection time expired"
		n1.paths(dead, dead, "up", dead, "up")
		n2.paths(dead, dead, dead, dead, dead)
		for _, peer := range []*netlab.Host{hosts[1], hosts[2]} {
			n1.logged(1, `msg="bfd session is not up"`, `reason="control detection time expired"`, " peer="+peer.Addr.Addr().String())
			n1.logged(1, `msg="session is not up"`, `reason="BFD down: control detection time expired"`, " peer="+peer.Addr.Addr().String())
		}
		s, err := control.NewSpeakerClient(filepath.Join(n1.cfg.RunDir, "speaker.sock")).BGPSession(r.ctx, "bird", false)
		if err != nil || s.Notice != "this side said BFD down: control detection time expired" || s.State == "Established" || s.BFDSession.LastDiagnostic != "control detection time expired" {
			t.Errorf("session %+v, %v", s, err)
		}
		for _, port := range []string{"n2.1", "n3.1"} {
			netlab.Must(t, r.lab.Fabric, "ip", "link", "set", port, "master", "net0")
		}
		all()
	})
	r.sub("switched off", func(t *testing.T) {
		sessions := func() (list []string) {
			for _, n := range r.nodes {
				s, err := n.status()
				if err != nil {
					t.Fatal(err)
				}
				for _, x := range s.Sessions {
					list = append(list, fmt.Sprint(x.Peer, x.State, x.Since))
				}
			}
			return list
		}
		before := sessions()
		configure(nil)
		frr.set("bfd", "profile lab", "shutdown")
		for _, n := range r.nodes {
			n.paths("", "up", "down: switched off by the neighbour", "up", "down: switched off by the neighbour")
		}
		if after := sessions(); !slices.Equal(after, before) {
			t.Errorf("sessions were %s, and are %s", before, after)
		}
	})
}

// seen is what BIRD and the other node say of their BFD sessions with a node, once they
// are up: since when, and how often they came up.
func (n *netctlNode) seen(bird *tor) (lines []string) {
	n.rig.t.Helper()
	netlab.Until(n.rig.t, 20*time.Second, "the others have BFD sessions with "+n.host.Name, func() string {
		lines = nil
		out := bird.sessions()
		for _, l := range strings.Split(out, "\n") {
			f := strings.Fields(l)
			if len(f) > 3 && f[2] == "Up" && (f[0] == n.host.Addr.Addr().String() || f[0] == n.host.Addr6.Addr().String()) {
				lines = append(lines, strings.Join(f[:4], " "))
			}
		}
		for _, o := range n.rig.nodes {
			if s, err := control.NewSpeakerClient(filepath.Join(o.cfg.RunDir, "speaker.sock")).BGPSession(n.rig.ctx, n.host.Name, false); err == nil && s.BFD == "up" {
				lines = append(lines, fmt.Sprintf("came up %d times", s.BFDSession.Ups))
			}
		}
		if len(lines) != 3 {
			return out
		}
		return ""
	})
	return lines
}

// sameSession compares what seen has of a session. BIRD works out anew when it came up each
// time it is asked, and the clock is set by milliseconds.
func sameSession(a, b string) bool {
	since := func(line string) (rest string, at time.Time) {
		i := strings.LastIndex(line, " ") + 1
		at, err := time.Parse("15:04:05.000", line[i:])
		if err != nil {
			return line, at
		}
		return line[:i], at
	}
	restA, atA := since(a)
	restB, atB := since(b)
	return restA == restB && atA.Sub(atB).Abs() < 100*time.Millisecond
}

// paths waits until BFD is so with the peers of a node, in the order of their addresses.
func (n *netctlNode) paths(want ...string) {
	n.rig.t.Helper()
	netlab.Until(n.rig.t, 30*time.Second, fmt.Sprintf("BFD at %s is %q", n.host.Name, want), func() string {
		s, err := n.status()
		if err != nil {
			return err.Error()
		}
		var got []string
		for _, x := range s.Sessions {
			got = append(got, x.BFD)
		}
		if !slices.Equal(got, want) {
			return fmt.Sprintf("%q", got)
		}
		return ""
	})
}

// has waits until a node has exactly these routes of its peers, several next hops included.
func (r *rig) has(n *netctlNode, want ...string) {
	r.t.Helper()
	want = slices.Clone(want)
	for i, w := range want {
		before, after, multipath := strings.Cut(w, " nexthop")
		if want[i] = before + " metric 32"; multipath {
			want[i] += " nexthop" + after
		}
	}
	slices.Sort(want)
	netlab.Until(r.t, 30*time.Second, n.host.Name+" has exactly these routes", func() string {
		got := learnt(r.t, n.host, "88")
		for i := range got {
			got[i] = strings.Join(strings.Fields(got[i]), " ")
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Sprintf("has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return ""
	})
}
