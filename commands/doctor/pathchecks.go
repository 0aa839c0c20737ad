package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"netctl/datastore"
)

// mostOthers bounds to how many other nodes paths are tried: fabrics differ by rack, not by
// machine.
const mostOthers = 16

// Sample chooses, of the nodes sorted by name, those that the node of that name tries: the
// next ones behind it, so that each is tried by some. Only their reports are looked at.
func Sample(nodes []*datastore.Node, name string) (chosen []string) {
	at := slices.IndexFunc(nodes, func(n *datastore.Node) bool { return n.Metadata.Name == name })
	for i := range nodes {
		n := nodes[(at+1+i)%len(nodes)]
		if n.Metadata.Name != name && len(chosen) < mostOthers {
			chosen = append(chosen, n.Metadata.Name)
		}
	}
	return chosen
}

// other is a machine that paths are tried to.
type other struct {
	name   string
	v4, v6 netip.Addr
	node   *datastore.Node // nil: it is no node, but was named by the operator
	// alive says that its agent or speaker reported lately: what it does not answer is
	// lost on the way.
	alive bool
}

// addr is its address of a family.
func (o other) addr(v6 bool) netip.Addr {
	if v6 {
		return o.v6
	}
	return o.v4
}

// others are the machines to try, those first that report.
func (s *scene) others() (list []other, err error) {
	for _, a := range s.cfg.To {
		o := other{name: a.String(), alive: true, v4: a}
		if a.Is6() {
			o.v4, o.v6 = netip.Addr{}, a
		}
		list = append(list, o)
	}
	c, err := s.cluster()
	if err != nil {
		if len(list) > 0 {
			err = nil
		}
		return list, err
	}
	now := s.Now()
	for _, n := range c.Nodes {
		name := n.Metadata.Name
		o := other{name: name, v4: n.Address(false), v6: n.Address(true), node: n, alive: c.alive(name, datastore.ReportAgent, now) || c.alive(name, datastore.ReportSpeaker, now)}
		if slices.Contains(s.cfg.To, o.v4) || slices.Contains(s.cfg.To, o.v6) {
			continue // all is tried, whatever its session says
		}
		if name != s.cfg.Node && (o.v4.IsValid() || o.v6.IsValid()) {
			list = append(list, o)
		}
	}
	if len(list) == 0 {
		return nil, skip("no other node is registered")
	}
	slices.SortStableFunc(list, func(a, b other) int {
		switch {
		case a.alive == b.alive:
			return 0
		case a.alive:
			return -1
		}
		return 1
	})
	return list[:min(len(list), mostOthers)], nil
}

// ask does the same with all of them at once; the answers are in their order.
func ask[T any](list []other, fn func(other) T) []T {
	answers := make([]T, len(list))
	var all sync.WaitGroup
	for i, o := range list {
		all.Go(func() { answers[i] = fn(o) })
	}
	all.Wait()
	return answers
}

// said is what came of trying one path.
type said struct {
	found  *Finding
	tried  bool
	untold error // why nothing can be said
}

// tryAll tries the path of each family to each machine, and gathers what is found. one
// is called only where both ends have an address.
func (s *scene) tryAll(families []bool, one func(o other, from own, to netip.Addr) said) (found []Finding, err error) {
	list, err := s.others()
	if err != nil {
		return nil, err
	}
	tried := false
	var untold []string
	for _, v6 := range families {
		from, ok, err := s.address(v6)
		if err != nil {
			return found, err
		}
		if !ok {
			continue
		}
		for _, x := range ask(list, func(o other) said {
			to := o.addr(v6)
			if !to.IsValid() || to == from.addr {
				return said{}
			}
			return one(o, from, to)
		}) {
			tried = tried || x.tried
			if x.found != nil {
				found = append(found, *x.found)
			}
			if x.untold != nil {
				untold = append(untold, x.untold.Error())
			}
		}
	}
	switch {
	case len(untold) > 0:
		err = errors.New(few(untold))
	case !tried && len(found) == 0:
		err = skip("there is nobody to try it with")
	}
	return found, err
}

// words say what came back.
func words(a Answer) string {
	from := "this host's own packet filter or routes"
	if a.From.IsValid() {
		from = a.From.String()
	}
	switch a.Reply {
	case Answered:
		return "an answer"
	case Refused:
		return "refused"
	case Prohibited:
		return "prohibited by " + from
	case TooLarge:
		return "too large for " + from
	case NoRoute:
		if !a.From.IsValid() {
			return "unreachable: rejected on the way, or there is no way"
		}
		return "no way there, says " + from
	}
	return "no answer"
}

// lost judges an answer to something that the other node should have taken or refused.
func (s *scene) lost(ctx context.Context, o other, from own, to netip.Addr, a Answer, what string, fix []string) said {
	switch {
	case a.Reply == Answered || a.Reply == Refused:
		return said{tried: true}
	case a.Reply == Silent || a.Reply == NoRoute:
		if !o.alive {
			return said{} // it may be off
		}
	}
	text := fmt.Sprintf("%s from %s to %s (%s): %s", what, from.addr, o.name, to, words(a))
	if a.Reply == Silent {
		echo, err := s.Echo(ctx, from.addr, to, smallEcho)
		switch {
		case err != nil:
			return said{untold: fmt.Errorf("%s: %w", o.name, err)}
		case echo.Reply == Answered && s.shy(ctx, o, from, to):
			return said{untold: fmt.Errorf("%s to %s: no answer; a node answers that to nodes that it knows alone, so `netctl doctor` tells once this machine is one; if nothing of netctl's runs there, it is filtered", what, to)}
		case echo.Reply == Answered:
			text += ", though it answers echo requests: filtered on the way, or there"
		case o.node == nil:
			return said{untold: fmt.Errorf("%s: no answer at all", to)}
		default:
			text += ", nor to echo requests, though it reports to the datastore: the way to it is cut"
		}
	}
	return said{tried: true, found: &Finding{What: text, Fix: fix}}
}

// shy says that a machine that is no node here may be one of a cluster's, whose silence to
// strangers means nothing: its port of BGP is silent too, and it does not expect this one.
func (s *scene) shy(ctx context.Context, o other, from own, to netip.Addr) bool {
	if o.node != nil {
		return false
	}
	if c := s.cfg.Cluster; c != nil && slices.ContainsFunc(c.Nodes, func(n *datastore.Node) bool {
		return n.Address(to.Is6()) == to && c.hasSession(n.Metadata.Name, from.addr, false)
	}) {
		return false
	}
	a, err := s.Connect(ctx, netip.AddrPortFrom(from.addr, 0), netip.AddrPortFrom(to, s.cfg.BGPPort))
	return err != nil || a.Reply == Silent
}

// allow are commands for the other end, and a word on what is between.
func allow(o other, iptables, nft string) []string {
	filter := strings.NewReplacer("ip protocol", "ip proto", "tcp dport", "tcp port", "udp dport", "udp port").Replace(nft)
	return []string{
		fmt.Sprintf("iptables -I INPUT %s -j ACCEPT   # on %s", iptables, o.name),
		fmt.Sprintf("nft insert rule inet filter input %s accept   # on %s, where nftables filters", nft, o.name),
		fmt.Sprintf("tcpdump -ni any %s   # on %s, while netctl doctor runs here: does it come there?", filter, o.name),
		"# if it does not: allow it in what is between (security groups, ACLs of switches), among all nodes",
	}
}

// hasSession says that BGP is up between this node and the other, as either reports.
func (c *Cluster) hasSession(node string, to netip.Addr, up bool) bool {
	r := c.report(node, datastore.ReportSpeaker)
	return r != nil && slices.ContainsFunc(r.Status.Sessions, func(x datastore.SessionStatus) bool {
		return x.Peer == to && (!up || x.State == "Established") && !x.Off
	})
}

// pathBGP connects to the port of nodes that are, or are to be, this one's peers. A node
// lets only its peers connect, and one of a signed session takes none without signature.
func pathBGP(ctx context.Context, s *scene) ([]Finding, error) {
	if !s.has(roleSpeaker, roleReflector) {
		return nil, skip("nobody here is to speak BGP")
	}
	return s.tryAll([]bool{false, true}, func(o other, from own, to netip.Addr) said {
		c := s.cfg.Cluster
		if o.node != nil {
			theirs := c.hasSession(o.name, from.addr, false)
			switch {
			case c.hasSession(s.cfg.Node, to, true) && c.alive(s.cfg.Node, datastore.ReportSpeaker, s.Now()):
				return said{tried: true} // a connection of BGP's is there
			case !theirs || slices.ContainsFunc(c.Peers, func(p *datastore.Peer) bool { return p.Spec.Password != nil && p.Spec.Address == to }):
				return said{}
			}
		}
		a, err := s.Connect(ctx, netip.AddrPortFrom(from.addr, 0), netip.AddrPortFrom(to, s.cfg.BGPPort))
		if err != nil {
			return said{untold: fmt.Errorf("%s: %w", o.name, err)}
		}
		fix := allow(o, fmt.Sprintf("-p tcp --dport %d", s.cfg.BGPPort), fmt.Sprintf("tcp dport %d", s.cfg.BGPPort))
		if a.Reply == Refused && o.node != nil && c.alive(o.name, datastore.ReportSpeaker, s.Now()) {
			return said{tried: true, found: &Finding{What: fmt.Sprintf("TCP from %s to port %d of %s (%s): refused, though its speaker reports: a firewall rejects it, or its speaker.port is another", from.addr, s.cfg.BGPPort, o.name, to), Fix: fix}}
		}
		return s.lost(ctx, o, from, to, a, fmt.Sprintf("TCP to port %d", s.cfg.BGPPort), fix)
	})
}

// tunnelUse says whether pools ask for tunnels of a kind; without, a path is tried only to
// machines that the operator named.
func (s *scene) tunnelUse(kind datastore.TunnelKind) error {
	c, err := s.cluster()
	switch {
	case len(s.cfg.To) > 0:
		return nil
	case err != nil:
		return err
	case len(c.tunnelled(kind)) == 0:
		return skip("no pool has %s tunnels", kind)
	}
	return nil
}

// asks says whether a path is to be tried to a machine. VXLAN over IPv6 is used between
// nodes that have registered ends of it alone, and only while IPv4 does not get through if both
// have that.
func (s *scene) asks(o other, kind datastore.TunnelKind) bool {
	if o.node == nil {
		return true
	}
	if _, has := o.node.TunnelOf(kind); kind == datastore.TunnelVXLAN6 {
		if _, four, err := s.address(false); !has || err == nil && four && o.node.Address(false).IsValid() {
			return false
		}
	}
	return s.cfg.Cluster != nil && len(s.cfg.Cluster.tunnelled(kind)) > 0
}

// pathTunnel tries the packets of a kind of tunnels: a node that has such a device gets an
// echo request in one, and answers without; from others the kernel's "nobody takes it" is
// the proof.
func (s *scene) pathTunnel(ctx context.Context, kind datastore.TunnelKind, v6 bool, what, iptables, nft string, plain func(from, to netip.Addr) (Answer, error)) ([]Finding, error) {
	if err := s.tunnelUse(kind); err != nil {
		return nil, err
	}
	return s.tryAll([]bool{v6}, func(o other, from own, to netip.Addr) said {
		if !s.asks(o, kind) {
			return said{}
		}
		var a Answer
		var err error
		end, has := datastore.Tunnel{}, false
		if o.node != nil {
			end, has = o.node.TunnelOf(kind)
		}
		if has || plain == nil {
			a, err = s.Tunnelled(ctx, kind, from.addr, to, end.MAC)
		} else {
			a, err = plain(from.addr, to)
		}
		if err != nil {
			return said{untold: fmt.Errorf("%s: %w", o.name, err)}
		}
		if has && a.Reply == Refused {
			return said{tried: true, found: &Finding{What: fmt.Sprintf("%s to %s (%s) comes through, and nobody takes it there, though the node has a tunnel's device registered", what, o.name, to),
				Fix: []string{"netctl status   # on " + o.name, "systemctl restart netctl-agent   # on " + o.name}}}
		}
		fix := allow(o, iptables, nft)
		if has && a.Reply == Silent {
			fix = append(fix, "sysctl -w net.ipv4.conf.all.rp_filter=0   # on "+o.name+", if it is 1 (strict) there")
		}
		return s.lost(ctx, o, from, to, a, what, fix)
	})
}

func pathIPIP(ctx context.Context, s *scene) ([]Finding, error) {
	return s.pathTunnel(ctx, datastore.TunnelIPIP, false, "IP protocol 4", "-p 4", "ip protocol 4", nil)
}

func pathVXLAN(ctx context.Context, s *scene) (found []Finding, err error) {
	for _, f := range []struct {
		kind datastore.TunnelKind
		v6   bool
	}{{datastore.TunnelVXLAN, false}, {datastore.TunnelVXLAN6, true}} {
		if _, has, addrErr := s.address(f.v6); f.v6 && (addrErr != nil || !has) {
			continue
		}
		more, e := s.pathTunnel(ctx, f.kind, f.v6, fmt.Sprintf("UDP to port %d", vxlanPort), fmt.Sprintf("-p udp --dport %d", vxlanPort), fmt.Sprintf("udp dport %d", vxlanPort),
			func(from, to netip.Addr) (Answer, error) {
				return s.Datagram(ctx, netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, vxlanPort))
			})
		found = append(found, more...)
		if e != nil && (err == nil || isSkip(err)) && (!f.v6 || !isSkip(e)) {
			err = e
		}
	}
	return found, err
}

func isSkip(err error) bool {
	var s skipped
	return errors.As(err, &s)
}

// pathWireGuard: WireGuard answers to nobody whose key it does not know, so that between
// nodes that have it a handshake tells, and nothing else can.
func pathWireGuard(ctx context.Context, s *scene) ([]Finding, error) {
	kind := datastore.TunnelWireGuard
	if err := s.tunnelUse(kind); err != nil {
		return nil, err
	}
	device := cmp.Or(s.cfg.Tunnels[kind], "wg.netctl")
	links, err := s.interfaces()
	if err != nil {
		return nil, err
	}
	here := false
	for _, l := range links {
		here = here || l.Name == device
	}
	what := fmt.Sprintf("UDP to port %d", s.cfg.WireGuardPort)
	done := map[string]bool{}
	var mu sync.Mutex
	return s.tryAll([]bool{false, true}, func(o other, from own, to netip.Addr) said {
		if !s.asks(o, kind) {
			return said{}
		}
		end, has := datastore.Tunnel{}, false
		if o.node != nil {
			end, has = o.node.TunnelOf(kind)
		}
		mu.Lock()
		again := done[o.name]
		done[o.name] = true
		mu.Unlock()
		if has && again {
			return said{} // its tunnels go to one of its addresses
		}
		var a Answer
		var err error
		switch {
		case has && !here:
			return said{untold: fmt.Errorf("%s: it has WireGuard, which answers to known keys only, and this host has no device %s yet", o.name, device)}
		case has:
			a, err = s.Handshake(ctx, device, end.Key)
		default:
			a, err = s.Datagram(ctx, netip.AddrPortFrom(from.addr, 0), netip.AddrPortFrom(to, s.cfg.WireGuardPort))
		}
		if err != nil {
			return said{untold: fmt.Errorf("%s: %w", o.name, err)}
		}
		return s.lost(ctx, o, from, to, a, what, allow(o, fmt.Sprintf("-p udp --dport %d", s.cfg.WireGuardPort), fmt.Sprintf("udp dport %d", s.cfg.WireGuardPort)))
	})
}
