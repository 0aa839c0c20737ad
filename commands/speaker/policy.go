package speaker

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/routing"
	"netctl/routing/bgp"
)

// The prefixes that a peer may send: far more than the blocks and borrowed addresses of
// one node, or of all if it reflects; it bounds what one that has gone wrong can cost. A
// configured peer may say otherwise.
const (
	prefixLimit    = 100_000
	reflectorLimit = 1_000_000
	foreignLimit   = 10_000
	foreignWarning = 75 // percent of the limit, at which that is said
)

func (l *loop) peers() []bgp.PeerConfig {
	l.unread = nil
	l.policies.Begin()
	out := make([]bgp.PeerConfig, 0, len(l.plan.Peers)+len(l.leaving))
	for _, p := range l.plan.Peers {
		out = append(out, l.peer(p))
	}
	for _, p := range l.leaving {
		c := l.peer(p)
		c.Leaving, c.Spare = true, nil // whoever has the node's other addresses now
		if i := slices.IndexFunc(l.plan.Peers, func(now routing.Peer) bool { return now.Configured == nil && now.Name == p.Name }); i >= 0 {
			c.Heir = l.plan.Peers[i].Address
		}
		out = append(out, c)
	}
	return out
}

func (l *loop) peer(p routing.Peer) bgp.PeerConfig {
	c := bgp.PeerConfig{
		Address: p.Address, Port: uint16(l.cfg.Port), AS: p.AS, Description: p.Name, LocalAddress: p.Local,
		NextHopSelf: p.NextHops, Aliases: p.Aliases, HoldTime: time.Duration(l.plan.HoldTime) * time.Second,
		PrefixLimit: prefixLimit, Client: p.Client, Reflects: p.Reflects, Draining: l.plan.Drain != nil,
		LongLived: time.Duration(l.plan.LongLivedTime) * time.Second,
	}
	if p.Reflects {
		c.PrefixLimit = reflectorLimit
	}
	for _, a := range p.NextHops {
		c.Families = append(c.Families, bgp.FamilyOf(a))
	}
	if p.Interface != "" && p.SpeaksIPv6() {
		c.Families = append(c.Families, bgp.IPv6)
	}
	if p.SpeaksIPv4() && !slices.Contains(c.Families, bgp.IPv4) {
		c.Families = slices.Insert(c.Families, 0, bgp.IPv4) // by IPv6 next hops
	}
	if p.Configured == nil {
		c.Spare = spare(p)
	} else {
		l.configure(&c, p.Configured.Spec)
		filters, pools := l.plan.FiltersOf(p), l.plan.CIDRs()
		c.ImportFilter, c.ExportFilter = l.policies.Compile(routing.Import, filters, pools), l.policies.Compile(routing.Export, filters, pools)
		c.Outside = p.Configured.Node == ""
		if l.plan.External(p) {
			c.OwnOnly = p.Configured.Spec.Announce != datastore.AnnounceAll
		}
		if c.TTL = p.Configured.Spec.Multihop; c.TTL == 0 && l.plan.Foreign(p) {
			c.TTL = 1
		}
	}
	c.External = p.AS == 0
	c.Shutdown = cmp.Or(c.Shutdown, p.Drained)
	return c
}

// spare are the ends of the session with a node where its first address does not answer:
// addresses of the other family, if both have it.
func spare(p routing.Peer) (list []bgp.Ends) {
	for _, local := range p.NextHops {
		for _, remote := range p.Aliases {
			if local != p.Local && local.Is4() == remote.Is4() {
				list = append(list, bgp.Ends{Local: local, Remote: remote})
			}
		}
	}
	return list
}

// configure makes c what kind Peer says of it.
func (l *loop) configure(c *bgp.PeerConfig, s datastore.PeerSpec) {
	if s.Password != nil {
		var err error
		if c.Password, err = l.passwords.read(*s.Password); err != nil {
			l.log.Warn("password not read", "peer", c.Address, "error", err)
			if l.unread = append(l.unread, fmt.Sprintf("peer %s: %v", c.Description, err)); c.Password == "" {
				c.Wrong = err.Error()
			}
		}
	}
	c.TTLSecurity = s.TTLSecurity
	if s.AddPath == datastore.AddPathSend || s.AddPath == datastore.AddPathBoth {
		c.SendPaths = cmp.Or(s.AddPathLimit, -1)
	}
	c.ReceivePaths = s.AddPath == datastore.AddPathReceive || s.AddPath == datastore.AddPathBoth
	c.Communities = communities(s.Communities)
	c.Blackhole = slices.Contains(s.Accept, datastore.AcceptBlackhole)
	c.Port, c.Passive, c.Shutdown = s.Port, s.Passive, s.Shutdown
	c.ConnectRetry = time.Duration(s.ConnectRetry) * time.Second
	c.KeepaliveTime = time.Duration(s.KeepaliveTime) * time.Second
	c.LocalAS = s.LocalAS
	c.PrefixLimit, c.LimitWarns = cmp.Or(s.PrefixLimit, foreignLimit), s.PrefixAction == datastore.LimitWarns
	c.PrefixWarning = max(1, c.PrefixLimit*cmp.Or(s.PrefixWarning, foreignWarning)/100)
	c.LimitRest = time.Duration(s.PrefixRestart) * time.Second
	if s.PrefixAction == datastore.LimitEnds {
		c.LimitRest = -1
	}
	c.Aggregate = s.Aggregate
	switch s.NextHop {
	case datastore.NextHopSelf:
		c.NextHop = bgp.NextHopThisSide
	case datastore.NextHopUnchanged:
		c.NextHop = bgp.NextHopUnchanged
	}
	if s.Description != "" {
		c.Description += ": " + s.Description
	}
	if s.LongLivedTime != nil {
		c.LongLived = time.Duration(*s.LongLivedTime) * time.Second
	}
	if s.HoldTime != nil {
		c.HoldTime = time.Duration(*s.HoldTime) * time.Second
	}
}

// communities are those of texts that the model has checked.
func communities(texts []string) (c bgp.Communities) {
	for _, s := range texts {
		switch one, err := datastore.ParseCommunity(s); {
		case err != nil:
		case one.Large:
			c.Large = append(c.Large, one.Parts)
		default:
			c.Standard = append(c.Standard, one.Parts[0]<<16|one.Parts[1])
		}
	}
	return c
}

// aggregates are the pools that peers may be told as a whole, if any asks for it. One that
// is a single block is that already.
func (l *loop) aggregates() (list []netip.Prefix) {
	if !slices.ContainsFunc(l.plan.Peers, func(p routing.Peer) bool { return p.Configured != nil && p.Configured.Spec.Aggregate }) {
		return nil
	}
	for _, p := range l.plan.Pools {
		if p.CIDR.Bits() < p.BlockSize {
			list = append(list, p.CIDR)
		}
	}
	return list
}

// tags are the communities of an own prefix: its pool's.
func (l *loop) tags(prefix netip.Prefix) bgp.Communities {
	pool, _ := l.belief.Load().Pool(prefix)
	return communities(pool.Communities)
}

// belief is what peers are believed.
type belief struct {
	routing.Guard
	// accept is how much configured peers are.
	accept map[netip.Addr]routing.Accept
}

// imports is the engine's import policy.
func (l *loop) imports(peer netip.Addr, prefix netip.Prefix, nextHop netip.Addr) (bool, string) {
	g := l.belief.Load()
	a, configured := g.accept[peer]
	if !configured {
		a.Blocks = true // a node
	}
	if ok, reason := g.CheckAs(a, prefix); !ok {
		return false, reason
	}
	if ok, reason := g.CheckNextHop(nextHop); !ok {
		return false, reason
	}
	return l.nextHops.check(nextHop)
}

// believe renews the guard and has everything that peers said judged again if
// it changed.
func (l *loop) believe() {
	g := &belief{Guard: routing.Guard{Pools: l.plan.Pools, Subnets: l.subnets, Addresses: l.plan.Nodes, Own: l.plan.Addresses, Apart: l.cfg.Table != 0}, accept: map[netip.Addr]routing.Accept{}}
	for _, p := range l.plan.Peers {
		if p.Configured != nil {
			g.accept[p.Address] = l.plan.Accepts(p)
			// No route may take its session away.
			g.Addresses = append(g.Addresses[:len(g.Addresses):len(g.Addresses)], p.Address)
		}
	}
	old := l.belief.Swap(g)
	if l.engine != nil && !reflect.DeepEqual(old, g) {
		l.engine.Reimport()
		l.engine.Retag()
	}
}
