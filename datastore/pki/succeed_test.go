package pki

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"netctl/datastore"
)

// succession is a folder with an authority and the next one, both trusted.
func succession(t *testing.T) (dir string, old, next *Authority) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "tls")
	old, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	if next, err = New("netctl"); err != nil {
		t.Fatal(err)
	}
	if err := next.WriteNext(dir); err != nil {
		t.Fatal(err)
	}
	trust(t, dir, append(old.CertPEM(), next.CertPEM()...))
	return dir, old, next
}

func trust(t *testing.T, dir string, text []byte) {
	t.Helper()
	if err := datastore.WriteFile(In(dir, "ca").Cert, text, datastore.FileOptions{Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
}

func opened(t *testing.T, dir string, want *Authority) {
	t.Helper()
	if a, err := Open(dir); err != nil || a.Hash() != want.Hash() {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestPromote: the next authority signs when it alone is trusted, wherever that was
// interrupted.
func TestPromote(t *testing.T) {
	dir, old, next := succession(t)
	for range 2 {
		if err := Promote(dir); err != nil {
			t.Fatal(err)
		}
		opened(t, dir, old)
	}
	trust(t, dir, next.CertPEM())
	if _, err := Open(dir); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("with the old one's key: %v", err)
	}
	if err := Promote(dir); err != nil {
		t.Fatal(err)
	}
	opened(t, dir, next)
	// Ended before the certificate was removed, or before it was written.
	if err := os.WriteFile(In(dir, "ca-next").Cert, next.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Promote(dir); err != nil {
		t.Fatal(err)
	}
	opened(t, dir, next)
	if left, _ := filepath.Glob(filepath.Join(dir, "ca-next*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if err := os.WriteFile(In(dir, "ca-next").Key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Promote(dir); err != nil {
		t.Fatal(err)
	}
	opened(t, dir, next)
}

// TestSigner: what the next authority signed it goes on signing.
func TestSigner(t *testing.T) {
	dir, old, next := succession(t)
	files := In(dir, "server")
	for _, by := range []*Authority{old, next, next} {
		if _, err := by.Renew(files, Node{Name: "n1"}, time.Hour, time.Now()); err != nil {
			t.Fatal(err)
		}
		a, err := Signer(dir, files.Cert)
		if err != nil || a.Hash() != by.Hash() {
			t.Errorf("%v, %v", a, err)
		}
	}
}

func TestSeal(t *testing.T) {
	_, old, next := succession(t)
	key, err := next.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := old.Seal(key)
	if err != nil || bytes.Contains(sealed, key[40:60]) {
		t.Fatalf("%q, %v", sealed, err)
	}
	text, err := old.Unseal(sealed)
	if err != nil || !bytes.Equal(text, key) {
		t.Errorf("%q, %v", text, err)
	}
	if a, err := Parse(next.CertPEM(), text); err != nil || a.Hash() != next.Hash() {
		t.Errorf("%v, %v", a, err)
	}
	if _, err := Parse(old.CertPEM(), text); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("the key of another: %v", err)
	}
	if _, err := next.Unseal(sealed); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("by another: %v", err)
	}
	if _, err := old.Unseal(sealed[:5]); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("cut off: %v", err)
	}
	sealed[len(sealed)-1] ^= 1
	if _, err := old.Unseal(sealed); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("altered: %v", err)
	}
}
