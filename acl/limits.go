package acl

import (
	"fmt"
	"strings"

	"netctl/datastore"
)

// The base chains that limit packets and connections of workloads, behind those that deny
// some: what is denied uses nothing up. Each is there while a workload has such a limit.
const (
	ChainLimitFrom = "limit_from" // forward: what workloads send to others
	ChainLimitHost = "limit_host" // input: what they send to their own host
	ChainLimitTo   = "limit_to"   // postrouting: what workloads receive, also from their own host
)

// LimitPrefix starts the NFLOG prefix of a packet that is over a limit; the direction
// and the name of the limit follow: "QPI|ingressPacketRate".
const LimitPrefix = "QP"

// limit is one of what a link sends or receives.
type limit struct {
	name        string // as manifests call it
	rate, burst uint32
	begins      bool // it is of what begins a connection only
	most        bool // rate is how many connections there are at most
}

// limitsOf are the limits of a direction, but for bandwidth, in the order in which they are asked.
func limitsOf(d direction, q datastore.QoSControls) (list []limit) {
	all := []limit{
		{name: "ingressPacketRate", rate: q.IngressPacketRate, burst: q.IngressPacketBurst},
		{name: "ingressNewConnections", rate: q.IngressNewConnections, burst: q.IngressNewConnections, begins: true},
		{name: "ingressMaxConnections", rate: q.IngressMaxConnections, begins: true, most: true},
	}
	if d == outbound {
		all = []limit{
			{name: "egressPacketRate", rate: q.EgressPacketRate, burst: q.EgressPacketBurst},
			{name: "egressNewConnections", rate: q.EgressNewConnections, burst: q.EgressNewConnections, begins: true},
			{name: "egressMaxConnections", rate: q.EgressMaxConnections, begins: true, most: true},
		}
	}
	for _, l := range all {
		if l.rate > 0 {
			list = append(list, l)
		}
	}
	return list
}

// leastBurst of packets and connections.
const leastBurst = 5

// rules let back what is within the limit, and drop the rest.
func (l limit) rules(d direction, link string) []Rule {
	within := Rule{Verdict: Verdict{Kind: Return}}
	if l.most {
		within.Connections = l.rate
	} else {
		burst := l.burst
		if burst == 0 {
			burst = l.rate / 10
		}
		within.Limit = Limit{Rate: l.rate, Burst: max(burst, leastBurst)}
	}
	log := Rule{Limit: few(MeterLog, LinkPair), Log: LimitPrefix + map[direction]string{inbound: "I|", outbound: "E|"}[d] + l.name}
	return []Rule{within, log, refuse(fmt.Sprintf("%s: over %s %d", link, l.name, l.rate))}
}

// limitMap is the map from a link to the chain of its limits; its elements are those of
// Index.limited.
func limitMap(d direction) setRef {
	return setRef{name: "limits_" + d.short(), typ: LinkVerdict, source: fromLimits, arg: d.short()}
}

// limitChain is the chain of the limits of a link, and with a name that of one of them.
func limitChain(d direction, link, name string) string {
	return hashName("limit_"+d.short(), link, name)
}

// limitRules ask the limits of a link, each in its own chain, which keeps what it has
// counted when others change.
func limitRules(d direction, link string, list []limit) (rules []Rule) {
	began := false
	for _, l := range list {
		if l.begins && !began {
			began = true
			back := Verdict{Kind: Return}
			rules = append(rules, match(back, Term{Field: CTState, Number: uint32(New), Not: true}), match(back, num(CTStatus, statusConfirmed)))
		}
		rules = append(rules, Rule{Verdict: Verdict{Kind: Jump, Chain: limitChain(d, link, l.name)}, Comment: clip(link + ": " + l.name)})
	}
	return rules
}

// limit makes these the limits of a link.
func (x *Index) limit(link string, q datastore.QoSControls) {
	was := x.limited[link]
	if was == q {
		return
	}
	if x.limited[link] = q; q == (datastore.QoSControls{}) {
		delete(x.limited, link)
	}
	for _, d := range []direction{inbound, outbound} {
		x.limitOne(d, link, limitsOf(d, was), limitsOf(d, q))
	}
}

func (x *Index) limitOne(d direction, link string, was, now []limit) {
	for _, l := range was {
		x.release(limitChain(d, link, l.name))
	}
	for _, l := range now {
		x.putChain(limitChain(d, link, l.name), endChain, nil, program{rules: l.rules(d, link)})
	}
	if len(was)+len(now) == 0 {
		return
	}
	name := limitChain(d, link, "")
	if len(now) > 0 {
		x.putChain(name, ruleChain, nil, program{rules: limitRules(d, link, now)})
	} else {
		x.release(name)
	}
	x.limits[d] += len(now) - len(was)
	x.limitHooks(d) // the map is there now
	if len(was) == 0 || len(now) == 0 {
		x.pending.element(limitMap(d).name, limitElement(d, link), len(now) > 0)
	}
}

func limitElement(d direction, link string) Element {
	return Element{Link: link, Verdict: goTo(limitChain(d, link, ""))}
}

// limitElements are those of limitMap.
func (x *Index) limitElements(d direction) (list []Element) {
	for _, link := range sortedKeys(x.limited) {
		if len(limitsOf(d, x.limited[link])) > 0 {
			list = append(list, limitElement(d, link))
		}
	}
	return list
}

// putChain makes a chain hold a program, and refers to it.
func (x *Index) putChain(name string, rank chainRank, hook *Hook, p program) {
	c := x.chains[name]
	if c == nil {
		c = x.newChain(name)
		c.rank, c.hook = rank, hook
	}
	c.refs = 1
	x.recompile(c, p)
}

// limitHooks has the base chains of a direction there if they are needed.
func (x *Index) limitHooks(d direction) {
	for _, b := range []struct {
		name  string
		d     direction
		key   Field
		hook  string
		order int32
	}{
		{ChainLimitFrom, outbound, InLink, "forward", -8},
		{ChainLimitHost, outbound, InLink, "input", -9},
		{ChainLimitTo, inbound, OutLink, "postrouting", -8},
	} {
		switch {
		case b.d != d:
		case x.limits[d] > 0:
			x.putChain(b.name, baseChain, &Hook{b.hook, b.order}, program{rules: []Rule{vmap(b.key, limitMap(d).name)}, refs: []setRef{limitMap(d)}})
		default:
			x.release(b.name)
		}
	}
}

// LinkLimit is a limit of a link, and the chain that drops what is over it.
type LinkLimit struct {
	Link, Name, Chain string
	Value             uint64
}

// Limits are those of packets and connections that there are, by link.
func (x *Index) Limits() (list []LinkLimit) {
	for _, link := range sortedKeys(x.limited) {
		for _, d := range []direction{inbound, outbound} {
			for _, l := range limitsOf(d, x.limited[link]) {
				list = append(list, LinkLimit{link, l.name, limitChain(d, link, l.name), uint64(l.rate)})
			}
		}
	}
	return list
}

// Limited says what limits an NFLOG prefix is of, and whose: of the sender, or of who
// receives. false: of none.
func Limited(prefix string) (limit string, inbound, ok bool) {
	rest, ok := strings.CutPrefix(prefix, LimitPrefix)
	if !ok || len(rest) < 2 || rest[1] != '|' {
		return "", false, false
	}
	return rest[2:], rest[0] == 'I', true
}
