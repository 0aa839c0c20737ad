package etcd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"netctl/datastore"
)

// EndpointHealth is what one endpoint says of itself.
type EndpointHealth struct {
	Endpoint string
	Member   uint64 // etcd's member ID
	Cluster  uint64 // etcd's cluster ID; 0: it does not answer
	Leader   bool
	Version  string // of the server
	Size     int64  // of the backend file, bytes
	InUse    int64  // of it, bytes
	Quota    int64  // bytes; 0: the server does not say
	// Err is nil or why the endpoint is not healthy: it does not answer
	// (wraps datastore.ErrUnavailable), has no leader, or raised an alarm.
	Err error
}

// Health asks every endpoint for its status, all at once, each within the dial
// timeout; in the order of Endpoints.
func (s *Store) Health(ctx context.Context) []EndpointHealth {
	endpoints := s.where()
	out := make([]EndpointHealth, len(endpoints))
	var wg sync.WaitGroup
	for i, e := range endpoints {
		wg.Go(func() { out[i] = s.health(ctx, e) })
	}
	wg.Wait()
	return out
}

func (s *Store) health(ctx context.Context, endpoint string) EndpointHealth {
	h := EndpointHealth{Endpoint: endpoint}
	if err := s.connect(ctx); err != nil {
		h.Err = fmt.Errorf("%s: %w: %w", endpoint, datastore.ErrUnavailable, err)
		return h
	}
	// First the plain dial: it knows why.
	bounded, cancel := context.WithTimeout(ctx, s.dial)
	defer cancel()
	if err := s.probeOne(bounded, endpoint); err != nil {
		h.Err = fmt.Errorf("%s: %w: %w", endpoint, datastore.ErrUnavailable, err)
		return h
	}
	r, err := s.client.Status(bounded, endpoint)
	if err != nil {
		h.Err = fmt.Errorf("%s: %w: %s", endpoint, datastore.ErrUnavailable, verdict(err))
		return h
	}
	h.Member, h.Cluster, h.Version = r.Header.MemberId, r.Header.ClusterId, r.Version
	h.Leader = r.Leader == r.Header.MemberId
	h.Size, h.InUse, h.Quota = r.DbSize, r.DbSizeInUse, r.DbSizeQuota
	switch {
	case slices.ContainsFunc(r.Errors, func(e string) bool { return strings.Contains(e, "NOSPACE") }):
		h.Err = fmt.Errorf("%s: %w (%d of %d MiB): it takes no writes%s; delete what is not needed or raise its quota",
			endpoint, datastore.ErrFull, h.Size>>20, h.Quota>>20, h.until())
	case len(r.Errors) > 0:
		h.Err = fmt.Errorf("%s: %s", endpoint, strings.Join(r.Errors, ", "))
	case r.Leader == 0:
		h.Err = fmt.Errorf("%s: the cluster has no leader: %w", endpoint, datastore.ErrUnavailable)
	}
	return h
}

// until is when an etcd of netctl's own that is full takes writes again.
func (h *EndpointHealth) until() string {
	if h.Quota == 0 {
		return ""
	}
	mib := func(bytes int64) float64 { return float64(bytes) / (1 << 20) }
	return fmt.Sprintf(" (one of netctl's own takes them again once at most %.1f MiB are in use; it is %.1f now)", mib(datastore.RoomAgain(h.Quota)), mib(h.InUse))
}
