package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// login is who the client is to an etcd that asks for user and password. etcd gives a
// token for them, which it forgets after some minutes and when it restarts.
type login struct {
	user, file string
	token      atomic.Pointer[string]
}

// GetRequestMetadata implements grpc's credentials.PerRPCCredentials.
func (l *login) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if token := l.token.Load(); token != nil {
		return map[string]string{rpctypes.TokenFieldNameGRPC: *token}, nil
	}
	return nil, nil
}

// RequireTransportSecurity implements grpc's credentials.PerRPCCredentials.
func (l *login) RequireTransportSecurity() bool { return true }

// passwordError is a file of ours that cannot be used.
type passwordError struct{ error }

// in asks for a token unless there is one. An etcd whose authentication is off needs none.
func (s *Store) in(ctx context.Context) error {
	l := s.login
	if l == nil || l.token.Load() != nil {
		return nil
	}
	text, err := os.ReadFile(l.file)
	if err != nil {
		return &passwordError{fmt.Errorf("the password of user %s cannot be used: %w", l.user, err)}
	}
	r, err := etcdserverpb.NewAuthClient(s.client.ActiveConnection()).Authenticate(ctx,
		&etcdserverpb.AuthenticateRequest{Name: l.user, Password: strings.TrimRight(string(text), "\r\n")}, callOptions()...)
	switch said := rpctypes.Error(err); {
	case err == nil:
		l.token.Store(&r.Token)
		return nil
	case errors.Is(said, rpctypes.ErrAuthNotEnabled):
		return nil
	default:
		return err
	}
}

// out reports that a call failed because etcd does not know the token, or not any more,
// and forgets it: the call was not done and may be made again.
func (s *Store) out(err error) bool {
	if s.login == nil {
		return false
	}
	switch said := rpctypes.Error(err); {
	case errors.Is(said, rpctypes.ErrInvalidAuthToken), errors.Is(said, rpctypes.ErrAuthOldRevision), errors.Is(said, rpctypes.ErrUserEmpty):
		return s.login.token.Swap(nil) != nil || errors.Is(said, rpctypes.ErrUserEmpty)
	}
	return false
}
