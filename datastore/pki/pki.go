// Package pki owns the certificates of a cluster: an authority, and the
// certificates of servers and clients that it signs. Standard library crypto,
// ECDSA P-256, PEM files.
//
// It never overwrites an authority, and a private key is never readable by
// anybody but its owner.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"netctl/datastore"
)

// How long certificates hold that Issue makes; nothing renews those by itself.
const (
	authorityLife = 20 * 365 * 24 * time.Hour
	nodeLife      = 10 * 365 * 24 * time.Hour
	// skew is how far the clocks of two nodes may be apart.
	skew = time.Hour
)

// Authority signs node certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Node is what a certificate says of its holder.
type Node struct {
	Name      string       // the common name: the node's
	Addresses []netip.Addr // where the node may be dialled
	Hosts     []string     // names under which it may be dialled
	Use       Use          // what it is good for
	// Role is what the holder is to the cluster (datastore.RoleNode); ""
	// is of a certificate that no node joined with.
	Role string
	// NotBefore and NotAfter default to an hour ago and ten years from now.
	NotBefore, NotAfter time.Time
}

// Files are the names of the PEM files of a certificate.
type Files struct{ CA, Cert, Key string }

// In returns the file names of the node's certificate in a folder.
func In(dir, name string) Files {
	return Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

// Create makes an authority in dir (made if it does not exist, 0700): ca.crt and
// ca.key. If one of the two files is there the error wraps datastore.ErrExists.
func Create(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create ca: %w", err)
	}
	a, err := New("netctl")
	if err != nil {
		return nil, err
	}
	if err := write(In(dir, "ca"), a.cert.Raw, a.key, false); err != nil {
		return nil, fmt.Errorf("create ca: %w", err)
	}
	return Open(dir)
}

// New makes an authority of that name and writes nothing.
func New(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create ca: %w", err)
	}
	template, err := template(Node{Name: name, NotAfter: time.Now().Add(authorityLife)})
	if err != nil {
		return nil, fmt.Errorf("create ca: %w", err)
	}
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.ExtKeyUsage = nil
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("create ca: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("create ca: %w", err)
	}
	return &Authority{cert: cert, key: key}, nil
}

// Open reads the authority in dir: the one of ca.crt, which may hold several, whose key
// ca.key is. If there is none the error wraps datastore.ErrNotFound.
func Open(dir string) (*Authority, error) { return open(In(dir, "ca")) }

func open(files Files) (*Authority, error) {
	certs, err := ReadCertificates(files.Cert)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open ca %s: %w", files.Cert, datastore.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("open ca: %w", err)
	}
	key, err := ReadKey(files.Key)
	if err != nil {
		return nil, fmt.Errorf("open ca: %w", err)
	}
	for _, cert := range certs {
		if key.PublicKey.Equal(cert.PublicKey) {
			return &Authority{cert: cert, key: key}, nil
		}
	}
	return nil, fmt.Errorf("open ca %s: not the key of %s: %w", files.Key, files.Cert, datastore.ErrInvalid)
}

// Issue makes a key and a certificate for n in dir: <name>.crt and <name>.key
// (0600), and ca.crt if it is not there. The node's earlier ones are replaced.
func (a *Authority) Issue(dir string, n Node) (Files, error) {
	files := In(dir, n.Name)
	if n.Name == "" || n.Name == "ca" || filepath.Base(n.Name) != n.Name {
		return files, fmt.Errorf("issue certificate %q: no name for a node: %w", n.Name, datastore.ErrInvalid)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return files, fmt.Errorf("issue certificate %s: %w", n.Name, err)
	}
	template, err := template(n)
	if err != nil {
		return files, fmt.Errorf("issue certificate %s: %w", n.Name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		err = a.placeCA(files.CA)
	}
	if err == nil {
		err = write(files, der, key, true)
	}
	if err != nil {
		return files, fmt.Errorf("issue certificate %s: %w", n.Name, err)
	}
	return files, nil
}

// placeCA writes the authority's certificate unless it is there; another one
// there is an error.
func (a *Authority) placeCA(path string) error {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	have, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return datastore.WriteFile(path, text, datastore.FileOptions{Mode: 0o644, New: true})
	case err != nil:
		return err
	case !bytes.Equal(have, text):
		return fmt.Errorf("%s is another authority's: %w", path, datastore.ErrExists)
	}
	return nil
}

func template(n Node) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	if n.NotBefore.IsZero() {
		n.NotBefore = time.Now().Add(-skew)
	}
	if n.NotAfter.IsZero() {
		n.NotAfter = time.Now().Add(nodeLife)
	}
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: n.Name, Organization: organisation(n.Role)},
		NotBefore:    n.NotBefore,
		NotAfter:     n.NotAfter,
		DNSNames:     n.Hosts,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  n.Use.extended(),
	}
	for _, addr := range n.Addresses {
		t.IPAddresses = append(t.IPAddresses, net.IP(addr.Unmap().AsSlice()))
	}
	return t, nil
}

func organisation(role string) []string {
	if role == "" {
		return nil
	}
	return []string{role}
}

// write places key and certificate, the key first: a certificate is never there
// without its key.
func write(f Files, der []byte, key *ecdsa.PrivateKey, replace bool) error {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(f.Cert); err == nil && !replace {
		return fmt.Errorf("%s: %w", f.Cert, datastore.ErrExists)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	if err := datastore.WriteFile(f.Key, private, datastore.FileOptions{New: !replace}); err != nil {
		return err
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return datastore.WriteFile(f.Cert, public, datastore.FileOptions{Mode: 0o644, New: !replace})
}
