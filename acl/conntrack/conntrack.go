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
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// Attributes of ctnetlink (linux/netfilter/nfnetlink_conntrack.h).
const (
	msgGet    = 1 // IPCTNL_MSG_CT_GET
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE
	msgStats  = 5 // IPCTNL_MSG_CT_GET_STATS

	attrTupleOrig  = 1
	attrTupleReply = 2
	attrHelp       = 5
	attrID         = 12
	attrMaster     = 14
	attrZone       = 18
	attrFilter     = 25

	attrStatsEntries = 1 // CTA_STATS_GLOBAL_ENTRIES

	attrTupleIP = 1
	attrV4Src   = 1
	attrV4Dst   = 2
	attrV6Src   = 3
	attrV6Dst   = 4

	attrFilterOrig  = 1
	attrFilterReply = 2
	filterSource    = 1 // CTA_FILTER_F_CTA_IP_SRC
)

// fewAddresses is for how many IPv4 addresses the kernel goes through its table by
// itself, which does not look at what is empty (0.3 ms of 262,144 buckets); for more all
// entries are listed once (9 ms).
const fewAddresses = 16

// readBuffer in bytes, forced: a dump must not overrun.
const readBuffer = 8 << 20

// Delete deletes every entry from or to one of the addresses in the current
// network namespace: those that the address began, and those that it answers,
// also by another destination (DNAT). That there is none is no error.
func Delete(addrs ...netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	c, err := Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Delete(addrs...)
}

// Delete is the function of that name, in the namespace of c. After an error c is of no
// use any more, but to be closed.
func (c *Conn) Delete(addrs ...netip.Addr) error {
	var four, six []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap().WithZone(""); a.Is6() {
			six = append(six, a)
		} else {
			four = append(four, a)
		}
	}
	if count, err := c.count(); err == nil && count == 0 {
		return nil // as the kernel itself does
	}
	if len(four) > fewAddresses {
		family := byte(unix.AF_UNSPEC)
		switch {
		case len(six) == 0:
			family = unix.AF_INET
		case len(four) == 0:
			family = unix.AF_INET6
		}
		return c.deleteListed(family, nil, append(four, six...))
	}
	for _, a := range four {
		if err := c.delete4(a); err != nil {
			return fmt.Errorf("delete conntrack entries of %s: %w", a, err)
		}
	}
	if len(six) > 0 {
		return c.deleteListed(unix.AF_INET6, nil, six)
	}
	return nil
}

// Addresses are those that Delete would find entries of in the current network
// namespace, in no order.
func Addresses() ([]netip.Addr, error) {
	addrs := map[netip.Addr]bool{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if err := list(family, nil, func(e *entry) error {
			addrs[e.orig.src], addrs[e.reply.src] = true, true
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return slices.Collect(maps.Keys(addrs)), nil
}

// count is how many entries there are.
func (c *Conn) count() (n uint32, err error) {
	data, err := c.ask(msgStats, 0, unix.AF_UNSPEC, nil)
	if err != nil || len(data) < 4 {
		return 0, errors.Join(err, errMalformed)
	}
	kind, value, _, ok := netdev.Attribute(data[4:])
	if !ok || kind != attrStatsEntries || len(value) != 4 {
		return 0, errMalformed
	}
	return binary.BigEndian.Uint32(value), nil
}

// ask sends a message that has one answer, and returns it.
func (c *Conn) ask(msg, flags uint16, family byte, attributes []byte) ([]byte, error) {
	b := append(appendHead(nil, msg, flags, 1, family), attributes...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	if err := c.deleter.send(b); err != nil {
		return nil, err
	}
	answers, err := c.deleter.receive()
	if err != nil {
		return nil, err
	}
	for h, data := range answers {
		if h.Type == unix.NLMSG_ERROR {
			return nil, errorOf(data)
		}
		return data, nil
	}
	return nil, errMalformed
}

func (c *Conn) delete4(a netip.Addr) error {
	for _, tuple := range []uint16{attrTupleOrig, attrTupleReply} {
		body, err := filter(a, tuple)
		if err != nil {
			return err
		}
		err = c.deleteFiltered(body)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
			err = c.deleteListed(unix.AF_INET, body, []netip.Addr{a})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteFiltered lets the kernel delete the IPv4 entries that pass the filter. An
// older kernel refuses it with EINVAL: it takes the tuple for a whole one.
func (c *Conn) deleteFiltered(filter []byte) error {
	_, err := c.ask(msgDelete, unix.NLM_F_ACK, unix.AF_INET, filter)
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

// deleteListed lists the entries of a family, or with AF_UNSPEC of both, and deletes those
// of the addresses. The kernel filters the list if there is a filter and it can (IPv4,
// Linux 5.8 and later).
func (c *Conn) deleteListed(family byte, filter []byte, list []netip.Addr) error {
	addrs := map[netip.Addr]bool{}
	for _, a := range list {
		addrs[a] = true
	}
	err := c.deleteWhere(family, filter, func(e *entry) bool { return addrs[e.orig.src] || addrs[e.reply.src] })
	if err != nil {
		return fmt.Errorf("delete conntrack entries of %d addresses: %w", len(addrs), err)
	}
	return nil
}

// deleteWhere lists the entries of a family, or with AF_UNSPEC of both, and deletes those
// that is says yes to.
func (c *Conn) deleteWhere(family byte, filter []byte, is func(*entry) bool) error {
	d := &deleter{socket: c.deleter}
	err := c.lister.list(family, filter, func(e *entry) error {
		if !is(e) {
			return nil
		}
		return d.add(e)
	})
	return errors.Join(err, d.flush())
}

// entry is what is needed of a listed entry.
type entry struct {
	orig, reply tuple
	status      uint32
	helped      bool // others may come of it
	// The attributes that name the entry, and the flow that it came of, as the kernel sent
	// them; nil: it has none.
	origRaw, idRaw, zoneRaw, masterRaw []byte
}

// tuple is one direction of a flow.
type tuple struct {
	src, dst         netip.Addr
	protocol         uint8
	srcPort, dstPort uint16 // of tcp, udp, sctp
	kind, code       uint8  // of icmp, icmpv6
}

var errMalformed = errors.New("conntrack message: malformed")

// kept is the entry with copies of what it has of the list that it was in.
func (e *entry) kept() entry {
	k := *e
	all := make([]byte, 0, len(k.origRaw)+len(k.idRaw)+len(k.zoneRaw)+len(k.masterRaw))
	for _, part := range []*[]byte{&k.origRaw, &k.idRaw, &k.zoneRaw, &k.masterRaw} {
		if *part != nil {
			all = append(all, *part...)
			*part = all[len(all)-len(*part):]
		}
	}
	return k
}

// parse reads one message of a dump, after the netlink header; it keeps parts of b.
func parse(b []byte) (e entry, err error) {
	if len(b) < 4 {
		return e, errMalformed
	}
	for list := b[4:]; len(list) > 0; {
		kind, value, rest, ok := netdev.Attribute(list)
		if !ok {
			return e, errMalformed
		}
		switch list = rest; {
		case kind == attrTupleOrig:
			e.origRaw = value
			ok = e.orig.read(value)
		case kind == attrTupleReply:
			ok = e.reply.read(value)
		case kind == attrStatus && len(value) == 4:
			e.status = binary.BigEndian.Uint32(value)
		case kind == attrHelp:
			e.helped = true
		case kind == attrID:
			e.idRaw = value
		case kind == attrZone:
			e.zoneRaw = value
		case kind == attrMaster:
			e.masterRaw = value
		}
		if !ok {
			return e, errMalformed
		}
	}
	return e, nil
}

// read reads a tuple's attributes, and those nested in them.
func (t *tuple) read(list []byte) bool {
	for len(list) > 0 {
		outer, value, rest, ok := netdev.Attribute(list)
		if !ok {
			return false
		}
		for list = rest; len(value) > 0 && (outer == attrTupleIP || outer == attrTupleProto); {
			var kind uint16
			var v []byte
			if kind, v, value, ok = netdev.Attribute(value); !ok {
				return false
			}
			if outer == attrTupleIP {
				t.readAddress(kind, v)
			} else {
				t.readProtocol(kind, v)
			}
		}
	}
	return true
}

func (t *tuple) readAddress(kind uint16, v []byte) {
	switch kind {
	case attrV4Src, attrV6Src:
		t.src, _ = netip.AddrFromSlice(v)
	case attrV4Dst, attrV6Dst:
		t.dst, _ = netip.AddrFromSlice(v)
	}
}

func (t *tuple) readProtocol(kind uint16, v []byte) {
	switch {
	case kind == protoNumber && len(v) == 1:
		t.protocol = v[0]
	case kind == protoSrcPort && len(v) == 2:
		t.srcPort = binary.BigEndian.Uint16(v)
	case kind == protoDstPort && len(v) == 2:
		t.dstPort = binary.BigEndian.Uint16(v)
	case (kind == protoICMPType || kind == protoICMPv6Type) && len(v) == 1:
		t.kind = v[0]
	case (kind == protoICMPCode || kind == protoICMPv6Code) && len(v) == 1:
		t.code = v[0]
	}
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
