package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// A TAP, other than a veth, goes with no namespace: its endpoint stays until it is
// detached, whatever becomes of the virtual machine, of the device and of the host's boot.

// repeatTap is repeat of an endpoint that has a TAP, or is to have one. One whose device
// is gone gets it again.
func (s *Service) repeatTap(ctx context.Context, req control.AttachRequest, known Known) (a control.Attachment, done bool, err error) {
	ep := known.Endpoint
	if !reflect.DeepEqual(ep.Spec.Tap, req.Tap) {
		return a, false, fmt.Errorf("attach %s: %w: it is attached, with another TAP or none: detach it first", ep.Metadata.Name, datastore.ErrExists)
	}
	if err := lacks(ep, req); err != nil {
		return a, false, err
	}
	if want, err := net.ParseMAC(req.MAC); err == nil { // its machine would be told nothing
		if have, err := net.ParseMAC(ep.Spec.MAC); err == nil && !slices.Equal(want, have) {
			return a, false, fmt.Errorf("attach %s: %w: it is attached, with the MAC %s: detach it first", ep.Metadata.Name, datastore.ErrExists, have)
		}
	}
	rec, err := s.Records.Read(ep.Spec.Link)
	if err != nil || !known.Linked {
		if s.forgotten(ctx, ep) {
			return a, false, nil
		}
		a, err = s.remake(ctx, known)
		return a, err == nil, err
	}
	if err := s.Reconciler.Program(ctx, rec, 0); err != nil {
		return a, false, fmt.Errorf("attach %s: %w", ep.Metadata.Name, err)
	}
	return rec.Attachment, true, nil
}

// forgotten says that the datastore has an endpoint no more, which was detached just now.
// While that is away nobody knows.
func (s *Service) forgotten(ctx context.Context, ep *datastore.Endpoint) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err := datastore.Get[*datastore.Endpoint](ctx, s.Store, ep.Metadata.Name)
	return errors.Is(err, datastore.ErrNotFound)
}

// Remake makes the TAP of an endpoint again whose device is gone.
func (s *Service) Remake(ctx context.Context, name string) error {
	release, err := s.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	known, err := s.Reconciler.Begin(ctx, name, "", nil)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", name, err)
	}
	defer s.Reconciler.End(name)
	if known.Endpoint == nil || known.Linked || !known.Endpoint.Spec.Tap.Is() {
		return nil
	}
	_, err = s.remake(ctx, known)
	return err
}

// remake makes a TAP again; one that cannot be protected and routed is taken down.
func (s *Service) remake(ctx context.Context, known Known) (control.Attachment, error) {
	ep := known.Endpoint
	req := control.AttachRequest{
		Target: control.Target{Orchestrator: ep.Spec.Orchestrator, Workload: ep.Spec.Workload, Interface: ep.Spec.Interface},
		Tap:    ep.Spec.Tap, MTU: ep.Spec.Tap.MTU,
	}
	if rec, err := s.Records.Read(ep.Spec.Link); err == nil {
		req.Runtime = rec.Runtime
	}
	a, err := s.wire(ctx, req, ep, known, nil, ep.Metadata.Revision)
	if err != nil {
		if !errors.Is(err, datastore.ErrExists) { // else there is something of somebody else's
			err = errors.Join(err, s.sever(ep.Spec.Link))
		}
		return a, fmt.Errorf("endpoint %s: its TAP is gone and cannot be made again: %w", ep.Metadata.Name, err)
	}
	s.Log.Info("tap made again", "endpoint", ep.Metadata.Name, "link", a.Link, "addresses", a.Addresses, datastore.EventEndpoint.Mark())
	return a, nil
}
