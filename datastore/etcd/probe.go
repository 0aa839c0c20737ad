package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/credentials"

	"netctl/datastore"
)

// checkFiles refuses names of files that cannot be meant; it reads none.
func checkFiles(o Options, secure bool) error {
	switch {
	case !secure && (o.CA != "" || o.Cert != "" || o.Key != "" || o.User != ""):
		return fmt.Errorf("%q: %w: a unix socket takes no ca, cert, key or user: remove them, or use https endpoints", o.Endpoints[0], datastore.ErrInvalid)
	case (o.User != "") != (o.PasswordFile != ""):
		return fmt.Errorf("%q: %w: user and passwordFile: both or none", o.Endpoints[0], datastore.ErrInvalid)
	case secure && (o.CA == "" || o.Cert == "" && o.User == "" || (o.Cert == "") != (o.Key == "")):
		return fmt.Errorf("%q: %w: https needs ca, cert and key (an external etcd: ca, user and passwordFile)", o.Endpoints[0], datastore.ErrInvalid)
	}
	return nil
}

// clientTLS builds the TLS settings from the files, as they are now.
func clientTLS(o Options) (*tls.Config, error) {
	pem, err := os.ReadFile(o.CA)
	if err != nil {
		return nil, fmt.Errorf("our ca cannot be used: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("our ca %s holds no PEM certificate", o.CA)
	}
	if o.Cert == "" {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, nil
	}
	load := func() (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(o.Cert, o.Key)
		if err != nil {
			return nil, fmt.Errorf("our cert %s with key %s cannot be used: %w", o.Cert, o.Key, err)
		}
		return &c, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    roots,
		// Called per connection: a renewed certificate needs no restart.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() },
	}, nil
}

// fresh are TLS credentials that read their files for every connection: what was renewed or
// replaced needs no restart.
type fresh struct{ files Options }

// ClientHandshake implements grpc's credentials.TransportCredentials.
func (f fresh) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conf, err := clientTLS(f.files)
	if err != nil {
		return nil, nil, err
	}
	return credentials.NewTLS(conf).ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements grpc's credentials.TransportCredentials.
func (f fresh) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("a client's")
}

// Info implements grpc's credentials.TransportCredentials.
func (f fresh) Info() credentials.ProtocolInfo { return credentials.NewTLS(nil).Info() }

// Clone implements grpc's credentials.TransportCredentials.
func (f fresh) Clone() credentials.TransportCredentials { return f }

// OverrideServerName implements grpc's credentials.TransportCredentials.
func (f fresh) OverrideServerName(string) error { return errors.New("nobody is to") }

// probe dials every endpoint once and tells why those that do not answer do
// not; nil if one answers.
func (s *Store) probe(ctx context.Context) error {
	some, words := s.probeAll(ctx, nil)
	if some {
		return nil
	}
	return errors.New(words)
}

// probeAll dials every endpoint once, and tells whether some answer; words are those that do
// with the answer's, and why the others do not.
func (s *Store) probeAll(ctx context.Context, answer error) (some bool, words string) {
	ctx, cancel := context.WithTimeout(ctx, s.dial)
	defer cancel()
	endpoints := s.where()
	reasons := make([]error, len(endpoints))
	var wg sync.WaitGroup
	for i, e := range endpoints {
		wg.Go(func() { reasons[i] = s.probeOne(ctx, e) })
	}
	wg.Wait()
	same := true
	for _, err := range reasons {
		some, same = some || err == nil, same && err == nil
	}
	if same {
		return some, fmt.Sprintf("%s: %v", list(endpoints), answer)
	}
	var each []string
	for i, err := range reasons {
		if err == nil {
			err = answer
		}
		each = append(each, fmt.Sprintf("%s: %v", endpoints[i], err))
	}
	return some, strings.Join(each, "; ")
}

func (s *Store) probeOne(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	network, address := "tcp", u.Host
	if u.Scheme == "unix" {
		network, address = "unix", u.Path
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return dialReason(err, u.Scheme == "unix")
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	if s.secure {
		conf, err := clientTLS(s.files)
		if err != nil {
			return err
		}
		conf.ServerName = u.Hostname()
		conf.NextProtos = []string{"h2"}
		secure := tls.Client(conn, conf)
		if err := secure.HandshakeContext(ctx); err != nil {
			return s.tlsReason(err)
		}
		conn = secure
	}
	return s.greet(conn)
}

// greet speaks HTTP/2's preface and reads the head of one frame. With TLS 1.3
// this is also where a refused client certificate shows (RFC 8446, section 4.4.2.4).
func (s *Store) greet(conn net.Conn) error {
	const settings = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // RFC 9113, section 6.5: an empty one
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"+settings); err != nil {
		return s.tlsReason(err)
	}
	head := make([]byte, 9)
	if _, err := io.ReadFull(conn, head); err != nil {
		return s.tlsReason(err)
	}
	if head[3] != 4 {
		return errors.New("answers, but is no etcd (no HTTP/2 there)")
	}
	return nil
}

// dialReason is why no connection came about, in words.
func dialReason(err error, unix bool) error {
	switch {
	case unix && errors.Is(err, fs.ErrNotExist):
		return errors.New("socket missing: is the datastore role running on this node?")
	case unix && errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("nobody listens on the socket: the datastore role is not running")
	case unix && errors.Is(err, syscall.EAGAIN): // its queue is full
		return errors.New(hangs)
	case errors.Is(err, fs.ErrPermission):
		return errors.New("permission denied: the socket is root's alone")
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused: nothing listens there")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return errors.New("no route to the host")
	}
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns) && dns.IsTimeout:
		return fmt.Errorf("the name %s cannot be resolved: no answer from a name server", dns.Name)
	case errors.As(err, &dns):
		return fmt.Errorf("the name %s cannot be resolved", dns.Name)
	case isTimeout(err):
		return errors.New("no answer: the host is down or a firewall drops the packets")
	}
	return err
}

// tlsReason is why an endpoint that accepted a connection did not answer on it.
func (s *Store) tlsReason(err error) error {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		record  tls.RecordHeaderError
		alert   tls.AlertError
	)
	switch {
	case errors.As(err, &unknown):
		return fmt.Errorf("its certificate is not signed by our ca %s", s.files.CA)
	case errors.As(err, &name):
		return fmt.Errorf("its certificate is for another address: %w", name)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("its certificate is expired or not yet valid (%s to %s)", day(invalid.Cert.NotBefore), day(invalid.Cert.NotAfter))
	case errors.As(err, &invalid):
		return fmt.Errorf("its certificate is not valid: %w", invalid)
	case errors.As(err, &record):
		return errors.New("answers, but does not speak TLS")
	case errors.As(err, &alert), strings.Contains(err.Error(), "remote error: tls:"):
		return s.refused(err)
	case isTimeout(err):
		return errors.New(hangs)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return errors.New("closes the connection: it is starting or ending, or no etcd")
	}
	return err
}

// refused is why the server does not take our certificate: its alert, and what
// the certificate itself tells.
func (s *Store) refused(err error) error {
	if s.files.Cert == "" {
		return errors.New("it asks for a client certificate: set cert and key")
	}
	said := err.Error()
	if i := strings.Index(said, "tls: "); i >= 0 {
		said = said[i+len("tls: "):]
	}
	pair, loadErr := tls.LoadX509KeyPair(s.files.Cert, s.files.Key)
	if loadErr == nil && pair.Leaf != nil {
		if now := time.Now(); now.After(pair.Leaf.NotAfter) || now.Before(pair.Leaf.NotBefore) {
			return fmt.Errorf("our certificate %s is expired or not yet valid (%s to %s)", s.files.Cert, day(pair.Leaf.NotBefore), day(pair.Leaf.NotAfter))
		}
	}
	return fmt.Errorf("it refuses our certificate %s: %s (is it signed by the cluster's CA?)", s.files.Cert, said)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

func list(endpoints []string) string { return strings.Join(endpoints, ", ") }
