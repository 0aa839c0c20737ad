package nft

import (
	"maps"
	"slices"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// compare puts into tx what makes have into want. right are the chains whose rules
// are as wanted; those that are filled anew all the same are taken out.
func compare(tx *transaction, want *acl.Ruleset, have *kernel, right handles) {
	tx.counts = maps.Clone(have.counts)
	for _, t := range tables() {
		if !have.awake[t.Family] {
			tx.table(t)
		}
	}
	wrong := wrongObjects(want, have)
	if len(wrong) > 0 {
		tx.clear(have, wrong)
	}
	for name, c := range want.Chains {
		h := have.chains[name]
		if _, same := right[name]; same && len(wrong) == 0 && h.policy == wantPolicy(c) {
			continue
		}
		delete(right, name)
		if c.Hook != nil {
			tx.baseChain(c)
		} else {
			tx.chain(acl.ChainChange{Name: name, New: h == nil || wrong["chain "+name], Rules: c.Rules})
		}
	}
	for name, s := range want.Sets {
		h := have.sets[name]
		if h == nil || wrong["set "+name] {
			tx.set(acl.SetChange{Name: name, Type: s.Type, Comment: s.Comment, New: true, Add: s.Sorted()})
			continue
		}
		if !s.Type.Meter() { // those of a meter come and go with packets
			compareElements(tx, s, h)
		}
	}
	for name := range have.chains {
		if want.Chains[name] == nil && !wrong["chain "+name] {
			tx.chain(acl.ChainChange{Name: name, Gone: true})
		}
	}
	for name := range have.sets {
		if want.Sets[name] == nil {
			tx.set(acl.SetChange{Name: name, Gone: true})
		}
	}
}

// closing makes the closed part of want whole, as one batch. It deletes nothing.
func closing(want *acl.Ruleset, have *kernel) *transaction {
	tx, part := newTransaction(), want.Closed().Packed()
	near := *have
	near.chains, near.sets = map[string]*kernelChain{}, map[string]*kernelSet{}
	for name := range part.Chains {
		if c := have.chains[name]; c != nil {
			near.chains[name] = c
		}
	}
	for name, s := range part.Sets {
		if h := have.sets[name]; h != nil && s.Type.OfEndpoints() { // its elements open nothing
			part.Sets[name] = &acl.Set{Name: name, Type: s.Type}
			near.sets[name] = &kernelSet{flags: h.flags, keyType: h.keyType, keyLen: h.keyLen}
		} else if h != nil {
			near.sets[name] = h
		}
	}
	compare(tx, part, &near, learn(part, &near))
	tx.whole = true
	return tx
}

// wrongObjects are the sets and chains that are of another kind than wanted and so
// have to be deleted and made anew. They are there only if somebody else made them.
func wrongObjects(want *acl.Ruleset, have *kernel) map[string]bool {
	wrong := map[string]bool{}
	for name, s := range want.Sets {
		h := have.sets[name]
		if h == nil {
			continue
		}
		def := encodeSet(name, s.Type, "")
		const kind = unix.NFT_SET_INTERVAL | unix.NFT_SET_MAP | unix.NFT_SET_CONSTANT | unix.NFT_SET_TIMEOUT | unix.NFT_SET_EVAL
		var flags uint32
		if def.Interval {
			flags |= unix.NFT_SET_INTERVAL
		}
		if def.IsMap {
			flags |= unix.NFT_SET_MAP
		}
		if def.Dynamic {
			flags |= unix.NFT_SET_EVAL
		}
		if def.HasTimeout {
			flags |= unix.NFT_SET_TIMEOUT
		}
		if h.flags&kind != flags || h.keyType != def.KeyType.GetNFTMagic() || h.keyLen != def.KeyType.Bytes {
			wrong["set "+name] = true
		}
	}
	for name, c := range want.Chains {
		h := have.chains[name]
		if h == nil || h.base == (c.Hook != nil) && (c.Hook == nil || sameHook(c, h)) {
			continue
		}
		wrong["chain "+name] = true
	}
	return wrong
}

func sameHook(c *acl.Chain, h *kernelChain) bool {
	def := encodeBase(c)
	return uint32(*def.Hooknum) == h.hook && int32(*def.Priority) == int32(h.priority) && h.kind == string(def.Type)
}

// clear empties every chain and map, so that nothing refers to anything, and deletes the
// wrong objects. They are filled again in the same batch, however large.
func (tx *transaction) clear(have *kernel, wrong map[string]bool) {
	tx.whole = true
	var maps []string
	for name, s := range have.sets {
		if s.flags&unix.NFT_SET_MAP != 0 {
			maps = append(maps, name)
			s.elements = nil
		}
	}
	tx.add(phaseTable, op{object: tableObject(), weight: 1, emit: func(c *nftables.Conn) error {
		for _, t := range tables() {
			if have.awake[t.Family] || have.dormant[t.Family] {
				c.FlushTable(t)
			}
		}
		for _, name := range maps {
			c.FlushSet(&nftables.Set{Table: tableOf(name), Name: name})
		}
		for name := range have.sets {
			if wrong["set "+name] {
				c.DelSet(&nftables.Set{Table: tableOf(name), Name: name})
			}
		}
		for name := range have.chains {
			if wrong["chain "+name] {
				c.DelChain(&nftables.Chain{Table: tableOf(name), Name: name})
			}
		}
		return nil
	}})
}

func wantPolicy(c *acl.Chain) uint32 {
	if c.Hook == nil {
		return 0
	}
	return uint32(nftables.ChainPolicyAccept)
}

func sameHashes(rules []acl.Rule, hashes [][8]byte) bool {
	return slices.EqualFunc(rules, hashes, func(r acl.Rule, h [8]byte) bool { return ruleHash(&r) == h })
}

// compareElements finds what to add and what to delete. Elements are compared
// as the kernel holds them; an interval that is not exactly right makes the set
// be emptied and filled again.
func compareElements(tx *transaction, want *acl.Set, have *kernelSet) {
	rest := map[kernelElement]bool{}
	for _, e := range have.elements {
		rest[e] = true
	}
	c := acl.SetChange{Name: want.Name, Type: want.Type, Comment: want.Comment}
	for _, e := range want.Sorted() {
		missing := false
		for _, n := range encodeElement(want.Type, e) {
			k := kernelForm(n)
			missing = missing || !rest[k]
			delete(rest, k)
		}
		if missing {
			c.Add = append(c.Add, e)
		}
	}
	if want.Type.Interval() {
		// The empty interval before the first one that nft adds is no element.
		for e := range rest {
			if e.end && isZero(e.key) {
				delete(rest, e)
			}
		}
		if len(rest) > 0 || len(c.Add) > 0 {
			tx.replaceElements(want)
		}
		return
	}
	tx.set(c)
	if want.Type == acl.LinkVerdict {
		tx.rekey(want.Name, slices.DeleteFunc(slices.Clone(c.Add), func(e acl.Element) bool {
			key := string(encodeElement(want.Type, e)[0].Key)
			return !slices.ContainsFunc(have.elements, func(h kernelElement) bool { return h.key == key })
		}))
	}
	tx.deleteRaw(want, rest)
}

func isZero(key string) bool {
	return !slices.ContainsFunc([]byte(key), func(b byte) bool { return b != 0 })
}

func kernelForm(n nftables.SetElement) kernelElement {
	k := kernelElement{key: string(n.Key), last: string(n.KeyEnd), end: n.IntervalEnd}
	if v := n.VerdictData; v != nil {
		k.verdict = verdictText(int32(v.Kind), v.Chain)
	}
	return k
}

// replaceElements empties the set and fills it, in one batch.
func (tx *transaction) replaceElements(s *acl.Set) {
	phase := phaseElements
	if s.Type.Map() {
		phase = phaseMaps
	}
	tx.add(phase, op{object: setObject(s.Name), weight: 1 + len(s.Elements)/20, emit: func(c *nftables.Conn) error {
		def := encodeSet(s.Name, s.Type, "")
		c.FlushSet(def)
		for chunk := range slices.Chunk(s.Sorted(), maxElements) {
			var out []nftables.SetElement
			for _, e := range chunk {
				out = append(out, encodeElement(s.Type, e)...)
			}
			if err := c.SetAddElements(def, out); err != nil {
				return err
			}
		}
		return nil
	}})
}

// deleteRaw deletes elements by their key in the kernel. Those of a map go
// before what is added: the same key may come with another verdict.
func (tx *transaction) deleteRaw(s *acl.Set, elements map[kernelElement]bool) {
	if len(elements) == 0 {
		return
	}
	var out []nftables.SetElement
	for e := range elements {
		out = append(out, nftables.SetElement{Key: []byte(e.key), KeyEnd: []byte(e.last)})
	}
	phase := phaseDelElements
	if s.Type.Map() {
		phase = phaseMaps
	}
	var dels []op
	for chunk := range slices.Chunk(out, maxElements) {
		dels = append(dels, op{object: setObject(s.Name), weight: 1 + len(chunk)/20, gone: true, emit: func(c *nftables.Conn) error {
			return c.SetDeleteElements(encodeSet(s.Name, s.Type, ""), chunk)
		}})
	}
	tx.phases[phase] = append(dels, tx.phases[phase]...)
}
