package kernel

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// side is the host side of a wire.
type side struct {
	k    *Kernel
	wire Wire
	link rawLink
	mac  net.HardwareAddr // of the workload side; nil: not known
}

// fact is one thing that an attach sets on the host side. The facts are the one
// list that Create, Check, Hold and, as far as it hears of them, Watch go by.
type fact struct {
	// differs says how what is there is not what an attach makes; "": it is.
	differs func() (string, error)
	put     func() error
	// born says that the link is made with it or, going up, gets it.
	born bool
	// raises says that put lets packets through.
	raises bool
}

// sideOf finds the host side of a wire: by its index, whatever it is called, or
// where that is not known or no more by its name. os.ErrNotExist: there is none.
func (k *Kernel) sideOf(w Wire) (*side, error) {
	l, err := k.find(w.Link, w.Index)
	if err == nil && (l.group == netdev.GroupRetired || !l.made(w.Index)) {
		err = os.ErrNotExist // it was detached, or has nothing but the name
	}
	if err != nil {
		return nil, err
	}
	s := &side{k: k, wire: w, link: l}
	if s.mac, err = k.peerMAC(l); err != nil {
		s.mac, _ = net.ParseMAC(w.MAC) // what was said of it, if anything
	}
	return s, nil
}

// made says that a link is one that an attach made: of the index that Create told, or
// as far as can be seen.
func (l rawLink) made(index int) bool {
	return index != 0 && l.Index == index || l.group == netdev.Group || l.wired() && l.mac.String() == netdev.HostMAC
}

// find reads the link of an index or, if there is none, of a name.
func (k *Kernel) find(name string, index int) (rawLink, error) {
	if index != 0 {
		l, err := k.link(index, "")
		if !errors.Is(err, os.ErrNotExist) && (err != nil || l.wired()) {
			return l, err
		}
	}
	return k.link(0, name)
}

// link reads one link, by its index or its name.
func (k *Kernel) link(index int, name string) (rawLink, error) {
	return k.conn.link(index, name)
}

func (c *conn) link(index int, name string) (rawLink, error) {
	return c.askLink(index, func(ae *mdlayher.AttributeEncoder) {
		if index == 0 {
			ae.String(unix.IFLA_IFNAME, name)
		}
	})
}

// peerMAC is the hardware address that the other side of a veth has now: a plugin
// behind ours in a chain, or the workload, may have changed it.
func (k *Kernel) peerMAC(l rawLink) (net.HardwareAddr, error) {
	if !l.apart {
		return nil, os.ErrNotExist
	}
	peer, err := k.askLink(l.peer, func(ae *mdlayher.AttributeEncoder) { ae.Uint32(unix.IFLA_TARGET_NETNSID, l.nsid) })
	return peer.mac, err
}

func (k *Kernel) askLink(index int, attrs func(*mdlayher.AttributeEncoder)) (rawLink, error) {
	return k.conn.askLink(index, attrs)
}

func (c *conn) askLink(index int, attrs func(*mdlayher.AttributeEncoder)) (rawLink, error) {
	head := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	res, err := c.ask(message(unix.RTM_GETLINK, 0, head, attrs))
	if err != nil {
		return rawLink{}, absent(err)
	}
	if len(res) == 0 {
		return rawLink{}, os.ErrNotExist
	}
	return parseLink(res[0])
}

// attributes are the facts that the link's own message tells, but for its name and
// its MTU, which differ from link to link.
func attributes(k *Kernel, name string, l *rawLink) []fact {
	d := device(l.Index)
	hostMAC, _ := net.ParseMAC(netdev.HostMAC)
	return []fact{
		{
			differs: func() (string, error) { return unlike(name, "group", l.group, netdev.Group), nil },
			put:     func() error { return k.host.LinkSetGroup(d, int(netdev.Group)) },
			born:    true,
		},
		{
			differs: func() (string, error) { return unlike(name, "master", l.master, 0), nil },
			put:     func() error { return k.host.LinkSetNoMaster(d) },
			born:    true,
		},
		{
			differs: func() (string, error) { return unlike(name, "mac", l.mac.String(), netdev.HostMAC), nil },
			put:     func() error { return k.host.LinkSetHardwareAddr(d, hostMAC) },
			born:    true,
		},
		{
			differs: func() (string, error) { return when(l.flags&unix.IFF_NOARP != 0, name+": arp is off"), nil },
			put:     func() error { return k.host.LinkSetARPOn(d) },
			born:    true,
		},
		{
			differs: func() (string, error) { return when(l.flags&unix.IFF_MULTICAST == 0, name+": multicast is off"), nil },
			put:     func() error { return k.host.LinkSetMulticastOn(d) },
			born:    true,
		},
	}
}

// altered says that a link of netctl is, by its own message, not what an attach
// makes.
func altered(l rawLink) bool {
	for _, f := range attributes(nil, l.Name, &l) {
		if text, _ := f.differs(); text != "" {
			return true
		}
	}
	return false
}

func unlike[T comparable](name, what string, have, want T) string {
	if have == want {
		return ""
	}
	return fmt.Sprintf("%s: %s is %v, not %v", name, what, have, want)
}

func when(is bool, text string) string {
	if is {
		return text
	}
	return ""
}

// facts are all of them, in the order in which they are put.
func (s *side) facts() []fact {
	l, name, d := &s.link, s.wire.Link, device(s.link.Index)
	list := []fact{{
		differs: func() (string, error) { return unlike(name, "name", l.Name, name), nil },
		put:     s.rename,
		born:    true,
	}}
	list = append(list, attributes(s.k, name, l)...)
	if mtu := cmp.Or(s.wire.HostMTU, s.wire.MTU); mtu != 0 {
		list = append(list, fact{
			differs: func() (string, error) { return unlike(name, "mtu", l.MTU, mtu), nil },
			put:     func() error { return s.k.host.LinkSetMTU(d, mtu) },
			born:    true,
		})
	}
	for _, x := range hostSettings(s.wire) {
		list = append(list, s.setting(x))
	}
	list = append(list, fact{
		differs: func() (string, error) { return when(!l.Up, name+" is down"), nil },
		put:     func() error { return s.k.raise(*l) },
		born:    true, raises: true,
	})
	list = append(list, s.addressed())
	if s.wire.Tap.Is() {
		list = append(list, s.alias())
	}
	list = append(list, s.shaped()...)
	if s.wire.has(false) {
		list = append(list, s.linkLocal())
	}
	if s.mac != nil {
		for _, a := range s.wire.Addresses {
			list = append(list, s.k.conn.known(s.wire.Link, s.link.Index, a, s.mac))
		}
	}
	return list
}

// rename gives the link its name back. Kernels before 6.2 rename no link that is
// up.
func (s *side) rename() error {
	d := device(s.link.Index)
	err := s.k.host.LinkSetName(d, s.wire.Link)
	if errors.Is(err, unix.EBUSY) {
		if err = s.k.host.LinkSetDown(d); err == nil {
			err = errors.Join(s.k.host.LinkSetName(d, s.wire.Link), s.k.host.LinkSetUp(d))
		}
	}
	if err == nil {
		s.link.Name = s.wire.Link
	}
	return err
}

func (s *side) setting(x setting) fact {
	file := func() string { return s.link.Name + "/" + x.name }
	// A kernel without IPv6 lacks nothing that IPv4 needs.
	spare := func(err error) bool {
		return errors.Is(err, fs.ErrNotExist) && x.dir == "ipv6/conf" && !s.wire.has(false)
	}
	return fact{
		differs: func() (string, error) {
			v, err := s.k.sys.read(x.dir, file())
			if spare(err) {
				return "", nil
			}
			return unlike(s.wire.Link, x.name, v, x.value), err
		},
		put: func() error {
			if err := s.k.sys.write(x.dir, file(), x.value); !spare(err) {
				return err
			}
			return nil
		},
	}
}

// linkLocal is the address that workloads use as gateway. The kernel makes it once
// the link has a carrier; flushed, it does not make it again.
func (s *side) linkLocal() fact {
	want := ownAddress()
	text := fmt.Sprintf("%s: address %s is missing", s.wire.Link, want)
	address := func() *netlink.Addr {
		return &netlink.Addr{IPNet: network(want), Flags: unix.IFA_F_NODAD, Scope: unix.RT_SCOPE_LINK}
	}
	var dead bool
	return fact{
		differs: func() (string, error) {
			if s.link.flags&unix.IFF_LOWER_UP == 0 {
				return "", nil
			}
			list, err := s.k.addressesOn(s.link.Index, unix.AF_INET6)
			if err != nil {
				return "", err
			}
			for _, a := range list {
				if a.prefix == want {
					dead = a.flags&unix.IFA_F_DADFAILED != 0
					return when(dead, text), nil
				}
			}
			return text, nil
		},
		put: func() error {
			d := device(s.link.Index)
			if dead {
				if err := s.k.host.AddrDel(d, address()); err != nil {
					return err
				}
			}
			if err := s.k.host.AddrAdd(d, address()); !errors.Is(err, unix.EEXIST) { // the kernel made it just now
				return err
			}
			return nil
		},
		born: true,
	}
}

// ownAddress is the only address that a link has.
func ownAddress() netip.Prefix { return netip.PrefixFrom(netdev.HostLinkLocal(), 64) }

func network(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addressed is that the link has no address beside its own: with each comes a subnet
// that this host would look for at the workload.
func (s *side) addressed() fact {
	var foreign []netip.Prefix
	return fact{
		differs: func() (string, error) {
			foreign = nil
			for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
				list, err := s.k.addressesOn(s.link.Index, family)
				if err != nil {
					return "", err
				}
				for _, a := range list {
					if a.prefix != ownAddress() {
						foreign = append(foreign, a.prefix)
					}
				}
			}
			return when(len(foreign) > 0, fmt.Sprintf("%s: it has the address of somebody else: %v", s.wire.Link, foreign)), nil
		},
		put: func() error {
			for _, p := range foreign {
				// What a deleted one was the first of went with it (promote_secondaries).
				if err := s.k.host.AddrDel(device(s.link.Index), &netlink.Addr{IPNet: network(p)}); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
					return err
				}
			}
			return nil
		},
		born: true,
	}
}

// addressesOn lists the addresses of one family on one link.
func (k *Kernel) addressesOn(index int, family byte) (list []rawAddress, err error) {
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0] = family
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	res, err := k.conn.dump(message(unix.RTM_GETADDR, 0, head, nil))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, m := range res {
		a, err := parseAddress(m)
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		if a.index == index { // older kernels list all
			list = append(list, a)
		}
	}
	return list, nil
}

// known is the neighbour entry of an address on a link that spares the answer to an ARP
// request or a neighbour solicitation: what the other side is set to (arp_ignore, say) does
// not matter. link is the name in messages. It goes by the socket whose echo Watch knows.
func (c *conn) known(link string, index int, a netip.Addr, mac net.HardwareAddr) fact {
	return fact{
		differs: func() (string, error) {
			n, err := c.neighbor(index, a)
			what := fmt.Sprintf("neighbour entry of %s", a)
			switch {
			case errors.Is(err, unix.ENOENT) || err == nil && n.state&unix.NUD_PERMANENT == 0:
				return fmt.Sprintf("%s: permanent %s is missing", link, what), nil
			case err != nil:
				return "", fmt.Errorf("%s: %w", what, err)
			case !bytes.Equal(n.mac, mac):
				return unlike(link, what, n.mac.String(), mac.String()), nil
			}
			return "", nil
		},
		put: func() error { return c.setNeighbor(index, a, mac) },
	}
}

// neighborHead is a struct ndmsg.
func neighborHead(index int, a netip.Addr, state uint16) []byte {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = unix.AF_INET
	if a.Is6() {
		head[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	binary.NativeEndian.PutUint16(head[8:], state)
	return head
}

// setNeighbor writes an entry that the kernel neither learns nor forgets.
func (c *conn) setNeighbor(index int, a netip.Addr, mac net.HardwareAddr) error {
	flags := mdlayher.Acknowledge | mdlayher.Create | mdlayher.Replace
	_, err := c.ask(message(unix.RTM_NEWNEIGH, flags, neighborHead(index, a, unix.NUD_PERMANENT), func(ae *mdlayher.AttributeEncoder) {
		ae.Bytes(unix.NDA_DST, a.AsSlice())
		ae.Bytes(unix.NDA_LLADDR, mac)
	}))
	return err
}

// neighbor reads one neighbour entry; ENOENT: there is none.
func (c *conn) neighbor(index int, a netip.Addr) (rawNeighbor, error) {
	res, err := c.ask(message(unix.RTM_GETNEIGH, 0, neighborHead(index, a, 0), func(ae *mdlayher.AttributeEncoder) { ae.Bytes(unix.NDA_DST, a.AsSlice()) }))
	if err != nil {
		return rawNeighbor{}, err
	}
	if len(res) == 0 {
		return rawNeighbor{}, unix.ENOENT
	}
	return parseNeighbor(res[0])
}

// fresh puts on a link that was just made what it was not made with.
func (s *side) fresh() error {
	for _, f := range s.facts() {
		if f.born {
			continue
		}
		if err := f.put(); err != nil {
			return cause(err)
		}
	}
	return nil
}

// differences are all of them.
func differences(list []fact) error {
	var errs []error
	for _, f := range list {
		text, err := f.differs()
		if err == nil && text != "" {
			err = errors.New(text)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Hold makes the host side of a wire again what an attach makes of it, whatever its
// name and group are by now, and returns what differed. A link that is down is set
// up only if raise says so. What cannot be put back is an error, one that wraps
// os.ErrNotExist if there is no such link.
func (k *Kernel) Hold(w Wire, raise bool) (differed []string, err error) {
	s, err := k.sideOf(w)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", w.Link, err)
	}
	list := slices.DeleteFunc(s.facts(), func(f fact) bool { return f.raises && !raise })
	return putBack(w.Link, list)
}

// putBack makes everything again what an attach makes of it, as far as it can be, and
// returns what differed.
func putBack(link string, list []fact) (differed []string, err error) {
	var errs []error
	for _, f := range list {
		text, err := f.differs()
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("hold %s: %w", link, cause(err)))
			continue
		case text == "":
			continue
		}
		if err := f.put(); err != nil {
			errs = append(errs, fmt.Errorf("%s, and cannot be put back: %w", text, cause(err)))
			continue
		}
		differed = append(differed, text)
	}
	return differed, errors.Join(errs...)
}
