package workload

import (
	"context"
	"fmt"
	"slices"

	"netctl/commands/control"
	"netctl/datastore"
)

// Adopt makes an endpoint of an interface that somebody else made, with exactly the
// addresses of req: they are in use. It returns when the ACLs and routes are in the kernel,
// or having undone what it did; the interface itself is never touched.
func (s *Service) Adopt(ctx context.Context, req control.AttachRequest) error {
	name, release, err := s.enter(ctx, req)
	if err != nil {
		return err
	}
	defer release()
	known, err := s.begin(ctx, name, req)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	defer s.Reconciler.End(name)
	if ep := known.Endpoint; ep != nil {
		if slices.Equal(ep.Spec.Addresses, req.Addresses) && ep.Spec.Network == req.Network {
			return s.program(ctx, &Record{Endpoint: ep, Cluster: known.Cluster}, 0)
		}
		if err := s.remove(ctx, ep); err != nil {
			return err
		}
		s.Reconciler.End(name)
		if known, err = s.begin(ctx, name, req); err != nil {
			return fmt.Errorf("adopt %s: %w", name, err)
		}
	}
	ep, revision, err := s.assign(ctx, name, req, known)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", name, err)
	}
	if err := s.program(ctx, &Record{Endpoint: ep, Cluster: known.Cluster}, revision); err != nil {
		s.undo(ctx, ep)
		return err
	}
	s.Log.Info("interface adopted", "endpoint", name, "link", ep.Spec.Link, "addresses", ep.Spec.Addresses, "network", ep.Spec.Network, datastore.EventEndpoint.Mark())
	return nil
}

// program has an adopted endpoint protected and routed.
func (s *Service) program(ctx context.Context, rec *Record, revision int64) error {
	rec.Boot = s.Boot
	rec.Attachment = control.Attachment{Endpoint: rec.Endpoint.Metadata.Name, Link: rec.Endpoint.Spec.Link, Interface: rec.Endpoint.Spec.Interface, Addresses: rec.Endpoint.Spec.Addresses}
	err := s.Records.Put(rec)
	if err == nil {
		err = s.Reconciler.Program(ctx, rec, revision)
	}
	if err != nil {
		return fmt.Errorf("adopt %s: %w", rec.Endpoint.Metadata.Name, err)
	}
	return nil
}
