package speaker

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
	"netctl/routing"
	"netctl/routing/bgp"
)

// TestReflectorDies: one that the topology chose and that is dead for a restart time is
// replaced, and is one again once it has been back for as long; nothing is lost.
func TestReflectorDies(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 5})
	r.pool("10.65.0.0/16")
	c := get[*datastore.BGPConfig](t, r, datastore.DefaultName)
	c.Spec.Topology.Mode, c.Spec.RestartTime = datastore.TopologyReflectors, 3
	if err := datastore.Update(r.ctx, r.store, c); err != nil {
		t.Fatal(err)
	}
	for _, h := range r.lab.Hosts {
		r.node(h)
	}
	// reflectors are those that a client has sessions with.
	reflectors := func(client *netctlNode) []string {
		var out []string
		s, err := client.status()
		if err != nil {
			return nil
		}
		for _, x := range s.Sessions {
			for _, n := range r.nodes {
				if x.Type == "reflector" && x.State == "Established" && x.Peer == n.host.Addr.Addr() {
					out = append(out, n.host.Name)
				}
			}
		}
		slices.Sort(out)
		return out
	}
	var clients, chosen []*netctlNode
	netlab.Until(t, 30*time.Second, "there are two reflectors", func() string {
		clients, chosen = nil, nil
		for _, n := range r.nodes {
			s, err := n.status()
			switch {
			case err != nil:
				return err.Error()
			case len(s.Sessions) == 2 && len(reflectors(n)) == 2:
				clients = append(clients, n)
			default:
				chosen = append(chosen, n)
			}
		}
		if len(clients) != 3 {
			return fmt.Sprintf("%d clients", len(clients))
		}
		return ""
	})
	before := reflectors(clients[0])
	clients[0].block("10.65.0.0/26")
	clients[1].block("10.65.1.0/26")
	from := clients[0].endpoint("c1", "10.65.0.5")
	clients[1].endpoint("c2", "10.65.1.5")
	to := "10.65.1.0/26 via " + clients[1].host.Addr.Addr().String() + " dev eth1"
	r.expect(clients[0].host, "88", to)
	dead := chosen[0]
	away := func() bool { return !get[*datastore.Node](t, r, dead.host.Name).Status.Away.IsZero() }
	steady(t, r, from, "10.65.1.5", func() {
		dead.proc.Kill()
		netlab.Until(t, 30*time.Second, "another is chosen", func() string {
			for _, n := range clients {
				now := reflectors(n)
				isOne := slices.ContainsFunc(r.nodes, func(o *netctlNode) bool { return o == n && o.types() != "" && strings.Contains(o.types(), "client") })
				if !isOne && (len(now) != 2 || slices.Contains(now, dead.host.Name)) {
					return fmt.Sprintf("%s has %v", n.host.Name, now)
				}
			}
			if !away() {
				return "not noted"
			}
			return ""
		})
	}, dead.host)
	steady(t, r, from, "10.65.1.5", func() {
		dead.up()
		netlab.Until(t, 30*time.Second, "it is one again", func() string {
			for _, n := range clients {
				if s, err := n.status(); err != nil || len(s.Sessions) != 2 || !slices.Equal(reflectors(n), before) {
					return fmt.Sprintf("%s has %v (%d sessions), want %v", n.host.Name, reflectors(n), len(s.Sessions), before)
				}
			}
			if away() {
				return "still away"
			}
			return ""
		})
	}, dead.host)
	r.expect(clients[0].host, "88", to)
}

// TestJudge: who is noted as away or back, by whom, and when.
func TestJudge(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	plan := routing.Plan{RestartTime: 120}
	var sessions []bgp.Session
	add := func(name string, p routing.Peer, state string, since time.Duration) {
		p.Name, p.Address = name, netip.AddrFrom4([4]byte{10, 9, 0, byte(len(plan.Peers) + 1)})
		plan.Peers = append(plan.Peers, p)
		sessions = append(sessions, bgp.Session{Peer: p.Address, State: state, Since: now.Add(-since)})
	}
	reflector, client := routing.Peer{Reflects: true, Chosen: true}, routing.Peer{Client: true}
	add("dead", reflector, "Active", 200*time.Second)
	add("dying", reflector, "Active", 100*time.Second)
	add("by-hand", routing.Peer{Reflects: true}, "Active", time.Hour)
	add("back", routing.Peer{Client: true, Away: true}, "Established", 121*time.Second)
	add("soon", routing.Peer{Client: true, Away: true}, "Established", 105*time.Second)
	add("gone", client, "Active", time.Hour)
	for _, name := range []string{"c1", "c2", "c3"} {
		add(name, client, "Established", time.Hour)
	}
	due, wait := judge("me", plan, sessions, now)
	if want := []verdict{{"dead", true}, {"back", false}}; !slices.Equal(due, want) || wait != 15*time.Second {
		t.Errorf("due %v in %v, want %v", due, wait, want)
	}
	// One acts: of two reflectors that see each other and the same dead one.
	both := 0
	for _, me := range []string{"me", "you"} {
		other := map[string]string{"me": "you", "you": "me"}[me]
		p, s := plan, slices.Clone(sessions)
		p.Peers = append(slices.Clone(plan.Peers), routing.Peer{Name: other, Address: netip.MustParseAddr("10.9.1.1"), Reflects: true, Chosen: true})
		s = append(s, bgp.Session{Peer: netip.MustParseAddr("10.9.1.1"), State: "Established", Since: now})
		due, _ := judge(me, p, s, now)
		for _, v := range due {
			if v.node == "dead" {
				both++
			}
		}
	}
	if both != 1 {
		t.Errorf("%d act on one", both)
	}
	// Who has lost most is the one that is cut off.
	for i := 6; i < len(sessions); i++ {
		sessions[i].State = "Active"
	}
	if due, _ := judge("me", plan, sessions, now); len(due) > 0 {
		t.Errorf("cut off, it says %v", due)
	}
}
