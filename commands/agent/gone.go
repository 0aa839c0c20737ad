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
		l.links.resync, l.links.resyncHost, l.tunnels.resync = true, true, true
		l.changedAdopted()
	case kernel.HostChanged:
		if l.links.adopted[e.Link] && (e.Gone || !e.Up) {
			l.unadopt(e.Link)
		}
		l.changedAdopted()
		l.tunnels.event(e)
		switch _, ours := l.links.recorded(e.Index); {
		case ours && e.Gone:
			l.linkGone(e)
		case ours:
			l.linkChanged(e)
		default:
			l.links.resyncHost = true
			if e.Link == "lo" && !e.Up {
				l.forwarding.lo.is = false
			}
		}
	case kernel.LinkChanged:
		l.linkChanged(e)
	case kernel.LinkGone:
		l.linkGone(e)
	case kernel.SideChanged:
		l.links.doubt(e.Index)
	case kernel.ForwardingOff:
		if e.V4 {
			l.forwarding.v4.is = false
		} else {
			l.forwarding.v6.is = false
		}
	case kernel.SettingChanged:
		if s := l.forwarding.by[e.Index]; s != nil {
			s.is = false
		}
		l.tunnels.event(e)
	}
}

// peerEvent takes a change of what is on the other side of the links.
func (l *loop) peerEvent(e kernel.Event) {
	w, known := l.links.wires[l.links.names[e.Index]]
	switch {
	case e.Change == kernel.Resync:
		for link := range l.links.present {
			l.links.hold[link] = true
		}
	case known && w.MAC != e.MAC:
		w.MAC = e.MAC
		l.links.wires[w.Link] = w
		l.links.doubt(e.Index)
	default:
		l.idle++
	}
}

// linkChanged takes what the kernel says of a link of netctl.
func (l *loop) linkChanged(e kernel.Event) {
	name := l.links.nameOf(e.Index, e.Link)
	if l.links.owners[name] != "" && l.locals.named[l.links.owners[name]].leaving {
		return // said before it was detached
	}
	l.links.set(kernel.Link{Name: e.Link, Index: e.Index, Up: e.Up, Carrier: e.Carrier, MTU: e.MTU, Altered: e.Altered})
	l.touch(name)
}

func (l *loop) linkGone(e kernel.Event) {
	name := l.links.nameOf(e.Index, e.Link)
	switch k, ok := l.links.present[name]; {
	case !ok || k.Index != 0 && k.Index != e.Index:
	case k.Index == 0:
		l.links.resync = true // an older link of that name, or this one
	default:
		delete(l.links.present, name)
		if _, recorded := l.links.recorded(e.Index); !recorded {
			delete(l.links.names, e.Index)
		}
		l.touch(name)
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
	if _, adopted := datastore.AdoptedLink(lo.name); adopted {
		l.locals.moved[lo.name] = true
		l.changedAdopted()
		return
	}
	if lo.ep != nil && lo.ep.Spec.Tap.Is() { // it goes with nothing
		l.locals.moved[lo.name] = true
		l.remake(lo)
		return
	}
	if lo.lost.IsZero() {
		lo.lost = time.Now()
		l.locals.moved[lo.name] = true
		if l.elsewhen(lo) {
			l.log.Info("endpoint of an earlier boot released", "endpoint", lo.name, datastore.EventLeak.Mark())
			lo.lost = lo.lost.Add(-l.cfg.LostAfter)
			l.gone(lo)
			return
		}
		l.log.Warn("endpoint lost its link", "endpoint", lo.name, "link", lo.link, "release", l.cfg.LostAfter, datastore.EventLeak.Mark())
		l.expire(lo.name, l.cfg.LostAfter)
		return
	}
	if time.Since(lo.lost) >= l.cfg.LostAfter {
		l.log.Info("lost endpoint released", "endpoint", lo.name, datastore.EventLeak.Mark())
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
			l.log.Warn("endpoint not released", "endpoint", lo.name, "error", err, datastore.EventLeak.Mark())
			l.expire(lo.name, retryMax)
		}
		l.post(func() { lo.releasing = false })
		return nil
	})
}
