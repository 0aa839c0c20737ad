package join

import (
	"crypto/sha256"
	"os"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/pki"
)

// TestSuccession: while an authority is replaced who trusts the new one is certified by
// it, and is known to follow once it shows that.
func TestSuccession(t *testing.T) {
	w := newWorld(t, time.Hour)
	token, k := w.token(false, time.Hour), key(t)
	c := w.client(token)
	first, err := c.Join(t.Context(), token, "n2", k, "")
	if err != nil {
		t.Fatal(err)
	}
	next, err := pki.New("netctl")
	if err != nil {
		t.Fatal(err)
	}
	old := w.keys.CA
	w.keys.Next, w.keys.Phase = next, datastore.PhaseMembers
	if err := os.WriteFile(w.service.Server.CA, append(old.CertPEM(), next.CertPEM()...), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Certificate = pair(t, first, k)
	follows := func() string {
		at, err := datastore.JoinedKey("n2")
		if err != nil {
			t.Fatal(err)
		}
		var n datastore.JoinedNode
		if _, err := datastore.Record(t.Context(), w.service.Store, at, &n); err != nil {
			t.Fatal(err)
		}
		return n.Authority
	}
	renewed := func(what string, by *pki.Authority) {
		t.Helper()
		a, err := c.Renew(t.Context(), "n2", k)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		c.Certificate = pair(t, a, k)
		if !by.Signed(c.Certificate.Leaf) {
			t.Errorf("%s: another authority signed", what)
		}
	}
	both := [][sha256.Size]byte{sha256.Sum256(old.DER()), sha256.Sum256(next.DER())}
	c.Authorities = both
	renewed("members learn", old)
	w.keys.Phase = datastore.PhaseNodes
	c.Authorities = both[:1]
	renewed("who trusts the old one alone", old)
	c.Authorities = both
	renewed("who trusts both", next)
	if is := follows(); is == next.Hash() {
		t.Error("known before it was shown")
	}
	if err := c.Confirm(t.Context(), "n2", k); err != nil {
		t.Fatal(err)
	}
	if is := follows(); is != next.Hash() {
		t.Errorf("follows %q", is)
	}
	// A node that comes in meanwhile trusts both; a member has to wait.
	late := w.token(false, time.Hour)
	a, err := w.client(late).Join(t.Context(), late, "n3", key(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if list, err := pki.ParseCertificates(a.Authority); err != nil || len(list) != 2 {
		t.Errorf("%d authorities, %v", len(list), err)
	}
	member := w.token(true, time.Hour)
	_, err = w.client(member).Join(t.Context(), member, "n4", key(t), "https://127.0.0.1:2380")
	says(t, "a member", err, "the cluster's authority is being replaced")
	w.keys.Phase = datastore.PhaseServers
	other := w.token(false, time.Hour)
	_, err = w.client(other).Join(t.Context(), other, "n4", key(t), "")
	says(t, "a node", err, "the cluster's authority is being replaced")
}
