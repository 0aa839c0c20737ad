package agent

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// wgPath is the way to a peer that has an address of both families, as this node has: by
// IPv4, unless that does not get through.
//
// Whether a way gets through WireGuard's own packets say: what is sent has to be answered,
// if by nothing else then by an empty packet within ten seconds. One that is moved takes
// the other side's packets along: the kernel answers to where the last came from.
type wgPath struct {
	v6        bool
	sent, got uint64        // bytes so far
	asked     time.Time     // since when what was sent is not answered; zero: it is
	wait      time.Duration // until the way is given up
	tried     time.Time     // when IPv4 was left, or tried last
	rest      time.Duration // until it is tried
	trying    bool
}

// How often ways are looked at; when one is given up that answers nothing, which doubles
// with every one up to mostWait if the other does not either; and how long IPv4 is left
// alone then, which doubles each time, too.
const (
	pathEvery = 2 * time.Second
	pathWait  = 12 * time.Second // KEEPALIVE_TIMEOUT of the protocol and what it takes
	mostWait  = 2 * time.Minute
	ipv4Rest  = 10 * time.Second
	mostRest  = 10 * time.Minute
	echoWait  = time.Second
)

// emptyPacket is the size of a WireGuard packet that asks for no answer, in bytes.
const emptyPacket = 32

// newPath is the way as nobody has moved it yet.
func newPath() *wgPath { return &wgPath{wait: pathWait, rest: ipv4Rest} }

// bothFamilies says whether two nodes can reach each other by either.
func bothFamilies(a, b *datastore.Node) bool {
	return !slices.ContainsFunc([]bool{false, true}, func(v6 bool) bool { return !a.Address(v6).IsValid() || !b.Address(v6).IsValid() })
}

// pathTo is the address of another node that packets to it are sent to, of the two that it
// has.
func (w *wireguard) pathTo(n *datastore.Node) netip.Addr {
	p := w.paths[n.Metadata.Name]
	if p == nil {
		p = newPath()
		w.paths[n.Metadata.Name] = p
	}
	return n.Address(p.v6)
}

// keepPath goes on by the way that the kernel takes, as after a start of the agent.
func (w *wireguard) keepPath(n *datastore.Node, at netip.Addr) {
	if p := w.paths[n.Metadata.Name]; p != nil && at.IsValid() && at == n.Address(!p.v6) {
		p.move(time.Now())
	}
}

// judge takes what the kernel counted, and says whether the way is to be left. routed
// are whether the kernel knows a way to the address in use, and to the other one.
func (p *wgPath) judge(now time.Time, is kernel.WireGuardState, routed func(other bool) bool) bool {
	switch sent := is.Sent - p.sent; {
	case is.Received != p.got:
		p.asked, p.wait = time.Time{}, pathWait
	case p.asked.IsZero() && is.Sent > p.sent && sent > emptyPacket:
		p.asked = now
	}
	p.sent, p.got = is.Sent, is.Received
	// Of what has no route nothing is counted.
	if !routed(false) {
		return routed(true)
	}
	return !p.asked.IsZero() && now.Sub(p.asked) >= p.wait && routed(true)
}

// move goes over to the other way.
func (p *wgPath) move(now time.Time) {
	p.v6 = !p.v6
	if !p.asked.IsZero() {
		p.asked, p.wait = now, min(2*p.wait, mostWait)
	}
	if p.v6 {
		if now.Sub(p.tried) > mostRest {
			p.rest = ipv4Rest
		}
		p.tried = now
	}
}

// tries says whether IPv4 is to be tried again.
func (p *wgPath) tries(now time.Time) bool { return p.v6 && !p.trying && now.Sub(p.tried) >= p.rest }

// lookAtPaths finds out which ways get through, and moves peers from those that do not.
func (l *loop) lookAtPaths(self *datastore.Node, device string) error {
	w := l.wireguard
	if !w.look && len(w.paths) > 0 {
		l.lookAtPathsLater()
	}
	if !w.look || self == nil {
		return nil
	}
	w.look = false
	defer l.lookAtPathsLater()
	have, err := w.kernel.WireGuardPeers(device)
	if err != nil {
		return err
	}
	now := time.Now()
	var set []kernel.WireGuardPeer
	for name, p := range w.paths {
		n, peer := l.view.Node(name), w.peers[name]
		is, there := have[peer.Key]
		switch {
		case n == nil || !bothFamilies(self, n):
			delete(w.paths, name)
			continue
		case !there:
			continue
		}
		routed := func(other bool) bool { return w.routed(self.Address(p.v6 != other), n.Address(p.v6 != other)) }
		if at := is.Endpoint.Addr(); at != peer.Endpoint.Addr() && at == n.Address(!p.v6) {
			p.move(now) // as the other side did
			p.asked = time.Time{}
			l.log.Info("wireguard: a node sends by another way, so does this one", "node", name, "address", at)
		} else if p.judge(now, is, routed) {
			p.move(now)
			l.log.Warn("wireguard: a node does not answer by one address, and is sent to by the other", "node", name, "old", peer.Endpoint.Addr(), "new", n.Address(p.v6))
			set = append(set, kernel.WireGuardPeer{Key: peer.Key, Endpoint: netip.AddrPortFrom(n.Address(p.v6), l.cfg.WireGuardPort), Asks: peer.Asks})
		}
		peer.Endpoint = netip.AddrPortFrom(n.Address(p.v6), l.cfg.WireGuardPort)
		w.peers[name] = peer
		if p.tries(now) {
			l.tryPath(name, p, self.Address(false), n.Address(false))
		}
	}
	if len(set) == 0 {
		return nil
	}
	return w.kernel.SetWireGuardPeers(device, set, nil, nil)
}

// tryPath goes back to IPv4 if the other node answers there.
func (l *loop) tryPath(name string, p *wgPath, from, to netip.Addr) {
	w := l.wireguard
	p.trying = true
	go func() {
		answers := w.echoes(from, to)
		l.post(func() {
			now := time.Now()
			p.trying, p.tried = false, now
			if w.paths[name] != p || !p.v6 || !answers {
				return
			}
			p.move(now)
			p.tried, p.rest = now, min(2*p.rest, mostRest)
			w.changed[name] = true
			l.log.Info("wireguard: a node answers by IPv4 again, and is sent to there", "node", name, "address", to)
		})
	}()
}

func (l *loop) lookAtPathsLater() {
	if w := l.wireguard; !w.looks {
		w.looks = true
		time.AfterFunc(l.cfg.pathEvery, func() { l.post(func() { w.looks, w.look = false, true }) })
	}
}

// routed says whether the kernel knows a way from one address to another. Nothing is sent.
func routed(from, to netip.Addr) bool {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	c, err := d.DialContext(context.Background(), "udp", net.JoinHostPort(to.String(), strconv.Itoa(discardPort)))
	if err != nil {
		return false
	}
	_ = c.Close()
	return true
}

// discardPort is that of a service which nobody has (RFC 863).
const discardPort = 9

// echoes says whether a machine answers an echo request (RFC 792) by IPv4.
func echoes(from, to netip.Addr) bool {
	c, err := net.DialIP("ip4:icmp", &net.IPAddr{IP: from.AsSlice()}, &net.IPAddr{IP: to.AsSlice()})
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	const echo, reply, size = 8, 0, 8
	// Type, code, checksum, an identifier and number, both of which are the checksum's rest.
	request := []byte{echo, 0, 0, 0, 'n', 'c', 't', 'l'}
	sum := uint32(echo)<<8 + 'n'<<8 + 'c' + 't'<<8 + 'l'
	sum = ^(sum>>16 + sum&0xffff)
	request[2], request[3] = byte(sum>>8), byte(sum)
	_ = c.SetDeadline(time.Now().Add(echoWait))
	if _, err := c.Write(request); err != nil {
		return false
	}
	answer := make([]byte, 128)
	for {
		n, _, err := c.ReadFrom(answer)
		if err != nil {
			return false
		}
		if n == size && answer[0] == reply && string(answer[4:size]) == string(request[4:]) {
			return true
		}
	}
}
