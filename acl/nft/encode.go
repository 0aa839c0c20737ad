package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

// encoding is part of each rule's hash; a change of encode.go that alters what
// the kernel gets raises it, and running tables are rewritten once.
const encoding = "1"

// udataHash is the type of our entry in a rule's user data. nft passes over
// types it does not know.
const udataHash userdata.Type = 0x6e

const linkSize = unix.IFNAMSIZ

// The registers nft uses for single values and for the parts of concatenations:
// 1 to 4 are of 16 bytes, 8 to 23 the same space in parts of 4.
const (
	regValue     = 1
	regAfterLink = 2
	regAfter4    = 9
	regAfter8    = 10
	regAfter12   = 11
	regAfter16   = 12
	regAfter20   = 13
	regAfter32   = 16
	regAfter36   = 17
	regAfter40   = 18
)

// tables are those of our objects.
func tables() []*nftables.Table { return []*nftables.Table{tableOf(""), tableOf(acl.ARPPrefix)} }

// tableOf is the table that the object of that name is in.
func tableOf(name string) *nftables.Table {
	t := &nftables.Table{Name: acl.TableName, Family: nftables.TableFamilyINet}
	if strings.HasPrefix(name, acl.ARPPrefix) {
		t.Family = nftables.TableFamilyARP
	}
	return t
}

func ruleHash(r *acl.Rule) [8]byte {
	sum := sha256.Sum256([]byte(encoding + "\x00" + r.String()))
	return [8]byte(sum[:8])
}

func ruleUserData(r *acl.Rule) []byte {
	var out []byte
	if r.Comment != "" {
		out = userdata.AppendString(out, userdata.TypeComment, r.Comment)
	}
	h := ruleHash(r)
	return userdata.Append(out, udataHash, h[:])
}

// encodeRule is a rule that has counted c.
func encodeRule(chain *nftables.Chain, r *acl.Rule, c acl.Count) *nftables.Rule {
	counter := &expr.Counter{Packets: c.Packets, Bytes: c.Bytes}
	out := &nftables.Rule{Table: chain.Table, Chain: chain, UserData: ruleUserData(r)}
	for _, t := range r.Match {
		out.Exprs = append(out.Exprs, encodeTerm(t)...)
	}
	if r.CountsFirst() {
		out.Exprs = append(out.Exprs, counter)
	}
	if r.Limit.Set == "" && r.Limit.Rate > 0 {
		out.Exprs = append(out.Exprs, encodeRate(r.Limit))
	} else if r.Limit != (acl.Limit{}) {
		out.Exprs = append(append(out.Exprs, load(r.Limit.Key)...), encodeLimit(r.Limit))
	}
	if r.Connections != 0 {
		out.Exprs = append(out.Exprs, &expr.Connlimit{Count: r.Connections})
	}
	if r.Log != "" {
		out.Exprs = append(out.Exprs, &expr.Log{
			Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX, Group: acl.LogGroup(r.Log), Data: []byte(r.Log),
		})
	}
	if r.MSS != 0 {
		const maxseg, value = 2, 2 // the option's kind, and where in it its value is (RFC 9293, section 3.2)
		out.Exprs = append(out.Exprs, &expr.Immediate{Register: regValue, Data: binary.BigEndian.AppendUint16(nil, r.MSS)},
			&expr.Exthdr{SourceRegister: regValue, Type: maxseg, Offset: value, Len: 2, Op: expr.ExthdrOpTcpopt})
	}
	if r.Counter && !r.CountsFirst() {
		out.Exprs = append(out.Exprs, counter)
	}
	switch r.Verdict.Kind {
	case acl.Continue:
	case acl.Lookup:
		out.Exprs = append(out.Exprs, load(r.Verdict.Key)...)
		out.Exprs = append(out.Exprs, &expr.Lookup{SourceRegister: regValue, SetName: r.Verdict.Chain, IsDestRegSet: true})
	case acl.Reject:
		out.Exprs = append(out.Exprs, &expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED})
	case acl.Untrack:
		out.Exprs = append(out.Exprs, &expr.Notrack{}, &expr.Verdict{Kind: expr.VerdictAccept})
	case acl.Reset:
		out.Exprs = append(out.Exprs, &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
	case acl.Masquerade:
		out.Exprs = append(out.Exprs, &expr.Masq{})
	case acl.Redirect:
		to := r.Verdict.To
		family := uint32(unix.NFPROTO_IPV4)
		if to.Addr().Is6() {
			family = unix.NFPROTO_IPV6
		}
		out.Exprs = append(out.Exprs,
			&expr.Immediate{Register: regValue, Data: to.Addr().AsSlice()},
			&expr.Immediate{Register: regAfterLink, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: regValue, RegProtoMin: regAfterLink, Specified: true})
	default:
		out.Exprs = append(out.Exprs, encodeVerdict(r.Verdict))
	}
	return out
}

func encodeRate(l acl.Limit) expr.Any {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(l.Rate), Unit: expr.LimitTimeSecond, Burst: l.Burst, Over: l.Over}
}

func encodeLimit(l acl.Limit) expr.Any {
	d := &expr.Dynset{SrcRegKey: regValue, SetName: l.Set, Operation: unix.NFT_DYNSET_OP_UPDATE}
	if l.Rate > 0 {
		d.Exprs = []expr.Any{encodeRate(l)}
	}
	return d
}

func encodeVerdict(v acl.Verdict) *expr.Verdict {
	kinds := map[acl.VerdictKind]expr.VerdictKind{
		acl.Accept: expr.VerdictAccept, acl.Drop: expr.VerdictDrop, acl.Return: expr.VerdictReturn,
		acl.Jump: expr.VerdictJump, acl.Goto: expr.VerdictGoto,
	}
	return &expr.Verdict{Kind: kinds[v.Kind], Chain: v.Chain}
}

func encodeTerm(t acl.Term) []expr.Any {
	out := load(t.Field)
	if t.Set != "" {
		return append(out, &expr.Lookup{SourceRegister: regValue, SetName: t.Set, Invert: t.Not})
	}
	op := expr.CmpOpEq
	if t.Field == acl.CTState || t.Field == acl.CTStatus || t.Field == acl.TCPFlags { // bits: one of them, or with Not none
		bits := termValue(t)
		none := make([]byte, len(bits))
		if !t.Not {
			op = expr.CmpOpNeq
		}
		return append(out, &expr.Bitwise{SourceRegister: regValue, DestRegister: regValue, Len: uint32(len(bits)), Mask: bits, Xor: none},
			&expr.Cmp{Op: op, Register: regValue, Data: none})
	}
	if t.Not {
		op = expr.CmpOpNeq
	}
	value := termValue(t)
	if t.Prefix.IsValid() && !t.Prefix.IsSingleIP() {
		n := uint32(len(value))
		out = append(out, &expr.Bitwise{
			SourceRegister: regValue, DestRegister: regValue, Len: n, Mask: mask(t.Prefix), Xor: make([]byte, n),
		})
	}
	return append(out, &expr.Cmp{Op: op, Register: regValue, Data: value})
}

func mask(p netip.Prefix) []byte {
	out := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		out[i/8] |= 0x80 >> (i % 8)
	}
	return out
}

func termValue(t acl.Term) []byte {
	switch {
	case t.Text != "":
		if n := len(t.Text) - 1; t.Text[n] == '*' {
			return []byte(t.Text[:n])
		}
		return linkName(t.Text)
	case t.Prefix.IsValid():
		return t.Prefix.Masked().Addr().AsSlice()
	}
	switch t.Field {
	case acl.SrcPort, acl.DstPort:
		return binary.BigEndian.AppendUint16(nil, uint16(t.Number))
	case acl.VNI:
		return binary.BigEndian.AppendUint32(nil, t.Number<<8)[:3]
	case acl.InGroup, acl.OutGroup, acl.CTState, acl.CTStatus, acl.DstType, acl.SrcRoute, acl.SrcReturn:
		return binaryutil.NativeEndian.PutUint32(t.Number)
	case acl.InType:
		return binaryutil.NativeEndian.PutUint16(uint16(t.Number))
	}
	return []byte{byte(t.Number)}
}

func linkName(s string) []byte { return append([]byte(s), make([]byte, linkSize-len(s))...) }

func meta(k expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: k, Register: reg} }

func network(offset, n, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}
}

func transport(offset, n, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: n}
}

// load puts the field into the registers from regValue on.
func load(f acl.Field) []expr.Any {
	switch f {
	case acl.NFProto:
		return []expr.Any{meta(expr.MetaKeyNFPROTO, regValue)}
	case acl.L4Proto:
		return []expr.Any{meta(expr.MetaKeyL4PROTO, regValue)}
	case acl.InLink:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue)}
	case acl.OutLink:
		return []expr.Any{meta(expr.MetaKeyOIFNAME, regValue)}
	case acl.InGroup:
		return []expr.Any{meta(expr.MetaKeyIIFGROUP, regValue)}
	case acl.InType:
		return []expr.Any{meta(expr.MetaKeyIIFTYPE, regValue)}
	case acl.OutGroup:
		return []expr.Any{meta(expr.MetaKeyOIFGROUP, regValue)}
	case acl.CTState:
		return []expr.Any{&expr.Ct{Register: regValue, Key: expr.CtKeySTATE}}
	case acl.CTStatus:
		return []expr.Any{&expr.Ct{Register: regValue, Key: expr.CtKeySTATUS}}
	case acl.CTDirection:
		return []expr.Any{&expr.Ct{Register: regValue, Key: expr.CtKeyDIRECTION}}
	case acl.DstType:
		return []expr.Any{&expr.Fib{Register: regValue, ResultADDRTYPE: true, FlagDADDR: true}}
	case acl.VNI: // after the ports, length and checksum, and flags
		return []expr.Any{transport(12, 3, regValue)}
	case acl.SrcRoute:
		return []expr.Any{&expr.Fib{Register: regValue, FlagSADDR: true, ResultOIF: true, FlagPRESENT: true}}
	case acl.SrcReturn:
		return []expr.Any{&expr.Fib{Register: regValue, FlagSADDR: true, FlagIIF: true, ResultOIF: true, FlagPRESENT: true}}
	case acl.SrcLink:
		return []expr.Any{&expr.Fib{Register: regValue, FlagSADDR: true, ResultOIFNAME: true}}
	case acl.SrcPort:
		return []expr.Any{transport(0, 2, regValue)}
	case acl.DstPort:
		return []expr.Any{transport(2, 2, regValue)}
	case acl.ICMPType, acl.ICMP6Type:
		return []expr.Any{transport(0, 1, regValue)}
	case acl.ICMPCode, acl.ICMP6Code:
		return []expr.Any{transport(1, 1, regValue)}
	case acl.TCPFlags:
		return []expr.Any{transport(13, 1, regValue)}
	case acl.SrcIP4:
		return []expr.Any{network(12, 4, regValue)}
	case acl.DstIP4:
		return []expr.Any{network(16, 4, regValue)}
	case acl.SrcIP6:
		return []expr.Any{network(8, 16, regValue)}
	case acl.DstIP6:
		return []expr.Any{network(24, 16, regValue)}
	}
	return loadConcat(f)
}

func loadConcat(f acl.Field) []expr.Any {
	switch f {
	case acl.LinkSrcIP4:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), network(12, 4, regAfterLink)}
	case acl.LinkSrcIP6:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), network(8, 16, regAfterLink)}
	case acl.LinkDstIP4:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), network(16, 4, regAfterLink)}
	case acl.LinkDstIP6:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), network(24, 16, regAfterLink)}
	case acl.LinkARPIP4:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), network(14, 4, regAfterLink)}
	case acl.LinkSrcMAC:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), &expr.Payload{DestRegister: regAfterLink, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6}}
	case acl.LinkARPMAC:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), network(8, 6, regAfterLink)}
	case acl.LinkPair:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, regValue), meta(expr.MetaKeyOIFNAME, regAfterLink)}
	case acl.SrcNamedPort4:
		return []expr.Any{network(12, 4, regValue), meta(expr.MetaKeyL4PROTO, regAfter4), transport(0, 2, regAfter8)}
	case acl.DstNamedPort4:
		return []expr.Any{network(16, 4, regValue), meta(expr.MetaKeyL4PROTO, regAfter4), transport(2, 2, regAfter8)}
	case acl.SrcNamedPort6:
		return []expr.Any{network(8, 16, regValue), meta(expr.MetaKeyL4PROTO, regAfterLink), transport(0, 2, regAfter20)}
	case acl.DstNamedPort6:
		return []expr.Any{network(24, 16, regValue), meta(expr.MetaKeyL4PROTO, regAfterLink), transport(2, 2, regAfter20)}
	case acl.Pair4:
		return []expr.Any{network(12, 4, regValue), network(16, 4, regAfter4), meta(expr.MetaKeyL4PROTO, regAfter8)}
	case acl.Flow4:
		return append(load(acl.Pair4), transport(0, 2, regAfter12), transport(2, 2, regAfter16))
	case acl.Pair6:
		return []expr.Any{network(8, 16, regValue), network(24, 16, regAfterLink), meta(expr.MetaKeyL4PROTO, regAfter32)}
	case acl.Flow6:
		return append(load(acl.Pair6), transport(0, 2, regAfter36), transport(2, 2, regAfter40))
	}
	panic(fmt.Sprintf("field %d has no encoding", f))
}

// encodeSet is the definition of a set without its elements.
func encodeSet(name string, typ acl.SetType, comment string) *nftables.Set {
	s := &nftables.Set{Table: tableOf(name), Name: name, Comment: comment, Interval: typ.Interval(), KeyByteOrder: binaryutil.BigEndian}
	switch typ {
	case acl.Addr4, acl.Net4, acl.AddrVerdict4:
		s.KeyType = nftables.TypeIPAddr
	case acl.Addr6, acl.Net6, acl.AddrVerdict6:
		s.KeyType = nftables.TypeIP6Addr
	case acl.Port, acl.PortRanges, acl.PortVerdict:
		s.KeyType = nftables.TypeInetService
	case acl.ICMP6Types:
		s.KeyType = nftables.TypeICMP6Type
	case acl.UnseenProtocols:
		s.KeyType = nftables.TypeInetProto
	case acl.Links, acl.LinkMeter:
		s.KeyType, s.KeyByteOrder = nftables.TypeIFName, binaryutil.NativeEndian
	case acl.PairMeter:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	case acl.LinkAddr4, acl.LinkAddrMeter4:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr)
	case acl.LinkAddr6, acl.LinkAddrMeter6:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr)
	case acl.LinkMAC:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeEtherAddr)
	case acl.LinkNet4:
		s.KeyType, s.Interval, s.Concatenation = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr), true, true
	case acl.LinkNet6:
		s.KeyType, s.Interval, s.Concatenation = nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr), true, true
	case acl.NamedPort4:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	case acl.NamedPort6:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	case acl.CutFlows4:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeInetService)
	case acl.CutFlows6:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeInetService)
	case acl.CutPairs4:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr, nftables.TypeInetProto)
	case acl.CutPairs6:
		s.KeyType = nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr, nftables.TypeInetProto)
	case acl.LinkVerdict:
		s.KeyType, s.KeyByteOrder = nftables.TypeIFName, binaryutil.NativeEndian
	}
	if typ.Meter() {
		s.Dynamic, s.HasTimeout, s.Timeout, s.Size = true, true, typ.MeterTimeout(), typ.MeterSize()
	}
	if typ.Map() {
		s.IsMap, s.DataType = true, nftables.TypeVerdict
	}
	return s
}

// encodeElement is one element, or the start and the end of an interval; the
// end is left out where the interval reaches the last value of the type.
func encodeElement(typ acl.SetType, e acl.Element) []nftables.SetElement {
	var key []byte
	switch typ {
	case acl.Addr4, acl.Addr6:
		key = e.Prefix.Addr().AsSlice()
	case acl.Net4, acl.Net6:
		first := e.Prefix.Masked().Addr()
		return interval(first.AsSlice(), datastore.LastAddr(e.Prefix).Next().AsSlice())
	case acl.PortRanges, acl.PortVerdict:
		end := binary.BigEndian.AppendUint16(nil, e.Last+1)
		if e.Last == 0xffff {
			end = nil
		}
		return leading(interval(binary.BigEndian.AppendUint16(nil, e.First), end), e.Verdict)
	case acl.AddrVerdict4, acl.AddrVerdict6:
		return leading(interval(e.Prefix.Addr().AsSlice(), e.Until.Next().AsSlice()), e.Verdict)
	case acl.Port:
		key = binary.BigEndian.AppendUint16(nil, e.First)
	case acl.ICMP6Types:
		key = []byte{byte(e.First)}
	case acl.LinkAddr4, acl.LinkAddr6:
		key = append(linkName(e.Link), e.Prefix.Addr().AsSlice()...)
	case acl.LinkMAC:
		key = append(append(linkName(e.Link), e.MAC()...), 0, 0)
	case acl.LinkNet4, acl.LinkNet6:
		link := linkName(e.Link)
		return []nftables.SetElement{{Key: append(link, e.Prefix.Masked().Addr().AsSlice()...),
			KeyEnd: append(slices.Clone(link), datastore.LastAddr(e.Prefix).AsSlice()...)}}
	case acl.NamedPort4, acl.NamedPort6:
		key = append(e.Prefix.Addr().AsSlice(), e.Proto, 0, 0, 0)
		key = append(binary.BigEndian.AppendUint16(key, e.First), 0, 0)
	case acl.Links:
		key = linkName(e.Link)
	case acl.LinkVerdict:
		return []nftables.SetElement{{Key: linkName(e.Link), VerdictData: encodeVerdict(e.Verdict)}}
	}
	return []nftables.SetElement{{Key: key}}
}

// cutKey is a flow as the key of a set of that type.
func cutKey(typ acl.SetType, f acl.Flow) []byte {
	key := append(append(f.Src.AsSlice(), f.Dst.AsSlice()...), f.Protocol, 0, 0, 0)
	if typ == acl.CutPairs4 || typ == acl.CutPairs6 {
		return key
	}
	key = append(binary.BigEndian.AppendUint16(key, f.SrcPort), 0, 0)
	return append(binary.BigEndian.AppendUint16(key, f.DstPort), 0, 0)
}

// leading has an interval lead to a verdict, if there is one.
func leading(list []nftables.SetElement, v acl.Verdict) []nftables.SetElement {
	if v != (acl.Verdict{}) {
		list[0].VerdictData = encodeVerdict(v)
	}
	return list
}

func interval(first, end []byte) []nftables.SetElement {
	out := []nftables.SetElement{{Key: first}}
	if len(end) > 0 {
		out = append(out, nftables.SetElement{Key: end, IntervalEnd: true})
	}
	return out
}
