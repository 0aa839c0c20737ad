package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// What goes on while the datastore does not answer. An endpoint that it has yet to hear
// of is in its record, marked as unsettled, and in the view of the agent at revision 0.

// AttachAway is Attach while the store does not answer: with an address of this node's
// own blocks, and what is known of network and profiles. What only the store could give
// is ErrUnavailable. An endpoint that the store has gets its addresses again.
func (s *Service) AttachAway(ctx context.Context, req control.AttachRequest, ns *kernel.Netns) (control.Attachment, error) {
	name, release, err := s.enter(ctx, req)
	if err != nil {
		return control.Attachment{}, err
	}
	defer release()
	known, err := s.begin(ctx, name, req)
	if err != nil {
		return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
	}
	defer s.Reconciler.End(name)
	ep := known.Endpoint
	if ep != nil {
		if a, done, err := s.repeat(ctx, req, known, ns); done || err != nil {
			return a, err
		}
		if ep, err = s.anew(ep, req); err != nil {
			return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
		}
	}
	if ep == nil {
		if ep, err = s.lend(ctx, name, req, known); err != nil {
			return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
		}
	}
	a, err := s.wire(ctx, req, ep, known, ns, ep.Metadata.Revision)
	if err != nil {
		if e := s.takeDown(ep); e != nil {
			s.Log.Warn("failed attach not undone", "endpoint", name, "error", e)
		}
		return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
	}
	s.Log.Info("endpoint attached while the datastore is away", "endpoint", name, "link", a.Link, "addresses", a.Addresses, "network", ep.Spec.Network)
	return a, nil
}

// anew makes way for an endpoint whose link is gone; nil: it gets other addresses.
func (s *Service) anew(ep *datastore.Endpoint, req control.AttachRequest) (*datastore.Endpoint, error) {
	if err := s.takeDown(ep); err != nil || ep.Metadata.Revision == 0 {
		return nil, err
	}
	for _, want := range req.Addresses {
		if !slices.Contains(ep.Spec.Addresses, want) {
			return nil, fmt.Errorf("it has no address %s, and cannot get another one while the datastore is away: %w", want, datastore.ErrUnavailable)
		}
	}
	return ep, nil
}

// lend chooses addresses for a new endpoint.
func (s *Service) lend(ctx context.Context, name string, req control.AttachRequest, known Known) (*datastore.Endpoint, error) {
	mac := req.MAC
	if mac == "" {
		mac = netdev.NewMAC()
	}
	p, err := s.plan(name, mac, req, known)
	if err != nil {
		return nil, err
	}
	if len(p.create) > 0 {
		o := p.create[0]
		return nil, fmt.Errorf("%s %s is not known on this node, and cannot be made while the datastore is away: %w", o.Kind(), o.Meta().Name, datastore.ErrUnavailable)
	}
	p.endpoint.Spec.Addresses, err = s.Addresses.Away(ctx, p.ask(name, req))
	return p.endpoint, err
}

// DetachAway is Detach while the store does not answer: endpoints that it never heard of
// are no more, and others are taken out of service and stay what they are. left says that
// the caller must keep the request for those, or knows of none.
func (s *Service) DetachAway(ctx context.Context, t control.Target) (left bool, err error) {
	names, err := s.names(ctx, t)
	errs := []error{err}
	ended := 0
	for _, name := range names {
		link := netdev.LinkName(s.LinkPrefix, name)
		release, err := s.turns.take(ctx, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		rec, e := s.Records.Read(link)
		switch {
		case e == nil && rec.Unsettled:
			ended++
			err = s.takeDown(rec.Endpoint)
		case e == nil && rec.Refused != "": // it was taken down
			ended++
			err = s.Records.Remove(link)
			s.Reconciler.Withdraw(name)
		default:
			err = s.takeDown(&datastore.Endpoint{Metadata: datastore.Metadata{Name: name, Revision: 1}, Spec: datastore.EndpointSpec{Link: link}})
		}
		errs = append(errs, err)
		release()
	}
	err = errors.Join(errs...)
	return err != nil || ended == 0 || ended < len(names), err
}

// takeDown takes an endpoint out of service without the store. One that the store never
// heard of (revision 0) is no more then.
func (s *Service) takeDown(ep *datastore.Endpoint) error {
	name := ep.Metadata.Name
	s.Reconciler.Retire(name)
	err := s.sever(ep.Spec.Link)
	if err != nil || ep.Metadata.Revision != 0 {
		s.Reconciler.Keep(name)
		return err
	}
	if e := s.Forget(ep.Spec.Addresses...); e != nil {
		s.Log.Warn("connection tracking entries not deleted", "endpoint", name, "error", e)
	}
	s.Addresses.Rest(ep.Spec.Addresses...)
	err = s.Records.Remove(ep.Spec.Link)
	s.Reconciler.Withdraw(name)
	s.Log.Info("endpoint detached, of which the datastore never heard", "endpoint", name, "addresses", ep.Spec.Addresses)
	return err
}

// Settle tells the store of an endpoint that was attached while it was away, unless that
// is no more. That somebody else has its address by now is ErrInUse: it is cut off then,
// and its record says why until it is detached.
func (s *Service) Settle(ctx context.Context, name string, cluster datastore.Cluster) error {
	release, err := s.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	rec, err := s.Records.Read(netdev.LinkName(s.LinkPrefix, name))
	switch {
	case errors.Is(err, datastore.ErrNotFound), err == nil && !rec.Unsettled:
		return nil
	case err != nil:
		return err
	}
	linked, err := s.Reconciler.Linked(ctx, rec.Endpoint.Spec.Link)
	switch {
	case err != nil:
		return err
	case !linked:
		return s.takeDown(rec.Endpoint)
	}
	if _, err = s.Restore(ctx, rec, cluster); !errors.Is(err, datastore.ErrInUse) {
		return err
	}
	ep := rec.Endpoint
	s.Reconciler.Retire(name)
	if e := s.sever(ep.Spec.Link); e != nil {
		s.Reconciler.Keep(name)
		return errors.Join(err, e)
	}
	if e := s.Forget(ep.Spec.Addresses...); e != nil {
		s.Log.Warn("connection tracking entries not deleted", "endpoint", name, "error", e)
	}
	rec.Unsettled, rec.Refused = false, err.Error()
	e := s.Records.Put(rec)
	s.Addresses.Rest(ep.Spec.Addresses...)
	s.Reconciler.Withdraw(name)
	return errors.Join(err, e)
}
