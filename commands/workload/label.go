package workload

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"netctl/datastore"
)

// Label changes the labels of an attached endpoint, in the store and in its record;
// change sets them on a copy. An endpoint that is not there is ErrNotFound.
func (s *Service) Label(ctx context.Context, name string, change func(*datastore.Endpoint)) error {
	release, err := s.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	for try := 1; ; try++ {
		ep, err := s.label(ctx, name, change)
		if err == nil && ep != nil {
			err = s.note(ep)
		}
		if err == nil || !raced(err) || try == maxTries {
			if err != nil {
				err = fmt.Errorf("label %s: %w", name, err)
			}
			return err
		}
	}
}

// label writes the endpoint; nil: it had the labels.
func (s *Service) label(ctx context.Context, name string, change func(*datastore.Endpoint)) (*datastore.Endpoint, error) {
	ep, err := datastore.Get[*datastore.Endpoint](ctx, s.Store, name)
	if err != nil {
		return nil, err
	}
	was := ep.Metadata.Labels
	change(ep)
	if maps.Equal(was, ep.Metadata.Labels) {
		return nil, nil
	}
	if err := ep.Validate(); err != nil {
		return nil, err
	}
	cond, op, err := datastore.OpPut(ep)
	if err != nil {
		return nil, err
	}
	_, err = s.Store.Commit(ctx, datastore.Txn{If: []datastore.Condition{cond}, Then: []datastore.Op{op}})
	return ep, err
}

// note keeps the labels with the record, from which a lost endpoint is written back.
func (s *Service) note(ep *datastore.Endpoint) error {
	rec, err := s.Records.Read(ep.Spec.Link)
	if errors.Is(err, datastore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	own := *rec.Endpoint
	own.Metadata.Labels = ep.Metadata.Labels
	rec.Endpoint = &own
	return s.Records.Put(rec)
}
