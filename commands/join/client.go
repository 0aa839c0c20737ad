package join

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"netctl/datastore"
	"netctl/datastore/pki"
)

// How long one member may take, and how often all are asked.
const (
	askTimeout = 20 * time.Second
	// reachTimeout is how long a connection to it may take.
	reachTimeout = 3 * time.Second
	askRounds    = 3
	askPause     = time.Second
	// crowdRounds is how often who has no room for a connection is asked: those that ask
	// nothing are closed after Serve's ReadTimeout.
	crowdRounds = 15
)

// Client asks members of the datastore, one after the other.
type Client struct {
	Endpoints []netip.AddrPort
	// Authorities are the hashes of which one knows them.
	Authorities [][sha256.Size]byte
	// Certificate is the client's own, nil for who has none yet.
	Certificate *tls.Certificate
	Now         func() time.Time // nil: time.Now
	pause       time.Duration    // 0: askPause
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// Join asks to be let in with a token; peerURL is of a member of the datastore.
func (c *Client) Join(ctx context.Context, t datastore.Token, name string, key *ecdsa.PrivateKey, peerURL string) (*Answer, error) {
	csr, err := pki.Request(key, name)
	if err != nil {
		return nil, err
	}
	a, err := c.ask(ctx, joinPath, Request{Token: t.Name(), Secret: t.Secret[:], CSR: csr, PeerURL: peerURL, Time: c.now()})
	if err != nil {
		return nil, err
	}
	return a, c.check(a, name, key)
}

// Renew asks for another certificate of the same name and key.
func (c *Client) Renew(ctx context.Context, name string, key *ecdsa.PrivateKey) (*Answer, error) {
	csr, err := pki.Request(key, name)
	if err != nil {
		return nil, err
	}
	a, err := c.ask(ctx, renewPath, Request{CSR: csr, Trusts: c.trusts(), Time: c.now()})
	if err != nil {
		return nil, err
	}
	return a, c.check(a, name, key)
}

// Confirm shows the certificate, so that the cluster knows of which authority it is.
func (c *Client) Confirm(ctx context.Context, name string, key *ecdsa.PrivateKey) error {
	csr, err := pki.Request(key, name)
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, confirmPath, Request{CSR: csr, Trusts: c.trusts(), Time: c.now()})
	return err
}

// trusts names the authorities where there are several.
func (c *Client) trusts() (list []string) {
	if len(c.Authorities) < 2 {
		return nil // members of before that was asked
	}
	for _, a := range c.Authorities {
		list = append(list, hex.EncodeToString(a[:]))
	}
	return list
}

// check holds an answer against what was asked.
func (c *Client) check(a *Answer, name string, key *ecdsa.PrivateKey) error {
	ca, err := pki.ParseCertificate(a.Authority)
	if err != nil {
		return fmt.Errorf("the cluster's authority: %w", err)
	}
	cert, err := pki.ParseCertificate(a.Certificate)
	if err != nil {
		return fmt.Errorf("the certificate that was made: %w", err)
	}
	switch {
	case !slices.Contains(c.Authorities, sha256.Sum256(ca.Raw)):
		return errors.New("the answer has another authority than the token names")
	case cert.CheckSignatureFrom(ca) != nil || cert.Subject.CommonName != name || !key.PublicKey.Equal(cert.PublicKey):
		return errors.New("the certificate that was made is not the one that was asked for")
	}
	return nil
}

// ask asks each endpoint until one gives a verdict; what could not be sent, or comes to
// nothing for now, is asked again.
func (c *Client) ask(ctx context.Context, path string, q Request) (*Answer, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	asked := c.Endpoints
	for round := 1; ; round++ {
		var said []string
		var crowded []netip.AddrPort
		again, rounds := false, askRounds
		for _, e := range asked {
			a, err := c.askOne(ctx, e, path, body)
			var no *Refused
			var other *stranger
			switch {
			case err == nil || errors.As(err, &no) && !no.later:
				return a, err
			case errors.As(err, &other):
			case errors.Is(err, errCrowd):
				again, rounds, crowded = true, crowdRounds, append(crowded, e)
			default:
				again = true
			}
			said = append(said, err.Error())
		}
		if !again { // who answers, but is not to be trusted
			return nil, errors.New(strings.Join(said, "; "))
		}
		if round >= rounds || ctx.Err() != nil {
			return nil, datastore.As(datastore.ErrUnavailable, "%s", strings.Join(said, "; "))
		}
		if round >= askRounds { // the others have had their time
			asked = crowded
		}
		select {
		case <-time.After(cmp.Or(c.pause, askPause)):
		case <-ctx.Done():
		}
	}
}

func (c *Client) askOne(ctx context.Context, e netip.AddrPort, path string, body []byte) (*Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	where := "https://" + e.String()
	transport := &http.Transport{TLSClientConfig: c.tls(e.Addr().String()), DisableKeepAlives: true, Proxy: nil, DialContext: (&net.Dialer{Timeout: reachTimeout}).DialContext}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, where+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(r)
	if old := new(outdated); errors.As(err, &old) {
		return nil, &stranger{fmt.Errorf("%s: %w", where, c.told(ctx, where, e.Addr().String(), old))}
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", where, reason(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var no refusal
		if err := decode(resp.Body, &no); err != nil || no.Message == "" {
			return nil, fmt.Errorf("%s answers, but lets no nodes in (HTTP status %d)", where, resp.StatusCode)
		}
		return nil, &Refused{Where: where, Message: no.Message, later: no.Later}
	}
	var a Answer
	if err := decode(resp.Body, &a); err != nil {
		return nil, fmt.Errorf("%s: answer %w", where, err)
	}
	return &a, nil
}

// tls trusts a server whose chain ends in the authority of that hash, and nothing else.
func (c *Client) tls(host string) *tls.Config {
	conf := &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, by the authority's hash
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := c.verify(s.PeerCertificates, host, c.now()); err != nil {
				return &stranger{err}
			}
			return nil
		},
	}
	if c.Certificate != nil {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.Certificate, nil }
	}
	return conf
}

// stranger is a server that is not the cluster's: to ask it again changes nothing.
type stranger struct{ err error }

func (e *stranger) Error() string { return e.err.Error() }
func (e *stranger) Unwrap() error { return e.err }

// verify judges a server's certificate at a time.
func (c *Client) verify(chain []*x509.Certificate, host string, now time.Time) error {
	roots := x509.NewCertPool()
	known := false
	for _, cert := range chain {
		if slices.Contains(c.Authorities, sha256.Sum256(cert.Raw)) {
			roots.AddCert(cert)
			known = true
		}
	}
	if !known || len(chain) == 0 {
		return errors.New("is not of the cluster that the token names: its authority is another (a token of an older cluster, or of before its authority was replaced, or somebody in between)")
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: host, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return &outdated{cert: chain[0], now: now}
	}
	return err
}

// outdated is a certificate that is not valid now, by this machine's clock.
type outdated struct {
	cert *x509.Certificate
	now  time.Time
}

func (e *outdated) Error() string {
	return fmt.Sprintf("has a certificate for %s to %s, and this machine's clock says %s: set the clock that is wrong", clock(e.cert.NotBefore), clock(e.cert.NotAfter), clock(e.now))
}

// told asks a member with such a certificate for its time, and nothing else, to say which
// clock is wrong.
func (c *Client) told(ctx context.Context, where, host string, old *outdated) error {
	conf := c.tls(host)
	conf.GetClientCertificate = nil
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		return c.verify(s.PeerCertificates, host, s.PeerCertificates[0].NotBefore)
	}
	transport := &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true, Proxy: nil}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, where+"/", nil)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		return old
	}
	resp.Body.Close()
	there, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil || there.Sub(old.now).Abs() <= MaxSkew {
		return old
	}
	return fmt.Errorf("says that this machine's clock is wrong: it says %s, the cluster's %s: set it, then try again", clock(old.now), clock(there))
}

// errCrowd is a connection that was closed without an answer.
var errCrowd = errors.New("closes the connection without an answer: too many others are open there, or it is starting or ending: try again in ten seconds")

// reason is why nobody answered, in words.
func reason(err error) error {
	var (
		late interface{ Timeout() bool }
		op   *net.OpError
	)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return errCrowd
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused: no member of the datastore lets nodes in there")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return errors.New("no route to the host")
	case errors.Is(err, fs.ErrPermission):
		return err
	case errors.As(err, &late) && late.Timeout():
		return errors.New("no answer: the host is down or a firewall drops the packets")
	case strings.Contains(err.Error(), "remote error: tls:"):
		_, said, _ := strings.Cut(err.Error(), "tls: ")
		return fmt.Errorf("it refuses this node's certificate: %s", said)
	case errors.As(err, &op):
		return op
	}
	return err
}

// certKey is the public key of a certificate, and its hash.
func certKey(cert *x509.Certificate) (*ecdsa.PublicKey, string, error) {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		return nil, "", fmt.Errorf("certificate of %s: not an ECDSA key: %w", cert.Subject.CommonName, datastore.ErrInvalid)
	}
	hash, err := pki.KeyHash(key)
	return key, hash, err
}
