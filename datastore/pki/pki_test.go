package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/pki"
)

func TestCertificatesHold(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	ca, err := pki.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("192.168.99.102")
	files, err := ca.Issue(dir, pki.Node{Name: "node1", Addresses: []netip.Addr{addr, netip.MustParseAddr("fd00:99::1")}, Hosts: []string{"node1.lan"}})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(files.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, name := range []string{"192.168.99.102", "fd00:99::1", "node1.lan"} {
		for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: "192.168.99.103", Roots: roots}); err == nil {
		t.Error("holds for an address that it was not issued for")
	}
	if pair.Leaf.Subject.CommonName != "node1" {
		t.Errorf("common name %q", pair.Leaf.Subject.CommonName)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "ca.key": 0o600, "node1.key": 0o600, "ca.crt": 0o644} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

func TestAuthorityIsNeverOverwritten(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for range 8 {
		wg.Go(func() {
			_, err := pki.Create(dir)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if !errors.Is(err, datastore.ErrExists) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 {
		t.Fatalf("%d of 8 made the authority", made)
	}
	if _, err := pki.Open(dir); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"ca.crt", "ca.key"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, left), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.Create(dir); !errors.Is(err, datastore.ErrExists) {
			t.Errorf("with %s there: %v", left, err)
		}
		if text, _ := os.ReadFile(filepath.Join(dir, left)); string(text) != "precious" {
			t.Errorf("%s was overwritten", left)
		}
	}
}

func TestOtherAuthoritysFolder(t *testing.T) {
	ours, theirs := t.TempDir(), t.TempDir()
	ca, err := pki.Create(ours)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.Create(theirs); err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Issue(theirs, pki.Node{Name: "node1"}); !errors.Is(err, datastore.ErrExists) {
		t.Errorf("issued beside another authority: %v", err)
	}
	elsewhere := filepath.Join(t.TempDir(), "node")
	if _, err := ca.Issue(elsewhere, pki.Node{Name: "node1", NotAfter: time.Now().Add(-time.Minute)}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "ca.crt")); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"", "ca", "../x", "a/b"} {
		if _, err := ca.Issue(ours, pki.Node{Name: name}); !errors.Is(err, datastore.ErrInvalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, err := pki.Open(t.TempDir()); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("empty folder: %v", err)
	}
}
