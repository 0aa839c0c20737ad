package nft

import (
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// handles holds, by the name of a chain, the kernel's handles of its rules in order.
// Of a rule that was written since they were read the handle is not known: 0. Of a
// chain that is not in the map none is.
//
// Sync reads those of every chain; an edit that needs one which is not known reads
// those of its chain. If somebody else has changed the chain meanwhile, the kernel
// refuses the edit, and the chain is filled anew.
type handles map[string][]uint64

// edit inserts and deletes single rules of a chain by their handles. It returns false
// where that does not pay (half of the rules change) or the handles are not to be
// had: then the chain is to be filled anew.
func (t *Table) edit(c acl.ChainChange) (op, bool) {
	if c.New || c.Gone || len(c.Before) == 0 {
		return op{}, false
	}
	e := c.Edit()
	if e.Delete+len(e.Insert) > len(c.Rules)/2 {
		return op{}, false
	}
	known := t.handles[c.Name]
	if len(known) != len(c.Before) || slices.Contains(known[e.At:min(e.At+e.Delete+1, len(known))], 0) {
		if known = t.readHandles(c); known == nil {
			return op{}, false
		}
	}
	chain := &nftables.Chain{Name: c.Name, Table: tableOf(c.Name)}
	gone := known[e.At : e.At+e.Delete]
	var next uint64 // of the rule behind; 0: there is none
	if e.At+e.Delete < len(known) {
		next = known[e.At+e.Delete]
	}
	return op{
		object: chainObject(c.Name), weight: e.Delete + len(e.Insert),
		emit: func(n *nftables.Conn) error {
			for i := range e.Insert {
				r := encodeRule(chain, &e.Insert[i], acl.Count{})
				if r.Position = next; next == 0 {
					n.AddRule(r)
				} else {
					n.InsertRule(r) // before it
				}
			}
			for _, h := range gone {
				if err := n.DelRule(&nftables.Rule{Table: chain.Table, Chain: chain, Handle: h}); err != nil {
					return err
				}
			}
			return nil
		},
		parts: []op{refill(chain, c.Rules, nil)},
		after: func() {
			t.handles[c.Name] = slices.Concat(known[:e.At], make([]uint64, len(e.Insert)), known[e.At+e.Delete:])
		},
	}, true
}

// readHandles reads the handles of a chain's rules. It returns nil if the rules are
// not those that the chain had before c.
func (t *Table) readHandles(c acl.ChainChange) []uint64 {
	k := &kernel{chains: map[string]*kernelChain{c.Name: {}}}
	err := k.readRules(t.read, tableOf(c.Name), textAttribute(unix.NFTA_RULE_CHAIN, c.Name))
	have := k.chains[c.Name]
	if err != nil || !sameHashes(c.Before, have.hashes) {
		return nil
	}
	return have.handles
}

// learn returns the handles of the chains whose rules are as wanted.
func learn(want *acl.Ruleset, have *kernel) handles {
	out := handles{}
	for name, c := range want.Chains {
		if h := have.chains[name]; h != nil && sameHashes(c.Rules, h.hashes) {
			out[name] = h.handles
		}
	}
	return out
}
