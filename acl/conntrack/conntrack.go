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
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
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
	var six []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); a.Is6() {
			six = append(six, a)
		} else if err := delete4(c, a); err != nil {
			errs = append(errs, fmt.Errorf("delete conntrack entries of %s: %w", a, err))
		}
	}
	if len(six) > 0 {
		if err := deleteDumped(c, unix.AF_INET6, nil, six); err != nil {
			errs = append(errs, fmt.Errorf("delete conntrack entries of %s: %w", six, err))
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
func deleteDumped(c *netlink.Conn, family byte, filter []byte, addrs []netip.Addr) error {
	entries, err := c.Execute(message(msgGet, netlink.Dump, family, filter))
	if err != nil {
		return err
	}
	for _, m := range entries {
		e, err := parse(m.Data)
		if err != nil {
			return err
		}
		if !slices.Contains(addrs, e.orig) && !slices.Contains(addrs, e.reply) {
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
	orig, reply netip.Addr // sources
	key         []byte     // the attributes that name the entry
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
	var key []netlink.Attribute
	for ad.Next() {
		switch ad.Type() {
		case attrTupleOrig:
			key = append(key, netlink.Attribute{Type: attrTupleOrig | unix.NLA_F_NESTED, Data: ad.Bytes()})
			ad.Nested(func(ad *netlink.AttributeDecoder) error { return readSource(ad, &e.orig) })
		case attrTupleReply:
			ad.Nested(func(ad *netlink.AttributeDecoder) error { return readSource(ad, &e.reply) })
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

func readSource(ad *netlink.AttributeDecoder, to *netip.Addr) error {
	for ad.Next() {
		if ad.Type() != attrTupleIP {
			continue
		}
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				if t := ad.Type(); t == attrV4Src || t == attrV6Src {
					*to, _ = netip.AddrFromSlice(ad.Bytes())
				}
			}
			return nil
		})
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
