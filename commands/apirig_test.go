package commands

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"netctl/commands/api"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/memory"
	"netctl/datastore/pki"
)

// countedStore counts watches, and is a clusterStore.
type countedStore struct {
	*memory.Store
	users   // none
	watches atomic.Int32
}

func (s *countedStore) Watch(ctx context.Context, prefixes []string, after int64, fn func(datastore.Batch) error) error {
	s.watches.Add(1)
	return s.Store.Watch(ctx, prefixes, after, fn)
}
func (s *countedStore) Health(context.Context) []etcd.EndpointHealth       { return nil }
func (s *countedStore) Members(context.Context) ([]etcd.Member, error)     { return nil, nil }
func (s *countedStore) RemoveMember(context.Context, etcd.Member) error    { return nil }
func (s *countedStore) Close() error                                       { return nil }
func (s *countedStore) app(t *testing.T) (a *app, out, errs *bytes.Buffer) { return appOn(t, s) }

func appOn(t *testing.T, s clusterStore) (a *app, out, errs *bytes.Buffer) {
	t.Helper()
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	return &app{in: strings.NewReader(""), out: out, err: errs, opened: s}, out, errs
}

// apiRig is an API on a unix socket and on TCP.
type apiRig struct {
	store  *countedStore
	socket string
	url    string // https
	dir    string // of certificates
	ca     *pki.Authority
	stop   func()

	settings *settings
	files    pki.Files
	bodyTime time.Duration
}

func startRig(t *testing.T, bodyTime time.Duration) *apiRig {
	t.Helper()
	r := &apiRig{store: &countedStore{Store: memory.New()}, dir: t.TempDir()}
	run, err := os.MkdirTemp("", "api") // a socket's name has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	if r.ca, err = pki.Create(r.dir); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddr("127.0.0.1")
	files, err := r.ca.Issue(r.dir, pki.Node{Name: "server", Addresses: []netip.Addr{local}, Use: pki.UseServer})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.url, r.socket = "https://"+l.Addr().String(), filepath.Join(run, api.SocketName)
	l.Close()
	r.settings, r.files, r.bodyTime = &settings{Node: "n1", StateDir: t.TempDir(), RunDir: run}, files, bodyTime
	r.start(t)
	t.Cleanup(func() { r.stop() })
	return r
}

// start runs the API, which may have been stopped, and waits until it answers.
func (r *apiRig) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- api.Run(ctx, api.Config{
			Node: "n1", Version: version, StateDir: r.settings.StateDir, RunDir: r.settings.RunDir, Listen: []string{r.url}, CA: r.files.CA, Cert: r.files.Cert, Key: r.files.Key,
			Store: r.store, Backend: &backend{settings: r.settings, store: r.store}, Actions: actions(), BodyTime: r.bodyTime, Log: slog.New(slog.DiscardHandler),
		})
	}()
	r.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		ended <- nil
	}
	for {
		if c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "https://")); err == nil {
			c.Close()
			if c, err := net.Dial("unix", r.socket); err == nil {
				c.Close()
				return
			}
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// local is a client of root's.
func (r *apiRig) local() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", r.socket)
	}}}
}

// as is a client with a certificate of an authority.
func (r *apiRig) as(t *testing.T, ca *pki.Authority, n pki.Node) *http.Client {
	t.Helper()
	key, private, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if n.Use == 0 {
		n.Use = pki.UseClient
	}
	public, err := ca.Sign(&key.PublicKey, n)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(public, private)
	if err != nil {
		t.Fatal(err)
	}
	return r.with(pair)
}

func (r *apiRig) with(pairs ...tls.Certificate) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.ca.CertPEM())
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: pairs}}}
}

func (r *apiRig) user(t *testing.T, name string, role datastore.APIRole) *http.Client {
	return r.as(t, r.ca, pki.Node{Name: name, Role: role.Organisation()})
}

// ask makes a request and returns its status and body.
func ask(t *testing.T, c *http.Client, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}
