package bgp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// farTTL is what a packet starts with that is to be known as a neighbour's (RFC 5082).
const farTTL = 255

// openListener is without multipath TCP, which knows neither keys (RFC 2385)
// nor a least TTL (RFC 5082). It answers with the largest TTL: a peer that demands it
// of everything (RFC 5082, section 3) would not see the answer else.
func openListener(ctx context.Context, a netip.AddrPort) (net.Listener, error) {
	here, err := numbered(a.Addr())
	if err != nil {
		return nil, err
	}
	a = netip.AddrPortFrom(here, a.Port())
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return setTTL(fd, a.Addr().Is4(), farTTL) })
	}}
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", a.String())
}

// dial opens a connection to a peer.
func dial(ctx context.Context, p PeerConfig) (net.Conn, error) {
	here, err := numbered(p.LocalAddress)
	if err != nil {
		return nil, err
	}
	there, err := numbered(p.Address)
	if err != nil {
		return nil, err
	}
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, p.tune)
	}}
	d.SetMultipathTCP(false)
	if here.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: here.AsSlice(), Zone: here.Zone()}
	}
	port := p.Port
	if port == 0 {
		port = Port
	}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(there, port).String())
	if err != nil {
		return nil, fmt.Errorf("dial %v: %w", p.Address, err)
	}
	return c, nil
}

// numbered has the link's index as zone in place of its name, as it is now: the net
// package knows for a minute what it was.
func numbered(a netip.Addr) (netip.Addr, error) {
	if a.Zone() == "" {
		return a, nil
	}
	link, err := net.InterfaceByName(a.Zone())
	if err != nil {
		return a, fmt.Errorf("interface %s: %w", a.Zone(), err)
	}
	return a.WithZone(strconv.Itoa(link.Index)), nil
}

// turn is p with the ends that are dialled after so many dials without an answer.
func (p PeerConfig) turn(silent int) PeerConfig {
	if n := silent % (1 + len(p.Spare)); n > 0 {
		p.LocalAddress, p.Address = p.Spare[n-1].Local, p.Spare[n-1].Remote
	}
	return p
}

// by is p with the ends of a connection to or from remote.
func (p PeerConfig) by(remote netip.Addr) PeerConfig {
	if remote.IsValid() && remote.Is4() != p.Address.Is4() {
		p.LocalAddress, p.Address = netip.Addr{}, remote
	}
	for _, e := range p.Spare {
		if e.Remote == remote {
			p.LocalAddress, p.Address = e.Local, e.Remote
		}
	}
	return p
}

// tune gives a socket what the peer's connections have.
func (p PeerConfig) tune(fd int) error {
	ttl, four := p.TTL, p.Address.Is4()
	switch {
	case p.TTLSecurity > 0:
		ttl = farTTL
	case ttl == 0:
		ttl = -1 // the system's
	}
	if err := setTTL(fd, four, ttl); err != nil {
		return &setupError{"TTL cannot be set", err}
	}
	if err := setLeastTTL(fd, four, int(p.leastTTL())); err != nil {
		return &setupError{"TTL security cannot be set", err}
	}
	if p.Password == "" {
		return nil // ResetBy: the connection has none
	}
	return setKey(fd, p.Address, p.Password)
}

// leastTTL is what the peer's packets must have left (RFC 5082); 0: it does not matter.
func (p PeerConfig) leastTTL() uint8 {
	if p.TTLSecurity <= 0 {
		return 0
	}
	return uint8(farTTL + 1 - p.TTLSecurity)
}

// retune is tune for an open connection; one that is no socket has nothing to set.
func (p PeerConfig) retune(c net.Conn) error {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	return control(raw, p.tune)
}

func control(c syscall.RawConn, set func(fd int) error) error {
	var setErr error
	err := c.Control(func(fd uintptr) { setErr = set(int(fd)) })
	return errors.Join(err, setErr)
}

// setLeastTTL has the kernel drop what has less left (IP_MINTTL, ip(7)).
func setLeastTTL(fd int, four bool, ttl int) error {
	if four {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MINTTL, ttl)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT, ttl)
}

func setTTL(fd int, four bool, ttl int) error {
	if four {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, ttl)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
}
