package doctor

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// How long an answer is waited for: each packet is sent so often, since one may be lost,
// and since a kernel tells one machine only once a second that nobody takes a packet
// (icmp_ratelimit).
const (
	echoTries  = 2
	echoWait   = 500 * time.Millisecond
	probeTries = 3
	probeWait  = time.Second
	tcpWait    = 3 * time.Second
	shakeWait  = 7 * time.Second // WireGuard asks again after five
)

// options sets those of a socket before it is used.
func options(set func(fd int) error) net.ListenConfig {
	return net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var setErr error
		err := c.Control(func(fd uintptr) { setErr = set(int(fd)) })
		return errors.Join(err, setErr)
	}}
}

// whole has the kernel send packets as they are, whatever it believes of the way.
func whole(v6 bool) func(fd int) error {
	return func(fd int) error {
		if v6 {
			return errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
				unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
}

func icmpNetwork(v6 bool) string {
	if v6 {
		return "ip6:ipv6-icmp"
	}
	return "ip4:icmp"
}

// probe is one packet that is sent until something is heard of it.
type probe struct {
	tries int
	wait  time.Duration // for each
	send  func() error
	judge func(b []byte, from netip.Addr) (Answer, bool)
}

// run listens for ICMP at an address of this host while the packet is sent.
func (p probe) run(ctx context.Context, conn net.PacketConn) (Answer, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	b := make([]byte, 1<<16)
	for range p.tries {
		if err := p.send(); err != nil {
			if a, is := refusedHere(err); is {
				return a, nil
			}
			return Answer{}, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(p.wait)); err != nil {
			return Answer{}, err
		}
		for {
			n, addr, err := conn.ReadFrom(b)
			if ctx.Err() != nil {
				return Answer{}, ctx.Err()
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				if a, is := refusedHere(err); is {
					return a, nil
				}
				return Answer{}, err
			}
			from, ok := addr.(*net.IPAddr)
			if !ok {
				continue
			}
			at, _ := netip.AddrFromSlice(from.IP)
			if a, is := p.judge(b[:n], at.Unmap()); is {
				return a, nil
			}
		}
	}
	return Answer{Reply: Silent}, nil
}

// refusedHere is what this host's own kernel says to a packet.
func refusedHere(err error) (Answer, bool) {
	switch {
	case errors.Is(err, unix.EMSGSIZE):
		return Answer{Reply: TooLarge}, true
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return Answer{Reply: Prohibited}, true
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH):
		return Answer{Reply: NoRoute}, true
	}
	return Answer{}, false
}

// names of one probe among those of others.
func newID() uint16 { return uint16(rand.IntN(1<<16-1) + 1) }

func (m *machine) Echo(ctx context.Context, from, to netip.Addr, bytes int) (Answer, error) {
	v6 := to.Is6()
	header := ipv4Header
	if v6 {
		header = ipv6Header
	}
	may := options(whole(v6))
	conn, err := may.ListenPacket(ctx, icmpNetwork(v6), from.String())
	if err != nil {
		return Answer{}, fmt.Errorf("echo request: %w", err)
	}
	defer conn.Close()
	id, protocol := newID(), byte(protoICMP)
	if v6 {
		protocol = protoICMP6
	}
	request := echoMessage(id, bytes-header, netip.Addr{}, netip.Addr{}, v6)
	return probe{tries: echoTries, wait: echoWait,
		send: func() error {
			_, err := conn.WriteTo(request, &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()})
			return err
		},
		judge: func(b []byte, at netip.Addr) (Answer, bool) { return heard(b, v6, at, to, id, protocol, 0) },
	}.run(ctx, conn)
}

func (m *machine) Clock(ctx context.Context, from, to netip.Addr) (ahead time.Duration, a Answer, err error) {
	conn, err := net.ListenPacket(icmpNetwork(false), from.String())
	if err != nil {
		return 0, a, fmt.Errorf("timestamp request: %w", err)
	}
	defer conn.Close()
	id := newID()
	midnight := func() uint32 {
		now := time.Now().UTC()
		return uint32(now.Sub(now.Truncate(24 * time.Hour)).Milliseconds())
	}
	a, err = probe{tries: echoTries, wait: echoWait,
		send: func() error {
			b := make([]byte, 20)
			b[0] = icmpTimestamp
			binary.BigEndian.PutUint16(b[4:], id)
			binary.BigEndian.PutUint32(b[8:], midnight())
			binary.BigEndian.PutUint16(b[2:], checksum(b))
			_, err := conn.WriteTo(b, &net.IPAddr{IP: to.AsSlice()})
			return err
		},
		judge: func(b []byte, at netip.Addr) (Answer, bool) {
			if len(b) < 20 || b[0] != icmpTimestampReply || at != to || binary.BigEndian.Uint16(b[4:]) != id {
				return Answer{}, false
			}
			sent, received, back, now := int64(binary.BigEndian.Uint32(b[8:])), int64(binary.BigEndian.Uint32(b[12:])), int64(binary.BigEndian.Uint32(b[16:])), int64(midnight())
			ahead = skew(sent, received, back, now)
			return Answer{Reply: Answered, From: at}, true
		},
	}.run(ctx, conn)
	return ahead, a, err
}

// skew is by how much the other's clock is ahead; all in milliseconds since midnight,
// which may be between them.
func skew(sent, received, back, now int64) time.Duration {
	const day = 24 * 60 * 60 * 1000
	wrap := func(d int64) int64 { return (d%day+day+day/2)%day - day/2 }
	return time.Duration((wrap(received-sent) + wrap(back-now)) / 2 * int64(time.Millisecond))
}

func (m *machine) Date(ctx context.Context, of netip.AddrPort) time.Time {
	ctx, cancel := context.WithTimeout(ctx, tcpWait)
	defer cancel()
	transport := &http.Transport{
		// A wrong clock refuses good certificates, and nothing is told to whoever answers.
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, //nolint:gosec // see above
		DisableKeepAlives: true, Proxy: nil,
	}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+of.String()+"/", nil)
	if err != nil {
		return time.Time{}
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return time.Time{}
	}
	_ = resp.Body.Close()
	there, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return there
}

func (m *machine) Connect(ctx context.Context, from, to netip.AddrPort) (Answer, error) {
	d := net.Dialer{Timeout: tcpWait, LocalAddr: net.TCPAddrFromAddrPort(from)}
	conn, err := d.DialContext(ctx, "tcp", to.String())
	var netErr net.Error
	switch {
	case err == nil:
		return Answer{Reply: Answered, From: to.Addr()}, conn.Close()
	case ctx.Err() != nil:
		return Answer{}, ctx.Err()
	case errors.Is(err, unix.ECONNREFUSED):
		return Answer{Reply: Refused, From: to.Addr()}, nil
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
		return Answer{Reply: NoRoute}, nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return Answer{Reply: Prohibited}, nil
	case errors.As(err, &netErr) && netErr.Timeout():
		return Answer{Reply: Silent}, nil
	}
	return Answer{}, err
}

func (m *machine) Datagram(ctx context.Context, from, to netip.AddrPort) (Answer, error) {
	v6 := to.Addr().Is6()
	network := "udp4"
	if v6 {
		network = "udp6"
	}
	udp, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(from))
	if err != nil {
		return Answer{}, fmt.Errorf("UDP: %w", err)
	}
	defer udp.Close()
	// Without the flag of RFC 7348, so that no VXLAN device takes it.
	return m.errorOf(ctx, from.Addr(), to.Addr(), protoUDP, to.Port(), 0, func() error {
		_, err := udp.WriteToUDPAddrPort(make([]byte, 8), to)
		return err
	})
}

// errorOf sends a packet and hears what ICMP says of it; an echo reply with the number id
// is one, too.
func (m *machine) errorOf(ctx context.Context, from, to netip.Addr, protocol byte, port, id uint16, send func() error) (Answer, error) {
	v6 := to.Is6()
	conn, err := net.ListenPacket(icmpNetwork(v6), from.String())
	if err != nil {
		return Answer{}, fmt.Errorf("listen for ICMP: %w", err)
	}
	defer conn.Close()
	return probe{tries: probeTries, wait: probeWait, send: send,
		judge: func(b []byte, at netip.Addr) (Answer, bool) { return heard(b, v6, at, to, id, protocol, port) },
	}.run(ctx, conn)
}

func (m *machine) Tunnelled(ctx context.Context, kind datastore.TunnelKind, from, to netip.Addr, mac string) (Answer, error) {
	v6, id := to.Is6(), newID()
	protocol := byte(protoICMP)
	if v6 {
		protocol = protoICMP6
	}
	inner := ipPacket(protocol, from, to, echoMessage(id, 64, from, to, v6))
	switch kind {
	case datastore.TunnelIPIP:
		raw, err := net.ListenPacket("ip4:4", from.String())
		if err != nil {
			return Answer{}, fmt.Errorf("IP protocol 4: %w", err)
		}
		defer raw.Close()
		return m.errorOf(ctx, from, to, protoIPIP, 0, id, func() error {
			_, err := raw.WriteTo(inner, &net.IPAddr{IP: to.AsSlice()})
			return err
		})
	case datastore.TunnelVXLAN, datastore.TunnelVXLAN6:
		hw, err := net.ParseMAC(mac)
		if err != nil || len(hw) != 6 {
			return Answer{}, fmt.Errorf("the other end's hardware address %q is none", mac)
		}
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)))
		if err != nil {
			return Answer{}, fmt.Errorf("UDP: %w", err)
		}
		defer udp.Close()
		packet := vxlanPacket(hw, inner, v6)
		return m.errorOf(ctx, from, to, protoUDP, vxlanPort, id, func() error {
			_, err := udp.WriteToUDPAddrPort(packet, netip.AddrPortFrom(to, vxlanPort))
			return err
		})
	}
	return Answer{}, fmt.Errorf("no packet of %s can be made up", kind)
}

// fresh is how long a handshake of WireGuard's is good for (REJECT_AFTER_TIME of its
// protocol).
const fresh = 180 * time.Second

func (m *machine) Handshake(ctx context.Context, device, key string) (Answer, error) {
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) != 32 {
		return Answer{}, fmt.Errorf("public key %q is none", key)
	}
	shook := func() (state kernel.WireGuardState, ok bool, err error) {
		peers, err := m.kernel.WireGuardPeers(device)
		if err != nil {
			return state, false, err
		}
		state, ok = peers[kernel.WireGuardKey(raw)]
		if !ok {
			return state, false, fmt.Errorf("%s has no peer of that key yet", device)
		}
		return state, time.Since(state.Answered) < fresh, nil
	}
	state, ok, err := shook()
	if err != nil || ok {
		return Answer{Reply: Answered}, err
	}
	if len(state.Allowed) == 0 {
		return Answer{}, fmt.Errorf("%s has no addresses for that peer yet", device)
	}
	if err := wake(device, state.Allowed[0].Addr()); err != nil {
		return Answer{}, fmt.Errorf("send by %s: %w", device, err)
	}
	for end := time.Now().Add(shakeWait); time.Now().Before(end); {
		if _, ok, err := shook(); err != nil || ok {
			return Answer{Reply: Answered}, err
		}
		select {
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return Answer{Reply: Silent}, nil
}

// wake sends a packet by a device, which shakes hands first. Nobody listens for it.
func wake(device string, to netip.Addr) error {
	const discard = 9 // RFC 863
	may := options(func(fd int) error { return unix.BindToDevice(fd, device) })
	conn, err := may.ListenPacket(context.Background(), "udp", ":0")
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.WriteTo(make([]byte, 1), net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, discard)))
	return err
}

// How often and long is asked who has an address (RFC 5227, section 2.1.1, in short).
const (
	claimTries = 3
	claimWait  = 250 * time.Millisecond
)

func (m *machine) Claimed(ctx context.Context, link string, addr netip.Addr) (string, error) {
	dev, err := net.InterfaceByName(link)
	if err != nil {
		return "", err
	}
	if len(dev.HardwareAddr) != 6 {
		return "", nil // nobody is asked for addresses there
	}
	own, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	protocol := int(unix.ETH_P_ARP>>8 | unix.ETH_P_ARP&0xff<<8) // in the network's order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return "", fmt.Errorf("open packet socket: %w", err)
	}
	defer unix.Close(fd)
	at := &unix.SockaddrLinklayer{Protocol: uint16(protocol), Ifindex: dev.Index}
	if err := unix.Bind(fd, at); err != nil {
		return "", fmt.Errorf("bind packet socket: %w", err)
	}
	request := arpRequest(dev.HardwareAddr, addr)
	b := make([]byte, 256)
	for range claimTries {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if err := unix.Sendto(fd, request, 0, at); err != nil {
			return "", fmt.Errorf("send ARP: %w", err)
		}
		for end := time.Now().Add(claimWait); ; {
			left := time.Until(end)
			if left <= 0 {
				break
			}
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return "", err
			}
			if ready == 0 {
				break
			}
			n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			if err != nil {
				continue
			}
			mac := arpOwner(b[:n], addr)
			// On one wire, another interface of this host answers for it as well.
			if mac != nil && !slices.ContainsFunc(own, func(i net.Interface) bool { return i.HardwareAddr.String() == mac.String() }) {
				return mac.String(), nil
			}
		}
	}
	return "", nil
}

// arpRequest asks who has an address and says that nobody asks (RFC 5227, ARP probe).
func arpRequest(mac net.HardwareAddr, addr netip.Addr) []byte {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	b = append(b, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	b = append(b, mac...)
	b = append(b, make([]byte, 4+6)...)
	return append(b, addr.AsSlice()...)
}

// arpOwner is who says in a frame to have the address; nil: nobody.
func arpOwner(b []byte, addr netip.Addr) net.HardwareAddr {
	const reply = 2
	if len(b) < 42 || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_ARP || binary.BigEndian.Uint16(b[20:]) != reply {
		return nil
	}
	if sender, _ := netip.AddrFromSlice(b[28:32]); sender != addr {
		return nil
	}
	return net.HardwareAddr(append([]byte{}, b[22:28]...))
}
