package fib

import (
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// The attributes of a next-hop object and of a route that names one, and what struct
// nhmsg and struct nexthop_grp take (include/uapi/linux/nexthop.h, rtnetlink.h).
const (
	rtaNextHopID  = 30
	nhaResilient  = 12 // NHA_RES_GROUP
	nhaBuckets    = 1  // NHA_RES_GROUP_BUCKETS
	typeResilient = 1  // NEXTHOP_GRP_TYPE_RES
	sizeofNhMsg   = 8
	sizeofMember  = 8
)

// objects implements kernel.
func (n *rtnetlink) objects(ctx context.Context) ([]object, error) {
	type found struct {
		object
		link uint32
	}
	var list []found
	err := n.requests.ask(ctx, unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP, make([]byte, sizeofNhMsg), func() { list = nil }, func(b []byte) {
		if o, link, protocol, ok := parseObject(b); ok && protocol == n.protocol && ours(o.id, n.protocol) {
			list = append(list, found{o, link})
		}
	})
	if err != nil {
		return nil, err
	}
	n.names.reset()
	out := make([]object, 0, len(list))
	for _, f := range list {
		f.hop.Link = n.names.name(f.link)
		out = append(out, f.object)
	}
	return out, nil
}

// parseObject reads a message about an object: the link is its next hop's.
func parseObject(b []byte) (o object, link uint32, protocol uint8, ok bool) {
	if len(b) < sizeofNhMsg {
		return o, 0, 0, false
	}
	protocol = b[2]
	o.hop.Onlink = binary.NativeEndian.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	bits := 32
	if b[0] == unix.AF_INET6 {
		bits = 128
	}
	for b = b[sizeofNhMsg:]; len(b) > 0; {
		kind, value, rest, ok := netdev.Attribute(b)
		if !ok {
			return o, 0, 0, false
		}
		switch kind {
		case unix.NHA_ID:
			o.id, ok = number(value)
		case unix.NHA_OIF:
			link, ok = number(value)
		case unix.NHA_GATEWAY:
			o.hop.Addr, ok = address(value, bits)
		case unix.NHA_GROUP_TYPE:
			ok = len(value) == 2
			o.resilient = ok && binary.NativeEndian.Uint16(value) == typeResilient
		case unix.NHA_GROUP:
			for ; ok && len(value) >= sizeofMember; value = value[sizeofMember:] {
				o.members = append(o.members, binary.NativeEndian.Uint32(value))
			}
		}
		if !ok {
			return o, 0, 0, false
		}
		b = rest
	}
	return o, link, protocol, o.id != 0
}

// buckets is among how many parts the flows of a resilient group are divided: each is
// moved to another member once it has rested, or when its own is gone.
const buckets = 128

// resilient implements kernel: only what knows such groups lists their buckets.
func (n *rtnetlink) resilient(ctx context.Context) error {
	return n.requests.ask(ctx, unix.RTM_GETNEXTHOPBUCKET, unix.NLM_F_DUMP, make([]byte, sizeofNhMsg), func() {}, func([]byte) {})
}

// putObject implements kernel.
func (n *rtnetlink) putObject(o object, replace bool) error {
	b := make([]byte, sizeofNhMsg)
	b[2] = n.protocol
	b = appendNumber(b, unix.NHA_ID, o.id)
	if len(o.members) > 0 {
		members := make([]byte, sizeofMember*len(o.members))
		for i, id := range o.members {
			binary.NativeEndian.PutUint32(members[sizeofMember*i:], id)
		}
		b = appendBytes(b, unix.NHA_GROUP, members)
		if o.resilient {
			b = appendBytes(b, unix.NHA_GROUP_TYPE, binary.NativeEndian.AppendUint16(nil, typeResilient))
			b = appendBytes(b, nhaResilient|unix.NLA_F_NESTED, appendBytes(nil, nhaBuckets, binary.NativeEndian.AppendUint16(nil, buckets)))
		}
	} else {
		n.names.reset()
		index, err := n.names.index(o.hop.Link)
		if err != nil {
			return err
		}
		b[0] = family(o.hop.Addr)
		if o.hop.Onlink {
			binary.NativeEndian.PutUint32(b[4:], unix.RTNH_F_ONLINK)
		}
		b = appendAddress(appendNumber(b, unix.NHA_OIF, index), unix.NHA_GATEWAY, o.hop.Addr)
	}
	flags := uint16(unix.NLM_F_CREATE | unix.NLM_F_EXCL)
	if replace {
		flags = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	}
	return n.requests.ask(context.Background(), unix.RTM_NEWNEXTHOP, flags|unix.NLM_F_ACK, b, func() {}, func([]byte) {})
}

// deleteObject implements kernel.
func (n *rtnetlink) deleteObject(id uint32) error {
	b := appendNumber(make([]byte, sizeofNhMsg), unix.NHA_ID, id)
	err := n.requests.ask(context.Background(), unix.RTM_DELNEXTHOP, unix.NLM_F_ACK, b, func() {}, func([]byte) {})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
