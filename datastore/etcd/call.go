package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
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

// try ends within limit, or with ctx if that is sooner, and has found out by then why
// nobody answers.
func (s *Store) try(ctx context.Context, what string, limit, again time.Duration, call func(context.Context) error) error {
	if err := s.connect(ctx); err != nil {
		return s.unusable(what, err)
	}
	whole, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// A member that knows no leader answers so at once: without that it takes what it is
	// asked, and says nothing until a leader is there.
	bounded, cancel := context.WithTimeout(clientv3.WithRequireLeader(whole), patience(whole))
	defer cancel()
	relogged := false
	for begin, back := time.Now(), false; ; {
		if s.closed.Load() {
			return s.explain(ctx, whole, what, nil)
		}
		err := s.in(bounded)
		var password *passwordError
		if errors.As(err, &password) {
			return s.unusable(what, password)
		}
		if err == nil {
			if err = call(bounded); err == nil {
				return nil
			}
			if s.out(err) && !relogged {
				relogged = true
				continue
			}
		}
		switch repeatable := again > 0 && status.Code(err) == codes.Unavailable && bounded.Err() == nil; {
		case errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) && bounded.Err() == nil: // the next one may; it was not begun
		case repeatable && time.Since(begin) < again:
		case repeatable && !back:
			if reasons := s.probe(whole); reasons != nil && !errors.Is(ctx.Err(), context.Canceled) {
				return unavailable(what, reasons)
			}
			back = true // it answers by now
			s.client.ActiveConnection().ResetConnectBackoff()
		default:
			return s.explain(ctx, whole, what, err)
		}
		select {
		case <-time.After(redialFirst):
		case <-bounded.Done():
		}
	}
}

// forReasons is how much of a call's time is left for finding out why nobody answers.
const forReasons = time.Second

// patience is how long a call may take of the time that ctx has.
func patience(ctx context.Context) time.Duration {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	return left - min(left/3, forReasons)
}

func unavailable(what string, reasons error) error {
	return fmt.Errorf("%s: %w: %w", what, datastore.ErrUnavailable, reasons)
}

// unusable is what is said while connect fails.
func (s *Store) unusable(what string, err error) error {
	return fmt.Errorf("%s: %w: %s: %w", what, datastore.ErrUnavailable, list(s.where()), err)
}

// explain turns what grpc or etcd said of a call with ctx into an error of
// datastore's; finding out why nobody answers ends with probing.
func (s *Store) explain(ctx, probing context.Context, what string, err error) error {
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
	case errors.Is(said, rpctypes.ErrPermissionDenied) && s.login != nil:
		return fmt.Errorf("%s: %w to user %s: etcd's roles do not let it", what, datastore.ErrDenied, s.login.user)
	case errors.Is(said, rpctypes.ErrAuthFailed) && s.login != nil:
		return fmt.Errorf("%s: %w: etcd does not know user %s with the password in %s", what, datastore.ErrUnavailable, s.login.user, s.login.file)
	case errors.Is(said, rpctypes.ErrPermissionDenied): // to all, or to this
		return fmt.Errorf("%s: %w: etcd's authentication is on and does not let the certificate's name in: %w", what, datastore.ErrUnavailable, &denied{said.Error()})
	case errors.Is(said, rpctypes.ErrUserEmpty):
		return fmt.Errorf("%s: %w: etcd's authentication is on and does not let the certificate's name in: %w", what, datastore.ErrUnavailable, said)
	}
	if status.Code(err) == codes.PermissionDenied { // of netctl's own, in its words
		return fmt.Errorf("%s: %w", what, &denied{unrepeated(what, status.Convert(err).Message())})
	}
	some, words := s.probeAll(probing, errors.New(verdict(err)))
	if !some {
		return unavailable(what, errors.New(words))
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	// Somebody answers now: a member that starts, ends, or has no leader.
	s.client.ActiveConnection().ResetConnectBackoff()
	s.log.Debug("call cut off", "call", what, "error", err)
	return fmt.Errorf("%s: %w: %s", what, datastore.ErrUnavailable, words)
}

// unrepeated is what the datastore said of a call, without the key that the call names.
func unrepeated(what, said string) string {
	_, key, named := strings.Cut(what, " ")
	if head, rest, ok := strings.Cut(said, ": "); ok && named && (head == "read "+key || head == "write "+key) {
		return rest
	}
	return said
}

// denied is a refusal in the datastore's own words.
type denied struct{ said string }

func (d *denied) Error() string { return d.said }
func (d *denied) Unwrap() error { return datastore.ErrDenied }

// hangs is what is said of an endpoint that is there and silent.
const hangs = "accepts connections, but does not answer (overloaded, stopped, or without a majority of its members)"

// leaderless is what is said where the members that answer are too few.
const leaderless = "answers, but has no leader: a majority of the members does not answer, or does not reach each other"

// verdict is why a call failed though the server can be reached: in etcd's own
// words, or in ours for what grpc says.
func verdict(err error) string {
	var said rpctypes.EtcdError
	switch code := status.Code(err); {
	case errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader):
		return leaderless
	case errors.As(rpctypes.Error(err), &said):
		return "etcd says: " + strings.TrimPrefix(said.Error(), "etcdserver: ")
	case code == codes.Unimplemented:
		return "answers, but is no etcd"
	case code == codes.DeadlineExceeded:
		return hangs
	}
	return "the connection broke; it answers again"
}
