package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"time"
)

// certificate gives the machine one that is valid between two times.
func certificate(from, until time.Time) func(*fake, *Config) {
	return func(f *fake, c *Config) {
		c.Certificates = []string{"/etc/netctl-tls/n1.crt"}
		f.files[c.Certificates[0]] = certificateText(from, until)
	}
}

// authority gives the machine an authority that is valid until then.
func authority(until time.Time) func(*fake, *Config) {
	return func(f *fake, c *Config) {
		c.Certificates = []string{"/etc/netctl-tls/ca.crt"}
		f.files[c.Certificates[0]] = signed(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, NotBefore: until.AddDate(-20, 0, 0), NotAfter: until})
	}
}

func certificateText(from, until time.Time) string {
	return signed(&x509.Certificate{NotBefore: from, NotAfter: until})
}

// signed is a certificate that signs itself, in PEM.
func signed(t *x509.Certificate) string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	t.SerialNumber, t.Subject = big.NewInt(1), pkix.Name{CommonName: "n1"}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
