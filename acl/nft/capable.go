package nft

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

// probeTable is there for a moment. What its chain is asked decides nothing.
const probeTable = acl.TableName + "_probe"

// JudgesPaths says whether the kernel can be asked, of what is forwarded and what is for the host,
// by which way its source is reached (Linux 5.19). Without that it takes no chain that asks:
// Options.ReversePath must be ReversePathOff.
func (t *Table) JudgesPaths() (bool, error) {
	if judges(release()) {
		return true, nil
	}
	return t.probePaths()
}

// release is the kernel's version.
func release() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return unix.ByteSliceToString(u.Release[:])
}

// judges says whether a kernel of that version is known to; of others it is tried, since
// distributions take from newer ones.
func judges(release string) bool {
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return err == nil && (major > 5 || major == 5 && minor >= 19)
}

// probePaths tries it.
func (t *Table) probePaths() (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	table := &nftables.Table{Name: probeTable, Family: nftables.TableFamilyINet}
	err := t.send([]op{{emit: func(c *nftables.Conn) error {
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		c.AddRule(encodeRule(chain, &acl.Rule{Match: []acl.Term{{Field: acl.SrcRoute}}, Verdict: acl.Verdict{Kind: acl.Accept}}, acl.Count{}))
		return nil
	}}})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// The kernel looks at it as the batch ends, and not at what is gone by then.
	return true, t.send([]op{{emit: func(c *nftables.Conn) error {
		c.DelTable(table)
		return nil
	}}})
}
