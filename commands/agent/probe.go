package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"netctl/datastore"
)

// probe sends the packet of a flow.
type probe struct {
	flow  datastore.TraceFlow
	in    func(func() error) error // where
	close func()
}

// probeWait is how long an answer is waited for: less than it takes TCP to send again.
const probeWait = 900 * time.Millisecond

// do sends it, and says what came of it at the sender, and whether it was answered.
func (p *probe) do(ctx context.Context) (said string, answered bool) {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	var err error
	if failed := p.in(func() error {
		switch p.flow.Protocol {
		case datastore.ProtocolTCP, datastore.ProtocolUDP:
			err = p.dial(ctx)
		default:
			err = p.raw(ctx)
		}
		return nil
	}); failed != nil {
		return "not sent: " + oneLine(failed.Error()), false
	}
	var timeout net.Error
	switch {
	case err == nil:
		return "answered", true
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused: nobody listens there, or a rule rejects it", false
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer", false
	}
	return oneLine(err.Error()), false
}

func (p *probe) source() netip.Addr { return p.flow.Sources[0] }

// dial connects by TCP, or sends a datagram. Both ends are closed at once.
func (p *probe) dial(ctx context.Context) error {
	d := net.Dialer{KeepAlive: -1}
	port, from := strconv.Itoa(int(p.flow.DestinationPort)), netip.AddrPortFrom(p.source(), p.flow.SourcePort)
	network := "udp"
	d.LocalAddr = net.UDPAddrFromAddrPort(from)
	if p.flow.Protocol == datastore.ProtocolTCP {
		network, d.LocalAddr = "tcp", net.TCPAddrFromAddrPort(from)
	}
	c, err := d.DialContext(ctx, network, net.JoinHostPort(p.flow.Destination.String(), port))
	if err != nil || network == "tcp" {
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	_ = c.SetDeadline(end)
	if _, err = c.Write([]byte("netctl trace")); err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	return err
}

// raw sends an echo request of ICMP, of SCTP an INIT, and of other protocols nothing.
func (p *probe) raw(ctx context.Context) error {
	family := unix.AF_INET
	if p.source().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(p.flow.Protocol))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sockaddr(p.source())); err != nil {
		return err
	}
	if err := unix.Sendto(fd, p.payload(), 0, sockaddr(p.flow.Destination)); err != nil {
		return err
	}
	for {
		left := time.Millisecond
		if end, ok := ctx.Deadline(); ok {
			left = time.Until(end)
		}
		if left <= 0 {
			return context.DeadlineExceeded
		}
		limit := unix.NsecToTimeval(left.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		buf := make([]byte, 2048)
		n, from, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return context.DeadlineExceeded
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case p.answers(buf[:n], from):
			return nil
		}
	}
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

// payload is what IP carries. The kernel sees to the checksum of ICMPv6, and to none else.
func (p *probe) payload() []byte {
	switch p.flow.Protocol {
	case datastore.ProtocolICMP, datastore.ProtocolICMPv6:
		b := []byte{8, 0, 0, 0, 0, 0, 0, 1} // echo request (RFC 792), sequence 1
		binary.BigEndian.PutUint16(b[4:], p.flow.SourcePort)
		if p.flow.Protocol == datastore.ProtocolICMPv6 {
			b[0] = 128 // RFC 4443, section 4.1
			return b
		}
		sum := uint32(8<<8) + uint32(p.flow.SourcePort) + 1
		binary.BigEndian.PutUint16(b[2:], ^uint16(sum>>16+sum&0xffff))
		return b
	case datastore.ProtocolSCTP:
		return initChunk(p.flow.SourcePort, p.flow.DestinationPort)
	}
	return make([]byte, 8)
}

// answers says whether a packet that came is the answer.
func (p *probe) answers(b []byte, from unix.Sockaddr) bool {
	who := netip.Addr{}
	switch from := from.(type) {
	case *unix.SockaddrInet4:
		who = netip.AddrFrom4(from.Addr)
		if len(b) > 0 && len(b) >= int(b[0]&0xf)*4 {
			b = b[int(b[0]&0xf)*4:]
		}
	case *unix.SockaddrInet6:
		who = netip.AddrFrom16(from.Addr)
	}
	if who != p.flow.Destination || len(b) < 8 {
		return false
	}
	switch p.flow.Protocol {
	case datastore.ProtocolICMP:
		return b[0] == 0 && binary.BigEndian.Uint16(b[4:]) == p.flow.SourcePort
	case datastore.ProtocolICMPv6:
		return b[0] == 129 && binary.BigEndian.Uint16(b[4:]) == p.flow.SourcePort
	case datastore.ProtocolSCTP:
		return binary.BigEndian.Uint16(b) == p.flow.DestinationPort && binary.BigEndian.Uint16(b[2:]) == p.flow.SourcePort
	}
	return true
}
