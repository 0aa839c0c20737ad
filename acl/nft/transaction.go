package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// The phases of a transaction in their order (docs/policy.md, "The table"): what is
// referred to comes before what refers to it and goes after it, and a base
// chain comes last, so that it never runs with half of what it needs.
const (
	phaseTable = iota
	phaseSets
	phaseElements
	phaseNewChains
	phaseNextRuns
	phaseChains
	phaseLists // chains with runs, and all that is of them
	phaseNextMaps
	phaseMaps
	phaseBaseChains
	phaseDelNextMaps
	phaseDelElements
	phaseEmptyChains // and sets, those that go: they may refer to each other
	phaseDelChains
	phaseDelSets
	phases
)

// maxWeight bounds one batch: about so many rules, or twenty times as many
// elements. Larger ones hold the kernel's commit mutex for too long.
const maxWeight = 2000

// maxElements of one message: a netlink attribute holds 64 KiB.
const maxElements = 400

// op changes one object. It is atomic by itself and can be repeated.
type op struct {
	object acl.Refusal // without its error
	weight int
	gone   bool // it deletes the object; one that is absent already is no error
	emit   func(*nftables.Conn) error
	parts  []op   // what to try if the kernel refuses it; nil: nothing
	after  func() // called when it is committed; may be nil
}

func chainObject(name string) acl.Refusal { return acl.Refusal{Kind: "chain", Name: name} }
func setObject(name string) acl.Refusal   { return acl.Refusal{Kind: "set", Name: name} }
func tableObject() acl.Refusal            { return acl.Refusal{Kind: "table", Name: acl.TableName} }

// transaction is changes in the order in which the kernel takes them.
type transaction struct {
	phases [phases][]op
	whole  bool // one batch, however large
	rekeys bool // some key of a map of links gets another verdict
	recuts bool // some of the map of a run
	counts counts
}

func newTransaction() *transaction { return &transaction{} }

func (tx *transaction) add(phase int, o op) { tx.phases[phase] = append(tx.phases[phase], o) }

func (tx *transaction) ops() []op { return slices.Concat(tx.phases[:]...) }

// parts are what may be committed together: everything, or, if a key of a map
// gets another verdict, what comes before, the change, and what comes after. What goes for
// good does so behind: a packet that is under way by the rules that were finds nothing in a set
// that is gone, since the kernel keeps rules for it, but not elements.
func (tx *transaction) parts() (list [][]op) {
	from := 0
	for phase := range phases {
		if tx.whole || !(tx.cuts(phase) || phase == phaseEmptyChains && len(tx.phases[phaseDelSets]) > 0) {
			continue
		}
		if part := slices.Concat(tx.phases[from:phase]...); len(part) > 0 {
			list = append(list, part)
		}
		from = phase
	}
	return append(list, slices.Concat(tx.phases[from:]...))
}

// cuts says whether what comes from a phase on must not be committed with what comes before.
func (tx *transaction) cuts(phase int) bool {
	return tx.recuts && phase == phaseNextRuns+1 || tx.rekeys && phase == phaseMaps || (tx.recuts || tx.rekeys) && phase == phaseDelNextMaps
}

// single says whether it is committed as one, but for what goes for good.
func (tx *transaction) single() bool {
	weight, cut := 0, false
	for _, o := range tx.ops() {
		weight += o.weight
	}
	for phase := range phases {
		cut = cut || tx.cuts(phase)
	}
	return tx.whole || !cut && weight <= maxWeight
}

// rekey keeps packets from falling between the old and the new verdict of the
// elements' keys.
func (tx *transaction) rekey(m string, elements []acl.Element) {
	if len(elements) == 0 {
		return
	}
	tx.rekeys = true
	next := acl.SetChange{Name: acl.NextMap(m), Type: acl.LinkVerdict}
	tx.elements(phaseNextMaps, next, elements, false)
	tx.elements(phaseDelNextMaps, next, elements, true)
}

func (tx *transaction) empty() bool { return len(tx.ops()) == 0 }

func (tx *transaction) objects() int { return len(tx.ops()) }

func (tx *transaction) table(t *nftables.Table) {
	tx.add(phaseTable, op{object: tableObject(), weight: 1, emit: func(c *nftables.Conn) error {
		c.AddTable(t)
		return nil
	}})
}

// chain turns the change of a chain into operations.
func (tx *transaction) chain(c acl.ChainChange) {
	chain := &nftables.Chain{Name: c.Name, Table: tableOf(c.Name)}
	name := chainObject(c.Name)
	if c.Gone {
		tx.add(phaseEmptyChains, op{object: name, weight: 1, gone: true, emit: func(n *nftables.Conn) error {
			n.FlushChain(chain)
			return nil
		}})
		tx.add(phaseDelChains, op{object: name, weight: 1, gone: true, emit: func(n *nftables.Conn) error {
			n.DelChain(chain)
			return nil
		}})
		return
	}
	if c.New && c.Hook != nil {
		tx.baseChain(&acl.Chain{Name: c.Name, Hook: c.Hook, Rules: c.Rules})
		return
	}
	if c.New {
		tx.add(phaseNewChains, op{object: name, weight: 1, emit: func(n *nftables.Conn) error {
			n.AddChain(chain)
			return nil
		}})
	}
	tx.add(phaseChains, refill(chain, c.Rules, tx.counts.take(c.Rules)))
}

// refill replaces a chain's rules; counted is what each has counted, nil: nothing.
func refill(chain *nftables.Chain, rules []acl.Rule, counted []acl.Count) op {
	if counted == nil {
		counted = make([]acl.Count, len(rules))
	}
	return op{object: chainObject(chain.Name), weight: 1 + len(rules), emit: func(n *nftables.Conn) error {
		n.FlushChain(chain)
		for i := range rules {
			n.AddRule(encodeRule(chain, &rules[i], counted[i]))
		}
		return nil
	}}
}

// baseChain adds or corrects a base chain and replaces its rules.
func (tx *transaction) baseChain(c *acl.Chain) {
	chain := encodeBase(c)
	fill := refill(chain, c.Rules, tx.counts.take(c.Rules))
	tx.add(phaseBaseChains, op{object: fill.object, weight: fill.weight + 1, emit: func(n *nftables.Conn) error {
		n.AddChain(chain)
		return fill.emit(n)
	}})
}

func encodeBase(c *acl.Chain) *nftables.Chain {
	hooks := map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
		"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
	}
	policy := nftables.ChainPolicyAccept
	hook, t := hooks[c.Hook.Name], tableOf(c.Name)
	if t.Family == nftables.TableFamilyARP {
		hook = nftables.ChainHookRef(0) // NF_ARP_IN, whatever its name is for others
	}
	return &nftables.Chain{
		Name: c.Name, Table: t, Type: nftables.ChainType(c.Hook.Type()), Hooknum: hook,
		Priority: nftables.ChainPriorityRef(nftables.ChainPriority(c.Hook.Priority)), Policy: &policy,
	}
}

// set turns the change of a set or map into operations.
func (tx *transaction) set(c acl.SetChange) {
	name := setObject(c.Name)
	if c.Gone {
		gone := &nftables.Set{Table: tableOf(c.Name), Name: c.Name}
		tx.add(phaseEmptyChains, op{object: name, weight: 1, gone: true, emit: func(n *nftables.Conn) error {
			n.FlushSet(gone) // the elements of a map refer to chains
			return nil
		}})
		tx.add(phaseDelSets, op{object: name, weight: 1, gone: true, emit: func(n *nftables.Conn) error {
			n.DelSet(gone)
			return nil
		}})
		return
	}
	if c.New {
		tx.add(phaseSets, op{object: name, weight: 1, emit: func(n *nftables.Conn) error {
			return n.AddSet(encodeSet(c.Name, c.Type, c.Comment), nil)
		}})
	}
	addPhase, delPhase := phaseElements, phaseDelElements
	if c.Type.Map() {
		addPhase = phaseMaps
	}
	// What is added may be in the way of what is deleted: another verdict of the
	// same key, an overlapping interval. Then the deletion comes first.
	if c.Type.Map() || c.Type.Interval() || c.Type.Ranges() {
		delPhase = addPhase
	}
	if c.Type == acl.LinkVerdict {
		var changed []acl.Element
		for _, e := range c.Add {
			if slices.ContainsFunc(c.Del, func(o acl.Element) bool { return o.Link == e.Link }) {
				changed = append(changed, e)
			}
		}
		tx.rekey(c.Name, changed)
	}
	tx.elements(delPhase, c, c.Del, true)
	tx.elements(addPhase, c, c.Add, false)
}

func (tx *transaction) elements(phase int, c acl.SetChange, elements []acl.Element, gone bool) {
	for chunk := range slices.Chunk(elements, maxElements) {
		o := elementsOp(c, chunk, gone)
		for i := range chunk {
			if len(chunk) > 1 {
				o.parts = append(o.parts, elementsOp(c, chunk[i:i+1], gone))
			}
		}
		tx.add(phase, o)
	}
}

// unseen starts the times of acl.Unseen anew.
func unseen(after func()) op {
	s := encodeSet(acl.SetUnseen, acl.UnseenProtocols, "")
	return op{object: setObject(acl.SetUnseen), weight: 1, after: after, emit: func(n *nftables.Conn) error {
		n.FlushSet(s) // an element that is there keeps its time before Linux 6.12
		var list []nftables.SetElement
		for protocol, d := range acl.Unseen() {
			list = append(list, nftables.SetElement{Key: []byte{protocol}, Timeout: d})
		}
		return n.SetAddElements(s, list)
	}}
}

func elementsOp(c acl.SetChange, elements []acl.Element, gone bool) op {
	o := op{object: setObject(c.Name), weight: 1 + len(elements)/20, gone: gone}
	if len(elements) == 1 {
		o.object.Element, o.object.Link = elements[0].Text(c.Type), elements[0].Link
	}
	o.emit = func(n *nftables.Conn) error {
		var out []nftables.SetElement
		for _, e := range elements {
			out = append(out, encodeElement(c.Type, e)...)
		}
		s := encodeSet(c.Name, c.Type, "")
		if gone {
			return n.SetDeleteElements(s, out)
		}
		return n.SetAddElements(s, out)
	}
	return o
}

// commit sends the transaction: each part as one batch if it is not too large,
// else in batches that are each whole. What the kernel refused is an
// *acl.RefusedError; everything else was then written. The caller holds t.mu.
func (t *Table) commit(ctx context.Context, tx *transaction) error {
	var refused []acl.Refusal
	for _, ops := range tx.parts() {
		for len(ops) > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, weight := 1, ops[0].weight
			for n < len(ops) && (tx.whole || weight+ops[n].weight <= maxWeight) {
				weight += ops[n].weight
				n++
			}
			r, err := t.batch(ops[:n])
			if err != nil {
				return err
			}
			refused = append(refused, r...)
			ops = ops[n:]
		}
	}
	if len(refused) > 0 {
		return &acl.RefusedError{Refusals: refused}
	}
	return nil
}

// batch commits ops together. If the kernel refuses, it commits each by itself
// in the same order, so that one bad object does not hold up the others.
func (t *Table) batch(ops []op) (refused []acl.Refusal, err error) {
	err = t.send(ops)
	if err == nil {
		t.at++
		for _, o := range ops {
			if o.after != nil {
				o.after()
			}
		}
		return nil, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, fmt.Errorf("nft: no answer within %v: %w", answerTime, err)
	}
	if now, failed := generation(t.read); t.again && failed == nil && now != t.at {
		return nil, errChanged
	}
	if len(ops) == 1 {
		o := ops[0]
		switch {
		case len(o.parts) > 0:
			ops = o.parts
		case o.gone && errors.Is(err, unix.ENOENT):
			return nil, nil
		default:
			o.object.Err = err
			return []acl.Refusal{o.object}, nil
		}
	} else {
		t.log.Warn("packet filter transaction refused", "table", acl.TableName, "objects", len(ops), "error", err)
	}
	for i := range ops {
		r, err := t.batch(ops[i : i+1])
		if err != nil {
			return nil, err
		}
		refused = append(refused, r...)
	}
	return refused, nil
}

// send commits ops as one batch. After an error the connection is made anew:
// answers may be left in it.
func (t *Table) send(ops []op) error { return t.sendAt(0, ops) }

// sendAt is send for a table that was read at a generation: if anything was committed since,
// by whomever, nothing is, and the error is ERESTART. 0: at any.
func (t *Table) sendAt(generation uint32, ops []op) error {
	messages, err := encode(ops)
	if err != nil {
		return err
	}
	if generation != 0 && len(messages) > 0 {
		at, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: batchGeneration, Data: binary.BigEndian.AppendUint32(nil, generation)}})
		if err != nil {
			return err
		}
		messages[0].Data = append(messages[0].Data, at...)
	}
	if err = t.write.SetDeadline(time.Now().Add(answerTime)); err == nil {
		err = transmit(t.write, messages)
	}
	if err != nil {
		_ = t.write.Close()
		err = errors.Join(err, t.connect())
	}
	return err
}

// batchGeneration is NFNL_BATCH_GENID (linux/netfilter/nfnetlink.h), of the first message of a
// batch.
const batchGeneration = 1

// encode makes the messages of one batch. The library is used for that only: its own
// way of sending has the kernel echo and acknowledge each message, which costs as
// much as all the rest. What it calls a test connection hands them over instead.
func encode(ops []op) (batch []netlink.Message, err error) {
	c, err := nftables.New(nftables.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		if len(sent) > 0 {
			batch = sent
		}
		return nil, io.EOF // nothing to be received
	}))
	if err != nil {
		return nil, err
	}
	for _, o := range ops {
		if err := o.emit(c); err != nil {
			return nil, err
		}
	}
	return batch, c.Flush()
}

// transmit sends a batch and waits for the answer to its last change. The kernel
// answers in the order of the messages, and what it refuses without being asked, so
// that the first answer says whether all was committed.
func transmit(c *netlink.Conn, batch []netlink.Message) error {
	if len(batch) == 0 {
		return nil
	}
	for i := range batch {
		h := &batch[i].Header
		h.Flags &^= netlink.Acknowledge | netlink.Echo
		h.Sequence, h.PID = 0, 0 // those that c gives
	}
	last := &batch[len(batch)-2].Header // before the end of the batch
	last.Flags |= netlink.Acknowledge
	if _, err := c.SendMessages(batch); err != nil {
		return err
	}
	for {
		answers, err := c.Receive()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(answers, func(a netlink.Message) bool { return a.Header.Sequence == last.Sequence }) {
			return nil
		}
	}
}
