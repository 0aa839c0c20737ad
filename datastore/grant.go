package datastore

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// What a certificate says that its holder is (its organisation). A certificate that says
// nothing of it was made by hand, and may do everything.
const (
	RoleNode   = "netctl node"
	RoleMember = "netctl datastore member"
)

// Grant is what one node may do in the datastore: read what roles read, and write what
// is its own, and what it takes to get an address. No node can be another.
//
// What remains a node's own word: the addresses, profiles and labels of its endpoints, its
// labels and subnets, and that a reflector is away; and free addresses of others' blocks
// it may take, as nodes do whose pools are short.
type Grant struct {
	Node string
	// Get returns what is stored under a key, with its revision; a zero Entry if nothing
	// is. It is as new as revision at least.
	Get func(key string, revision int64) (Entry, error)
	// Nodes returns all nodes.
	Nodes func() ([]Entry, error)
}

// readable are the prefixes and keys that nodes read.
func readable() []string {
	return []string{Prefix, ReportPrefix, EventsPrefix, HistoryPrefix, AsksPrefix, AnswersPrefix, ConfirmsPrefix, MembersKey, AuthorityKey}
}

// Read judges the reading of a key, or of those from key to before end.
func (g Grant) Read(key string, end []byte) error {
	for _, p := range readable() {
		if end == nil && Under(key, p) {
			return nil
		}
		if end != nil && strings.HasSuffix(p, "/") && strings.HasPrefix(key, p) &&
			(bytes.HasPrefix(end, []byte(p)) || string(end) == p[:len(p)-1]+"0") { // '0' follows '/'
			return nil
		}
	}
	return g.denied("read", key)
}

// Write judges a transaction. What it finds holds only if the transaction's own
// conditions do, which the store sees to.
func (g Grant) Write(t Txn) error {
	at := map[string]int64{}
	conditional := map[string]bool{}
	for _, c := range t.If {
		if err := g.Read(c.Key, nil); err != nil {
			return err
		}
		at[c.Key], conditional[c.Key] = c.Revision, true
	}
	for _, op := range t.Then {
		if strings.HasPrefix(op.Key, HistoryPrefix) && conditional[op.Key] && at[op.Key] == 0 && g.record(op, t, at) {
			continue
		}
		if err := g.op(op, conditional[op.Key], at[op.Key]); err != nil {
			return err
		}
	}
	return nil
}

// record judges a new record of the history: it is the node's own, of what the same
// transaction changes, and says what that writes and finds; else who undoes it would write
// what the node wants.
func (g Grant) record(op Op, t Txn, at map[string]int64) bool {
	r, err := DecodeHistory(Entry{Key: op.Key, Value: op.Value})
	if err != nil || r.Node != g.Node {
		return false
	}
	for _, c := range r.Changes {
		if !recordedKey(c.Key) || c.Sum != "" || !slices.ContainsFunc(t.Then, func(o Op) bool { return o.Key == c.Key && bytes.Equal(o.Value, c.After) }) {
			return false
		}
		var had Entry
		if at[c.Key] != 0 {
			if had, err = g.Get(c.Key, at[c.Key]); err != nil {
				return false
			}
		}
		if !bytes.Equal(had.Value, c.Before) {
			return false
		}
	}
	return true
}

func (g Grant) op(op Op, conditional bool, revision int64) error {
	if own, err := EventsKey(g.Node); err == nil && op.Key == own {
		return nil
	}
	switch {
	case Under(op.Key, AsksPrefix+g.Node+"/"), Under(op.Key, AnswersPrefix+g.Node+"/"):
		return nil
	case Under(op.Key, AsksPrefix) && op.Value == nil: // whoever asked is gone
		return nil
	}
	kind, name, err := ParseKey(op.Key)
	if err != nil {
		return g.denied("write", op.Key)
	}
	switch kind {
	case KindEndpoint, KindReport: // the node's name is the first part of theirs
		if !strings.HasPrefix(name, g.Node+"/") {
			return g.denied("write", op.Key)
		}
		return g.sound(op)
	case KindNode, KindBlock, KindNetwork, KindProfile, KindPool:
	default:
		return g.denied("write", op.Key)
	}
	if !conditional {
		return fmt.Errorf("%w (without a condition on its revision)", g.denied("write", op.Key))
	}
	var had Entry
	if revision != 0 { // 0 is "if it is absent", which holds again whenever it is deleted
		if had, err = g.Get(op.Key, revision); err != nil {
			return err
		}
	}
	if had.Revision > revision {
		return nil // the condition does not hold, and never will
	}
	if had.Revision < revision {
		return g.denied("write", op.Key) // it may hold some time, of what nobody knows yet
	}
	switch {
	case kind == KindPool: // the last block's node removes what people removed
		if p, ok := decoded[*Pool](had); ok && op.Value == nil && p.Spec.Removed {
			return nil
		}
	case kind == KindBlock && g.block(had, op):
		return nil
	case kind == KindNode && op.Value != nil:
		return g.node(name, had, op)
	case (kind == KindNetwork || kind == KindProfile) && revision == 0 && plain(kind, name, op):
		return nil
	}
	return g.denied("write", op.Key)
}

// sound refuses what others could not read, or would have to pass over, and networks behind
// an endpoint that it did not have: others send to them, and take them for the endpoint's.
func (g Grant) sound(op Op) error {
	if op.Value == nil {
		return nil
	}
	o, err := Decode(op.Key, op.Value)
	if e, ok := o.(*Endpoint); ok {
		if err = checkLink(e); err == nil && len(e.Spec.AllowedPrefixes) > 0 {
			had, err := g.Get(op.Key, 0)
			if err != nil {
				return err
			}
			old, _ := decoded[*Endpoint](had)
			if slices.ContainsFunc(e.Spec.AllowedPrefixes, func(p netip.Prefix) bool {
				return old == nil || !slices.Contains(old.Spec.AllowedPrefixes, p)
			}) {
				return fmt.Errorf("%w (spec.allowedPrefixes)", g.denied("write", op.Key))
			}
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w, not even to the node that it belongs to: nobody could read it: %w", op.Key, ErrDenied, err)
	}
	return nil
}

func (g Grant) denied(what, key string) error {
	return fmt.Errorf("%s %s: %w: node %s has its own rights and no others; it is done on a member of the datastore", what, key, ErrDenied, g.Node)
}

// decoded reads an entry; false: it is none, or is not understood.
func decoded[T Object](e Entry) (T, bool) {
	var zero T
	if e.Value == nil {
		return zero, false
	}
	o, err := Decode(e.Key, e.Value)
	if err != nil {
		return zero, false
	}
	t, ok := o.(T)
	return t, ok
}

// plain says whether op makes a network or profile as an attach makes those that are
// missing: with nothing but defaults. Where its addresses come from a new network may say:
// that gives nobody a right.
func plain(kind Kind, name string, op Op) bool {
	o, ok := decoded[Object](Entry{Key: op.Key, Value: op.Value})
	if !ok {
		return false
	}
	fresh, err := New(kind)
	if err != nil {
		return false
	}
	fresh.Meta().Name = name
	fresh.SetDefaults()
	o.Meta().Labels = nil
	if n, is := o.(*Network); is {
		n.Spec.Pools, n.Spec.IPv6 = nil, false
	}
	is, err := Encode(o)
	want, e := Encode(fresh)
	return err == nil && e == nil && bytes.Equal(is, want)
}

// block judges what becomes of a block: it stays who it is, gets the node itself as its
// owner if it has none, and what others hold of it they keep.
func (g Grant) block(had Entry, op Op) bool {
	before := &Block{}
	if had.Value != nil {
		b, ok := decoded[*Block](had)
		if !ok {
			return false
		}
		before = b
	}
	if op.Value == nil {
		return before.Spec.Affinity == g.Node && !slices.ContainsFunc(before.Spec.Allocations, func(a Allocation) bool { return !g.holds(a) })
	}
	after, ok := decoded[*Block](Entry{Key: op.Key, Value: op.Value})
	if !ok {
		return false
	}
	if after.Spec.Affinity != before.Spec.Affinity && (before.Spec.Affinity != "" || after.Spec.Affinity != g.Node) {
		return false
	}
	if had.Value == nil && after.Spec.Affinity != g.Node {
		return false
	}
	return slices.Equal(g.others(before), g.others(after))
}

// holds says whether an address is held for the node: by its endpoints or its tunnels.
func (g Grant) holds(a Allocation) bool {
	return a.Node == g.Node && (strings.HasPrefix(a.Handle, g.Node+"/") || a.Handle == TunnelHandle(g.Node))
}

// others are the addresses of a block that are not held for the node.
func (g Grant) others(b *Block) (list []Allocation) {
	for _, a := range b.Spec.Allocations {
		if !g.holds(a) {
			a.Time = a.Time.UTC().Round(0)
			list = append(list, a)
		}
	}
	return list
}

// node judges what a node writes of a node: of itself all but what people decide, and
// nothing that is another's; of another one that it is away, or back.
func (g Grant) node(name string, had Entry, op Op) error {
	after, ok := decoded[*Node](Entry{Key: op.Key, Value: op.Value})
	if !ok {
		return g.denied("write", op.Key)
	}
	before, known := decoded[*Node](had)
	if !known {
		if had.Value != nil || name != g.Node {
			return g.denied("write", op.Key)
		}
		before = &Node{Metadata: Metadata{Name: name}}
	}
	if name != g.Node {
		was, is := *before, *after
		was.Status.Away, is.Status.Away = time.Time{}, time.Time{}
		if same(&was, &is) {
			return nil
		}
		return g.denied("write", op.Key)
	}
	was, is := Node{Metadata: Metadata{Name: name}, Spec: before.Spec}, Node{Metadata: Metadata{Name: name}, Spec: after.Spec}
	was.Spec.Addresses, is.Spec.Addresses = nil, nil
	if !same(&was, &is) {
		return fmt.Errorf("%w (AS number, reflector, drain and retired key)", g.denied("write", op.Key))
	}
	if slices.Equal(before.Spec.Addresses, after.Spec.Addresses) && slices.Equal(before.Status.Tunnels, after.Status.Tunnels) {
		return nil
	}
	return g.unlike(name, after)
}

// same says whether two nodes are stored as the same.
func same(a, b *Node) bool {
	x, err := Encode(a)
	y, e := Encode(b)
	return err == nil && e == nil && bytes.Equal(x, y)
}

// unlike refuses a node with an address or a tunnel's end of another.
func (g Grant) unlike(name string, n *Node) error {
	all, err := g.Nodes()
	if err != nil {
		return err
	}
	for _, e := range all {
		other, ok := decoded[*Node](e)
		if !ok || other.Metadata.Name == name {
			continue
		}
		for _, a := range n.Spec.Addresses {
			for _, b := range other.Spec.Addresses {
				if a.Addr() == b.Addr() {
					return fmt.Errorf("node %s: address %s is node %s's: %w", name, a.Addr(), other.Metadata.Name, ErrDenied)
				}
			}
		}
		for _, a := range n.Status.Tunnels {
			if b, ok := other.TunnelOf(a.Kind); ok && (a.Key != "" && a.Key == b.Key || a.MAC != "" && a.MAC == b.MAC) {
				return fmt.Errorf("node %s: its end of %s tunnels is node %s's: %w", name, a.Kind, other.Metadata.Name, ErrDenied)
			}
		}
	}
	return nil
}
