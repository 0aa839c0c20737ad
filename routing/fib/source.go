package fib

import (
	"net/netip"
	"slices"
)

// A route's source address is a hint: the kernel takes it only while it is an address of
// this machine, and a route without it is better than none.

// unsourced writes changes that were refused, since the source address may be none of
// this machine's, without it.
func (w *writer) unsourced(changes []change) {
	if len(changes) == 0 {
		return
	}
	t := w.table
	done, exist := w.done, len(w.exist)
	var sources []netip.Addr
	for _, c := range changes {
		if a := c.action.source; !slices.Contains(sources, a) {
			sources = append(sources, a)
		}
	}
	t.setSourceless(sources, true)
	w.batch = append(w.batch, changes...)
	w.flush()
	if w.done == done && len(w.exist) == exist { // that was not why
		t.setSourceless(sources, false)
	}
}

// setSourceless books whether the kernel takes source addresses.
func (t *Table) setSourceless(sources []netip.Addr, on bool) {
	for _, a := range sources {
		if delete(t.wanted.absent, a); on {
			t.wanted.absent[a] = true
		}
	}
	t.wanted.each(func(a *action) {
		if slices.Contains(sources, a.source) {
			a.sourceless = on
		}
	})
}

// sourcesCame has source addresses tried again; nil: all that were not taken.
func (t *Table) sourcesCame(sources []netip.Addr) {
	if len(t.wanted.absent) == 0 {
		return
	}
	var again []netip.Addr
	for a := range t.wanted.absent {
		if sources == nil || slices.Contains(sources, a) {
			again = append(again, a)
		}
	}
	t.setSourceless(again, false)
}

// resourced are the routes that have one of the addresses that came or went as source.
func (t *Table) resourced(addresses []netip.Addr) (keys []key) {
	addresses = slices.DeleteFunc(slices.Clone(addresses), func(a netip.Addr) bool { return t.wanted.sources[a] == 0 })
	if len(addresses) == 0 {
		return nil
	}
	t.sourcesCame(addresses)
	for k, a := range t.wanted.routes {
		if slices.Contains(addresses, a.source) {
			keys = append(keys, k)
			if _, failed := t.failed[k]; !failed {
				t.failed[k] = retry{}
			}
		}
	}
	return keys
}

// each calls fn for every action.
func (w *wanted) each(fn func(*action)) {
	for _, a := range w.actions {
		fn(a)
	}
	for a := range w.grouped {
		fn(a)
	}
}
