package nft

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"netctl/acl"
)

// Denied counts the packets that the chains of acl.DenyingChains dropped, by what is
// counted there. It reads those chains alone, whatever else there is; one that is not
// there has dropped nothing.
func (t *Table) Denied(ctx context.Context) (map[string]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	denied := map[string]uint64{}
	for chain, what := range acl.DenyingChains() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := t.dropped(chain)
		if err != nil {
			return nil, err
		}
		denied[what] += n
	}
	return denied, nil
}

// Dropped is how many packets the rules of a chain counted; of one that is not there none.
func (t *Table) Dropped(_ context.Context, chain string) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dropped(chain)
}

func (t *Table) dropped(chain string) (sum uint64, err error) {
	rules, err := objects(t.read, tableOf(chain), unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, textAttribute(unix.NFTA_RULE_CHAIN, chain))
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, err
	}
	for _, r := range rules {
		n, err := counted(r)
		if err != nil {
			return 0, err
		}
		sum += n.Packets
	}
	return sum, nil
}

// counted is what the counter of a rule has counted; nothing if it has none.
func counted(rule []byte) (c acl.Count, err error) {
	err = walk(rule, func(a attribute) {
		if a.kind != unix.NFTA_RULE_EXPRESSIONS {
			return
		}
		a.walk(func(a attribute) { // NFTA_LIST_ELEM
			name := ""
			a.walk(func(a attribute) {
				switch {
				case a.kind == unix.NFTA_EXPR_NAME:
					name = a.text()
				case a.kind == unix.NFTA_EXPR_DATA && name == "counter":
					a.walk(func(a attribute) {
						switch a.kind {
						case unix.NFTA_COUNTER_PACKETS:
							c.Packets = a.handle()
						case unix.NFTA_COUNTER_BYTES:
							c.Bytes = a.handle()
						}
					})
				}
			})
		})
	})
	return c, err
}
