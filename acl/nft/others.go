package nft

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"netctl/acl"
)

// BaseChain is a base chain of another program's.
type BaseChain struct {
	Family   string // ip, ip6, inet, bridge, arp or netdev
	Table    string
	Name     string
	Hook     string // prerouting, input, forward, output, postrouting or ingress
	Priority int32
	// Drop says that what no rule decides about is dropped.
	Drop bool
	// Refuses is how it ends for what no rule accepts: "drop" or "reject"; "": it does not.
	// Surely says that no rule before that can accept a packet that begins a flow.
	Refuses string
	Surely  bool
	// In and Out say that a rule accepts what comes in, or goes out, by every interface
	// whose name has the prefix that was asked for.
	In, Out bool
}

// String is the chain as nft(8) names it.
func (c BaseChain) String() string { return c.Family + " " + c.Table + " " + c.Name }

// BaseChains lists the base chains of other programs' tables in the current network
// namespace. The rules of those that drop are looked at for the prefix.
func BaseChains(prefix string) (list []BaseChain, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("read nftables: %w", err)
	}
	all, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("read nftables chains: %w", err)
	}
	for _, chain := range all {
		if chain.Hooknum == nil || chain.Table.Name == acl.TableName {
			continue
		}
		b := BaseChain{Family: familyName(chain.Table.Family), Table: chain.Table.Name, Name: chain.Name, Hook: hookName(chain)}
		if chain.Priority != nil {
			b.Priority = int32(*chain.Priority)
		}
		b.Drop = chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return nil, fmt.Errorf("read nftables chain %s: %w", b, err)
		}
		b.judge(rules, prefix)
		list = append(list, b)
	}
	return list, nil
}

// judge says how the chain ends by its rules and policy.
func (c *BaseChain) judge(rules []*nftables.Rule, prefix string) {
	c.Surely = true
	for _, r := range rules {
		in, out := accepts(r.Exprs, prefix)
		c.In, c.Out = c.In || in, c.Out || out
		if c.Refuses = refuses(r.Exprs); c.Refuses != "" {
			return // nothing comes behind it
		}
		c.Surely = c.Surely && !mayAccept(r.Exprs)
	}
	if c.Drop {
		c.Refuses = "drop"
	}
}

// refuses is what a rule without a condition does with every packet: "drop", "reject", or "".
func refuses(rule []expr.Any) string {
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			return "reject"
		case *expr.Target: // of iptables-nft
			if e.Name == "REJECT" {
				return "reject"
			}
			return ""
		case *expr.Verdict:
			if e.Kind == expr.VerdictDrop {
				return "drop"
			}
			return ""
		default:
			return ""
		}
	}
	return ""
}

// mayAccept says whether a rule may let a packet go on that begins a flow: by itself, or in
// another chain.
func mayAccept(rule []expr.Any) bool {
	state := false
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Ct:
			state = state || e.Key == expr.CtKeySTATE // established and the like
		case *expr.Match:
			state = state || e.Name == "conntrack" || e.Name == "state"
		case *expr.Lookup:
			if e.IsDestRegSet { // a verdict map
				return true
			}
		case *expr.Verdict:
			switch e.Kind {
			case expr.VerdictAccept:
				return !state
			case expr.VerdictJump, expr.VerdictGoto, expr.VerdictReturn:
				return true
			}
		}
	}
	return false
}

// accepts tells whether a rule is nothing but: from, or to, interfaces of the prefix,
// accept. nft compares the first bytes of the name, since that ends in no zero.
func accepts(rule []expr.Any, prefix string) (in, out bool) {
	from, to, ours := false, false, false
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Meta:
			from, to = e.Key == expr.MetaKeyIIFNAME, e.Key == expr.MetaKeyOIFNAME
			if !from && !to {
				return false, false
			}
		case *expr.Cmp:
			if e.Op != expr.CmpOpEq || len(e.Data) > len(prefix) || !bytes.HasPrefix([]byte(prefix), e.Data) {
				return false, false
			}
			ours = true
		case *expr.Counter:
		case *expr.Verdict:
			if e.Kind != expr.VerdictAccept || !ours {
				return false, false
			}
			return from, to
		default:
			return false, false
		}
	}
	return false, false
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyARP:
		return "arp"
	case nftables.TableFamilyBridge:
		return "bridge"
	case nftables.TableFamilyNetdev:
		return "netdev"
	}
	return fmt.Sprintf("family %d", f)
}

// hookName is what nft(8) calls a hook; the numbers are those of linux/netfilter.h.
func hookName(c *nftables.Chain) string {
	if c.Table.Family == nftables.TableFamilyNetdev {
		return []string{"ingress", "egress"}[*c.Hooknum&1]
	}
	names := []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	if c.Table.Family == nftables.TableFamilyARP {
		names = []string{"input", "output"}
	}
	if n := int(*c.Hooknum); n < len(names) {
		return names[n]
	}
	return fmt.Sprintf("hook %d", *c.Hooknum)
}
