package nft

import (
	"context"
	"slices"

	"github.com/google/nftables"

	"netctl/acl"
)

// Families are those in which a table of netctl's is, as nft names them.
func (t *Table) Families() (names []string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, table := range tables() {
		k := &kernel{awake: map[nftables.TableFamily]bool{}, dormant: map[nftables.TableFamily]bool{}}
		if err := k.readFlags(t.read, table); err != nil {
			return nil, err
		}
		if k.awake[table.Family] || k.dormant[table.Family] {
			name := "inet"
			if table.Family == nftables.TableFamilyARP {
				name = "arp"
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// Standing says that the table is there.
func (t *Table) Standing(context.Context) (bool, error) {
	families, err := t.Families()
	return slices.Contains(families, "inet"), err
}

// Delete removes the tables with all that is in them. It is for a host whose roles have
// ended for good.
func (t *Table) Delete(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	tx := newTransaction()
	for _, table := range tables() {
		tx.add(0, op{
			object: acl.Refusal{Kind: "table", Name: acl.TableName}, gone: true, weight: 1,
			emit: func(c *nftables.Conn) error { c.DelTable(table); return nil },
		})
	}
	t.handles = handles{}
	return t.commit(ctx, tx)
}
