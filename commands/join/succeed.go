package join

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"netctl/datastore"
	"netctl/datastore/pki"
)

// hurry is within what time all nodes ask for certificates of a new authority.
const hurry = time.Second

// Heard is told what the cluster says of its authority, nil if nothing.
func (k *Keeper) Heard(value []byte) {
	var r *datastore.Rotation
	if value != nil {
		r = &datastore.Rotation{}
		if err := json.Unmarshal(value, r); err != nil {
			k.Log.Warn("what the cluster says of its authority is not understood", "error", err)
			return
		}
	}
	k.succession.Store(r)
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// succeed does what this node has to do while the cluster's authority is replaced: it
// trusts the new one too, takes a certificate of it, says so, and forgets the old one. It
// returns when to look again; 0: there is nothing to do.
func (k *Keeper) succeed(ctx context.Context) (time.Duration, error) {
	r := k.succession.Load()
	if r == nil || !r.Phase.Reached(datastore.PhaseNodes) {
		return 0, nil
	}
	settled, err := k.settled(r)
	if err != nil || settled {
		return 0, err
	}
	if r.Phase != datastore.PhaseDone {
		select { // not all nodes at the same moment
		case <-ctx.Done():
			return keepFirst, nil
		case <-time.After(rand.N(hurry)):
		}
	}
	lock, err := k.Lock()
	if err != nil {
		return keepFirst, nil // somebody is at it
	}
	defer lock.Close()
	if k.succession.Load() != r {
		return keepFirst, nil // it went on meanwhile
	}
	if err := k.trust(r); err != nil {
		return 0, err
	}
	if r.Phase == datastore.PhaseDone {
		return keepFirst, nil
	}
	signed, err := k.signed(r)
	if err == nil && !signed {
		if err = k.renew(ctx); err == nil {
			signed, err = k.signed(r)
		}
	}
	if err != nil || !signed {
		return keepFirst, err
	}
	c, name, key, err := k.client()
	if err != nil {
		return 0, err
	}
	if err := c.Confirm(ctx, name, key); err != nil {
		return 0, err
	}
	k.confirmed = r.ID
	return keepFirst, nil
}

// settled says whether this node has done its part in a phase.
func (k *Keeper) settled(r *datastore.Rotation) (bool, error) {
	have, err := os.ReadFile(k.Files.CA)
	if err != nil {
		return false, err
	}
	if r.Phase == datastore.PhaseDone {
		return bytes.Equal(have, r.Clients.New), nil
	}
	return k.confirmed == r.ID && bytes.Equal(have, r.Clients.Trusted(r.Phase)), nil
}

// trust writes the authorities of a phase, if this node trusts one of them already.
func (k *Keeper) trust(r *datastore.Rotation) error {
	have, err := pki.ReadCertificates(k.Files.CA)
	if err != nil {
		return err
	}
	both, err := pki.ParseCertificates(r.Clients.Trusted(datastore.PhaseNodes))
	if err != nil {
		return fmt.Errorf("the cluster's authority: %w", err)
	}
	if !slices.ContainsFunc(both, have[0].Equal) {
		return fmt.Errorf("the authority that the cluster replaced is not the one of %s, which stays as it is", k.Files.CA)
	}
	if r.Phase == datastore.PhaseDone {
		if signed, err := k.signed(r); err != nil || !signed {
			return errors.Join(err, fmt.Errorf("%s is of the authority that was replaced: let the node join again (docs/datastore.md)", k.Files.Cert))
		}
	}
	text := r.Clients.Trusted(r.Phase)
	if is, err := os.ReadFile(k.Files.CA); err != nil || bytes.Equal(is, text) {
		return err
	}
	if err := datastore.WriteFile(k.Files.CA, text, datastore.FileOptions{Mode: 0o644}); err != nil {
		return err
	}
	k.Log.Info("the cluster's authority is replaced", "phase", r.Phase, "file", k.Files.CA, datastore.EventCertificate.Mark())
	return nil
}

// signed says whether the certificate is of the new authority.
func (k *Keeper) signed(r *datastore.Rotation) (bool, error) {
	ca, err := pki.ParseCertificate(r.Clients.New)
	if err != nil {
		return false, fmt.Errorf("the cluster's authority: %w", err)
	}
	cert, err := pki.ReadCertificate(k.Files.Cert)
	return err == nil && cert.CheckSignatureFrom(ca) == nil, err
}
