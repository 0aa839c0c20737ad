package conntrack

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// Attributes of a tuple's protocol, and of the status (linux/netfilter/
// nfnetlink_conntrack.h, nf_conntrack_common.h).
const (
	attrTupleProto = 2
	attrStatus     = 3

	protoNumber     = 1
	protoSrcPort    = 2
	protoDstPort    = 3
	protoICMPType   = 5
	protoICMPCode   = 6
	protoICMPv6Type = 8
	protoICMPv6Code = 9

	statusExpected = 1 // IPS_EXPECTED: it came of another flow
)

// Cutter says which flows policy denies now.
type Cutter struct {
	Rules *acl.Ruleset
	// Group is the device group of the links of endpoints.
	Group uint32
	// Host are the addresses of the host itself.
	Host []netip.Addr
	// Answers, if set, is told what answers there may be in flows that are about to be cut,
	// before they are.
	Answers func([]acl.Flow) error
	// IsCut, if set, says which packets are answers in flows that were cut.
	IsCut func(acl.Flow) bool
}

// uplink stands for every link that is not an endpoint's.
const uplink = "-"

// Cut deletes every entry from or to an endpoint of this host whose flow, if it began
// now, would be denied, or that began with the answer in one that was cut; expected ones,
// which are judged by their masters, stay. It works in the current network namespace and
// returns how many went.
func (c Cutter) Cut() (cut int, err error) {
	links := map[netip.Addr]string{}
	for _, s := range c.Rules.Sets {
		if s.Type != acl.LinkAddr4 && s.Type != acl.LinkAddr6 {
			continue
		}
		for e := range s.Elements {
			links[e.Prefix.Addr()] = e.Link
		}
	}
	if len(links) == 0 {
		return 0, nil
	}
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("open conntrack socket: %w", err)
	}
	defer conn.Close()
	_ = conn.SetReadBuffer(readBuffer)
	judge := c.Rules.Judge()
	var answers []acl.Flow
	return deleteWhere(conn, unix.AF_UNSPEC, nil, func(e *entry) bool {
		if c.IsCut != nil && c.IsCut(e.orig.flow()) {
			return true // what is denied are its answers
		}
		p, ok := c.packet(e, links)
		if ok = ok && !judge.Eval(p).Allowed; ok {
			answers = append(answers, e.reply.flow())
		}
		return ok
	}, func() error {
		if c.Answers == nil || len(answers) == 0 {
			return nil
		}
		return c.Answers(answers)
	})
}

// flow is what is sent in the tuple's direction.
func (t tuple) flow() acl.Flow {
	return acl.Flow{Src: t.src, Dst: t.dst, Protocol: t.protocol, SrcPort: t.srcPort, DstPort: t.dstPort}
}

// packet is the first of an entry's flow, as the packet filter saw it: behind DNAT,
// before SNAT. false: policy says nothing of it.
func (c Cutter) packet(e *entry, links map[netip.Addr]string) (acl.Packet, bool) {
	p := acl.Packet{
		Src: e.orig.src, Dst: e.reply.src, Protocol: e.orig.protocol, SrcPort: e.orig.srcPort, DstPort: e.reply.srcPort,
		Type: e.orig.kind, Code: e.orig.code, State: acl.New, InLink: links[e.orig.src], OutLink: links[e.reply.src],
	}
	if p.InLink == "" && p.OutLink == "" || e.status&statusExpected != 0 {
		return p, false
	}
	if p.InLink != "" {
		p.InGroup = c.Group
	} else if p.InLink = uplink; c.host(p.Src) {
		return p, false // the host reaches its own endpoints
	}
	if p.OutLink != "" {
		p.OutGroup = c.Group
	} else if !c.host(p.Dst) {
		p.OutLink = uplink
	}
	return p, true
}

// host says whether an address that is no endpoint's is the host's: also those that are
// never forwarded, which are not in the list.
func (c Cutter) host(a netip.Addr) bool {
	return slices.Contains(c.Host, a) || a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast()
}
