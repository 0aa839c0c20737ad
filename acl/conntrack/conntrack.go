// Package conntrack deletes connection tracking entries over ctnetlink.
//
// It never adds or changes one, and runs no binary. IPv4 entries the kernel
// finds and deletes itself where it can (verified on Linux 6.18), else they are
// listed; IPv6 entries are always listed, once for all addresses: the kernel's
// filter compares IPv6 addresses the wrong way round and would delete all but the
// meant ones. Beside the walk through its table that costs a lock per bucket: some
// ten milliseconds on a large machine.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	msgGet    = 1 // IPCTNL_MSG_CT_GET
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE

	attrTupleOrig  = 1
	attrTupleReply = 2
	attrID         = 12
	attrZone       = 18
	attrFilter     = 25

	attrTupleIP = 1
	attrV4Src   = 1
	attrV6Src   = 3

	attrFilterOrig  = 1
	attrFilterReply = 2
	filterSource    = 1 // CTA_FILTER_F_CTA_IP_SRC
)

// fewAddresses is for how many IPv4 addresses the kernel goes through its table by
// itself; for more all entries are listed once.
const fewAddresses = 4

// readBuffer in bytes, forced: a dump must not overrun.
const readBuffer = 8 << 20

// Delete deletes every entry from or to one of the addresses in the current
// network namespace: those that the address began, and those that it answers,
// also by another destination (DNAT). That there is none is no error.
func Delete(addrs ...netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open conntrack socket: %w", err)
	}
	defer c.Close()
	_ = c.SetReadBuffer(readBuffer)
	var errs []error
	var four, six []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); a.Is6() {
			six = append(six, a)
		} else {
			four = append(four, a)
		}
	}
	if len(four) <= fewAddresses {
		for _, a := range four {
			if err := delete4(c, a); err != nil {
				errs = append(errs, fmt.Errorf("delete conntrack entries of %s: %w", a, err))
			}
		}
		four = nil
	}
	for family, list := range map[byte][]netip.Addr{unix.AF_INET: four, unix.AF_INET6: six} {
		if len(list) == 0 {
			continue
		}
		if err := deleteDumped(c, family, nil, list); err != nil {
			errs = append(errs, fmt.Errorf("delete conntrack entries of %d addresses: %w", len(list), err))
		}
	}
	return errors.Join(errs...)
}

func delete4(c *netlink.Conn, a netip.Addr) error {
	for _, tuple := range []uint16{attrTupleOrig, attrTupleReply} {
		body, err := filter(a, tuple)
		if err != nil {
			return err
		}
		err = deleteFiltered(c, body)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			err = deleteDumped(c, unix.AF_INET, body, []netip.Addr{a})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteFiltered lets the kernel delete the IPv4 entries that pass the filter. An
// older kernel refuses it with EINVAL: it takes the tuple for a whole one.
func deleteFiltered(c *netlink.Conn, filter []byte) error {
	_, err := c.Execute(message(msgDelete, netlink.Acknowledge, unix.AF_INET, filter))
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// filter is the tuple's source and the filter that says to compare only that.
func filter(a netip.Addr, tuple uint16) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(tuple, func(ae *netlink.AttributeEncoder) error {
		ae.Nested(attrTupleIP, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(attrV4Src, a.AsSlice())
			return nil
		})
		return nil
	})
	flags := map[uint16]uint32{attrFilterOrig: 0, attrFilterReply: 0}
	flags[attrFilterOrig+tuple-attrTupleOrig] = filterSource
	ae.Nested(attrFilter, func(ae *netlink.AttributeEncoder) error {
		ae.Uint32(attrFilterOrig, flags[attrFilterOrig])
		ae.Uint32(attrFilterReply, flags[attrFilterReply])
		return nil
	})
	return ae.Encode()
}

func message(msg uint16, flags netlink.HeaderFlags, family byte, body []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | msg),
			Flags: netlink.Request | flags,
		},
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body...),
	}
}

// deleteDumped lists the entries of a family and deletes those of the addresses
// one by one. The kernel filters the list if there is a filter and it can (IPv4,
// Linux 5.8 and later).
func deleteDumped(c *netlink.Conn, family byte, filter []byte, list []netip.Addr) error {
	addrs := map[netip.Addr]bool{}
	for _, a := range list {
		addrs[a] = true
	}
	entries, err := c.Execute(message(msgGet, netlink.Dump, family, filter))
	if err != nil {
		return err
	}
	for _, m := range entries {
		e, err := parse(m.Data)
		if err != nil {
			return err
		}
		if !addrs[e.orig.src] && !addrs[e.reply.src] {
			continue
		}
		_, err = c.Execute(message(msgDelete, netlink.Acknowledge, family, e.key))
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// entry is what is needed of a listed entry.
type entry struct {
	orig, reply tuple
	status      uint32
	key         []byte // the attributes that name the entry
}

// tuple is one direction of a flow.
type tuple struct {
	src              netip.Addr
	protocol         uint8
	srcPort, dstPort uint16 // of tcp, udp, sctp
	kind, code       uint8  // of icmp, icmpv6
}

// parse reads one message of a dump, after the netlink header.
func parse(b []byte) (entry, error) {
	var e entry
	if len(b) < 4 {
		return e, fmt.Errorf("conntrack message of %d bytes", len(b))
	}
	ad, err := netlink.NewAttributeDecoder(b[4:])
	if err != nil {
		return e, err
	}
	ad.ByteOrder = binary.BigEndian
	var key []netlink.Attribute
	for ad.Next() {
		switch ad.Type() {
		case attrTupleOrig:
			key = append(key, netlink.Attribute{Type: attrTupleOrig | unix.NLA_F_NESTED, Data: ad.Bytes()})
			ad.Nested(e.orig.read)
		case attrTupleReply:
			ad.Nested(e.reply.read)
		case attrStatus:
			e.status = ad.Uint32()
		case attrID, attrZone:
			key = append(key, netlink.Attribute{Type: ad.Type(), Data: ad.Bytes()})
		}
	}
	if err := ad.Err(); err != nil {
		return e, err
	}
	e.key, err = netlink.MarshalAttributes(key)
	return e, err
}

func (t *tuple) read(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case attrTupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if k := ad.Type(); k == attrV4Src || k == attrV6Src {
						t.src, _ = netip.AddrFromSlice(ad.Bytes())
					}
				}
				return nil
			})
		case attrTupleProto:
			ad.Nested(t.readProtocol)
		}
	}
	return nil
}

func (t *tuple) readProtocol(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case protoNumber:
			t.protocol = ad.Uint8()
		case protoSrcPort:
			t.srcPort = ad.Uint16()
		case protoDstPort:
			t.dstPort = ad.Uint16()
		case protoICMPType, protoICMPv6Type:
			t.kind = ad.Uint8()
		case protoICMPCode, protoICMPv6Code:
			t.code = ad.Uint8()
		}
	}
	return nil
}

// Use is how many entries the tracking table of the process's network namespace has,
// and how many it may have. Without connection tracking in the kernel the error
// wraps fs.ErrNotExist.
func Use() (count, most int, err error) {
	for name, to := range map[string]*int{"count": &count, "max": &most} {
		text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_" + name)
		if err != nil {
			return 0, 0, fmt.Errorf("read the size of the connection tracking table: %w", err)
		}
		if *to, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return 0, 0, fmt.Errorf("read the size of the connection tracking table: %w", err)
		}
	}
	return count, most, nil
}
