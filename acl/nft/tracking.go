package nft

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// trackingTable is the table of family inet that has connections tracked, of both
// families, while ours is gone: the first rule that asks for a connection makes the
// kernel begin, the last one that goes makes it end. Its chain is in no packet's way.
const trackingTable = "netctl_tracking"

// tableOwner is NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h, since Linux 5.12): the
// table is the socket's that made it. Nobody else can change or delete it, a flush of
// everything passes it over, and it goes with the socket.
const tableOwner = 2

// KeepTracking has connections tracked from when our table is whole until Close, or the
// process ends, whatever others do to it. Not before: who is the first to be seen of a
// flow that began earlier would count as who began it. A kernel that cannot is told of
// in the log.
func (t *Table) KeepTracking() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.dial()
	if err == nil {
		t.keeper = c
	}
	return err
}

// tracking tells whether the tracking table is there, and ours.
func (t *Table) tracking() bool {
	if t.keeper == nil {
		return false
	}
	there, owner, err := t.trackingOwner()
	return err == nil && there && owner == t.keeper.PID()
}

// track makes the tracking table if it is not there, and tells whether it is.
func (t *Table) track() bool {
	if t.keeper == nil || t.tracking() {
		return t.keeper != nil
	}
	err := t.makeTracking()
	if text := fmt.Sprint(err); err != nil && text != t.untracked {
		t.untracked = text
		t.log.Warn("connections are not tracked while the packet filter is gone: flows that begin then are known by their ports alone", "error", err)
	}
	return err == nil
}

func (t *Table) makeTracking() error {
	there, _, err := t.trackingOwner()
	if err != nil {
		return err
	}
	batch, err := encode([]op{{emit: func(c *nftables.Conn) error { return emitTracking(c, there) }}})
	if err != nil {
		return err
	}
	if err = own(batch, trackingTable); err != nil {
		return err
	}
	if err = t.keeper.SetDeadline(time.Now().Add(answerTime)); err == nil {
		err = transmit(t.keeper, batch)
	}
	if err != nil {
		return fmt.Errorf("make table %s: %w", trackingTable, err)
	}
	return nil
}

// emitTracking makes the table, in place of another one of that name.
func emitTracking(c *nftables.Conn, there bool) error {
	table := &nftables.Table{Name: trackingTable, Family: nftables.TableFamilyINet}
	if there {
		c.DelTable(table)
	}
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{Name: "tracking", Table: table})
	c.AddRule(&nftables.Rule{
		Table: table, Chain: chain,
		Exprs:    []expr.Any{&expr.Ct{Register: regValue, Key: expr.CtKeySTATE}},
		UserData: userdata.AppendString(nil, userdata.TypeComment, "tracks connections while table netctl is gone"),
	})
	return nil
}

// trackingOwner is the netlink port of the socket that the tracking table belongs to; 0:
// of none.
func (t *Table) trackingOwner() (there bool, owner uint32, err error) {
	question, err := netlink.MarshalAttributes([]netlink.Attribute{textAttribute(unix.NFTA_TABLE_NAME, trackingTable)})
	if err != nil {
		return false, 0, err
	}
	answer, err := t.read.Execute(message(unix.NFT_MSG_GETTABLE, 0, question))
	if errors.Is(err, unix.ENOENT) {
		return false, 0, nil
	}
	for _, m := range answer {
		err = errors.Join(err, walk(body(m.Data), func(a attribute) {
			const tableOwnerPort = 7 // NFTA_TABLE_OWNER
			if a.kind == tableOwnerPort {
				owner = a.number()
			}
		}))
	}
	if err != nil {
		return false, 0, fmt.Errorf("read table %s: %w", trackingTable, err)
	}
	return true, owner, nil
}
