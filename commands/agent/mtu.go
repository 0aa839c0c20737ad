package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"netctl/commands/workload"
	"netctl/datastore"
)

// sizes is what is known of how large packets of endpoints may be. Its owner is the
// loop.
type sizes struct {
	ways    workload.Ways
	stuck   map[string]bool   // endpoints that cannot be changed until something else does
	said    map[string]string // why, by endpoint
	changed bool              // the ways may be others
	rested  bool              // a tunnel that was not asked for any more is gone
	waited  bool              // others were not told of a tunnel, since endpoints were to be changed first
}

// again has every endpoint looked at once more.
func (s *sizes) again(k *locals) {
	clear(s.stuck)
	for name := range k.named {
		k.sized[name] = true
	}
}

// forget is for an endpoint that is gone, or new.
func (s *sizes) forget(endpoint string) {
	delete(s.stuck, endpoint)
	delete(s.said, endpoint)
}

// sizeSlice is how many endpoints get another MTU before calls that wait go first.
const sizeSlice = 32

// uplink is the interface that leads to the other nodes; the zero Uplink: not known.
func (l *loop) uplink() (u workload.Uplink) {
	if node := l.view.Node(l.cfg.Node); node != nil {
		u = l.links.uplink(node.Spec.Addresses)
	}
	return u
}

// ways are those of endpoints' packets to the other nodes.
func (l *loop) ways() workload.Ways {
	return workload.Ways{MTU: l.mtu(), Uplink: l.uplink(), Tunnelled: l.tunnelled()}
}

// room is the MTU that an endpoint's link should have; 0: the one that it has. It
// grows once no tunnel is left that is not asked for any more: until then some nodes may
// send by it.
func (l *loop) room(e *datastore.Endpoint, w attached) int {
	mtu, has := l.sizes.ways.Of(e.Spec.Addresses), l.has(w.Link)
	if !w.fit || mtu == has || mtu > has && len(l.tunnels.until) > 0 {
		return 0
	}
	return mtu
}

// has is the MTU that a link is to have now: what it was attached with, or got since.
func (l *loop) has(link string) int {
	return cmp.Or(l.links.wires[link].HostMTU, l.links.present[link].MTU)
}

// narrow is the MTU of an endpoint's routes; 0: its link's.
func (l *loop) narrow(e *datastore.Endpoint) int {
	if lo := l.locals.named[e.Metadata.Name]; lo != nil {
		return lo.narrow
	}
	return 0
}

// narrowRoutes finds the endpoints that get another MTU, at most sizeSlice of them, and
// has the routes to those that get a smaller one say so first: then the host sends
// nothing larger by the time that their workloads take nothing larger.
func (l *loop) narrowRoutes() (found []string) {
	if l.sizes.changed {
		now := l.ways()
		if l.sizes.rested || !now.Equal(l.sizes.ways) {
			l.sizes.again(l.locals)
		}
		l.sizes.ways, l.sizes.changed, l.sizes.rested = now, false, false
	}
	for _, name := range slices.Collect(maps.Keys(l.locals.sized)) {
		lo := l.locals.named[name]
		if lo == nil || lo.ep == nil {
			delete(l.locals.sized, name)
			l.sizes.forget(name)
			continue
		}
		if lo.busy > 0 || lo.leaving {
			continue // End has it looked at again
		}
		w, known := l.links.wires[lo.link]
		if mtu := l.room(lo.ep, w); known && mtu != 0 && !l.sizes.stuck[name] {
			if len(found) == sizeSlice {
				l.again()
				return found
			}
			found = append(found, name)
			if mtu < l.has(lo.link) {
				l.setNarrow(lo, mtu)
			}
			continue
		}
		delete(l.locals.sized, name)
		if !l.sizes.stuck[name] {
			l.setNarrow(lo, 0)
		}
		l.clamp(lo)
	}
	if l.sizes.waited && len(l.locals.sized) == 0 {
		l.sizes.waited = false
		l.changedHost()
	}
	return found
}

func (l *loop) setNarrow(lo *local, mtu int) {
	if lo.narrow != mtu {
		lo.narrow = mtu
		l.locals.moved[lo.name] = true
	}
}

// resize gives endpoints another MTU whose routes are narrow by now.
func (l *loop) resize(names []string) {
	for _, name := range names {
		lo := l.locals.named[name]
		w, before := l.links.wires[lo.link], l.has(lo.link)
		mtu := l.room(lo.ep, w)
		err := l.links.kernel.Resize(w.Wire, w.place, mtu)
		if err == nil {
			err = l.book(lo, mtu)
		}
		switch {
		case err == nil:
			l.log.Info("an endpoint has another MTU", "endpoint", name, "link", lo.link, "mtu", mtu, "before", before, datastore.EventEndpoint.Mark())
			delete(l.sizes.said, name)
		case l.sizes.said[name] != err.Error():
			l.log.Warn("an endpoint keeps its MTU, its connections are told to use less", "endpoint", name, "link", lo.link, "mtu", before, "room", mtu, "error", err, datastore.EventEndpoint.Mark())
			l.sizes.said[name] = err.Error()
		}
		l.sizes.stuck[name] = err != nil
		l.again() // for its routes, and the packet filter
	}
}

// book writes an endpoint's MTU into its record.
func (l *loop) book(lo *local, mtu int) error {
	rec, err := l.records.Read(lo.link)
	if err != nil {
		return err
	}
	rec.Attachment.MTU = mtu
	if err := l.records.Put(rec); err != nil {
		return err
	}
	l.learn(rec)
	if link, present := l.links.present[lo.link]; present {
		link.MTU = mtu
		l.links.present[lo.link] = link
	}
	return nil
}

// clamp has the TCP connections of an endpoint fit the way to the other nodes, if its
// link promises more.
func (l *loop) clamp(lo *local) {
	way, mtu := l.sizes.ways.Uplink.Of(lo.ep.Spec.Addresses, l.sizes.ways.Tunnelled).MTU, 0
	if way != 0 && l.has(lo.link) > way {
		mtu = way
	}
	if l.filtering.index.SetMSS(lo.link, mtu) {
		l.again()
	}
}

// tooLarge says of how many endpoints packets fit their own link and not that to the
// other nodes; "": of none.
func (l *loop) tooLarge() string {
	u := l.uplink()
	if u.MTU == 0 {
		return ""
	}
	n, largest, plain, pools := 0, 0, u, l.tunnelled()
	for _, lo := range l.locals.named {
		mtu := l.links.present[lo.link].MTU
		if lo.ep == nil || mtu == 0 {
			continue
		}
		if of := plain.Of(lo.ep.Spec.Addresses, pools); mtu > of.MTU {
			if n, largest = n+1, max(largest, mtu); of.MTU < u.MTU {
				u = of
			}
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return "an endpoint " + u.Exceeded(largest, false)
	}
	return fmt.Sprintf("%d endpoints ", n) + u.Exceeded(largest, true)
}
