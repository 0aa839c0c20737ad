package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"netctl/datastore"
)

// etcd's roles for nodes: one for what every node may, one for each node's own.
const (
	nodesRole = "netctl-node"
	ownRole   = nodesRole + "-" // and the node's name
)

// UserExtras are kinds of which a node may write every object, beside what it needs.
func UserExtras() []string { return []string{"networks", "profiles", "history"} }

// auth runs a change of etcd's users. done are errors that mean that it was made already.
func (s *Store) auth(ctx context.Context, what string, call func(context.Context, etcdserverpb.AuthClient) error, done ...error) error {
	var said error
	err := s.write(ctx, what, func(ctx context.Context) error {
		err := call(ctx, etcdserverpb.NewAuthClient(s.client.ActiveConnection()))
		if said = rpctypes.Error(err); slices.ContainsFunc(done, func(d error) bool { return errors.Is(said, d) }) {
			return nil
		}
		return err
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(said, rpctypes.ErrUserAlreadyExist):
		return fmt.Errorf("%s: %w", what, datastore.ErrExists)
	case errors.Is(said, rpctypes.ErrUserNotFound):
		return fmt.Errorf("%s: %w", what, datastore.ErrNotFound)
	}
	return err
}

// role makes a role that may do that with keys, and with what is under those that end in /.
func (s *Store) role(ctx context.Context, name string, grants ...*authpb.Permission) error {
	err := s.auth(ctx, "add role "+name, func(ctx context.Context, c etcdserverpb.AuthClient) error {
		_, err := c.RoleAdd(ctx, &etcdserverpb.AuthRoleAddRequest{Name: name}, callOptions()...)
		return err
	}, rpctypes.ErrRoleAlreadyExist)
	for _, g := range grants {
		if err != nil {
			return err
		}
		g.RangeEnd = rangeEnd(string(g.Key))
		err = s.auth(ctx, "grant to role "+name, func(ctx context.Context, c etcdserverpb.AuthClient) error {
			_, err := c.RoleGrantPermission(ctx, &etcdserverpb.AuthRoleGrantPermissionRequest{Name: name, Perm: g}, callOptions()...)
			return err
		})
	}
	return err
}

// CreateUser makes a user of an external etcd with the rights of a node of that name, and
// of extras (UserExtras). The password may be empty: etcd knows such a user by a
// certificate of that common name alone. It needs the rights of etcd's root. An existing
// user is an ErrExists, and keeps the rights that it has; what fails later is undone.
func (s *Store) CreateUser(ctx context.Context, node, password string, extras []string) error {
	err := s.auth(ctx, "add user "+node, func(ctx context.Context, c etcdserverpb.AuthClient) error {
		_, err := c.UserAdd(ctx, &etcdserverpb.AuthUserAddRequest{
			Name: node, Password: password, Options: &authpb.UserAddOptions{NoPassword: password == ""},
		}, callOptions()...)
		return err
	})
	if err != nil {
		return err
	}
	if err := s.entitle(ctx, node, extras); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
		defer cancel()
		if failed := s.RemoveUser(undo, node); failed != nil {
			err = errors.Join(err, fmt.Errorf("undo: %w", failed))
		}
		return err
	}
	return nil
}

// entitle gives a user the rights of a node and no others.
func (s *Store) entitle(ctx context.Context, node string, extras []string) error {
	read := func(key string) *authpb.Permission {
		return &authpb.Permission{PermType: authpb.READ, Key: []byte(key)}
	}
	write := func(key string) *authpb.Permission {
		return &authpb.Permission{PermType: authpb.READWRITE, Key: []byte(key)}
	}
	err := s.role(ctx, nodesRole, read(datastore.Prefix), read(datastore.ReportPrefix), read(datastore.EventsPrefix), read(datastore.HistoryPrefix),
		read(datastore.AsksPrefix), read(datastore.AnswersPrefix), read(datastore.ConfirmsPrefix),
		read(datastore.MembersKey), read(datastore.AuthorityKey), write(datastore.KindPrefix(datastore.KindBlock)))
	if err != nil {
		return err
	}
	own := []*authpb.Permission{
		write(datastore.KindPrefix(datastore.KindNode) + node), write(datastore.KindPrefix(datastore.KindEndpoint) + node + "/"), write(datastore.ReportPrefix + node + "/"),
		write(datastore.EventsPrefix + node + "/"), write(datastore.AsksPrefix + node + "/"), write(datastore.AnswersPrefix + node + "/"),
	}
	for _, extra := range extras {
		prefix := datastore.Prefix + extra + "/"
		if extra == "history" {
			prefix = datastore.HistoryPrefix
		}
		own = append(own, write(prefix))
	}
	if err := s.removeRole(ctx, ownRole+node); err != nil { // of a user that somebody deleted
		return err
	}
	if err := s.role(ctx, ownRole+node, own...); err != nil {
		return err
	}
	for _, role := range []string{nodesRole, ownRole + node} {
		err := s.auth(ctx, "grant role "+role, func(ctx context.Context, c etcdserverpb.AuthClient) error {
			_, err := c.UserGrantRole(ctx, &etcdserverpb.AuthUserGrantRoleRequest{User: node, Role: role}, callOptions()...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// removeRole removes a role, if there is one.
func (s *Store) removeRole(ctx context.Context, name string) error {
	return s.auth(ctx, "delete role "+name, func(ctx context.Context, c etcdserverpb.AuthClient) error {
		_, err := c.RoleDelete(ctx, &etcdserverpb.AuthRoleDeleteRequest{Role: name}, callOptions()...)
		return err
	}, rpctypes.ErrRoleNotFound)
}

// RemoveUser removes what CreateUser made; one that is not there is an ErrNotFound. Its
// connections may do nothing from then on.
func (s *Store) RemoveUser(ctx context.Context, node string) error {
	if err := s.removeRole(ctx, ownRole+node); err != nil {
		return err
	}
	return s.auth(ctx, "delete user "+node, func(ctx context.Context, c etcdserverpb.AuthClient) error {
		_, err := c.UserDelete(ctx, &etcdserverpb.AuthUserDeleteRequest{Name: node}, callOptions()...)
		return err
	})
}

// Users are the nodes that have a user, sorted.
func (s *Store) Users(ctx context.Context) (nodes []string, err error) {
	var r *etcdserverpb.AuthRoleListResponse
	err = s.read(ctx, "list roles", func(ctx context.Context) (err error) {
		r, err = etcdserverpb.NewAuthClient(s.client.ActiveConnection()).RoleList(ctx, &etcdserverpb.AuthRoleListRequest{}, callOptions()...)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, role := range r.Roles {
		if name, own := strings.CutPrefix(role, ownRole); own {
			nodes = append(nodes, name)
		}
	}
	slices.Sort(nodes)
	return nodes, nil
}

// Protected says whether etcd asks who it is that calls.
func (s *Store) Protected(ctx context.Context) (on bool, err error) {
	err = s.auth(ctx, "ask for authentication", func(ctx context.Context, c etcdserverpb.AuthClient) error {
		_, err := c.Authenticate(ctx, &etcdserverpb.AuthenticateRequest{}, callOptions()...)
		on = !errors.Is(rpctypes.Error(err), rpctypes.ErrAuthNotEnabled)
		return nil
	})
	return on, err
}
