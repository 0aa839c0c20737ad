package workload

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"netctl/commands/control"
	"netctl/datastore"
)

// Collect releases what is dead of what a runtime attached to a network of that name and
// does not list as valid. Without certainty an endpoint stays: where no record says who
// attached it, where another runtime did, and where its link or its namespace is there.
func (s *Service) Collect(ctx context.Context, r control.CollectRequest) (done control.Collected, err error) {
	if r.Orchestrator == "" || r.Network == "" || r.Runtime == "" {
		return done, fmt.Errorf("collect: %w: orchestrator, network and runtime must be set", datastore.ErrInvalid)
	}
	all, err := s.Records.All() // of what cannot be read nobody knows whose it is
	if err != nil {
		s.Log.Warn("not all attach records read", "error", err)
	}
	var errs []error
	for _, rec := range all {
		e := rec.Endpoint.Spec
		mine := rec.Runtime == r.Runtime && e.Orchestrator == r.Orchestrator && e.Network == r.Network
		valid := func(t control.Target) bool { return t.Workload == e.Workload && t.Interface == e.Interface }
		if !mine || slices.ContainsFunc(r.Valid, valid) {
			continue
		}
		released, err := s.releaseDead(ctx, rec.Endpoint.Metadata.Name, func() bool { return rec.Ino != 0 && s.Links.Lives(rec.Place()) })
		if released && err == nil {
			done.Released = append(done.Released, rec.Endpoint.Metadata.Name)
		}
		errs = append(errs, err)
	}
	return done, errors.Join(errs...)
}

// ReleaseGone is Release of an endpoint whose link is gone. One that has a link by the time
// it comes to that was attached anew, and stays.
func (s *Service) ReleaseGone(ctx context.Context, name string) error {
	_, err := s.releaseDead(ctx, name, func() bool { return false })
	return err
}

// releaseDead is Release of an endpoint whose link is gone and which does not live without
// it, and of no other.
func (s *Service) releaseDead(ctx context.Context, name string, lives func() bool) (released bool, err error) {
	release, err := s.turns.take(ctx, name)
	if err != nil {
		return false, err
	}
	defer release()
	known, err := s.Reconciler.Begin(ctx, name, "", nil)
	if err != nil {
		return false, fmt.Errorf("release %s: %w", name, err)
	}
	defer s.Reconciler.End(name)
	if known.Endpoint == nil || known.Linked || lives() {
		return false, nil
	}
	return true, s.remove(ctx, known.Endpoint)
}
