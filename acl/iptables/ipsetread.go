package iptables

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dumpIPSets calls fn with what the kernel tells of each set of ours; of many members it
// tells in several parts. flags are those of the command.
func dumpIPSets(flags uint32, fn func(name string, attributes []byte)) error {
	req := nl.NewNetlinkRequest(nl.IPSET_CMD_LIST|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_ACK|unix.NLM_F_DUMP)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
	req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
	req.AddData(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_FLAGS | nl.NLA_F_NET_BYTEORDER, Value: flags})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return fmt.Errorf("read ipsets: %w", readableError(err))
	}
	for _, m := range messages {
		for a := range attributesOf(m[4:]) {
			if a.kind != nl.IPSET_ATTR_SETNAME {
				continue
			}
			if name := nl.BytesToString(a.value); strings.HasPrefix(name, chainPrefix) {
				fn(name, m[4:])
			}
		}
	}
	return nil
}

// attribute is one of a netlink message, with the flags of its kind.
type attribute struct {
	kind  uint16
	value []byte
}

// attributesOf are the attributes in a message, or in another attribute.
func attributesOf(b []byte) iter.Seq[attribute] {
	return func(yield func(attribute) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.NLA_HDRLEN || n > len(b) || !yield(attribute{binary.NativeEndian.Uint16(b[2:]), b[unix.NLA_HDRLEN:n]}) {
				return
			}
			b = b[min(len(b), (n+3)&^3):]
		}
	}
}

// readIPSets are the sets of ours in the kernel.
func readIPSets() (map[string]*ipset, error) {
	out := map[string]*ipset{}
	err := dumpIPSets(0, func(name string, attributes []byte) {
		s := out[name]
		if s == nil {
			s = &ipset{members: map[member]struct{}{}}
			out[name] = s
		}
		for a := range attributesOf(attributes) {
			switch a.kind {
			case nl.IPSET_ATTR_TYPENAME:
				s.kind = nl.BytesToString(a.value)
			case nl.IPSET_ATTR_FAMILY:
				s.family = a.value[0]
			case nl.IPSET_ATTR_DATA | nl.NLA_F_NESTED:
				for d := range attributesOf(a.value) {
					s.kept = s.kept || d.kind == nl.IPSET_ATTR_TIMEOUT|nl.NLA_F_NET_BYTEORDER
				}
			case nl.IPSET_ATTR_ADT | nl.NLA_F_NESTED:
				for d := range attributesOf(a.value) {
					s.members[s.readMember(d.value)] = struct{}{}
				}
			}
		}
	})
	for _, s := range out {
		if s.kind == "bitmap:port" {
			s.members = joined(s.members)
		}
	}
	return out, err
}

// joined are ports as ranges that do not touch.
func joined(ports map[member]struct{}) map[member]struct{} {
	out := map[member]struct{}{}
	for _, e := range entries(slices.Collect(maps.Keys(ports))) {
		out[e.member] = struct{}{}
	}
	return out
}

func (s *ipset) readMember(data []byte) (m member) {
	cidr := 0
	var addr netip.Addr
	for a := range attributesOf(data) {
		switch a.kind {
		case nl.IPSET_ATTR_IP | nl.NLA_F_NESTED:
			for d := range attributesOf(a.value) {
				addr, _ = netip.AddrFromSlice(d.value)
			}
		case nl.IPSET_ATTR_CIDR:
			cidr = int(a.value[0])
		case nl.IPSET_ATTR_PORT | nl.NLA_F_NET_BYTEORDER:
			m.first = binary.BigEndian.Uint16(a.value)
			m.last = m.first
		case nl.IPSET_ATTR_PROTO:
			m.proto = a.value[0]
		case nl.IPSET_ATTR_IFACE:
			m.link = nl.BytesToString(a.value)
		}
	}
	if addr.IsValid() {
		m.prefix = netip.PrefixFrom(addr, cmp.Or(cidr, addr.BitLen()))
	}
	return m
}

// countMembers are how many members each set of ours has, as cheaply as that can be known.
func countMembers() (map[string]uint32, error) {
	const header = 1 << 2 // IPSET_FLAG_LIST_HEADER
	out := map[string]uint32{}
	err := dumpIPSets(header, func(name string, attributes []byte) {
		for a := range attributesOf(attributes) {
			if a.kind != nl.IPSET_ATTR_DATA|nl.NLA_F_NESTED {
				continue
			}
			n, kept := uint32(0), false
			for d := range attributesOf(a.value) {
				switch d.kind {
				case nl.IPSET_ATTR_ELEMENTS | nl.NLA_F_NET_BYTEORDER:
					n = binary.BigEndian.Uint32(d.value)
				case nl.IPSET_ATTR_TIMEOUT | nl.NLA_F_NET_BYTEORDER:
					kept = true
				}
			}
			if kept { // its members come and go
				n = 0
			}
			out[name] = n
		}
	})
	return out, err
}
