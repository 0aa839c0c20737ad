package pki

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"netctl/datastore"
)

// An authority that is replaced lies in a folder with the next one: ca.crt holds both
// certificates, ca.key is the key of the one that signs, ca-next.crt and ca-next.key are
// the other's.
const nextName = "ca-next"

// Hash is the hex SHA-256 of a certificate, by which tokens know an authority.
func Hash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Hash is that of the authority's certificate.
func (a *Authority) Hash() string { return Hash(a.cert) }

// OpenNext reads the authority that is to replace the one in dir. If there is none the
// error wraps datastore.ErrNotFound.
func OpenNext(dir string) (*Authority, error) { return open(In(dir, nextName)) }

// Parse makes an authority of its certificate and private key, both in PEM.
func Parse(cert, key []byte) (*Authority, error) {
	c, err := ParseCertificate(cert)
	if err != nil {
		return nil, err
	}
	k, err := parseKey(key)
	if err != nil {
		return nil, err
	}
	if !k.PublicKey.Equal(c.PublicKey) {
		return nil, fmt.Errorf("not the key of the certificate: %w", datastore.ErrInvalid)
	}
	return &Authority{cert: c, key: k}, nil
}

// WriteNext writes an authority as the one that is to replace the one in dir.
func (a *Authority) WriteNext(dir string) error {
	key, err := a.KeyPEM()
	if err != nil {
		return err
	}
	files := In(dir, nextName)
	if err := datastore.WriteFile(files.Key, key, datastore.FileOptions{}); err != nil {
		return err
	}
	return datastore.WriteFile(files.Cert, a.CertPEM(), datastore.FileOptions{Mode: 0o644})
}

// Promote has the next authority of dir sign, if ca.crt holds that alone: what was
// interrupted is finished. Without a next one it does nothing.
func Promote(dir string) error {
	next, err := OpenNext(dir)
	if errors.Is(err, datastore.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		// The certificate goes last, the key first: without it there is nothing to do.
		return remove(In(dir, nextName).Cert)
	} else if err != nil {
		return err
	}
	trusted, err := ReadCertificates(In(dir, "ca").Cert)
	if err != nil {
		return err
	}
	if len(trusted) != 1 || !trusted[0].Equal(next.cert) {
		return nil
	}
	if err := os.Rename(In(dir, nextName).Key, In(dir, "ca").Key); err != nil {
		return err
	}
	return remove(In(dir, nextName).Cert)
}

func remove(file string) error {
	if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Signer is the authority of dir that signed a certificate: the next one, or, whatever
// the certificate is, the present one.
func Signer(dir, file string) (*Authority, error) {
	a, err := Open(dir)
	if err != nil {
		return nil, err
	}
	next, err := OpenNext(dir)
	if errors.Is(err, datastore.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return a, nil
	} else if err != nil {
		return nil, err
	}
	if cert, err := ReadCertificate(file); err == nil && next.Signed(cert) {
		return next, nil
	}
	return a, nil
}

// Seal encrypts text so that only who has the authority's key can read it (AES-256-GCM,
// the key by HKDF-SHA256, RFC 5869).
func (a *Authority) Seal(text []byte) ([]byte, error) {
	box, err := a.box()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, box.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return box.Seal(nonce, nonce, text, nil), nil
}

// Unseal is the inverse of Seal.
func (a *Authority) Unseal(sealed []byte) ([]byte, error) {
	box, err := a.box()
	if err != nil {
		return nil, err
	}
	if len(sealed) < box.NonceSize() {
		return nil, fmt.Errorf("unseal: cut off: %w", datastore.ErrInvalid)
	}
	text, err := box.Open(nil, sealed[:box.NonceSize()], sealed[box.NonceSize():], nil)
	if err != nil {
		return nil, fmt.Errorf("unseal: it was sealed with another authority's key: %w", datastore.ErrInvalid)
	}
	return text, nil
}

func (a *Authority) box() (cipher.AEAD, error) {
	secret, err := a.key.Bytes()
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, secret, nil, "netctl authority", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
