package iptables

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// maxMembers is the most members of a set; the kernel takes memory for those that there are.
const maxMembers = 1 << 20

// ipset is a set as the kernel has it.
type ipset struct {
	kind   string // ipset(8), SET TYPES
	family uint8
	// kept says that members come and go by themselves, each with a time to live: which there
	// are is not the Ruleset's to say.
	kept    bool
	members map[member]struct{}
}

// member is one of a set; which fields it has is the kind's to say.
type member struct {
	prefix      netip.Prefix
	proto       uint8
	first, last uint16 // ports
	link        string
}

// cutSet is one of the two sets that a set of flows is: no kind of set has both ports.
type cutSet struct{ name, flags string }

func cutSets(name string) []cutSet {
	return []cutSet{{name + "_s", "src,src,dst"}, {name + "_d", "src,dst,dst"}}
}

func unseenProtocols() []uint8 { return slices.Sorted(maps.Keys(acl.Unseen())) }

func unseenSet(protocol uint8, ipv6 bool) string {
	return setName(fmt.Sprintf("unseen_%d_%s", protocol, map[bool]string{false: "4", true: "6"}[ipv6]))
}

// allAddresses are the halves of all there are: no set takes the whole.
func allAddresses(ipv6 bool) []netip.Prefix {
	if ipv6 {
		return []netip.Prefix{netip.MustParsePrefix("::/1"), netip.MustParsePrefix("8000::/1")}
	}
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}
}

// kindOf is the set without members that one of a Ruleset is; nil: it is none.
func kindOf(t acl.SetType) *ipset {
	is := func(kind string, ipv6 acl.SetType) *ipset {
		s := &ipset{kind: kind, family: unix.AF_INET, members: map[member]struct{}{}}
		if t == ipv6 {
			s.family = unix.AF_INET6
		}
		return s
	}
	switch t {
	case acl.Addr4, acl.Addr6:
		return is("hash:ip", acl.Addr6)
	case acl.Net4, acl.Net6:
		return is("hash:net", acl.Net6)
	case acl.Port, acl.PortRanges:
		s := is("bitmap:port", 0)
		s.family = unix.AF_UNSPEC
		return s
	case acl.LinkAddr4, acl.LinkAddr6:
		return is("hash:net,iface", acl.LinkAddr6)
	case acl.LinkNet4, acl.LinkNet6:
		return is("hash:net,iface", acl.LinkNet6)
	case acl.NamedPort4, acl.NamedPort6:
		return is("hash:ip,port", acl.NamedPort6)
	case acl.LinkAddrMeter4, acl.LinkAddrMeter6:
		s := is("hash:ip", acl.LinkAddrMeter6)
		s.kept = true
		return s
	case acl.CutFlows4, acl.CutFlows6:
		s := is("hash:ip,port,ip", acl.CutFlows6)
		s.kept = true
		return s
	}
	return nil
}

// membersOf are an element of a set; a prefix of all addresses is two.
func membersOf(t acl.SetType, e acl.Element) []member {
	switch t {
	case acl.Net4, acl.Net6:
		if e.Prefix.Bits() > 0 {
			return []member{{prefix: e.Prefix.Masked()}}
		}
		var list []member
		for _, p := range allAddresses(e.Prefix.Addr().Is6()) {
			list = append(list, member{prefix: p})
		}
		return list
	case acl.Port, acl.PortRanges:
		return []member{{first: e.First, last: e.Last}}
	case acl.NamedPort4, acl.NamedPort6:
		return []member{{prefix: e.Prefix, proto: e.Proto, first: e.First, last: e.First}}
	}
	return []member{{prefix: e.Prefix, link: e.Link}}
}

// ipsets are the sets that a Ruleset needs, by their names in the kernel.
func ipsets(r *acl.Ruleset) map[string]*ipset {
	out := map[string]*ipset{}
	for name, s := range r.Sets {
		k := kindOf(s.Type)
		switch {
		case k == nil, strings.HasPrefix(name, acl.ARPPrefix):
		case k.kind == "hash:ip,port,ip":
			for _, c := range cutSets(name) {
				out[setName(c.name)] = k
			}
		default:
			if k.members = membersIn(s.Type, maps.Keys(s.Elements)); k.kind == "bitmap:port" {
				k.members = joined(k.members)
			}
			out[setName(name)] = k
		}
	}
	if r.Sets[acl.SetUnseen] != nil {
		for _, p := range unseenProtocols() {
			out[unseenSet(p, false)] = &ipset{kind: "hash:net", family: unix.AF_INET, kept: true}
			out[unseenSet(p, true)] = &ipset{kind: "hash:net", family: unix.AF_INET6, kept: true}
		}
	}
	return out
}

func createIPSet(name string, s *ipset) error {
	o := netlink.IpsetCreateOptions{Replace: true, Family: s.family, MaxElements: maxMembers}
	if s.kept {
		timeout := uint32(1)
		o.Timeout, o.MaxElements = &timeout, 65536
	}
	switch s.kind {
	case "bitmap:port":
		o.Family, o.MaxElements, o.PortTo = 0, 0, 65535
	case "hash:net,iface", "hash:net":
		o.Revision = 1 // the first that takes interfaces and prefixes of all kinds
	}
	if err := netlink.IpsetCreate(name, s.kind, o); err != nil {
		return fmt.Errorf("create ipset %s %s: %w", name, s.kind, err)
	}
	return nil
}

// entry is what is added to a set, or deleted.
type entry struct {
	member
	second  netip.Addr // of hash:ip,port,ip
	timeout time.Duration
}

// changeIPSet adds members to a set, or deletes them; what is so already is no error.
func changeIPSet(command int, name string, list []entry) error {
	const most = 400 // what a message holds of them is at most 64 KiB
	for chunk := range slices.Chunk(list, most) {
		req := nl.NewNetlinkRequest(command|unix.NFNL_SUBSYS_IPSET<<8, unix.NLM_F_ACK)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_INET, Version: nl.NFNETLINK_V0})
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_PROTOCOL, nl.Uint8Attr(nl.IPSET_PROTOCOL)))
		req.AddData(nl.NewRtAttr(nl.IPSET_ATTR_SETNAME, nl.ZeroTerminated(name)))
		req.AddData(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_LINENO | nl.NLA_F_NET_BYTEORDER, Value: 1})
		all := nl.NewRtAttr(nl.IPSET_ATTR_ADT|int(nl.NLA_F_NESTED), nil)
		for i := range chunk {
			all.AddChild(chunk[i].attribute())
		}
		req.AddData(all)
		if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
			return fmt.Errorf("change ipset %s: %w", name, readableError(err))
		}
	}
	return nil
}

func readableError(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && int(errno) >= nl.IPSET_ERR_PRIVATE {
		return nl.IPSetError(errno)
	}
	return err
}

func addressAttribute(kind int, a netip.Addr) *nl.RtAttr {
	typ := nl.IPSET_ATTR_IPADDR_IPV4
	if a.Is6() {
		typ = nl.IPSET_ATTR_IPADDR_IPV6
	}
	out := nl.NewRtAttr(kind|int(nl.NLA_F_NESTED), nil)
	out.AddChild(nl.NewRtAttr(typ|int(nl.NLA_F_NET_BYTEORDER), a.AsSlice()))
	return out
}

func (e *entry) attribute() *nl.RtAttr {
	data := nl.NewRtAttr(nl.IPSET_ATTR_DATA|int(nl.NLA_F_NESTED), nil)
	if e.timeout > 0 {
		data.AddChild(&nl.Uint32Attribute{Type: nl.IPSET_ATTR_TIMEOUT | nl.NLA_F_NET_BYTEORDER, Value: uint32(e.timeout / time.Second)})
	}
	if e.prefix.IsValid() {
		data.AddChild(addressAttribute(nl.IPSET_ATTR_IP, e.prefix.Addr()))
		if !e.prefix.IsSingleIP() {
			data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_CIDR, nl.Uint8Attr(uint8(e.prefix.Bits()))))
		}
	}
	if e.first != 0 || e.last != 0 || !e.prefix.IsValid() || e.proto != 0 {
		port := func(kind int, n uint16) *nl.RtAttr {
			return nl.NewRtAttr(kind|int(nl.NLA_F_NET_BYTEORDER), binary.BigEndian.AppendUint16(nil, n))
		}
		data.AddChild(port(nl.IPSET_ATTR_PORT, e.first))
		if e.last != e.first {
			data.AddChild(port(nl.IPSET_ATTR_PORT_TO, e.last))
		}
		if e.prefix.IsValid() {
			data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_PROTO, nl.Uint8Attr(e.proto)))
		}
	}
	if e.second.IsValid() {
		data.AddChild(addressAttribute(nl.IPSET_ATTR_IP2, e.second))
	}
	if e.link != "" {
		data.AddChild(nl.NewRtAttr(nl.IPSET_ATTR_IFACE, nl.ZeroTerminated(e.link)))
	}
	return data
}

// entries are members in an order, ports that follow each other as one.
func entries(members []member) (list []entry) {
	slices.SortFunc(members, func(a, b member) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()),
			cmp.Compare(a.proto, b.proto), cmp.Compare(a.first, b.first), cmp.Compare(a.link, b.link))
	})
	for _, m := range members {
		if n := len(list); n > 0 && !m.prefix.IsValid() && list[n-1].last != 0xffff && list[n-1].last+1 == m.first {
			list[n-1].last = m.last
			continue
		}
		list = append(list, entry{member: m})
	}
	return list
}

// setChange is what makes a set what it should be.
type setChange struct {
	name     string
	create   *ipset // nil: it is there
	add, del []entry
	destroy  bool
}

// setChanges are those that make the sets in the kernel the wanted ones.
func setChanges(want, have map[string]*ipset) (list []setChange) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, h := want[name], have[name]
		c := setChange{name: name}
		if h == nil {
			c.create = w
			h = &ipset{}
		}
		switch {
		case w.kept:
		case w.kind == "bitmap:port":
			c.add, c.del = portChange(w.members, h.members)
		default:
			c.add, c.del = entries(missing(w.members, h.members)), entries(missing(h.members, w.members))
		}
		if c.create != nil || len(c.add)+len(c.del) > 0 {
			list = append(list, c)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have)) {
		if want[name] == nil {
			list = append(list, setChange{name: name, destroy: true})
		}
	}
	return list
}

// portChange is what makes ranges of ports others.
func portChange(want, have map[member]struct{}) (add, del []entry) {
	if maps.Equal(want, have) {
		return nil, nil
	}
	gone := map[member]struct{}{}
	var wanted, had [1 << 16]bool
	for list, bits := range map[*map[member]struct{}]*[1 << 16]bool{&want: &wanted, &have: &had} {
		for m := range *list {
			for port := int(m.first); port <= int(m.last); port++ {
				bits[port] = true
			}
		}
	}
	for port := range had {
		if had[port] && !wanted[port] {
			gone[member{first: uint16(port), last: uint16(port)}] = struct{}{}
		}
	}
	return entries(slices.Collect(maps.Keys(want))), entries(slices.Collect(maps.Keys(gone)))
}

// missing are the members of a that b has not.
func missing(a, b map[member]struct{}) (list []member) {
	for m := range a {
		if _, is := b[m]; !is {
			list = append(list, m)
		}
	}
	return list
}

// gatesLast are the changes with those of gates behind those of what they are of (acl.Gated).
func gatesLast(list []setChange) []setChange {
	gates := slices.DeleteFunc(slices.Clone(list), func(c setChange) bool { return !c.ofGate() })
	return append(slices.DeleteFunc(slices.Clone(list), setChange.ofGate), gates...)
}

func (c setChange) ofGate() bool { return acl.IsGate(strings.TrimPrefix(c.name, chainPrefix)) }

// prepare makes the sets hold all that they are to hold, and what they held.
func prepare(list []setChange) (refused []acl.Refusal) {
	for _, c := range gatesLast(list) {
		var err error
		if c.create != nil {
			err = createIPSet(c.name, c.create)
		}
		if err == nil && len(c.add) > 0 {
			err = changeIPSet(nl.IPSET_CMD_ADD, c.name, c.add)
		}
		if err != nil {
			refused = append(refused, acl.Refusal{Kind: "set", Name: strings.TrimPrefix(c.name, chainPrefix), Err: err})
		}
	}
	return refused
}

// finish takes away what they are not to hold any more.
func finish(list []setChange) error {
	var errs []error
	for _, c := range slices.Backward(gatesLast(list)) {
		if len(c.del) > 0 {
			errs = append(errs, changeIPSet(nl.IPSET_CMD_DEL, c.name, c.del))
		}
		if c.destroy {
			if err := destroyIPSet(c.name); err != nil {
				errs = append(errs, fmt.Errorf("destroy ipset %s: %w", c.name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// destroyIPSet waits for the kernel, which lets go of a set a moment after the last rule with
// it is gone (RCU).
func destroyIPSet(name string) error {
	for try := 0; ; try++ {
		err := netlink.IpsetDestroy(name)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if try == 50 || !busy(err) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func busy(err error) bool {
	var is nl.IPSetError
	return errors.As(err, &is) && int(is) == nl.IPSET_ERR_BUSY
}
