package commands

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"netctl/datastore"
	"netctl/datastore/etcd"
)

// storeHealth is how the datastore is: where and how many members answer, what members
// that are full say, and who serves another one.
type storeHealth struct {
	line  string
	wrong []string
}

func storeLine(ctx context.Context, s clusterStore, own string) (how storeHealth) {
	members := map[uint64]bool{}
	var where, sick []string
	here := make(chan etcd.EndpointHealth, 1)
	go func() { here <- ownStore(ctx, own) }()
	all := s.Health(ctx)
	how.wrong = apart(all, <-here)
	full := false
	for _, h := range all {
		if errors.Is(h.Err, datastore.ErrFull) {
			how.wrong, full = append(how.wrong, h.Err.Error()), true
		} else if h.Err != nil {
			sick = append(sick, h.Err.Error()) // it names the endpoint
			continue
		}
		members[h.Member] = true
		where = append(where, h.Endpoint)
	}
	if len(members) == 0 {
		how.line = "datastore unreachable: " + strings.Join(sick, "; ")
		return how
	}
	state := "healthy"
	if full {
		state = "full"
	}
	how.line = fmt.Sprintf("datastore %s %s (%s)", strings.Join(where, ","), state, count(len(members), "member"))
	if len(sick) > 0 {
		how.line += ", not " + strings.Join(sick, "; ")
	}
	return how
}

// ownStore asks the datastore that this node serves at a socket; the zero value: there is
// none, or it does not answer.
func ownStore(ctx context.Context, socket string) (h etcd.EndpointHealth) {
	if _, err := os.Stat(socket); err != nil {
		return h
	}
	s, err := etcd.Open(ctx, etcd.Options{Endpoints: []string{"unix://" + socket}})
	if err != nil {
		return h
	}
	defer s.Close()
	return s.Health(ctx)[0]
}

// apart names members that do not serve one and the same datastore, as those do that come
// back after their majority was given up and the datastore rebuilt elsewhere. own is what
// this node serves.
func apart(members []etcd.EndpointHealth, own etcd.EndpointHealth) (wrong []string) {
	const fix = "end the role datastore of those who have the former one, move etcd/ of their state folder away, and let them join again (docs/datastore.md)"
	first := etcd.EndpointHealth{}
	for _, h := range members {
		switch {
		case h.Cluster == 0:
		case first.Cluster == 0:
			first = h
		case h.Cluster != first.Cluster:
			return []string{fmt.Sprintf("%s and %s serve two different datastores: %s", first.Endpoint, h.Endpoint, fix)}
		}
	}
	if own.Cluster != 0 && first.Cluster != 0 && own.Cluster != first.Cluster {
		wrong = append(wrong, fmt.Sprintf("the datastore that this node serves is another one than that of %s: %s", first.Endpoint, fix))
	}
	return wrong
}

// roomToWrite is how much of its disk etcd needs to go on, in MiB: the next segment of its
// log, which it makes beside the one it writes to, and what it compacts.
const roomToWrite = 128

// fullDisk says that the datastore of this node has no room to write, which ends it; "": it
// has, or there is none here.
func (s *settings) fullDisk() string {
	dir := filepath.Join(s.StateDir, "etcd")
	if _, err := os.Stat(filepath.Join(dir, "member")); err != nil {
		return ""
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return ""
	}
	mib := func(blocks uint64) uint64 { return blocks * uint64(st.Bsize) >> 20 }
	free := mib(st.Bfree)
	if free >= min(roomToWrite, mib(st.Blocks)/4) { // of a small one
		return ""
	}
	return fmt.Sprintf("the disk of %s is full (%d MiB are free), and the datastore here ends when it can write no more: make room there (`netctl doctor`: disk-space)", dir, free)
}

// andDisk is what to add to an error of the datastore's where this node's own is the cause.
func (a *app) andDisk(err error) string {
	if !errors.Is(err, datastore.ErrUnavailable) {
		return ""
	}
	s, err := a.settings()
	if err != nil || s.Client.Server != "" {
		return ""
	}
	if full := s.fullDisk(); full != "" {
		return ": " + full
	}
	return ""
}
