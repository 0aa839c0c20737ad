package nft

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watch calls fn once when no change can be missed any more, and then after each
// commit by which somebody else changed our table, or may have: also when
// messages were lost. It blocks until ctx ends and returns its error, or why it
// cannot go on. fn is called from Watch's goroutine.
func (t *Table) Watch(ctx context.Context, fn func()) error { return t.watch(ctx, inOurTable, fn) }

// WatchGone is Watch for commits that removed our table.
func (t *Table) WatchGone(ctx context.Context, fn func()) error {
	return t.watch(ctx, func(m netlink.Message) bool {
		return m.Header.Type&0xff == unix.NFT_MSG_DELTABLE && inOurTable(m)
	}, fn)
}

// WatchOthers is Watch for every other table of the namespace, of any family;
// iptables-nft changes those, iptables-legacy does not.
func (t *Table) WatchOthers(ctx context.Context, fn func()) error {
	return t.watch(ctx, func(m netlink.Message) bool { return !inOurTable(m) }, fn)
}

func (t *Table) watch(ctx context.Context, meant func(netlink.Message) bool, fn func()) error {
	c, err := t.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("watch nftables: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	fn()
	touched := false // by the commit whose messages come
	for {
		messages, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			fn()
			continue
		case err != nil:
			return fmt.Errorf("watch nftables: %w", err)
		}
		for _, m := range messages {
			// A commit's messages come after it, and end with its generation.
			switch {
			case m.Header.Type&0xff == unix.NFT_MSG_NEWGEN:
				touched = false
			case !touched && m.Header.PID != t.port.Load() && meant(m):
				touched = true
				fn()
			}
		}
	}
}

// inOurTable tells whether the message is about one of our tables or something in it.
func inOurTable(m netlink.Message) bool {
	return len(m.Data) > 0 && (m.Data[0] == unix.NFPROTO_INET || m.Data[0] == unix.NFPROTO_ARP) && ofOurTable(body(m.Data))
}
