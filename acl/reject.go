package acl

// rejectChain is the name of the chain that refuses what a rule of the direction rejects.
func rejectChain(d direction) string { return "reject_" + d.short() }

// rejectRules are its rules: as the chain that denies, but that the sender is told.
func rejectRules(d direction) []Rule {
	log := denyChain(chainDenyIn, "DPI|default", few(meterDenyIn, LinkPair))
	if d == outbound {
		log = denyChain(chainDenyOut, "DPE|default", few(meterDenyOut, InLink))
	}
	return []Rule{
		log.Rules[0],
		{Match: []Term{num(L4Proto, protoTCP)}, Counter: true, Verdict: Verdict{Kind: Reset}},
		{Counter: true, Verdict: Verdict{Kind: Reject}},
	}
}

// acquireReject acquires that chain. It is there only where a rule rejects, since a kernel
// may lack what it takes.
func (x *Index) acquireReject(d direction) {
	c := x.chains[rejectChain(d)]
	if c == nil {
		c = x.newChain(rejectChain(d))
		c.rank, c.program.rules = endChain, rejectRules(d)
	}
	c.refs++
}
