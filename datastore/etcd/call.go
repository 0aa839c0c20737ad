package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"netctl/datastore"
)

// again is how long a read that met a member on its way out is tried again.
const again = 200 * time.Millisecond

// read runs a call that may be repeated.
func (s *Store) read(ctx context.Context, what string, call func(context.Context) error) error {
	return s.try(ctx, what, readTimeout, again, call)
}

// write runs a call that must not be repeated once it was sent.
func (s *Store) write(ctx context.Context, what string, call func(context.Context) error) error {
	return s.try(ctx, what, writeTimeout, 0, call)
}

func (s *Store) try(ctx context.Context, what string, limit, again time.Duration, call func(context.Context) error) error {
	bounded, cancel := context.WithTimeout(ctx, patience(ctx, limit))
	defer cancel()
	for begin, back := time.Now(), false; ; {
		if s.closed.Load() {
			return s.explain(ctx, what, nil)
		}
		err := call(bounded)
		if err == nil {
			return nil
		}
		switch repeatable := again > 0 && status.Code(err) == codes.Unavailable && bounded.Err() == nil; {
		case repeatable && time.Since(begin) < again:
		case repeatable && !back && s.probe(ctx) == nil:
			back = true // it answers by now
			s.client.ActiveConnection().ResetConnectBackoff()
		default:
			return s.explain(ctx, what, err)
		}
		select {
		case <-time.After(redialFirst):
		case <-bounded.Done():
		}
	}
}

// patience is how long a call may take: if the caller set a deadline, a part of
// what is left, so that there is time to find out why nobody answers.
func patience(ctx context.Context, limit time.Duration) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return min(limit, time.Until(deadline)*2/3)
	}
	return limit
}

// explain turns what grpc or etcd said into an error of datastore's.
func (s *Store) explain(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	if s.closed.Load() {
		return fmt.Errorf("%s: store closed: %w", what, datastore.ErrUnavailable)
	}
	switch said := rpctypes.Error(err); {
	case errors.Is(said, rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: %w: its quota is used up and it takes no writes; delete what is not needed or raise the quota (of netctl's own: etcd: quotaMiB; of another, also compact and defragment it, then disarm the alarm)", what, datastore.ErrFull)
	case errors.Is(said, rpctypes.ErrCompacted):
		return fmt.Errorf("%s: %w", what, datastore.ErrCompacted)
	case errors.Is(said, rpctypes.ErrRequestTooLarge), errors.Is(said, rpctypes.ErrTooManyOps):
		return fmt.Errorf("%s: %w: %w", what, said, datastore.ErrInvalid)
	case errors.Is(said, rpctypes.ErrPermissionDenied), errors.Is(said, rpctypes.ErrUserEmpty):
		return fmt.Errorf("%s: %w: etcd's authentication is on and does not let the certificate's name in: %w", what, datastore.ErrUnavailable, said)
	}
	if reasons := s.probe(ctx); reasons != nil {
		return fmt.Errorf("%s: %w: %w", what, datastore.ErrUnavailable, reasons)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	// Somebody answers now: a member that starts, ends, or has no leader.
	s.client.ActiveConnection().ResetConnectBackoff()
	s.log.Debug("call cut off", "call", what, "error", err)
	return fmt.Errorf("%s: %w: %s: %s", what, datastore.ErrUnavailable, list(s.endpoints), verdict(err))
}

// verdict is why a call failed though the server can be reached: in etcd's own
// words, or in ours for what grpc says.
func verdict(err error) string {
	var said rpctypes.EtcdError
	switch code := status.Code(err); {
	case errors.As(rpctypes.Error(err), &said):
		return "etcd says: " + strings.TrimPrefix(said.Error(), "etcdserver: ")
	case code == codes.Unimplemented:
		return "answers, but is no etcd"
	case code == codes.DeadlineExceeded:
		return "accepts connections, but does not answer (overloaded, stopped, or without a majority of its members)"
	}
	return "the connection broke; it answers again"
}
