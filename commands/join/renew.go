package join

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/datastore/pki"
)

// known is a node that shows a certificate that is still good.
type known struct {
	joined   datastore.JoinedNode
	at       string // its record
	revision int64  // of that; 0: there is none yet
	sign     func(ca *pki.Authority, member bool) ([]byte, error)
}

// known finds out who shows a certificate.
func (s *Service) known(ctx context.Context, q Request, chain []*x509.Certificate) (*known, error) {
	if len(chain) == 0 {
		return nil, errors.New("no certificate of this cluster was shown, and only such a one is renewed")
	}
	cert := chain[0]
	if _, api := datastore.APIRoleOf(cert.Subject.Organization); api {
		return nil, fmt.Errorf("the certificate of %s is for the API, and no node's: `netctl api grant` makes another", cert.Subject.CommonName)
	}
	name, key, sign, err := s.request(q)
	if err != nil {
		return nil, err
	}
	_, shown, err := certKey(cert)
	if err != nil {
		return nil, err
	}
	if cert.Subject.CommonName != name || shown != key {
		return nil, fmt.Errorf("a certificate of %s is not renewed for another name or key", cert.Subject.CommonName)
	}
	k := &known{sign: sign}
	if k.at, err = datastore.JoinedKey(name); err != nil {
		return nil, err
	}
	k.revision, err = datastore.Record(ctx, s.Store, k.at, &k.joined)
	switch {
	case err != nil:
		return nil, s.unavailable(err)
	case k.revision == 0: // the datastore was lost, and is another
		k.joined = datastore.JoinedNode{Name: name, Key: key, Since: s.now().UTC().Truncate(time.Second),
			Member: slices.Contains(cert.Subject.Organization, datastore.RoleMember)}
		return k, s.keep(ctx, k)
	case !k.joined.Removed.IsZero():
		return nil, fmt.Errorf("node %s was removed from the cluster at %s: let it join again", name, clock(k.joined.Removed))
	case k.joined.Key != key:
		return nil, fmt.Errorf("the name %s is another node's by now: join again, under another", name)
	}
	return k, nil
}

// keep writes what is kept of a node.
func (s *Service) keep(ctx context.Context, k *known) error {
	op, err := datastore.RecordOp(k.at, k.joined)
	if err != nil {
		return err
	}
	if k.revision, err = s.Store.Commit(ctx, datastore.Txn{If: []datastore.Condition{{Key: k.at, Revision: k.revision}}, Then: []datastore.Op{op}}); err != nil {
		return s.unavailable(err)
	}
	return nil
}

// renew signs again for who shows a certificate that is still good.
func (s *Service) renew(ctx context.Context, q Request, chain []*x509.Certificate) (*Answer, error) {
	k, err := s.known(ctx, q, chain)
	if err != nil {
		return nil, err
	}
	ca := s.Keys().renews(q.Trusts)
	a := &Answer{Authority: ca.CertPEM(), JoinPort: s.Port}
	if a.Certificate, err = k.sign(ca, k.joined.Member); err != nil {
		return nil, err
	}
	s.Log.Info("certificate renewed", "node", k.joined.Name)
	return a, nil
}

// confirm notes of which authority the certificate is that a node shows.
func (s *Service) confirm(ctx context.Context, q Request, chain []*x509.Certificate) (*Answer, error) {
	k, err := s.known(ctx, q, chain)
	if err != nil {
		return nil, err
	}
	if by := pki.Hash(chain[len(chain)-1]); k.joined.Authority != by {
		k.joined.Authority = by
		if err := s.keep(ctx, k); err != nil {
			return nil, err
		}
	}
	return &Answer{JoinPort: s.Port}, nil
}
