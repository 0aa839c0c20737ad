package kernel

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// WireGuardKey is a private or public key (Curve25519).
type WireGuardKey [32]byte

// WireGuardPeer is another node as the device of WireGuard tunnels has to know it.
type WireGuardPeer struct {
	Key WireGuardKey
	// Endpoint is where packets to it go; the zero AddrPort: to where the kernel sends them.
	Endpoint netip.AddrPort
	// Allowed are the addresses behind it: packets to them go there, and others are not
	// taken from there.
	Allowed []netip.Prefix
	// Asks says that this node shakes hands first: if both do at once, they wait for each
	// other for five seconds.
	Asks bool
}

// WireGuardState is a peer as the kernel has it.
type WireGuardState struct {
	Answered time.Time // the last handshake; zero: there was none
	Allowed  []netip.Prefix
	// Endpoint is where packets to it go: where its last one came from, if it sent any.
	Endpoint netip.AddrPort
	// Sent and Received are all bytes so far, WireGuard's own packets among them.
	Sent, Received uint64
}

// The generic netlink family of WireGuard (include/uapi/linux/wireguard.h), and what is
// asked of the controller (include/uapi/linux/genetlink.h).
const (
	wgFamily = "wireguard"

	wgGetDevice = 0
	wgSetDevice = 1

	wgDeviceIfname = 2
	wgDeviceKey    = 3
	wgDevicePort   = 6
	wgDevicePeers  = 8

	wgPeerKey       = 1
	wgPeerFlags     = 3
	wgPeerEndpoint  = 4
	wgPeerKeepalive = 5
	wgPeerHandshake = 6
	wgPeerReceived  = 7
	wgPeerSent      = 8
	wgPeerAllowed   = 9

	wgPeerRemove = 1

	wgAllowedFamily  = 1
	wgAllowedAddress = 2
	wgAllowedBits    = 3

	genlController = 0x10
	genlGetFamily  = 3
	genlFamilyID   = 1
	genlFamilyName = 2
)

// keepalive is how often a peer without traffic is sent something, in seconds. The first
// is sent at once, and with it the handshake.
const keepalive = 25

// peersAtOnce and allowedAtOnce keep a message below the 64 KiB of an attribute.
const peersAtOnce, allowedAtOnce = 16, 100

// genl is a generic netlink socket of a family.
type genl struct {
	conn   *conn
	family uint16
}

// wireguard opens the family; EOPNOTSUPP where the kernel has none.
func (k *Kernel) wireguard() (*genl, error) {
	nl, err := netlink.Dial(unix.NETLINK_GENERIC, &netlink.Config{NetNS: k.own.FD()})
	if err != nil {
		return nil, cause(err)
	}
	g := &genl{conn: &conn{nl: nl}}
	res, err := g.conn.ask(message(genlController, 0, genlHead(genlGetFamily), func(ae *netlink.AttributeEncoder) { ae.String(genlFamilyName, wgFamily) }))
	if err == nil {
		err = g.read(res)
	}
	if err != nil {
		_ = nl.Close()
		if errors.Is(err, unix.ENOENT) {
			err = unix.EOPNOTSUPP
		}
		return nil, err
	}
	return g, nil
}

func (g *genl) read(res []netlink.Message) error {
	for _, m := range res {
		if len(m.Data) < sizeofGenl {
			return errWireGuard
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[sizeofGenl:])
		if err != nil {
			return err
		}
		for ad.Next() {
			if ad.Type() == genlFamilyID {
				g.family = ad.Uint16()
			}
		}
		if err := ad.Err(); err != nil {
			return err
		}
	}
	if g.family == 0 {
		return unix.ENOENT
	}
	return nil
}

func (g *genl) close() { _ = g.conn.close() }

// sizeofGenl is that of struct genlmsghdr.
const sizeofGenl = 4

var errWireGuard = errors.New("wireguard message: malformed")

func genlHead(command byte) []byte { return []byte{command, 1, 0, 0} }

func (g *genl) set(device string, attrs func(*netlink.AttributeEncoder)) error {
	_, err := g.conn.ask(message(g.family, netlink.Acknowledge, genlHead(wgSetDevice), func(ae *netlink.AttributeEncoder) {
		ae.String(wgDeviceIfname, device)
		attrs(ae)
	}))
	return err
}

// setWireGuard gives a device its key and port.
func (k *Kernel) setWireGuard(t Tunnel) error {
	g, err := k.wireguard()
	if err != nil {
		return err
	}
	defer g.close()
	return g.set(t.Name, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(wgDeviceKey, t.Private[:])
		ae.Uint16(wgDevicePort, t.Port)
	})
}

// SetWireGuardPeers adds peers of a device and addresses of those that are there, then
// takes addresses away that are nobody's any more, and removes peers. What stays loses
// no packet, nor does an address that was another peer's.
//
// Kernels before 6.16 take an address from a peer only with all others: it is given to
// a peer that is nobody, and goes with it.
func (k *Kernel) SetWireGuardPeers(device string, peers []WireGuardPeer, nobodys []netip.Prefix, remove []WireGuardKey) error {
	g, err := k.wireguard()
	if err != nil {
		return fmt.Errorf("peers of %s: %w", device, err)
	}
	defer g.close()
	if len(nobodys) > 0 {
		nobody := WireGuardPeer{Allowed: nobodys}
		_, _ = rand.Read(nobody.Key[:]) // never fails (crypto/rand)
		peers, remove = append(slices.Clip(peers), nobody), append(slices.Clip(remove), nobody.Key)
	}
	pieces := cut(peers)
	for len(pieces) > 0 {
		some := pieces[:min(len(pieces), peersAtOnce)]
		pieces = pieces[len(some):]
		if err := g.set(device, func(ae *netlink.AttributeEncoder) { ae.Nested(wgDevicePeers, encodePeers(some)) }); err != nil {
			return fmt.Errorf("peers of %s: %w", device, err)
		}
	}
	for len(remove) > 0 {
		some := remove[:min(len(remove), peersAtOnce)]
		remove = remove[len(some):]
		err := g.set(device, func(ae *netlink.AttributeEncoder) {
			ae.Nested(wgDevicePeers, func(ae *netlink.AttributeEncoder) error {
				for _, key := range some {
					ae.Nested(0, func(ae *netlink.AttributeEncoder) error {
						ae.Bytes(wgPeerKey, key[:])
						ae.Uint32(wgPeerFlags, wgPeerRemove)
						return nil
					})
				}
				return nil
			})
		})
		if err != nil {
			return fmt.Errorf("peers of %s: %w", device, err)
		}
	}
	return nil
}

// cut makes several of a peer with many addresses.
func cut(peers []WireGuardPeer) (list []WireGuardPeer) {
	for _, p := range peers {
		rest := p.Allowed
		for first := true; first || len(rest) > 0; first = false {
			p.Allowed = rest[:min(len(rest), allowedAtOnce)]
			rest = rest[len(p.Allowed):]
			list = append(list, p)
		}
	}
	return list
}

func encodePeers(peers []WireGuardPeer) func(*netlink.AttributeEncoder) error {
	return func(ae *netlink.AttributeEncoder) error {
		for _, p := range peers {
			ae.Nested(0, func(ae *netlink.AttributeEncoder) error {
				ae.Bytes(wgPeerKey, p.Key[:])
				if p.Endpoint.IsValid() {
					ae.Bytes(wgPeerEndpoint, sockaddr(p.Endpoint))
				}
				if p.Asks {
					ae.Uint16(wgPeerKeepalive, keepalive)
				}
				ae.Nested(wgPeerAllowed, encodeAllowed(p.Allowed))
				return nil
			})
		}
		return nil
	}
}

func encodeAllowed(list []netip.Prefix) func(*netlink.AttributeEncoder) error {
	return func(ae *netlink.AttributeEncoder) error {
		for _, a := range list {
			ae.Nested(0, func(ae *netlink.AttributeEncoder) error {
				ae.Uint16(wgAllowedFamily, uint16(familyOf(a.Addr())))
				ae.Bytes(wgAllowedAddress, a.Addr().AsSlice())
				ae.Uint8(wgAllowedBits, uint8(a.Bits()))
				return nil
			})
		}
		return nil
	}
}

func familyOf(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// sockaddr is a struct sockaddr_in or sockaddr_in6.
func sockaddr(a netip.AddrPort) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(familyOf(a.Addr())))
	b = binary.BigEndian.AppendUint16(b, a.Port())
	if a.Addr().Is4() {
		return append(append(b, a.Addr().AsSlice()...), make([]byte, 8)...)
	}
	return append(append(append(b, 0, 0, 0, 0), a.Addr().AsSlice()...), 0, 0, 0, 0)
}

// addrPort is what sockaddr makes; the zero AddrPort: b is something else.
func addrPort(b []byte) netip.AddrPort {
	if len(b) < 4 {
		return netip.AddrPort{}
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch family := binary.NativeEndian.Uint16(b); {
	case family == unix.AF_INET && len(b) >= 8:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port)
	case family == unix.AF_INET6 && len(b) >= 24:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port)
	}
	return netip.AddrPort{}
}

// WireGuardPeers are the peers that a device has.
func (k *Kernel) WireGuardPeers(device string) (map[WireGuardKey]WireGuardState, error) {
	g, err := k.wireguard()
	if err != nil {
		return nil, fmt.Errorf("read peers of %s: %w", device, err)
	}
	defer g.close()
	res, err := g.conn.dump(message(g.family, 0, genlHead(wgGetDevice), func(ae *netlink.AttributeEncoder) { ae.String(wgDeviceIfname, device) }))
	peers := map[WireGuardKey]WireGuardState{}
	for _, m := range res {
		if err == nil {
			err = parsePeers(m.Data, peers)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read peers of %s: %w", device, err)
	}
	return peers, nil
}

// parsePeers reads one message about a device, after the netlink header. A peer with
// many addresses comes in several.
func parsePeers(b []byte, peers map[WireGuardKey]WireGuardState) error {
	if len(b) < sizeofGenl {
		return errWireGuard
	}
	ad, err := netlink.NewAttributeDecoder(b[sizeofGenl:])
	if err != nil {
		return err
	}
	for ad.Next() {
		if ad.Type() != wgDevicePeers {
			continue
		}
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				ad.Nested(func(ad *netlink.AttributeDecoder) error { return parsePeer(ad, peers) })
			}
			return nil
		})
	}
	return ad.Err()
}

func parsePeer(ad *netlink.AttributeDecoder, peers map[WireGuardKey]WireGuardState) error {
	var key WireGuardKey
	var is WireGuardState
	known := false
	for ad.Next() {
		switch b := ad.Bytes(); ad.Type() {
		case wgPeerKey:
			if len(b) != len(key) {
				return errWireGuard
			}
			key, known = WireGuardKey(b), true
		case wgPeerHandshake: // struct __kernel_timespec: seconds, nanoseconds
			if len(b) == 16 && binary.NativeEndian.Uint64(b) != 0 {
				is.Answered = time.Unix(int64(binary.NativeEndian.Uint64(b)), int64(binary.NativeEndian.Uint64(b[8:])))
			}
		case wgPeerEndpoint:
			is.Endpoint = addrPort(b)
		case wgPeerReceived, wgPeerSent:
			if len(b) != 8 {
				return errWireGuard
			}
			if n := binary.NativeEndian.Uint64(b); ad.Type() == wgPeerSent {
				is.Sent = n
			} else {
				is.Received = n
			}
		case wgPeerAllowed:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					ad.Nested(func(ad *netlink.AttributeDecoder) error { return parseAllowed(ad, &is) })
				}
				return nil
			})
		}
	}
	if known {
		if was, more := peers[key]; more { // only its addresses are in the further ones
			was.Allowed = append(was.Allowed, is.Allowed...)
			is = was
		}
		peers[key] = is
	}
	return nil
}

func parseAllowed(ad *netlink.AttributeDecoder, is *WireGuardState) error {
	var addr netip.Addr
	bits := -1
	for ad.Next() {
		switch b := ad.Bytes(); ad.Type() {
		case wgAllowedAddress:
			addr, _ = netip.AddrFromSlice(b)
		case wgAllowedBits:
			if len(b) == 1 {
				bits = int(b[0])
			}
		}
	}
	p := netip.PrefixFrom(addr, bits)
	if !p.IsValid() {
		return errWireGuard
	}
	is.Allowed = append(is.Allowed, p)
	return nil
}
