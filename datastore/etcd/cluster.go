package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"netctl/datastore"
)

// Member is one of the etcd servers that are the cluster.
type Member struct {
	ID       uint64
	Name     string // "": it never started
	PeerURLs []string
	// ClientURLs are where clients reach it over the network.
	ClientURLs []string
	Learner    bool // has no vote yet
}

// Label is what messages call it.
func (m Member) Label() string {
	if m.Name == "" {
		return "unstarted-" + strconv.FormatUint(m.ID, 16)
	}
	return m.Name
}

// Members returns the members, in etcd's order.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	var r *etcdserverpb.MemberListResponse
	err := s.read(ctx, "list members", func(ctx context.Context) (err error) {
		r, err = s.cluster().MemberList(ctx, &etcdserverpb.MemberListRequest{Linearizable: true}, callOptions()...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return membersOf(r.Members), nil
}

func (s *Store) cluster() etcdserverpb.ClusterClient {
	return etcdserverpb.NewClusterClient(s.client.ActiveConnection())
}

func membersOf(raw []*etcdserverpb.Member) (list []Member) {
	for _, r := range raw {
		m := Member{ID: r.ID, Name: r.Name, PeerURLs: r.PeerURLs, Learner: r.IsLearner}
		for _, u := range r.ClientURLs {
			if strings.HasPrefix(u, "https://") {
				m.ClientURLs = append(m.ClientURLs, u)
			}
		}
		list = append(list, m)
	}
	return list
}

// etcd adds a member only while the others have been connected for some seconds, and one
// at a time: that is waited for, and then said.
const (
	memberWait  = 12 * time.Second
	memberPause = 250 * time.Millisecond
)

// errNotYet is a cluster that takes no new member now.
var errNotYet = errors.New("it takes no new member now")

// AddLearner makes the server at peerURL a member that learns, and will vote when it has
// learned all (the leader sees to that); one that is a member there already stays. It
// returns all members as NAME=PEERURL, that one under name, and how many vote then.
func (s *Store) AddLearner(ctx context.Context, name, peerURL string) (all []string, voters int, err error) {
	for end := time.Now().Add(memberWait); ; {
		all, voters, err = s.addLearner(ctx, name, peerURL)
		if !errors.Is(err, errNotYet) || time.Now().After(end) {
			return all, voters, err
		}
		select {
		case <-time.After(memberPause):
		case <-ctx.Done():
			return nil, 0, err
		}
	}
}

func (s *Store) addLearner(ctx context.Context, name, peerURL string) (all []string, voters int, err error) {
	list, err := s.Members(ctx)
	if err != nil {
		return nil, 0, err
	}
	have := false
	for _, m := range list {
		at := m.PeerURLs[0]
		switch {
		case at == peerURL && m.Name == "":
			have = true // who asked before and did not start
		case at == peerURL || m.Name == name:
			return nil, 0, fmt.Errorf("%s at %s is a member: if that server is gone, `netctl datastore member remove %s` first: %w", m.Label(), at, m.Label(), datastore.ErrExists)
		case m.Learner:
			return nil, 0, fmt.Errorf("%s at %s has not become a member yet, and that takes one at a time: try again when it has, or remove it (`netctl datastore member remove %s`): %w", m.Label(), at, m.Label(), errNotYet)
		}
	}
	if !have {
		var said error
		err = s.write(ctx, "add member "+peerURL, func(ctx context.Context) error {
			r, err := s.cluster().MemberAdd(ctx, &etcdserverpb.MemberAddRequest{PeerURLs: []string{peerURL}, IsLearner: true}, callOptions()...)
			if err == nil {
				list = membersOf(r.Members)
			}
			said = rpctypes.Error(err)
			return err
		})
		if errors.Is(said, rpctypes.ErrUnhealthy) || errors.Is(said, rpctypes.ErrTooManyLearners) {
			return nil, 0, fmt.Errorf("%w: its members must have reached each other for some seconds: %w", errNotYet, said)
		}
		if err != nil {
			return nil, 0, err
		}
	}
	for _, m := range list {
		label := m.Label()
		if m.PeerURLs[0] == peerURL {
			label = name
		}
		all = append(all, label+"="+m.PeerURLs[0])
	}
	return all, len(list), nil
}

// RemoveMember takes a member out of the cluster: it ends, and its data is good for
// nothing any more. One without which the others have no majority stays.
func (s *Store) RemoveMember(ctx context.Context, m Member) error {
	for end := time.Now().Add(memberWait); ; {
		var said error
		err := s.write(ctx, "remove member "+m.Label(), func(ctx context.Context) error {
			_, err := s.cluster().MemberRemove(ctx, &etcdserverpb.MemberRemoveRequest{ID: m.ID}, callOptions()...)
			if said = rpctypes.Error(err); errors.Is(said, rpctypes.ErrMemberNotFound) {
				return nil // another was faster
			}
			return err
		})
		if err == nil {
			return nil
		}
		// The one that was asked may be the one that ended by it, before it could answer.
		if list, e := s.Members(ctx); e == nil && !slices.ContainsFunc(list, func(x Member) bool { return x.ID == m.ID }) {
			return nil
		}
		if !errors.Is(said, rpctypes.ErrUnhealthy) && !errors.Is(said, rpctypes.ErrStopped) || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(memberPause):
		case <-ctx.Done():
			return err
		}
	}
}
