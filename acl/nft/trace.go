package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

// traceTable is the table of family inet by which one flow is traced. It belongs to a
// socket (tableOwner), and goes with it and with the process, whatever ends that.
const traceTable = "netctl_trace"

// Chains of traceTable: a flow's packets are traced from the first two on, and in the
// others nothing is left that could stop them.
const (
	traceIn        = "from_outside"
	traceOut       = "from_here"
	traceDelivered = "to_here"
	traceForwarded = "out"
)

// Bounds of a trace: steps of its packet, and packets of the flow a second.
const (
	maxSteps    = 512
	tracedRate  = 10
	tracedBurst = 20
)

// Trace is one flow that the kernel tells of.
type Trace struct {
	table         *Table
	owner, reader *netlink.Conn
}

// Step is a chain that a packet passed, or a rule that it matched.
type Step struct {
	datastore.TraceStep
	hash [8]byte // of the rule; zero: not one of ours
}

// Is says whether the step is a rule, of this chain.
func (s Step) Is(r *acl.Rule) bool { return s.hash != [8]byte{} && s.hash == ruleHash(r) }

// Trace has the kernel tell of a flow until Close, or until the process ends: no other
// packet is traced, and no more than some a second. It needs Linux 5.12.
func (t *Table) Trace(f datastore.TraceFlow) (_ *Trace, err error) {
	tr := &Trace{table: t}
	defer func() {
		if err != nil {
			tr.Close()
		}
	}()
	if tr.owner, err = t.dial(); err != nil {
		return nil, err
	}
	if tr.reader, err = t.dial(); err != nil {
		return nil, err
	}
	if err = tr.reader.JoinGroup(unix.NFNLGRP_NFTRACE); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	batch, err := encode([]op{{emit: func(c *nftables.Conn) error { emitTrace(c, f); return nil }}})
	if err == nil {
		err = own(batch, traceTable)
	}
	if err == nil {
		err = tr.owner.SetDeadline(time.Now().Add(answerTime))
	}
	if err == nil {
		err = transmit(tr.owner, batch)
	}
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
		return nil, fmt.Errorf("trace: the kernel has no tables that go with who made them (Linux 5.12 has): %w", err)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EEXIST):
		return nil, fmt.Errorf("make table %s, which another program has: %w", traceTable, err)
	case err != nil:
		return nil, fmt.Errorf("make table %s: %w", traceTable, err)
	}
	return tr, nil
}

// Close ends the tracing and takes its table away.
func (tr *Trace) Close() {
	for _, c := range []*netlink.Conn{tr.owner, tr.reader} {
		if c != nil {
			_ = c.Close()
		}
	}
}

// emitTrace makes the table that traces a flow.
func emitTrace(c *nftables.Conn, f datastore.TraceFlow) {
	table := c.AddTable(&nftables.Table{Name: traceTable, Family: nftables.TableFamilyINet})
	first, last := nftables.ChainPriority(-500), nftables.ChainPriority(math.MaxInt32)
	base := func(name string, hook *nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: &priority})
	}
	begin := []*nftables.Chain{base(traceIn, nftables.ChainHookPrerouting, first), base(traceOut, nftables.ChainHookOutput, first)}
	base(traceDelivered, nftables.ChainHookInput, last)
	base(traceForwarded, nftables.ChainHookPostrouting, last)
	for _, chain := range begin {
		for _, source := range f.Sources {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: traceRule(f, source)})
		}
	}
}

// traceRule is for packets of the flow: their source, destination, protocol and ports, of
// ICMP the identifier.
func traceRule(f datastore.TraceFlow, source netip.Addr) (list []expr.Any) {
	is := func(load expr.Any, data []byte) {
		list = append(list, load, &expr.Cmp{Op: expr.CmpOpEq, Register: regValue, Data: data})
	}
	at := func(base expr.PayloadBase, offset, size uint32) expr.Any {
		return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: regValue, Base: base, Offset: offset, Len: size}
	}
	family, from, to, size := byte(unix.NFPROTO_IPV4), uint32(12), uint32(16), uint32(4)
	if source.Is6() {
		family, from, to, size = unix.NFPROTO_IPV6, 8, 24, 16
	}
	is(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: regValue}, []byte{family})
	is(at(expr.PayloadBaseNetworkHeader, from, size), source.AsSlice())
	is(at(expr.PayloadBaseNetworkHeader, to, size), f.Destination.AsSlice())
	is(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: regValue}, []byte{f.Protocol})
	switch {
	case f.DestinationPort != 0:
		is(at(expr.PayloadBaseTransportHeader, 0, 2), binaryutil.BigEndian.PutUint16(f.SourcePort))
		is(at(expr.PayloadBaseTransportHeader, 2, 2), binaryutil.BigEndian.PutUint16(f.DestinationPort))
	case f.SourcePort != 0:
		const identifier = 4 // RFC 792, RFC 4443
		is(at(expr.PayloadBaseTransportHeader, identifier, 2), binaryutil.BigEndian.PutUint16(f.SourcePort))
	}
	return append(list,
		&expr.Limit{Type: expr.LimitTypePkts, Rate: tracedRate, Unit: expr.LimitTimeSecond, Burst: tracedBurst},
		&expr.Immediate{Register: regValue, Data: []byte{1}},
		&expr.Meta{Key: expr.MetaKeyNFTRACE, SourceRegister: true, Register: regValue})
}

// traced is one message of the kernel's.
type traced struct {
	family       byte
	table, chain string
	rule         uint64 // its handle; 0: none
	verdict      string
	ends         bool // nothing comes behind it
	in, out      uint32
}

// Follow reads what becomes of the first packet, until it does or ctx ends. lost says that
// the kernel could not tell all.
func (tr *Trace) Follow(ctx context.Context) (steps []Step, fate datastore.Fate, lost bool, err error) {
	defer context.AfterFunc(ctx, func() { _ = tr.reader.SetReadDeadline(time.Unix(1, 0)) })()
	var list []traced
	for done := false; !done && len(list) < maxSteps; {
		messages, failed := tr.reader.Receive()
		switch {
		case ctx.Err() != nil:
			done = true
		case errors.Is(failed, unix.ENOBUFS):
			lost = true
		case failed != nil:
			return nil, "", lost, fmt.Errorf("read trace: %w", failed)
		}
		for _, m := range messages {
			one, ok := parseTrace(m)
			if !ok || done {
				continue
			}
			if len(list) > 0 && one.begins() && one.rule != 0 { // the next packet
				done = true
				continue
			}
			list = append(list, one)
			done = one.ends
		}
	}
	lost = lost || len(list) == maxSteps
	fate = fateOf(list)
	steps, err = tr.describe(list)
	return steps, fate, lost, err
}

func (e traced) ours() bool { return e.table == traceTable && e.family == unix.NFPROTO_INET }

func (e traced) begins() bool { return e.ours() && (e.chain == traceIn || e.chain == traceOut) }

func fateOf(list []traced) datastore.Fate {
	if len(list) == 0 {
		return datastore.Unseen
	}
	last := list[len(list)-1]
	switch {
	case last.ends && last.ours() && last.chain == traceForwarded:
		return datastore.Forwarded
	case last.ends && last.ours():
		return datastore.Delivered
	case last.ends:
		return datastore.Dropped
	}
	return datastore.Vanished
}

// parseTrace reads a message; false: it is no trace.
func parseTrace(m netlink.Message) (e traced, ok bool) {
	if m.Header.Type != netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_TRACE) || len(m.Data) < 4 {
		return e, false
	}
	kind, policy := uint32(0), int32(unix.NFT_CONTINUE)
	code, chain := int32(unix.NFT_CONTINUE), ""
	e.family = m.Data[0]
	err := walk(body(m.Data), func(a attribute) {
		switch a.kind {
		case unix.NFTA_TRACE_TABLE:
			e.table = a.text()
		case unix.NFTA_TRACE_CHAIN:
			e.chain = a.text()
		case unix.NFTA_TRACE_RULE_HANDLE:
			e.rule = a.handle()
		case unix.NFTA_TRACE_TYPE:
			kind = a.number()
		case unix.NFTA_TRACE_POLICY:
			policy = int32(a.number())
		case unix.NFTA_TRACE_IIF:
			e.in = a.number()
		case unix.NFTA_TRACE_OIF:
			e.out = a.number()
		case unix.NFTA_TRACE_VERDICT:
			a.walk(func(a attribute) {
				switch a.kind {
				case unix.NFTA_VERDICT_CODE:
					code = int32(a.number())
				case unix.NFTA_VERDICT_CHAIN:
					chain = a.text()
				}
			})
		}
	})
	switch kind {
	case unix.NFT_TRACETYPE_POLICY:
		code = policy
		e.verdict = "policy "
	case unix.NFT_TRACETYPE_RETURN:
		code = unix.NFT_RETURN
	}
	e.verdict += verdictName(code, chain)
	e.ends = code == nfDrop || e.ours() && (e.chain == traceDelivered || e.chain == traceForwarded)
	return e, err == nil
}

// nfDrop is NF_DROP (linux/netfilter.h).
const nfDrop = 0

func verdictName(code int32, chain string) string {
	switch code {
	case nfDrop:
		return "drop"
	case 1:
		return "accept"
	case 2:
		return "stolen"
	case 3:
		return "queue"
	case unix.NFT_JUMP:
		return "jump " + chain
	case unix.NFT_GOTO:
		return "goto " + chain
	case unix.NFT_RETURN:
		return "return"
	}
	return "continue"
}

// describe names rules, hooks and interfaces, and leaves out the chains of the trace.
func (tr *Trace) describe(list []traced) (steps []Step, err error) {
	if len(list) == 0 {
		return nil, nil
	}
	c, err := nftables.New(nftables.WithNetNSFd(tr.table.netns))
	if err != nil {
		return nil, fmt.Errorf("read nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("read nftables chains: %w", err)
	}
	rules := map[string][]*nftables.Rule{}
	in, out := uint32(0), uint32(0)
	for _, e := range list {
		if e.in != 0 || e.out != 0 {
			in, out = e.in, e.out
		}
		s := Step{TraceStep: datastore.TraceStep{Table: familyName(nftables.TableFamily(e.family)) + " " + e.table, Chain: e.chain, Verdict: e.verdict, In: indexName(in), Out: indexName(out)}}
		name := s.Table + " " + s.Chain
		for _, chain := range chains {
			if chain.Table.Name != e.table || chain.Name != e.chain || byte(chain.Table.Family) != e.family {
				continue
			}
			if chain.Hooknum != nil && chain.Priority != nil {
				s.Hook = fmt.Sprintf("%s %d", hookName(chain), *chain.Priority)
			}
			if rules[name] == nil && e.rule != 0 {
				if rules[name], err = c.GetRules(chain.Table, chain); err != nil {
					return nil, fmt.Errorf("read nftables chain %s: %w", name, err)
				}
			}
		}
		if e.ours() {
			if !e.ends && e.rule != 0 || e.begins() {
				continue
			}
			s.Table = ""
		}
		for i, r := range rules[name] {
			if r.Handle == e.rule && e.rule != 0 {
				s.Position, s.hash = i+1, hashOf(r.UserData)
				s.Comment, _ = userdata.GetString(r.UserData, userdata.TypeComment)
			}
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// indexName is the interface of an index in the process's namespace; "" is of 0.
func indexName(index uint32) string {
	if index == 0 {
		return ""
	}
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return fmt.Sprintf("interface %d", index)
}

// own makes the table of that name in a batch the socket's that sends it.
func own(batch []netlink.Message, table string) error {
	for i, m := range batch {
		if m.Header.Type&0xff == unix.NFT_MSG_NEWTABLE { // the library knows no flags
			flags := netlink.Attribute{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, tableOwner)}
			list, err := netlink.MarshalAttributes([]netlink.Attribute{textAttribute(unix.NFTA_TABLE_NAME, table), flags})
			if err != nil {
				return err
			}
			batch[i].Data = append(batch[i].Data[:4:4], list...)
		}
	}
	return nil
}
