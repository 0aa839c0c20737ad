package acl

import (
	"strings"

	"netctl/datastore"
)

// end is a chain in which the way of packets ends that a rule of the model refuses, or that
// no rule of a tier decides about: what it logs says which. It is there as long as
// something refers to it.
type end struct {
	name  string
	rules []Rule
}

// defaultID stands for a rule's ID where none decided.
const defaultID = "default"

// logPrefix has the form of all prefixes: what and direction, the rule's ID or defaultID,
// whose. A policy has its tier before it. NFLOG takes 63 bytes, as iptables does.
func logPrefix(what string, d direction, id, whose string) string {
	p := what + "P" + map[direction]string{inbound: "I", outbound: "E"}[d] + "|" + id
	if whose != "" {
		p += "|" + whose
	}
	return p[:min(len(p), 63)]
}

// Log is what a log prefix says.
type Log struct {
	Denied, Inbound bool
	// Staged says that the packet passed, and may be denied if staged policies were in force.
	Staged bool
	// Rule is the ID of the rule that wrote it; "": no rule decided, of the tier Whose or of
	// profiles if that is "".
	Rule  string
	Whose string // its profile, or tier and policy; may be cut off
	host  bool   // of a packet to the workload's own host
	// elsewhere: it came from another machine with the source of a pool, by no way that leads there.
	elsewhere bool
}

// ParseLog reads a log prefix.
func ParseLog(prefix string) Log {
	what, rest, _ := strings.Cut(prefix, "|")
	id, whose, _ := strings.Cut(rest, "|")
	l := Log{Denied: strings.HasPrefix(what, "D"), Staged: strings.HasPrefix(what, "S"), Inbound: strings.HasSuffix(what, "I"), Whose: whose, host: what == "DPH"}
	if l.elsewhere = prefix == reverseLog; l.elsewhere {
		l.Inbound, l.Rule, l.Whose = true, "", ""
		return l
	}
	if id != defaultID && !l.host {
		l.Rule = id
	}
	return l
}

// Reason is why a packet is denied that no rule decided about.
func (l Log) Reason() string {
	d := outbound
	if l.Inbound {
		d = inbound
	}
	switch {
	case l.elsewhere:
		return reverseReason
	case l.host:
		return reason(chainWLHost)
	case l.Whose != "":
		return undecidedReason(l.Whose, d)
	}
	return reason(d.denyChain())
}

// whose is the owner as log prefixes name it.
func (o owner) whose() string {
	if o.kind == datastore.KindPolicy {
		return o.tier + "/" + o.name
	}
	return o.name
}

// denyLog is the rule that writes what is denied.
func denyLog(d direction, prefix string) Rule {
	if d == outbound {
		return Rule{Limit: few(meterDenyOut, InLink), Log: prefix}
	}
	return Rule{Limit: few(meterDenyIn, LinkPair), Log: prefix}
}

// denyRules are the rules of a chain that writes what it denies.
func denyRules(d direction, prefix string) []Rule {
	return []Rule{denyLog(d, prefix), {Counter: true, Verdict: drop()}}
}

// refusedBy is the end of what a rule denies or rejects.
func refusedBy(from origin, d direction) end {
	last := goTo(d.dropChain())
	if from.rule.Action == datastore.Reject {
		last = goTo(rejectChain(d))
	}
	return end{"deny_" + d.short() + "_" + from.id, []Rule{denyLog(d, logPrefix("D", d, from.id, from.owner.whose())), {Verdict: last}}}
}

// undecidedBy is the end of what no rule of a tier decides.
func undecidedBy(tier string, d direction) end {
	return end{hashName("deny_"+d.short(), "tier", tier), []Rule{denyLog(d, logPrefix("D", d, defaultID, tier)), {Verdict: goTo(d.dropChain())}}}
}

// rejectChain is the name of the chain that refuses what a rule of the direction rejects.
func rejectChain(d direction) string { return "reject_" + d.short() }

// rejecting is that chain: it drops, and the sender is told. It is there only where a rule
// rejects, since a kernel may lack what it takes.
func rejecting(d direction) end {
	return end{rejectChain(d), []Rule{
		{Match: []Term{num(L4Proto, protoTCP)}, Counter: true, Verdict: Verdict{Kind: Reset}},
		{Counter: true, Verdict: Verdict{Kind: Reject}},
	}}
}

// finish notes that a rule goes to e.
func (p *program) finish(e end) Verdict {
	if p.used == nil {
		p.used = map[string]bool{}
	}
	if !p.used[e.name] {
		p.used[e.name] = true
		p.ends = append(p.ends, e)
	}
	return goTo(e.name)
}

// acquireEnd acquires the chain of an end.
func (x *Index) acquireEnd(e end) {
	c := x.chains[e.name]
	if c == nil {
		c = x.newChain(e.name)
		c.rank, c.program.rules = endChain, e.rules
	}
	c.refs++
}
