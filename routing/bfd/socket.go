package bfd

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"netctl/routing/gate"
)

const (
	// onlyTTL is what a packet of a single hop is sent with, and must have when it comes
	// (RFC 5881, section 5).
	onlyTTL = 255
	// The source ports (RFC 5881, section 4), and how often a free one is looked for.
	firstPort = 49152
	ports     = 65536 - firstPort
	portTries = 16
	// netControl is the DSCP CS6: what routers send each other.
	netControl = 0xc0
)

// udpReceiver is a socket on Port of a local address. The kernel lets in what has TTL 255 and the
// address of a neighbour; the filter is there before the port is.
type udpReceiver struct {
	*net.UDPConn
}

// raw makes a connection in the making one that gate.Attach takes.
type raw struct{ syscall.RawConn }

func (r raw) SyscallConn() (syscall.RawConn, error) { return r.RawConn, nil }

func openReceiver(ctx context.Context, local netip.Addr, peers []netip.Addr) (receiver, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return admit(raw{c}, peers) }}
	c, err := lc.ListenPacket(ctx, "udp", netip.AddrPortFrom(local, Port).String())
	if err != nil {
		return nil, err
	}
	return udpReceiver{c.(*net.UDPConn)}, nil
}

// admit sets the filter. One that cannot be set leaves the socket closed to everybody.
func admit(c syscall.Conn, peers []netip.Addr) error {
	demands := make(map[netip.Addr]uint8, len(peers))
	for _, a := range peers {
		demands[a.WithZone("")] = onlyTTL
	}
	// The kernel counts the old one beside the new one, so a large one goes first.
	nobody, err := gate.Program(nil)
	if err == nil {
		err = gate.Attach(c, nobody)
	}
	if err != nil {
		return err
	}
	program, err := gate.Program(demands)
	if err != nil {
		return err
	}
	return gate.Attach(c, program)
}

func (u udpReceiver) receive(b []byte) (int, netip.Addr, error) {
	n, from, err := u.ReadFromUDPAddrPort(b)
	return n, from.Addr().Unmap(), err
}

func (u udpReceiver) admit(peers []netip.Addr) error { return admit(u.UDPConn, peers) }

// unread asks for the size of the next datagram, which none of ours has not (udp(7), FIONREAD).
func (u udpReceiver) unread() bool {
	c, err := u.SyscallConn()
	if err != nil {
		return false
	}
	size := 0
	_ = c.Control(func(fd uintptr) { size, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return err == nil && size > 0
}

// dial opens the socket that speaks to a peer, from a port that nobody has (RFC 5881, section
// 4). It hears nothing but that nobody listens there.
func dial(p Peer) (c net.Conn, err error) {
	four := p.Address.Is4()
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		nobody, err := gate.Program(nil)
		if err == nil {
			err = gate.Attach(raw{c}, nobody)
		}
		var setErr error
		err = errors.Join(err, c.Control(func(fd uintptr) { setErr = mark(int(fd), four) }))
		return errors.Join(err, setErr)
	}}
	for range portTries {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Local, uint16(firstPort+rand.IntN(ports))))
		c, err = d.Dial("udp", netip.AddrPortFrom(p.Address, Port).String())
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return c, err
}

// mark gives a socket the TTL and the class of its packets.
func mark(fd int, four bool) error {
	level, ttl, class := unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS
	if four {
		level, ttl, class = unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS
	}
	return errors.Join(unix.SetsockoptInt(fd, level, ttl, onlyTTL), unix.SetsockoptInt(fd, level, class, netControl))
}

// plain is the innermost text of a network error.
func plain(err error) string {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err.Error()
	}
	return err.Error()
}
