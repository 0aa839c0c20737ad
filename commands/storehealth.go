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
)

// storeHealth is how the datastore is: where and how many members answer, and
// what members that are full say.
type storeHealth struct {
	line string
	full []string
}

func storeLine(ctx context.Context, s clusterStore) (how storeHealth) {
	members := map[uint64]bool{}
	var where, sick []string
	for _, h := range s.Health(ctx) {
		if errors.Is(h.Err, datastore.ErrFull) {
			how.full = append(how.full, h.Err.Error())
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
	if len(how.full) > 0 {
		state = "full"
	}
	how.line = fmt.Sprintf("datastore %s %s (%s)", strings.Join(where, ","), state, count(len(members), "member"))
	if len(sick) > 0 {
		how.line += ", not " + strings.Join(sick, "; ")
	}
	return how
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
