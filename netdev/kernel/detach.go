package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// Detach takes a link out of service at once: it goes down, loses its name and
// its group, and Run deletes it with others in one go (deleting a veth waits for
// the kernel's grace period, some 15 ms, however many there are). It is found by
// the index that Create told, whatever it is called by now, or by its name (index
// 0, or no such link any more). A link that is not there is no error; one that is
// not netctl's is left alone.
func (k *Kernel) Detach(link string, index int) error {
	return errors.Join(k.detach(link, index), k.dropShaper(link))
}

func (k *Kernel) detach(link string, index int) error {
	l, err := k.find(link, index)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", link, err)
	}
	switch {
	case l.group == netdev.GroupRetired:
		return nil // it is out of service
	case !l.made(index):
		return fmt.Errorf("detach %s: not an interface of netctl (group %d)", link, l.group)
	}
	if err := k.retireLink(l); err != nil {
		return fmt.Errorf("detach %s: %w", link, err)
	}
	return nil
}

// retireLink takes a link out of service, for Run to delete it.
func (k *Kernel) retireLink(l rawLink) error {
	k.dropAliases(l)
	// Down comes before the new name: kernels before 6.2 rename no link that is up.
	// The group comes first of all, so that it is no news that the link goes down.
	d := device(l.Index)
	err := k.host.LinkSetGroup(d, int(netdev.GroupRetired))
	if err == nil {
		err = k.host.LinkSetDown(d)
	}
	if err == nil {
		err = k.host.LinkSetName(d, netdev.RetiredName(l.Index))
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return cause(err)
	}
	k.retire.kick()
	return nil
}

// Run deletes detached links, also those that an earlier process left, until ctx
// ends; it always ends with ctx's error.
func (k *Kernel) Run(ctx context.Context) error {
	if err := k.retireShapers(); err != nil {
		k.log.Warn("rates of links that are gone not removed", "error", err)
	}
	k.retire.kick()
	for {
		select {
		case <-ctx.Done():
			if len(k.retire.wake) > 0 {
				_ = k.retire.flush() // else the next process does it
			}
			return ctx.Err()
		case <-k.retire.wake:
		}
		if err := k.retire.flush(); err != nil {
			k.log.Warn("detached links not deleted", "error", err)
		}
	}
}

// retirer deletes every link of the retired group on a socket of its own, since
// the call takes tens of milliseconds.
type retirer struct {
	conn *conn
	wake chan struct{} // holds one: something is waiting
	mu   sync.Mutex    // one deletion at a time
}

func newRetirer(netns int) (*retirer, error) {
	c, err := dial(netns)
	if err != nil {
		return nil, err
	}
	return &retirer{conn: c, wake: make(chan struct{}, 1)}, nil
}

func (r *retirer) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// flush deletes what is retired now and waits for it; none is no error.
func (r *retirer) flush() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := r.conn.deleteGroup(netdev.GroupRetired)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete detached links: %w", err)
	}
	return nil
}
