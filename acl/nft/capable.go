package nft

import (
	"errors"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// probeTable is made and deleted in one batch, so that nobody sees it.
const probeTable = acl.TableName + "_probe"

// JudgesPaths says whether the kernel can be asked, of what is forwarded and what is for the host,
// by which way its source is reached (Linux 5.19). Without that it takes no chain that asks:
// Options.ReversePath must be ReversePathOff.
func (t *Table) JudgesPaths() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.send([]op{{emit: func(c *nftables.Conn) error {
		table := c.AddTable(&nftables.Table{Name: probeTable, Family: nftables.TableFamilyINet})
		chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		c.AddRule(encodeRule(chain, &acl.Rule{Match: []acl.Term{{Field: acl.SrcRoute}}, Verdict: acl.Verdict{Kind: acl.Accept}}, acl.Count{}))
		c.DelTable(table)
		return nil
	}}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}
