package agent

import (
	"strings"

	"netctl/datastore"
)

// rerate has the link of an endpoint hold the rates that somebody gave it since it was
// attached. What goes over it meanwhile is not lost.
func (l *loop) rerate(ep *datastore.Endpoint) {
	w, known := l.links.wires[ep.Spec.Link]
	if !known || w.endpoint != ep.Metadata.Name || w.Bandwidth == ep.Spec.Bandwidth {
		return
	}
	w.Bandwidth = ep.Spec.Bandwidth
	l.links.wires[w.Link] = w
	rec, err := l.records.Read(w.Link)
	if err == nil {
		own := *rec.Endpoint
		own.Spec.Bandwidth = w.Bandwidth
		rec.Endpoint = &own
		err = l.records.Put(rec)
	}
	if err != nil {
		l.log.Warn("attach record not written", "endpoint", w.endpoint, "error", err)
	}
	differed, err := l.links.kernel.Hold(w.Wire, false)
	if err != nil {
		l.links.hold[w.Link] = true // to be tried again, and told
		return
	}
	l.log.Info("an endpoint has other rates", "endpoint", w.endpoint, "link", w.Link, "differed", strings.Join(differed, "; "))
}
