package embed

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"netctl/datastore"
)

// tendEvery is how often the leader looks at its own list of members; nothing tells of
// changes.
const tendEvery = time.Second

// tend gives learners their vote once they know everything, and tells where the voters
// are, while this member leads.
func (c *Config) tend(ctx context.Context, s *etcdserver.EtcdServer) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	var told []string
	for {
		if s.Leader() == s.MemberID() {
			c.promote(ctx, s)
			if now := clientURLs(s.Cluster().Members()); c.OnMembers != nil && !slices.Equal(now, told) {
				if err := c.OnMembers(ctx, now); err != nil {
					c.Log.Debug("list of members not written", "error", err)
				} else {
					told = now
				}
			}
		} else {
			told = nil // who leads next may write another
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *Config) promote(ctx context.Context, s *etcdserver.EtcdServer) {
	for _, m := range s.Cluster().Members() {
		if !m.IsLearner || m.Name == "" { // one that never started knows nothing
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, stopTimeout)
		members, err := s.PromoteMember(bounded, uint64(m.ID))
		cancel()
		switch {
		case err == nil:
			c.Log.Info("member votes from now on", "member", m.Name, "members", len(members), datastore.EventDatastore.Mark())
			if len(members)%2 == 0 {
				c.Log.Warn("an even number of members bears the loss of no more than one less does: add another", "members", len(members))
			}
		case !errors.Is(err, etcderrors.ErrLearnerNotReady):
			c.Log.Debug("member does not vote yet", "member", m.Name, "error", err)
		}
	}
}

// clientURLs are where voters serve clients over the network, sorted.
func clientURLs(members []*membership.Member) (urls []string) {
	for _, m := range members {
		if m.IsLearner {
			continue
		}
		for _, u := range m.ClientURLs {
			if _, err := httpsURL(u); err == nil {
				urls = append(urls, u)
			}
		}
	}
	slices.Sort(urls)
	return urls
}

// stopped is why etcd ended by itself.
func (s *server) stopped(said string) error {
	if s.Cluster().Member(s.MemberID()) == nil {
		return errors.New("datastore: this member was removed from the datastore: take datastore out of the roles in the configuration, and its etcd: section")
	}
	return errors.New(said)
}
