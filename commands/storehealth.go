package commands

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
