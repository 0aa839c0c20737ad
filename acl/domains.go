package acl

import (
	"net/netip"
	"slices"

	"netctl/datastore"
)

// Network sets may have domains. Which addresses those have, a node learns from the answers
// that DNS servers give to its own endpoints: rules in two base chains, which are there
// while an endpoint's rules use such a set, log the answers, and who reads them calls Learn.

// The chains that log the answers of DNS servers.
const (
	ChainDNSFwd = "dns_fwd" // forward
	ChainDNSOut = "dns_out" // output: of a server on the host itself
)

// NFLogDNSGroup is the NFLOG group that the answers of DNS servers are sent to.
const NFLogDNSGroup = 2

// dnsLog is the prefix of the answers.
const dnsLog = "NPI|dns"

// meterDNS is the meter of answers that are logged.
const meterDNS = "m_dns"

// dnsRate and dnsBurst are how many answers of each endpoint are looked at, per second and at
// once: more are not learned from.
const (
	dnsRate  = 200
	dnsBurst = 400
)

const dnsPort = 53

// LogGroup is the NFLOG group that what is logged with the prefix is sent to.
func LogGroup(prefix string) uint16 {
	if prefix == dnsLog {
		return NFLogDNSGroup
	}
	return NFLogGroup
}

// learned are addresses of network sets that their domains have, by set.
type learned map[string]map[netip.Addr]struct{}

// Learn puts an address that a domain of a network set has into the set. It may be there
// already, and the set need not be.
func (x *Index) Learn(set string, a netip.Addr) {
	if _, is := x.learned[set][a]; is {
		return
	}
	was := x.lookedUp(set, a)
	if x.learned[set] == nil {
		x.learned[set] = map[netip.Addr]struct{}{}
	}
	x.learned[set][a] = struct{}{}
	for _, r := range was {
		x.pending.element(r.name, addrElement(a), true)
		delete(x.expired, elementOf{r.name, a})
	}
}

// Unlearn takes it out. expired says that its time is over, which ends no flow that goes on:
// Tightened does not tell of it.
func (x *Index) Unlearn(set string, a netip.Addr, expired bool) {
	if _, is := x.learned[set][a]; !is {
		return
	}
	delete(x.learned[set], a)
	if len(x.learned[set]) == 0 {
		delete(x.learned, set)
	}
	for _, r := range x.lookedUp(set, a) {
		x.pending.element(r.name, addrElement(a), false)
		if expired {
			x.expired[elementOf{r.name, a}] = struct{}{}
		}
	}
}

// elementOf is an address in a set of the kernel.
type elementOf struct {
	set string
	netip.Addr
}

// lookedUp are the live sets that an address is in only if it is learned for the network set.
func (x *Index) lookedUp(set string, a netip.Addr) (list []setRef) {
	n := x.networks[set]
	if n == nil {
		return nil
	}
	i := index4or6(addrElement(a))
	for kernel := range x.netSets {
		r := x.sets[kernel].ref
		if takes := takes(r); r.typ.index() == i && takes(set, n) && !x.has(r, takes, a) {
			list = append(list, r)
		}
	}
	return list
}

// has says whether an address is in one of the network sets that takes says.
func (x *Index) has(r setRef, takes func(string, *networks) bool, a netip.Addr) bool {
	in := func(name string, n *networks) bool {
		if _, is := x.learned[name][a]; is {
			return true
		}
		return slices.ContainsFunc(n.nets[r.typ.index()], func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if r.source == fromSet {
		return in(r.arg, x.networks[r.arg])
	}
	for name, n := range x.networks {
		if takes(name, n) && in(name, n) {
			return true
		}
	}
	return false
}

// takes says whether networks, of which there may be none, are in a set of networks.
func takes(r setRef) func(name string, n *networks) bool {
	switch r.source {
	case fromSet:
		return func(name string, _ *networks) bool { return name == r.arg }
	case fromTagNets:
		return func(_ string, n *networks) bool { return n.tagged(r.arg) }
	}
	sel, err := datastore.ParseSelector(r.arg)
	return func(_ string, n *networks) bool { return err == nil && n != nil && sel.Matches(n.labels) }
}

// Learns are the domains of the network sets that the rules of the endpoint behind a link name,
// by the name of the set. Nobody may change them.
func (x *Index) Learns(link string) map[string][]string {
	w, is := x.wired[link]
	if len(x.named) == 0 || !is {
		return nil
	}
	out := map[string][]string{}
	for _, class := range []string{w.in, w.out} {
		for _, j := range x.chains[class].jumps {
			x.namedBy(&x.chains[j].program, out)
			x.namedBy(x.chains[j].next, out)
		}
	}
	return out
}

// namedBy adds the network sets with domains that a program names.
func (x *Index) namedBy(p *program, out map[string][]string) {
	if p == nil {
		return
	}
	for _, r := range p.refs {
		if !r.networks() {
			continue
		}
		takes := takes(r)
		for name := range x.named {
			if n := x.networks[name]; takes(name, n) {
				out[name] = n.domains
			}
		}
	}
}

// Learning are the domains of the network sets that any rule here names, as of the last Flush.
// Nobody may change them. Relearn says whether they may be others than when it was called last.
func (x *Index) Learning() map[string][]string {
	out := map[string][]string{}
	for kernel := range x.netSets {
		x.namedBy(&program{refs: []setRef{x.sets[kernel].ref}}, out)
	}
	return out
}

// Relearn says whether Learning may be something else than at its last call.
func (x *Index) Relearn() bool {
	is := x.relearn
	x.relearn = false
	return is
}

// arrange brings up to date what others follow from.
func (x *Index) arrange() {
	x.settle()
	x.collect()
	if x.doubtDNS {
		x.doubtDNS, x.relearn = false, true
		x.logDNS(len(x.Learning()) > 0)
		x.collect()
	}
}

// logDNS has the answers of DNS servers logged as long as somebody learns from them.
func (x *Index) logDNS(logs bool) {
	if logs == x.logsDNS {
		return
	}
	x.logsDNS = logs
	for _, c := range []struct{ name, hook string }{{ChainDNSFwd, "forward"}, {ChainDNSOut, "output"}} {
		if !logs {
			x.release(c.name)
			continue
		}
		chain := x.chains[c.name]
		if chain == nil {
			chain = x.newChain(c.name)
			chain.hook = &Hook{c.hook, -11} // before what lets the packets of known flows pass
		}
		chain.refs = 1
		x.recompile(chain, program{rules: dnsRules(x.options)})
	}
}

// dnsRules log answers to what an endpoint asked: what nobody asked is of no flow that is
// known, or its beginning.
func dnsRules(o Options) (rules []Rule) {
	to := []Term{num(OutGroup, o.Group)}
	if o.Adopts {
		to = append(to, inSet(OutLink, setAdopted))
	}
	for _, t := range to {
		rules = append(rules, Rule{
			Match: []Term{num(L4Proto, protoUDP), num(SrcPort, dnsPort), t, num(CTState, uint32(Established)), num(CTDirection, directionReply)},
			Limit: Limit{Set: meterDNS, Key: OutLink, Rate: dnsRate, Burst: dnsBurst}, Log: dnsLog, Comment: "domains of network sets",
		})
	}
	return rules
}

// hasDomains notes whether a network set has domains.
func (x *Index) hasDomains(name string, n *networks) {
	switch {
	case n != nil && len(n.domains) > 0:
		x.named[name] = struct{}{}
	default:
		if _, had := x.named[name]; !had {
			return
		}
		delete(x.named, name)
	}
	x.doubtDNS = true
}

// noteNetSet notes that a set is live, or no more, if it is one of networks.
func (x *Index) noteNetSet(r setRef, lives bool) {
	switch {
	case !r.networks():
		return
	case lives:
		x.netSets[r.name] = struct{}{}
	default:
		delete(x.netSets, r.name)
	}
	x.doubtDNS = true
}
