package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"netctl/datastore"
)

// Use is what a certificate is good for.
type Use int

// The uses. A client that cannot be a server cannot pose as the datastore.
const (
	UseBoth Use = iota
	UseClient
	UseServer
)

func (u Use) extended() []x509.ExtKeyUsage {
	switch u {
	case UseClient:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	case UseServer:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
}

// NotBeforeNow is the beginning of a certificate of that life that is made now: clocks
// differ, and a short life is not to lie in the past.
func NotBeforeNow(now time.Time, life time.Duration) time.Time {
	return now.Add(-min(skew, life/10))
}

// DER is the authority's certificate.
func (a *Authority) DER() []byte { return a.cert.Raw }

// CertPEM is the authority's certificate as it is in its file.
func (a *Authority) CertPEM() []byte { return encodeCert(a.cert.Raw) }

// KeyPEM is the authority's private key as it is in its file: who has it can be
// anybody.
func (a *Authority) KeyPEM() ([]byte, error) { return encodeKey(a.key) }

// Signed says whether a certificate is of the authority.
func (a *Authority) Signed(cert *x509.Certificate) bool {
	return cert.CheckSignatureFrom(a.cert) == nil
}

// Sign certifies that the public key is n's; the result is PEM.
func (a *Authority) Sign(public *ecdsa.PublicKey, n Node) ([]byte, error) {
	t, err := template(n)
	if err != nil {
		return nil, fmt.Errorf("sign certificate %s: %w", n.Name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate %s: %w", n.Name, err)
	}
	return encodeCert(der), nil
}

// NewKey makes a private key, and its PEM.
func NewKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	text, err := encodeKey(key)
	return key, text, err
}

// ReadKey reads a private key of this package's.
func ReadKey(file string) (*ecdsa.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

// parseKey parses a private key of this package's in PEM.
func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("no PEM: %w", datastore.ErrInvalid)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, datastore.ErrInvalid)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("not an ECDSA key: %w", datastore.ErrInvalid)
	}
	return key, nil
}

// ReadCertificate reads the first certificate of a file.
func ReadCertificate(file string) (*x509.Certificate, error) {
	list, err := ReadCertificates(file)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// ReadCertificates reads the certificates of a file, one at least.
func ReadCertificates(file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	list, err := ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

// ParseCertificate parses the first certificate of a PEM text.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	list, err := ParseCertificates(text)
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// ParseCertificates parses the certificates of a PEM text, one at least.
func ParseCertificates(text []byte) (list []*x509.Certificate, err error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, datastore.ErrInvalid)
		}
		list = append(list, cert)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no certificate in PEM: %w", datastore.ErrInvalid)
	}
	return list, nil
}

// Request asks for a certificate of the key for a node of that name (RFC 2986), in PEM.
func Request(key *ecdsa.PrivateKey, name string) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// ParseRequest returns name and key of a request whose sender has the private key.
func ParseRequest(text []byte) (name string, key *ecdsa.PublicKey, err error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return "", nil, fmt.Errorf("no certificate request in PEM: %w", datastore.ErrInvalid)
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return "", nil, fmt.Errorf("certificate request: %w: %w", err, datastore.ErrInvalid)
	}
	key, ok := r.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return "", nil, fmt.Errorf("certificate request: its key is not of the curve P-256: %w", datastore.ErrInvalid)
	}
	return r.Subject.CommonName, key, nil
}

// KeyHash is the hex SHA-256 of a public key (SubjectPublicKeyInfo).
func KeyHash(key *ecdsa.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// Renew has certificate f made by the authority for the key that is there, or one that is
// made, unless it has more than a third of its life left and is the authority's and n's.
// It says until when the certificate needs no look.
func (a *Authority) Renew(f Files, n Node, life time.Duration, now time.Time) (time.Time, error) {
	if cert, err := ReadCertificate(f.Cert); err == nil && a.Signed(cert) && sameAddresses(cert, n) {
		if due := RenewAt(cert); now.Before(due) && !now.Before(cert.NotBefore) {
			return due, nil
		}
	}
	key, err := ReadKey(f.Key)
	if errors.Is(err, fs.ErrNotExist) {
		var text []byte
		if key, text, err = NewKey(); err == nil {
			err = datastore.WriteFile(f.Key, text, datastore.FileOptions{})
		}
	}
	if err != nil {
		return now, fmt.Errorf("renew certificate %s: %w", f.Cert, err)
	}
	n.NotBefore, n.NotAfter = NotBeforeNow(now, life), now.Add(life)
	text, err := a.Sign(&key.PublicKey, n)
	if err == nil {
		err = datastore.WriteFile(f.Cert, text, datastore.FileOptions{Mode: 0o644})
	}
	if err != nil {
		return now, fmt.Errorf("renew certificate %s: %w", f.Cert, err)
	}
	cert, err := ParseCertificate(text)
	if err != nil {
		return now, err
	}
	return RenewAt(cert), nil
}

// sameAddresses says whether a certificate is for just the addresses of n.
func sameAddresses(cert *x509.Certificate, n Node) bool {
	if len(cert.IPAddresses) != len(n.Addresses) {
		return false
	}
	for _, a := range n.Addresses {
		if cert.VerifyHostname(a.String()) != nil {
			return false
		}
	}
	return true
}

// RenewAt is when a certificate is renewed: with two fifths of its life left, so that it
// is done, whatever has to be tried again, before only a third is.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) * 2 / 5)
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
