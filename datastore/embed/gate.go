package embed

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"netctl/datastore"
)

// gate lets each client that comes over the network do what its certificate is good for:
// everything where that was made by hand or is a member's, a datastore.Grant where it is
// of a node that joined. etcd's own roles know keys and not what is written, and blocks
// are everybody's.
type gate struct {
	store ranger
	log   *slog.Logger
}

// ranger is what the gate asks of the server.
type ranger interface {
	Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error)
}

// caller is who asks; a nil Grant may everything.
type caller struct{ grant *datastore.Grant }

func refused(err error) error {
	if errors.Is(err, datastore.ErrDenied) {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return err // etcd's own
}

// caller finds out who asks, by the certificate and by whether the cluster still has who
// it was made for.
func (g *gate) caller(ctx context.Context) (caller, error) {
	cert := certificate(ctx)
	if cert == nil {
		return caller{}, fmt.Errorf("no certificate: %w", datastore.ErrDenied)
	}
	if _, api := datastore.APIRoleOf(cert.Subject.Organization); api {
		return caller{}, fmt.Errorf("the certificate of %s is for the API and not for the datastore: %w", cert.Subject.CommonName, datastore.ErrDenied)
	}
	if !slices.Contains(cert.Subject.Organization, datastore.RoleNode) && !slices.Contains(cert.Subject.Organization, datastore.RoleMember) {
		return caller{}, nil
	}
	name := cert.Subject.CommonName
	at, err := datastore.JoinedKey(name)
	if err != nil {
		return caller{}, fmt.Errorf("certificate of %q: %w", name, datastore.ErrDenied)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	n := datastore.JoinedNode{Member: slices.Contains(cert.Subject.Organization, datastore.RoleMember)}
	good := true
	for _, local := range []bool{true, false} {
		e, err := g.get(ctx, at, local)
		if err != nil {
			return caller{}, err
		}
		if e.Value != nil {
			n = datastore.JoinedNode{}
			good = json.Unmarshal(e.Value, &n) == nil && n.Key == hex.EncodeToString(sum[:]) && n.Removed.IsZero()
		}
		if good { // else this member may be behind
			break
		}
	}
	switch {
	case !good:
		return caller{}, fmt.Errorf("certificate of node %s: %w: the node was removed, or another one has the name by now; let it join again", name, datastore.ErrDenied)
	case n.Member:
		return caller{}, nil
	}
	return caller{g.grant(ctx, name)}, nil
}

// certificate is what the client of a call showed.
func certificate(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// get reads a key; local: as this member knows it, without asking the others.
func (g *gate) get(ctx context.Context, key string, local bool) (datastore.Entry, error) {
	r, err := g.store.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(key), Serializable: local})
	if err != nil || len(r.Kvs) == 0 {
		return datastore.Entry{}, err
	}
	kv := r.Kvs[0]
	return datastore.Entry{Key: key, Value: append([]byte{}, kv.Value...), Revision: kv.ModRevision}, nil
}

func (g *gate) grant(ctx context.Context, node string) *datastore.Grant {
	return &datastore.Grant{
		Node: node,
		Get: func(key string, revision int64) (datastore.Entry, error) {
			e, err := g.get(ctx, key, true)
			if err == nil && e.Revision < revision {
				e, err = g.get(ctx, key, false)
			}
			return e, err
		},
		Nodes: func() (list []datastore.Entry, err error) {
			from := datastore.KindPrefix(datastore.KindNode)
			end := from[:len(from)-1] + "0"
			r, err := g.store.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(from), RangeEnd: []byte(end)})
			if err != nil {
				return nil, err
			}
			for _, kv := range r.Kvs {
				list = append(list, datastore.Entry{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
			}
			return list, nil
		},
	}
}

func (g *gate) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c, err := g.caller(ctx)
	if err == nil && c.grant != nil {
		err = c.call(req, info.FullMethod)
	}
	if err != nil {
		if errors.Is(err, datastore.ErrDenied) {
			g.log.Debug("call refused", "call", info.FullMethod, "error", err)
		}
		return nil, refused(err)
	}
	return next(ctx, req)
}

// call judges one call of a node.
func (c caller) call(req any, method string) error {
	switch r := req.(type) {
	case *etcdserverpb.RangeRequest:
		return c.read(r)
	case *etcdserverpb.TxnRequest:
		t, err := c.txn(r)
		if err != nil {
			return err
		}
		return c.grant.Write(t)
	case *etcdserverpb.PutRequest:
		return c.grant.Write(datastore.Txn{Then: []datastore.Op{{Key: string(r.Key), Value: append([]byte{}, r.Value...)}}})
	case *etcdserverpb.DeleteRangeRequest:
		if len(r.RangeEnd) == 0 {
			return c.grant.Write(datastore.Txn{Then: []datastore.Op{{Key: string(r.Key)}}})
		}
	case *etcdserverpb.MemberListRequest, *etcdserverpb.StatusRequest:
		return nil
	}
	return fmt.Errorf("%s: %w: node %s has its own rights and no others", method, datastore.ErrDenied, c.grant.Node)
}

func (c caller) read(r *etcdserverpb.RangeRequest) error {
	var end []byte
	if len(r.RangeEnd) > 0 {
		end = r.RangeEnd
	}
	return c.grant.Read(string(r.Key), end)
}

// txn is a transaction in the words of the model; what netctl never sends has none.
func (c caller) txn(r *etcdserverpb.TxnRequest) (t datastore.Txn, err error) {
	other := fmt.Errorf("a transaction of another shape than netctl's: %w", datastore.ErrDenied)
	for _, cmp := range r.Compare {
		if cmp.Target != etcdserverpb.Compare_MOD || cmp.Result != etcdserverpb.Compare_EQUAL || len(cmp.RangeEnd) > 0 {
			return t, other
		}
		t.If = append(t.If, datastore.Condition{Key: string(cmp.Key), Revision: cmp.GetModRevision()})
	}
	for _, op := range r.Success {
		switch {
		case op.GetRequestRange() != nil:
			err = c.read(op.GetRequestRange())
		case op.GetRequestPut() != nil && !op.GetRequestPut().IgnoreValue:
			p := op.GetRequestPut()
			t.Then = append(t.Then, datastore.Op{Key: string(p.Key), Value: append([]byte{}, p.Value...)})
		case op.GetRequestDeleteRange() != nil && len(op.GetRequestDeleteRange().RangeEnd) == 0:
			t.Then = append(t.Then, datastore.Op{Key: string(op.GetRequestDeleteRange().Key)})
		default:
			err = other
		}
		if err != nil {
			return t, err
		}
	}
	for _, op := range r.Failure { // these are done if a condition does not hold
		if op.GetRequestRange() == nil {
			return t, other
		}
		if err := c.read(op.GetRequestRange()); err != nil {
			return t, err
		}
	}
	return t, nil
}

func (g *gate) stream(srv any, s grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	c, err := g.caller(s.Context())
	if err == nil && c.grant != nil && info.FullMethod != etcdserverpb.Watch_Watch_FullMethodName {
		err = fmt.Errorf("%s: %w: node %s has its own rights and no others", info.FullMethod, datastore.ErrDenied, c.grant.Node)
	}
	if err != nil {
		return refused(err)
	}
	if c.grant != nil {
		s = judged{s, c}
	}
	return next(srv, s)
}

// judged is a stream of watches of a node.
type judged struct {
	grpc.ServerStream
	caller caller
}

// RecvMsg implements grpc.ServerStream.
func (s judged) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	r, ok := m.(*etcdserverpb.WatchRequest)
	if !ok {
		return status.Error(codes.PermissionDenied, "no watch")
	}
	if create := r.GetCreateRequest(); create != nil {
		var end []byte
		if len(create.RangeEnd) > 0 {
			end = create.RangeEnd
		}
		if err := s.caller.grant.Read(string(create.Key), end); err != nil {
			return refused(err)
		}
	}
	return nil
}
