package agent

import (
	"context"
	"errors"
	"time"

	"netctl/datastore"
)

// stage is where the agent stands with the store.
type stage int

const (
	starting stage = iota // no word from the store yet
	joining               // the view is complete; what comes first is being written
	ready
	away     // the store does not answer
	detached // it answers, and is not the one this node belongs to
	renamed  // it has this host under another node's name
)

// standing is where the agent stands with the store, and whose store that is. Its
// owner is the loop.
type standing struct {
	stage     stage
	reason    error     // why away, detached or renamed
	since     time.Time // when it went away
	outage    *datastore.Outage
	cluster   datastore.Cluster
	listed    int64 // revision of the last complete listing; 0: there was none
	followed  int64 // the revision that the view is complete up to
	byCopy    bool  // the copy was looked at, as the store was away at the start
	admitted  bool  // was ready at least once
	restoring bool  // the view lacks live endpoints
	wrote     int64 // what joining wrote is in the view from this revision on; 0: it is not done
	cutOff    context.CancelFunc
}

// list takes note of a complete listing; true: of another store than before.
func (s *standing) list(snap datastore.Snapshot) (other bool) {
	s.listed, s.followed = snap.Revision, snap.Revision
	s.outage.Over()
	was := s.cluster
	for _, e := range snap.Entries {
		s.identify(e)
	}
	other = s.cluster != was
	s.restoring = s.restoring || other
	return other
}

// identify takes note of whose store it is.
func (s *standing) identify(e datastore.Entry) {
	if e.Key != datastore.ClusterKey || e.Value == nil {
		return
	}
	if c, err := datastore.DecodeCluster(e.Value); err == nil {
		s.cluster = c
	}
}

// join begins what comes before the agent serves, and cuts off what was begun
// before. What is begun ends with the context.
func (s *standing) join(ctx context.Context) context.Context {
	if s.cutOff != nil {
		s.cutOff()
	}
	s.stage, s.reason, s.wrote = joining, nil, 0
	ctx, s.cutOff = context.WithCancel(ctx)
	return ctx
}

// joined says that everything was written, up to revision.
func (s *standing) joined(revision int64) { s.wrote = max(revision, 1) }

// arrive makes the agent ready once the view, at revision, has what it wrote.
func (s *standing) arrive(revision int64) bool {
	if s.stage != joining || s.wrote == 0 || revision < s.wrote {
		return false
	}
	s.stage, s.admitted, s.restoring = ready, true, false
	return true
}

// part says that the store does not answer, or is not the one to follow.
func (s *standing) part(err error) {
	if s.stage != away {
		s.since = time.Now()
	}
	s.stage, s.reason = away, err
	if errors.Is(err, datastore.ErrDetached) {
		s.stage = detached
	}
	if s.cutOff != nil {
		s.cutOff()
	}
	s.outage.Lost(err)
}

// rename says that this host is not (yet) to be the node that its settings name.
func (s *standing) rename(err error) {
	if s.cutOff != nil {
		s.cutOff()
	}
	s.stage, s.reason = renamed, err
}

// why says why the store cannot be used; nil: it can, or nobody knows yet.
func (s *standing) why() error {
	switch s.stage {
	case away, detached, renamed:
		return s.reason
	}
	return nil
}

// frozen says that the kernel is to stay as it is: the view is not (yet) what
// this node should be.
func (s *standing) frozen() bool { return s.stage == detached || !s.admitted || s.restoring }
