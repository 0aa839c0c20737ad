package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"netctl/datastore"
	"netctl/netdev"
)

// Amend changes the labels and the published ports of an attached endpoint, in the store
// and in its record; change sets them on a copy. It returns when the kernel has them. An
// endpoint that is not there is ErrNotFound.
func (s *Service) Amend(ctx context.Context, name string, change func(*datastore.Endpoint) error) error {
	release, err := s.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	if rec, err := s.Records.Read(netdev.LinkName(s.LinkPrefix, name)); err == nil && rec.Unsettled {
		return s.amendAway(ctx, rec, change)
	}
	for try := 1; ; try++ {
		ep, revision, err := s.amend(ctx, name, change)
		if err == nil && ep != nil {
			err = errors.Join(s.note(ep), s.Reconciler.Reach(ctx, revision))
		}
		if err == nil || !raced(err) || try == maxTries {
			if err != nil {
				err = fmt.Errorf("endpoint %s: %w", name, err)
			}
			return err
		}
	}
}

// amendAway amends an endpoint that the store has yet to hear of.
func (s *Service) amendAway(ctx context.Context, rec *Record, change func(*datastore.Endpoint) error) error {
	ep := *rec.Endpoint
	rec.Endpoint = &ep
	err := change(&ep)
	if err == nil {
		err = ep.Validate()
	}
	if err == nil {
		err = s.Records.Put(rec)
	}
	if err == nil {
		err = s.Reconciler.Program(ctx, rec, 0)
	}
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", ep.Metadata.Name, err)
	}
	return nil
}

// amend writes the endpoint; nil: it is what it should be.
func (s *Service) amend(ctx context.Context, name string, change func(*datastore.Endpoint) error) (*datastore.Endpoint, int64, error) {
	ep, err := datastore.Get[*datastore.Endpoint](ctx, s.Store, name)
	if err != nil {
		return nil, 0, err
	}
	labels, ports := ep.Metadata.Labels, ep.Spec.HostPorts
	if err := change(ep); err != nil {
		return nil, 0, err
	}
	if maps.Equal(labels, ep.Metadata.Labels) && slices.Equal(ports, ep.Spec.HostPorts) {
		return nil, 0, nil
	}
	if err := ep.Validate(); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", datastore.ErrInvalid, err)
	}
	cond, op, err := datastore.OpPut(ep)
	if err != nil {
		return nil, 0, err
	}
	revision, err := s.Store.Commit(ctx, datastore.Txn{If: []datastore.Condition{cond}, Then: []datastore.Op{op}})
	return ep, revision, err
}

// note keeps it with the record, from which a lost endpoint is written back.
func (s *Service) note(ep *datastore.Endpoint) error {
	rec, err := s.Records.Read(ep.Spec.Link)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	own := *rec.Endpoint
	own.Metadata.Labels, own.Spec.HostPorts = ep.Metadata.Labels, ep.Spec.HostPorts
	rec.Endpoint = &own
	return s.Records.Put(rec)
}
