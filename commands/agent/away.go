package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// Endpoints that are attached while the datastore is away: they stand in the view at
// revision 0, on record in the records' folder, until the settler has told the datastore
// of them. They go with the boot, as their records do.

// awaits takes note of an endpoint that the datastore has yet to hear of, or did not take.
func (l *loop) awaits(rec *workload.Record) {
	name := rec.Endpoint.Metadata.Name
	delete(l.unsettled, name)
	text := ""
	switch {
	case rec.Unsettled:
		l.unsettled[name] = rec
	case rec.Refused != "":
		text = "was attached while the datastore was away, with an address that another one has by now, and is cut off: start its container anew: " + rec.Refused
	}
	l.problems.note(cutOff(name), text)
}

// cutOff names the problem that an endpoint was refused.
func cutOff(name string) string { return "endpoint " + name + " refused" }

// stand has the view hold an endpoint that the datastore does not have, unless that has it.
func (l *loop) stand(rec *workload.Record) {
	if have := l.view.Endpoint(rec.Endpoint.Metadata.Name); have != nil && have.Metadata.Revision != 0 {
		return
	}
	e, err := unheard(rec)
	if err == nil {
		var c datastore.Change
		c, err = l.view.Apply(e)
		l.changed(c)
	}
	if err != nil {
		l.log.Warn("endpoint not used", "endpoint", rec.Endpoint.Metadata.Name, "error", err)
	}
}

// unheard is the entry of an endpoint that the datastore does not have.
func unheard(rec *workload.Record) (datastore.Entry, error) {
	key, err := datastore.KeyOf(rec.Endpoint)
	if err != nil {
		return datastore.Entry{}, err
	}
	value, err := datastore.Encode(rec.Endpoint)
	return datastore.Entry{Key: key, Value: value}, err
}

// withUnsettled is a listing with the endpoints that the datastore has yet to hear of.
func (l *loop) withUnsettled(s datastore.Snapshot) datastore.Snapshot {
	if len(l.unsettled) == 0 {
		return s
	}
	listed := map[string]bool{}
	for _, e := range s.Entries {
		listed[e.Key] = true
	}
	s.Entries = slices.Clone(s.Entries)
	for _, name := range slices.Sorted(maps.Keys(l.unsettled)) {
		if e, err := unheard(l.unsettled[name]); err == nil && !listed[e.Key] {
			s.Entries = append(s.Entries, e)
		}
	}
	return s
}

// Linked implements workload.Reconciler.
func (l *loop) Linked(ctx context.Context, link string) (is bool, err error) {
	err = l.do(ctx, func() { _, is = l.links.present[link] })
	return is, err
}

// Settled implements workload.Reconciler.
func (l *loop) Settled(endpoint string) {
	_ = l.do(context.Background(), func() { delete(l.unsettled, endpoint) })
}

// Withdraw implements workload.Reconciler.
func (l *loop) Withdraw(endpoint string) {
	_ = l.do(context.Background(), func() {
		delete(l.unsettled, endpoint)
		l.problems.drop(cutOff(endpoint))
		ep := l.view.Endpoint(endpoint)
		if ep == nil || ep.Metadata.Revision != 0 {
			return
		}
		if key, err := datastore.KeyOf(ep); err == nil {
			c, _ := l.view.Apply(datastore.Entry{Key: key}) // a deletion is always taken
			l.changed(c)
		}
	})
}

// alone says whether endpoints can be attached without the datastore: it does not answer,
// or takes no writes, and what this node should be is known. why is returned if not.
func (l *loop) alone(ctx context.Context, why error) error {
	err := why
	if e := l.do(ctx, func() {
		if s := l.standing; (s.stage == away || s.stage == ready) && s.listed != 0 && !s.frozen() {
			err = nil
		}
	}); e != nil {
		return e
	}
	return err
}

// gateOrAway is gate, which lets through while the datastore is away, too.
func (l *loop) gateOrAway(ctx context.Context) (isAway bool, err error) {
	if err = l.gate(ctx); !errors.Is(err, datastore.ErrUnavailable) {
		return false, err
	}
	return true, l.alone(ctx, err)
}

// attachAway attaches an endpoint while the datastore is away, as why says. What was
// stored of its detach earlier is off: the datastore never heard of that.
func (a *api) attachAway(ctx context.Context, r control.AttachRequest, ns *kernel.Netns, earlier []control.Pending, why error) (control.Attachment, error) {
	if err := a.loop.alone(ctx, why); err != nil {
		return control.Attachment{}, err
	}
	if err := a.loop.takes(ctx, r.Target); err != nil {
		return control.Attachment{}, err
	}
	if err := a.detaches.forget(ctx, r.Target, earlier); err != nil {
		return control.Attachment{}, fmt.Errorf("attach %s: %w", r.Workload, err)
	}
	at, err := a.service.AttachAway(ctx, r, ns)
	if err != nil && errors.Is(err, datastore.ErrUnavailable) {
		err = fmt.Errorf("%w (%w)", err, why)
	}
	return at, err
}

// settler tells the datastore of the endpoints that were attached while it was away.
type settler struct {
	loop    *loop
	service *workload.Service
	due     chan struct{} // holds one: there may be some, and the datastore may answer
}

// Run settles until ctx ends.
func (s *settler) Run(ctx context.Context) error {
	var again <-chan time.Time
	for wait := retryMin; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-s.due:
			wait = retryMin
		case <-again:
		}
		again = nil
		if s.loop.gate(ctx) != nil {
			continue // being ready makes it due
		}
		if err := s.all(ctx); err != nil && ctx.Err() == nil {
			s.loop.log.Warn("endpoints not settled", "error", err)
			again, wait = time.After(wait), min(2*wait, retryMax)
		}
	}
}

// all settles what there is, and returns why something is left.
func (s *settler) all(ctx context.Context) error {
	var names []string
	var cluster datastore.Cluster
	if err := s.loop.do(ctx, func() {
		cluster = s.loop.standing.cluster
		names = slices.Sorted(maps.Keys(s.loop.unsettled))
	}); err != nil {
		return err
	}
	var left []error
	for _, name := range names {
		err := s.service.Settle(ctx, name, cluster)
		switch {
		case errors.Is(err, datastore.ErrInUse):
			s.loop.log.Error("endpoint attached while the datastore was away is cut off", "endpoint", name, "error", err)
			s.loop.post(s.loop.recallRefused(name))
		case err != nil:
			left = append(left, err)
		default:
			s.loop.log.Info("endpoint attached while the datastore was away is settled", "endpoint", name)
		}
	}
	return errors.Join(left...)
}

// recallRefused reads why an endpoint was refused.
func (l *loop) recallRefused(name string) func() {
	return func() {
		if rec, err := l.records.Read(l.locals.of(name).link); err == nil {
			l.awaits(rec)
		}
		l.locals.drop(l.locals.of(name))
	}
}

// waiting is how many endpoints the datastore has yet to hear of.
func (l *loop) waiting(ctx context.Context) (n int) {
	_ = l.do(ctx, func() { n = len(l.unsettled) })
	return n
}

// lent are the addresses that were given while the datastore was away.
func (l *loop) lent() (list []netip.Addr) {
	for _, rec := range l.unsettled {
		list = append(list, rec.Endpoint.Spec.Addresses...)
	}
	return list
}
