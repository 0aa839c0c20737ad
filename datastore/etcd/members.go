package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"netctl/datastore"
)

// membersFile is what Options.Members holds: what was learned from endpoints as they
// were configured then. A configuration that changed counts again.
type membersFile struct {
	From []string `json:"from"`
	datastore.Members
}

// How long until a record is looked at again after that failed.
const (
	followFirst = time.Second
	followMost  = 5 * time.Second
)

// ReadMembers returns where the cluster's members are, as FollowMembers left it for those
// endpoints; none if nothing is known.
func ReadMembers(file string, endpoints []string) datastore.Members {
	text, err := os.ReadFile(file)
	var f membersFile
	if err != nil || json.Unmarshal(text, &f) != nil || !slices.Equal(f.From, endpoints) {
		return datastore.Members{}
	}
	return f.Members
}

// Endpoints are where the store is reached now.
func (s *Store) Endpoints() []string { return slices.Clone(s.where()) }

func (s *Store) where() []string { return *s.endpoints.Load() }

// known is where the store is, as far as this machine knows.
func (s *Store) known() *[]string {
	list := s.files.Endpoints
	if s.secure && s.files.Members != "" {
		m := ReadMembers(s.files.Members, list)
		if secure, err := checkEndpoints(m.Endpoints); err == nil && secure {
			list = m.Endpoints
		}
	}
	return &list
}

// FollowMembers keeps the endpoints to where the cluster says that its members are, and
// the file that was named for that, until ctx ends (nil). An etcd that says nothing of its
// members, and a unix socket, stay what they are.
func (s *Store) FollowMembers(ctx context.Context) error {
	if !s.secure || s.files.Members == "" {
		<-ctx.Done()
		return nil
	}
	return s.FollowRecord(ctx, datastore.MembersKey, s.moved)
}

// FollowRecord tells what is stored under a key (nil: nothing), now and whenever it
// changes, until ctx ends (nil). What fails is tried again.
func (s *Store) FollowRecord(ctx context.Context, key string, heard func(value []byte)) error {
	for wait := followFirst; ; wait = min(2*wait, followMost) {
		err := s.followRecord(ctx, key, heard, func() { wait = followFirst })
		if ctx.Err() != nil {
			return nil
		}
		s.log.Debug("record not followed", "key", key, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (s *Store) followRecord(ctx context.Context, key string, heard func([]byte), healthy func()) error {
	snap, err := s.List(ctx, key)
	if err != nil {
		return err
	}
	var value []byte
	if len(snap.Entries) > 0 {
		value = snap.Entries[0].Value
	}
	heard(value)
	healthy()
	return s.Watch(ctx, []string{key}, snap.Revision, func(b datastore.Batch) error {
		for _, e := range b.Events {
			heard(e.Value)
		}
		return nil
	})
}

// moved takes what the cluster says of its members, unless that is nothing that can be
// meant.
func (s *Store) moved(value []byte) {
	if value == nil {
		return
	}
	f := membersFile{From: s.files.Endpoints}
	err := json.Unmarshal(value, &f.Members)
	secure := false
	if err == nil {
		secure, err = checkEndpoints(f.Members.Endpoints)
	}
	if err == nil && !secure {
		err = errors.New("no https endpoint")
	}
	if err != nil {
		s.log.Warn("the cluster's list of members is not understood", "error", err)
		return
	}
	if have := ReadMembers(s.files.Members, f.From); !slices.Equal(have.Endpoints, f.Endpoints) || have.JoinPort != f.JoinPort {
		text, err := json.Marshal(f)
		if err == nil {
			err = datastore.WriteFile(s.files.Members, append(text, '\n'), datastore.FileOptions{})
		}
		if err != nil {
			s.log.Warn("the list of members is not kept", "error", fmt.Errorf("members: %w", err))
		}
	}
	if slices.Equal(s.where(), f.Endpoints) {
		return
	}
	s.endpoints.Store(&f.Endpoints)
	s.opening.Lock()
	defer s.opening.Unlock()
	if s.client != nil {
		s.client.SetEndpoints(f.Endpoints...)
	}
	s.log.Info("datastore's members changed", "endpoints", list(f.Endpoints), datastore.EventDatastore.Mark())
}
