package agent

import (
	"context"
	"errors"
	"time"

	"netctl/datastore"
	"netctl/netdev/kernel"
)

// event takes a change of the kernel's links or addresses.
func (l *loop) event(e kernel.Event) {
	switch e.Change {
	case kernel.Resync:
		l.links.resync, l.links.resyncHost = true, true
	case kernel.HostChanged:
		l.links.resyncHost = true
	case kernel.LinkChanged:
		if l.links.owners[e.Link] != "" && l.locals.named[l.links.owners[e.Link]].leaving {
			return // said before it was detached
		}
		l.links.present[e.Link] = kernel.Link{Name: e.Link, Index: e.Index, Up: e.Up, MTU: e.MTU}
		l.touch(e.Link)
	case kernel.LinkGone:
		switch k, ok := l.links.present[e.Link]; {
		case !ok || k.Index != 0 && k.Index != e.Index:
		case k.Index == 0:
			l.links.resync = true // an older link of that name, or this one
		default:
			delete(l.links.present, e.Link)
			l.touch(e.Link)
		}
	}
}

// touch has a link looked at.
func (l *loop) touch(link string) {
	if name := l.links.owners[link]; name != "" {
		l.locals.mark(name)
	} else {
		l.links.ownerless[link] = true
	}
}

// missed books that an endpoint's link is not there (docs/design.md, "The path of a packet"): of
// another boot it is gone, else lost, and gone after a while.
func (l *loop) missed(lo *local) {
	if lo.busy > 0 || lo.leaving || lo.releasing || l.standing.stage == detached {
		return
	}
	if lo.lost.IsZero() {
		lo.lost = time.Now()
		l.locals.moved[lo.name] = true
		if l.elsewhen(lo) {
			l.log.Info("endpoint of an earlier boot released", "endpoint", lo.name)
			lo.lost = lo.lost.Add(-l.cfg.LostAfter)
			l.gone(lo)
			return
		}
		l.log.Warn("endpoint lost its link", "endpoint", lo.name, "link", lo.link, "release", l.cfg.LostAfter)
		l.expire(lo.name, l.cfg.LostAfter)
		return
	}
	if time.Since(lo.lost) >= l.cfg.LostAfter {
		l.log.Info("lost endpoint released", "endpoint", lo.name)
		l.gone(lo)
	}
}

func (l *loop) expire(name string, after time.Duration) {
	time.AfterFunc(after, func() { l.post(func() { l.locals.dirty[name] = true }) })
}

// elsewhen says that an endpoint was attached in another boot.
func (l *loop) elsewhen(lo *local) bool {
	rec, err := l.records.Read(lo.link)
	if errors.Is(err, datastore.ErrNotFound) {
		// The records went with the boot; the state folder knows the last one.
		return l.boots.last != "" && l.boots.last != l.boots.this
	}
	return err == nil && rec.Boot != l.boots.this
}

// gone releases an endpoint. If that fails it is tried again.
func (l *loop) gone(lo *local) {
	if l.standing.stage != ready {
		l.expire(lo.name, retryMax)
		return
	}
	lo.releasing = true
	l.spawn(func(ctx context.Context) error {
		err := l.release(ctx, lo.name)
		if err != nil && ctx.Err() == nil {
			l.log.Warn("endpoint not released", "endpoint", lo.name, "error", err)
			l.expire(lo.name, retryMax)
		}
		l.post(func() { lo.releasing = false })
		return nil
	})
}
