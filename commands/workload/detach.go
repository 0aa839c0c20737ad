package workload

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// Detach releases one endpoint of a workload, or all of them. What is not there
// is no error.
func (s *Service) Detach(ctx context.Context, t control.Target) error {
	if t.Orchestrator == "" || t.Workload == "" {
		return fmt.Errorf("detach: %w: orchestrator and workload must be set", datastore.ErrInvalid)
	}
	names, err := s.names(ctx, t)
	if err != nil {
		return fmt.Errorf("detach %s %s: %w", t.Orchestrator, t.Workload, err)
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, s.Release(ctx, name))
	}
	return errors.Join(errs...)
}

// names lists the endpoints a request is about, those that are just being
// attached included.
func (s *Service) names(ctx context.Context, t control.Target) ([]string, error) {
	name := t.Endpoint(s.Node)
	if t.Interface != "" {
		return []string{name}, nil
	}
	names, err := s.Reconciler.Find(ctx, t.Orchestrator, t.Workload)
	names = append(names, s.turns.under(name)...)
	slices.Sort(names)
	return slices.Compact(names), err
}

// Release detaches the endpoint of that name.
func (s *Service) Release(ctx context.Context, name string) error {
	if _, err := datastore.Key(datastore.KindEndpoint, name); err != nil {
		return nil // nothing with such a name was ever attached
	}
	release, err := s.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	known, err := s.Reconciler.Begin(ctx, name, "", nil)
	if err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	defer s.Reconciler.End(name)
	if known.Endpoint != nil {
		return s.remove(ctx, known.Endpoint)
	}
	link := netdev.LinkName(s.LinkPrefix, name)
	if known.Linked { // it is alive, and nobody could write it back
		s.Reconciler.Retire(name)
		err = s.sever(link)
	}
	err = errors.Join(err, s.Records.Remove(link)) // also of a detach that was cut off just before that
	s.Reconciler.Withdraw(name)
	return err
}

// Check returns what of an endpoint is not as it was attached, and which of the
// addresses it does not have. An endpoint that is not there is ErrNotFound.
func (s *Service) Check(ctx context.Context, req control.CheckRequest, ns *kernel.Netns) error {
	name := req.Endpoint(s.Node)
	release, err := s.turns.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	known, err := s.Reconciler.Begin(ctx, name, "", nil)
	if err != nil {
		return fmt.Errorf("check %s: %w", name, err)
	}
	defer s.Reconciler.End(name)
	if known.Endpoint == nil {
		return fmt.Errorf("check %s: endpoint: %w", name, datastore.ErrNotFound)
	}
	rec, err := s.Records.Read(known.Endpoint.Spec.Link)
	if err != nil {
		return fmt.Errorf("check %s: %w", name, err)
	}
	var errs []error
	if rec.Dev != ns.Dev || rec.Ino != ns.Ino {
		return fmt.Errorf("check %s: is attached to another network namespace", name)
	}
	for _, a := range req.Addresses {
		if !slices.Contains(known.Endpoint.Spec.Addresses, a) {
			errs = append(errs, fmt.Errorf("address %s is not the endpoint's", a))
		}
	}
	errs = append(errs, s.checkLink(rec, ns), s.Reconciler.Programmed(ctx, name))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("check %s: %w", name, err)
	}
	return nil
}

// checkLink says how a link differs from what its attach made of it. What is ours alone in
// the workload's namespace is put back first.
func (s *Service) checkLink(rec *Record, ns *kernel.Netns) error {
	w := s.recorded(rec, ns)
	err := s.Links.Check(w)
	if err == nil {
		return nil
	}
	differed, mend := s.Links.Mend(w)
	if len(differed) > 0 {
		s.Log.Warn(Mended, "endpoint", rec.Endpoint.Metadata.Name, "link", w.Link, "differed", strings.Join(differed, "; "), datastore.Drift(datastore.DriftSide))
		err = s.Links.Check(w)
	}
	if err == nil || errors.Is(mend, os.ErrNotExist) { // Check says that, too
		return err
	}
	return errors.Join(err, mend)
}

// Mended is what is logged of a workload's side that Links.Mend found changed.
const Mended = "a workload's side was not what an attach makes of it, and is put back"

// Restore writes a live endpoint and its addresses back into a store that lost
// them, with its network and profiles if those are missing too, and marks the
// record as the cluster's. An endpoint that is there keeps what else was set of it: a
// backup may know it by another address, or have lost that it holds its own. It returns
// the revision of the change, 0 for none.
func (s *Service) Restore(ctx context.Context, rec *Record, cluster datastore.Cluster) (revision int64, err error) {
	for try := 1; ; try++ {
		p, err := s.missing(ctx, rec.Endpoint)
		if err != nil {
			return 0, fmt.Errorf("restore %s: %w", rec.Endpoint.Metadata.Name, err)
		}
		if p == nil {
			break
		}
		res, err := s.Addresses.Assign(ctx, ipam.Request{
			Handle: rec.Endpoint.Metadata.Name, Workload: rec.Endpoint.Spec.Workload, Wants: rec.Endpoint.Spec.Addresses,
			Restore: true, Commit: p.commit,
		})
		if err == nil {
			revision = res.Revision
			break
		}
		if !raced(err) || try == maxTries {
			return 0, fmt.Errorf("restore %s: %w", rec.Endpoint.Metadata.Name, err)
		}
	}
	rec.Cluster, rec.Unsettled = cluster, false
	err = s.Records.Put(rec)
	s.Reconciler.Settled(rec.Endpoint.Metadata.Name)
	return revision, err
}

// missing is what the store may lack of an endpoint; nil: nothing that this netctl can
// read.
func (s *Service) missing(ctx context.Context, ep *datastore.Endpoint) (*plan, error) {
	absent := func(k datastore.Kind, name string) (bool, error) {
		key, err := datastore.Key(k, name)
		if err == nil {
			_, err = s.Store.Get(ctx, key)
		}
		if errors.Is(err, datastore.ErrNotFound) {
			return true, nil
		}
		return false, err
	}
	stored, err := datastore.Get[*datastore.Endpoint](ctx, s.Store, ep.Metadata.Name)
	switch {
	case errors.Is(err, datastore.ErrInvalid):
		return nil, nil
	case err == nil:
		same := slices.Equal(stored.Spec.Addresses, ep.Spec.Addresses) && stored.Spec.MAC == ep.Spec.MAC
		stored.Spec.MAC = ep.Spec.MAC
		return &plan{endpoint: stored, asItIs: same}, nil
	case !errors.Is(err, datastore.ErrNotFound):
		return nil, err
	}
	again := *ep
	again.Metadata.Revision = 0
	p := &plan{endpoint: &again}
	if n := ep.Spec.Network; n != "" {
		gone, err := absent(datastore.KindNetwork, n)
		if err != nil {
			return nil, err
		}
		if gone {
			p.create = append(p.create, &datastore.Network{Metadata: datastore.Metadata{Name: n}})
		}
	}
	for _, name := range ep.Spec.Profiles {
		gone, err := absent(datastore.KindProfile, name)
		if err != nil {
			return nil, err
		}
		if gone {
			p.create = append(p.create, &datastore.Profile{Metadata: datastore.Metadata{Name: name}})
		}
	}
	return p, nil
}
