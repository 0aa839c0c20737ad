package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"netctl/commands/control"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// holdSlice is how many links are compared before calls that wait go first.
const holdSlice = 8

// recall takes over the links that the records tell of, before the store has said a
// word.
func (l *loop) recall() {
	all, _ := l.records.All() // what cannot be read is reported by live
	for _, rec := range all {
		l.awaits(rec)
		switch {
		case rec.Refused != "":
		case rec.Adopted(): // the adopter looks whether it is so still
			l.links.adopted[rec.Endpoint.Spec.Link] = true
			l.links.present[rec.Endpoint.Spec.Link] = kernel.Link{Name: rec.Endpoint.Spec.Link, Up: rec.Boot == l.boots.this}
		default:
			l.learn(rec)
		}
	}
	l.forwarding.wantFor(l.links.wires)
}

// learn takes note of a link as it was attached.
func (l *loop) learn(rec *workload.Record) {
	w := attached{Wire: rec.Wire(l.boots.this, l.cfg.Gateway), endpoint: rec.Endpoint.Metadata.Name, place: rec.Place(), fit: rec.FitMTU, to: rec.Destinations,
		asked: rec.Endpoint.Spec.Bandwidth, limits: rec.Endpoint.Spec.QoSControls}
	w.MAC = rec.Attachment.MAC
	l.links.forget(w.Link)
	l.sizes.forget(w.endpoint)
	l.links.wires[w.Link] = w
	l.links.names[w.Index] = w.Link
	l.links.gateways = l.links.gateways || w.Gateway4 != l.cfg.Gateway
	l.links.guests = l.links.guests || w.Tap.Is()
	if w.Peer != "" {
		l.links.settle[w.Link] = true
	}
}

// forget is learn's opposite: the link is no more.
func (k *links) forget(link string) {
	k.gateways = k.gateways || k.wires[link].Peer != ""
	k.guests = k.guests || k.wires[link].Tap.Is()
	delete(k.names, k.wires[link].Index)
	delete(k.wires, link)
	delete(k.hold, link)
	delete(k.settle, link)
	delete(k.mend, link)
	delete(k.tussles, link)
}

// recorded says whether a link is one that a record tells of, whatever it is called
// now, and as what it was attached.
func (k *links) recorded(index int) (name string, ok bool) {
	name = k.names[index]
	return name, index != 0 && k.wires[name].Index == index
}

// nameOf is what a link was attached as, as far as is known.
func (k *links) nameOf(index int, now string) string {
	if name, ok := k.recorded(index); ok {
		return name
	}
	return now
}

// set takes what the kernel says of a link.
func (k *links) set(now kernel.Link) (name string) {
	name = k.nameOf(now.Index, now.Name)
	if old, seen := k.names[now.Index]; seen && old != name {
		delete(k.present, old)
		k.ownerless[old] = true // to be forgotten
	}
	k.names[now.Index] = name
	was, w := k.present[name], k.wires[name]
	if now.Altered || now.Name != name || was.Up && !now.Up || w.HostMTU != 0 && now.MTU != 0 && now.MTU != w.HostMTU {
		k.hold[name] = true
	}
	k.present[name] = now
	if w.Peer != "" {
		k.settle[name] = true
	}
	return name
}

// doubt has a link compared with what an attach makes.
func (k *links) doubt(index int) {
	if name, known := k.names[index]; known {
		k.hold[name] = true
	}
}

// wireOf is a link as it was attached: as recorded or, if the record is lost, as far
// as the endpoint tells.
func (l *loop) wireOf(link string, lo *local) (w attached, ok bool) {
	if w, ok = l.links.wires[link]; ok || lo == nil || lo.ep == nil {
		return w, ok
	}
	rec := workload.Record{Endpoint: lo.ep}
	return attached{Wire: rec.Wire(l.boots.this, l.cfg.Gateway), endpoint: lo.name}, true
}

// holdLinks compares the links of which somebody may have changed something with
// what an attach makes of them. That needs nothing of the store.
func (l *loop) holdLinks() {
	done := 0
	for _, link := range slices.Collect(maps.Keys(l.links.hold)) {
		lo := l.locals.named[l.links.owners[link]]
		if lo != nil && (lo.busy > 0 || lo.leaving) {
			continue // End and Keep have it looked at again
		}
		w, known := l.wireOf(link, lo)
		if _, present := l.links.present[link]; !present || !known {
			delete(l.links.hold, link)
			l.problems.drop(w.problem())
			continue
		}
		if !l.problems.due(w.problem()) {
			continue
		}
		if lo != nil && lo.ep != nil && !l.links.present[link].Up && !l.standing.frozen() {
			l.locals.mark(lo.name) // raise does that too
			continue
		}
		if done == holdSlice {
			l.again()
			return
		}
		l.hold(w, false)
		done++
	}
}

// mendLinks compares workloads' sides, of which nobody tells the host, with what an attach
// makes of them, as far as that is nobody else's business. Where a namespace cannot be found
// any more, CHECK does, which is told it.
func (l *loop) mendLinks() {
	done := 0
	for _, link := range slices.Collect(maps.Keys(l.links.mend)) {
		if done == holdSlice {
			l.again()
			return
		}
		w := l.links.wires[link]
		if lo := l.locals.named[w.endpoint]; lo != nil && (lo.busy > 0 || lo.leaving) {
			continue
		}
		delete(l.links.mend, link)
		done++
		differed, err := l.links.kernel.MendAt(w.Wire, w.place)
		if len(differed) > 0 {
			l.log.Warn(workload.Mended, "endpoint", w.endpoint, "link", link, "differed", strings.Join(differed, "; "), datastore.Drift(datastore.DriftSide))
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			l.log.Warn("a workload's side is not what an attach makes of it", "endpoint", w.endpoint, "link", link, "error", err)
		}
	}
}

// problem names that a link cannot be held.
func (w attached) problem() string { return "endpoint " + w.endpoint }

// tussle says of a link what of it is put back; an error says that it is too often.
func (l *loop) tussle(w attached, differed string) error {
	t := l.links.tussles[w.Link]
	if t == nil {
		t = &tussle{}
		l.links.tussles[w.Link] = t
	}
	err := t.again()
	if t.news(differed) {
		l.log.Warn("a link was not what an attach makes of it, and is put back", "endpoint", w.endpoint, "link", w.Link, "differed", differed, datastore.Drift(datastore.DriftLink))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", differed, err)
	}
	return nil
}

// hold makes a link again what an attach makes of it; false: it is not, yet.
func (l *loop) hold(w attached, raise bool) bool {
	link := w.Link
	differed, err := l.links.kernel.Hold(w.Wire, raise)
	if errors.Is(err, os.ErrNotExist) {
		delete(l.links.hold, link)
		l.problems.drop(w.problem())
		delete(l.links.present, link)
		l.touch(link)
		return false
	}
	if len(differed) > 0 {
		l.table.resync = true // what could not go by the link then may now
		err = errors.Join(err, l.tussle(w, strings.Join(differed, "; ")))
	}
	if err != nil {
		l.links.hold[link] = true
		l.problems.failed(w.problem(), err)
		return false
	}
	delete(l.links.hold, link)
	l.problems.solved(w.problem())
	now := l.links.present[link]
	now.Name, now.Altered, now.Up = link, false, now.Up || raise
	l.links.present[link] = now
	return true
}

// settleLinks does what is left to do at the workload's side of loose links that
// changed: their runtimes may have taken them there.
func (l *loop) settleLinks() {
	done := 0
	for link := range l.links.settle {
		w := l.links.wires[link]
		if _, present := l.links.present[link]; !present || w.Peer == "" {
			delete(l.links.settle, link)
			continue
		}
		if done == holdSlice {
			l.again()
			return
		}
		done++
		delete(l.links.settle, link)
		switch settled, err := l.links.kernel.Settle(w.Wire, w.place, w.to); {
		case err != nil && !errors.Is(err, os.ErrNotExist): // else its namespace is not to be found here
			l.log.Warn("a workload's interface was not set up whole", "endpoint", w.endpoint, "link", link, "error", err)
		case settled:
			l.log.Debug("workload's interface set up", "endpoint", w.endpoint, "link", link)
		}
	}
}

// putBack waits until the link of an endpoint is what an attach makes of it, as far as
// it can be.
func (l *loop) putBack(ctx context.Context, t control.Target) error {
	link := netdev.LinkName(l.cfg.LinkPrefix, t.Endpoint(l.cfg.Node))
	if err := l.do(ctx, func() { l.links.hold[link] = true }); err != nil {
		return err
	}
	return l.await(ctx, func() (bool, error) {
		w := l.links.wires[link]
		return !l.links.hold[link] || l.problems.text[w.problem()] != "", nil
	})
}
