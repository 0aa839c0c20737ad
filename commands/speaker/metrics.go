package speaker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"netctl/commands/telemetry"
	"netctl/routing"
	"netctl/routing/bgp"
)

// mostPeers is how many peers have metrics of their own: where there are more, those
// between nodes do not, which all nodes have alike.
const mostPeers = 100

func (c *Config) telemetry() telemetry.Config {
	role := "speaker"
	if c.Reflector {
		role = "reflector"
	}
	return telemetry.Config{
		Role: role, Node: c.Node, Version: c.Version, StateDir: c.StateDir, RunDir: c.RunDir, Listen: c.Metrics,
		Certificates: map[string]string{"client": c.Store.Cert},
	}
}

// ready says why the speaker does not speak, or not by what the datastore says now.
func (s *speaker) ready(context.Context) error {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	switch {
	case s.state.detached != "":
		return errors.New(s.state.detached)
	case s.state.away != "":
		return errors.New(s.state.away)
	case s.state.alien != "":
		return errors.New(s.state.alien)
	case s.state.engine == nil:
		return fmt.Errorf("the speaker does not know yet who its peers are")
	}
	return nil
}

// collect puts the speaker's metrics on a page.
func (s *speaker) collect(_ context.Context, p *telemetry.Page) error {
	s.requests.Put(p)
	s.state.mu.Lock()
	engine, plan, up := s.state.engine, s.state.plan, s.state.answered
	away := 0.0
	if s.state.away != "" || s.state.detached != "" {
		away = time.Since(s.state.since).Seconds()
	}
	s.state.mu.Unlock()
	p.Flag("netctl_datastore_up", up)
	p.Put("netctl_datastore_away_seconds", away)
	p.Put("netctl_datastore_revision", float64(s.follower.revision()))
	if t, ok := s.own.(interface{ Held() (v4, v6, missing int) }); ok {
		v4, v6, missing := t.Held()
		p.Put("netctl_routes", float64(v4), "ipv4")
		p.Put("netctl_routes", float64(v6), "ipv6")
		p.Put("netctl_routes_missing", float64(missing))
	}
	var details []bgp.Session
	if engine != nil {
		details = engine.Status()
	}
	kinds := map[string]int{}
	for _, problem := range s.problems(engine, plan, details) {
		kinds[problem.kind]++
	}
	for kind, n := range kinds {
		p.Put("netctl_problems", float64(n), kind)
	}
	putSessions(p, plan, details)
	s.putPaths(p, plan)
	return nil
}

// putSessions puts what BGP sessions are there.
func putSessions(p *telemetry.Page, plan routing.Plan, details []bgp.Session) {
	states := map[string]int{"established": 0, "off": 0, "idle": len(plan.Silent)}
	peers := peersOf(plan)
	var received, accepted, sent int
	for _, e := range details {
		state, up := strings.ToLower(e.State), e.State == "Established"
		if e.Off && !up {
			state = "off"
		}
		states[state]++
		received, accepted, sent = received+e.Received, accepted+e.Accepted, sent+e.Sent
		peer, has := peers[e.Peer]
		if !has || state == "off" {
			continue
		}
		name := peerName(peer)
		p.Flag("netctl_bgp_session_up", up, name, peer.Type())
		p.Put("netctl_bgp_session_established_total", float64(e.Established), name)
		putPrefixes(p, "netctl_bgp_session_prefixes", e.Received, e.Accepted, e.Sent, name)
	}
	for state, n := range states {
		p.Put("netctl_bgp_sessions", float64(n), state)
	}
	putPrefixes(p, "netctl_bgp_prefixes", received, accepted, sent)
}

func putPrefixes(p *telemetry.Page, name string, received, accepted, sent int, labels ...string) {
	for _, d := range []struct {
		direction string
		n         int
	}{{"received", received}, {"accepted", accepted}, {"sent", sent}} {
		p.Put(name, float64(d.n), append(labels[:len(labels):len(labels)], d.direction)...)
	}
}

// peersOf are those with metrics of their own, by address.
func peersOf(plan routing.Plan) map[netip.Addr]routing.Peer {
	some := map[netip.Addr]routing.Peer{}
	for _, peer := range plan.Peers {
		if len(plan.Peers) <= mostPeers || peer.Configured != nil && len(some) < mostPeers {
			some[peer.Address] = peer
		}
	}
	return some
}

// peerName is what a peer is called by, in metrics as in status.
func peerName(p routing.Peer) string {
	if p.Interface != "" {
		return p.Interface
	}
	return p.Address.String()
}

// putPaths puts what BFD says of paths.
func (s *speaker) putPaths(p *telemetry.Page, plan routing.Plan) {
	states, peers := map[string]int{}, peersOf(plan)
	for a, path := range s.state.watched() {
		state := strings.ToLower(path.State.String())
		states[state]++
		if peer, has := peers[a]; has {
			p.Flag("netctl_bfd_session_up", state == "up", peerName(peer))
		}
	}
	for state, n := range states {
		p.Put("netctl_bfd_sessions", float64(n), state)
	}
}
