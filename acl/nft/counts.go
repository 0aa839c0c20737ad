package nft

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// counts is what rules have counted, by their hashes. It is what a chain that is filled
// anew takes over, or one that comes in the place of others; what is counted between the
// reading and the commit is lost.
type counts map[[8]byte]acl.Count

// take hands out what the rules have counted, once; nil: nothing.
func (c counts) take(rules []acl.Rule) (list []acl.Count) {
	if len(c) == 0 {
		return nil
	}
	list = make([]acl.Count, len(rules))
	for i := range rules {
		if rules[i].Counter {
			h := ruleHash(&rules[i])
			list[i] = c[h]
			delete(c, h)
		}
	}
	return list
}

// Counts is what each of the rules has counted, in whichever chains it is.
func (t *Table) Counts(ctx context.Context, rules []acl.Rule) ([]acl.Count, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := counts{}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := t.readCounts(c, "", func(string) bool { return true }); err != nil {
		return nil, err
	}
	list := make([]acl.Count, len(rules))
	for i := range rules {
		list[i] = c[ruleHash(&rules[i])]
	}
	return list, nil
}

// fewChains is up to how many chains are asked for one by one, instead of for all that there are.
const fewChains = 8

// countsOfAnew is what the rules of chains have counted that a delta fills anew, or deletes
// while others come.
func (t *Table) countsOfAnew(changes []acl.ChainChange) counts {
	counting := func(list []acl.Rule) bool {
		return slices.ContainsFunc(list, func(r acl.Rule) bool { return r.Counter })
	}
	if !slices.ContainsFunc(changes, func(c acl.ChainChange) bool { return counting(c.Rules) }) {
		return nil
	}
	out, chains := counts{}, map[string]bool{}
	for _, c := range changes {
		chains[c.Name] = counting(c.Before)
	}
	maps.DeleteFunc(chains, func(_ string, counts bool) bool { return !counts })
	if len(chains) > fewChains {
		t.tellUncounted(t.readCounts(out, "", func(chain string) bool { return chains[chain] }))
		return out
	}
	for c := range chains {
		t.tellUncounted(t.readCounts(out, c, func(string) bool { return true }))
	}
	return out
}

// countsOfWrong is what the rules of chains have counted that are not as wanted.
func (t *Table) countsOfWrong(have *kernel) counts {
	wrong := func(chain string) bool {
		_, right := t.handles[chain]
		return !right && have.chains[chain] != nil
	}
	out := counts{}
	for chain := range have.chains {
		if wrong(chain) {
			t.tellUncounted(t.readCounts(out, "", wrong))
			break
		}
	}
	return out
}

// tellUncounted says why counters begin anew: nothing waits for them.
func (t *Table) tellUncounted(err error) {
	if err != nil {
		t.log.Warn("counters of packet filter lost", "table", acl.TableName, "error", err)
	}
}

// readCounts adds what the rules of a chain have counted; "" is of all that are in. A chain
// that is not there has counted nothing.
func (t *Table) readCounts(c counts, chain string, in func(chain string) bool) error {
	var attrs []netlink.Attribute
	if chain != "" {
		attrs = append(attrs, textAttribute(unix.NFTA_RULE_CHAIN, chain))
	}
	rules, err := objects(t.read, tableOf(chain), unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, attrs...)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	for _, r := range rules {
		of, hash, _, err := readRule(r)
		if err != nil {
			return err
		}
		n, err := counted(r)
		if err != nil {
			return err
		}
		if n != (acl.Count{}) && in(of) && hash != ([8]byte{}) {
			c[hash] = c[hash].Plus(n)
		}
	}
	return nil
}
