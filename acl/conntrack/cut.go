package conntrack

import (
	"errors"
	"net/netip"
	"slices"

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
	// Scope is whose flows are looked at.
	Scope acl.Scope
	// Group is the device group of the links of endpoints.
	Group uint32
	// Host are the addresses of the host itself.
	Host []netip.Addr
	// Now, if set, is asked before flows are cut: it returns the rules and addresses of the
	// host by which a flow may have begun meanwhile, nil if they are still the same, or an
	// error where nobody can say, which ends the cut.
	Now func() (*acl.Ruleset, []netip.Addr, error)
	// Answers, if set, is told what answers there may be in flows that are about to be cut,
	// before they are.
	Answers func([]acl.Flow) error
	// IsCut, if set, says which packets are answers in flows that were cut.
	IsCut func(acl.Flow) bool
}

// cutAtOnce is how many flows are cut together, while the rest is still looked at.
const cutAtOnce = 4096

// Cut deletes every entry in Scope from or to an endpoint of this host whose flow, if it
// began now, would be denied, or that began with the answer in one that was cut; expected
// ones go with their masters. It returns how many went. After an error by is of no use any
// more, but to be closed.
func (c Cutter) Cut(by *Conn) (cut int, err error) {
	if c.Scope.Empty() || !c.Rules.Endpoints() {
		return 0, nil
	}
	p := &pass{Cutter: c, deleter: &deleter{socket: by.deleter}, masters: map[string]struct{}{}}
	p.judgeBy(c.Rules)
	for _, w := range walks(c.Scope) {
		if err = by.lister.list(w.family, w.filter, p.look); err != nil {
			break
		}
	}
	return p.end(err)
}

// walk is one walk of the kernel's through its table.
type walk struct {
	family byte
	filter []byte
}

// walks are those that find the flows of a scope: of few IPv4 addresses alone what the
// kernel finds by itself.
func walks(s acl.Scope) []walk {
	whole := []walk{{unix.AF_UNSPEC, nil}}
	if s.All || len(s.Addrs) > fewAddresses {
		return whole
	}
	var list []walk
	six := false
	for a := range s.Addrs {
		if a.Is6() {
			six = true
			continue
		}
		for _, tuple := range []uint16{attrTupleOrig, attrTupleReply} {
			f, err := filter(a, tuple)
			if err != nil {
				return whole
			}
			list = append(list, walk{unix.AF_INET, f})
		}
	}
	if six {
		list = append(list, walk{unix.AF_INET6, nil})
	}
	return list
}

// pass is one Cut.
type pass struct {
	Cutter
	deleter *deleter
	judge   *acl.Judge
	links   map[netip.Addr]string // of endpoints of this host
	nets    []acl.Element         // behind them
	denied  []entry               // to be cut next
	// masters are the keys of what was cut of which others may have come, expected what came
	// of some flow.
	masters  map[string]struct{}
	expected []entry
}

// judgeBy makes r the rules.
func (p *pass) judgeBy(r *acl.Ruleset) {
	p.judge, p.links, p.nets = r.Judge(), map[netip.Addr]string{}, nil
	for _, s := range r.Sets {
		if s.Type.Ranges() {
			p.nets = append(p.nets, s.Sorted()...)
		}
		if s.Type != acl.LinkAddr4 && s.Type != acl.LinkAddr6 {
			continue
		}
		for e := range s.Elements {
			p.links[e.Prefix.Addr()] = e.Link
		}
	}
}

// link is that of the endpoint of this host whose address it is, or which it is behind; "": none.
func (p *pass) link(a netip.Addr) string {
	if link, is := p.links[a]; is || len(p.nets) == 0 {
		return link
	}
	for _, n := range p.nets {
		if n.Prefix.Contains(a) {
			return n.Link
		}
	}
	return ""
}

// look takes one entry of a list.
func (p *pass) look(e *entry) error {
	switch {
	case !p.meant(e):
	case e.status&statusExpected != 0:
		p.expected = append(p.expected, e.kept())
	case p.denies(e):
		if p.denied = append(p.denied, e.kept()); len(p.denied) == cutAtOnce {
			return p.work()
		}
	}
	return nil
}

// meant says whether an entry is in the scope.
func (p *pass) meant(e *entry) bool {
	if p.Scope.All {
		return true
	}
	_, from := p.Scope.Addrs[e.orig.src]
	_, to := p.Scope.Addrs[e.reply.src]
	return from || to
}

func (p *pass) denies(e *entry) bool {
	if p.IsCut != nil && p.IsCut(e.orig.flow()) {
		return true // what is denied are its answers
	}
	packet, ok := p.packet(e)
	return ok && !p.judge.Eval(packet).Allowed
}

// work cuts what is denied, also by the rules of now.
func (p *pass) work() error {
	if len(p.denied) == 0 {
		return nil
	}
	if p.Now != nil {
		now, host, err := p.Now()
		if err != nil {
			return err
		}
		if now != nil {
			p.Host = host
			p.judgeBy(now)
			p.denied = slices.DeleteFunc(p.denied, func(e entry) bool { return !p.denies(&e) })
		}
	}
	var answers []acl.Flow
	for i := range p.denied {
		if e := &p.denied[i]; p.IsCut == nil || !p.IsCut(e.orig.flow()) {
			answers = append(answers, e.reply.flow())
		}
	}
	for i := range p.denied {
		if p.denied[i].helped {
			p.masters[string(p.denied[i].origRaw)] = struct{}{}
		}
	}
	err := p.delete(p.denied, answers)
	clear(p.denied)
	p.denied = p.denied[:0]
	return err
}

// delete deletes entries, after their answers are told.
func (p *pass) delete(entries []entry, answers []acl.Flow) (err error) {
	if p.Answers != nil && len(answers) > 0 {
		err = p.Answers(answers)
	}
	for i := range entries {
		if failed := p.deleter.add(&entries[i]); failed != nil {
			err = errors.Join(err, failed)
		}
	}
	return errors.Join(err, p.deleter.flush())
}

// end cuts the rest, and what came of flows that were cut.
func (p *pass) end(err error) (cut int, _ error) {
	if err == nil {
		err = p.work()
	}
	var answers []acl.Flow
	p.expected = slices.DeleteFunc(p.expected, func(e entry) bool { _, is := p.masters[string(e.masterRaw)]; return !is })
	for _, e := range p.expected {
		answers = append(answers, e.reply.flow())
	}
	err = errors.Join(err, p.delete(p.expected, answers))
	return p.deleter.deleted, err
}

// flow is what is sent in the tuple's direction.
func (t tuple) flow() acl.Flow {
	return acl.Flow{Src: t.src, Dst: t.dst, Protocol: t.protocol, SrcPort: t.srcPort, DstPort: t.dstPort}
}

// packet is the first of an entry's flow, as the packet filter saw it: behind DNAT,
// before SNAT. false: policy says nothing of it.
func (p *pass) packet(e *entry) (acl.Packet, bool) {
	out := acl.Packet{
		Src: e.orig.src, Dst: e.reply.src, Protocol: e.orig.protocol, SrcPort: e.orig.srcPort, DstPort: e.reply.srcPort,
		Type: e.orig.kind, Code: e.orig.code, State: acl.New, InLink: p.link(e.orig.src), OutLink: p.link(e.reply.src),
	}
	if out.InLink == "" && out.OutLink == "" {
		return out, false
	}
	if out.InLink != "" {
		out.InGroup = p.Group
	} else if out.InLink = acl.Uplink; p.host(out.Src) {
		return out, false // the host reaches its own endpoints
	}
	if out.OutLink != "" {
		out.OutGroup = p.Group
	} else if !p.host(out.Dst) {
		out.OutLink = acl.Uplink
	}
	return out, true
}

// host says whether an address that is no endpoint's is the host's: also those that are
// never forwarded, which are not in the list.
func (c Cutter) host(a netip.Addr) bool {
	return slices.Contains(c.Host, a) || a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast()
}

// Would counts the flows that Cut would cut, and that the rules of now do not deny. It
// changes nothing.
func (c Cutter) Would(by *Conn, now *acl.Ruleset) (n int, err error) {
	if !c.Rules.Endpoints() {
		return 0, nil
	}
	then, was := &pass{Cutter: c}, &pass{Cutter: c}
	then.judgeBy(c.Rules)
	was.judgeBy(now)
	for _, w := range walks(c.Scope) {
		if err := by.lister.list(w.family, w.filter, func(e *entry) error {
			if then.meant(e) && e.status&statusExpected == 0 && then.denies(e) && !was.denies(e) {
				n++
			}
			return nil
		}); err != nil {
			return n, err
		}
	}
	return n, nil
}
