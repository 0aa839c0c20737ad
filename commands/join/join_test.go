package join

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// world is a member that lets nodes in, on a port of its own.
type world struct {
	t       *testing.T
	service *Service
	at      netip.AddrPort
	members error // of AddLearner
	adding  func()
	keys    Keys
}

func (w *world) AddLearner(_ context.Context, name, peerURL string) ([]string, int, error) {
	if w.adding != nil {
		w.adding()
	}
	return []string{"n1=https://127.0.0.1:1", name + "=" + peerURL}, 2, w.members
}

func newWorld(t *testing.T, life time.Duration) *world {
	t.Helper()
	ca, err := pki.New("netctl")
	if err != nil {
		t.Fatal(err)
	}
	peers, err := pki.New("peers")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, keys: Keys{CA: ca, Peer: peers}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.at = netip.MustParseAddrPort(l.Addr().String())
	files := pki.In(t.TempDir(), "server")
	if _, err := ca.Renew(files, pki.Node{Name: "n1", Use: pki.UseServer, Addresses: []netip.Addr{w.at.Addr()}}, 24*time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files.CA, ca.CertPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	w.service = &Service{Store: memory.New(), Cluster: w, Keys: func() Keys { return w.keys }, Server: files, Life: life,
		Own: []string{"https://127.0.0.1:2379"}, Port: int(w.at.Port()), Log: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.service.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return w
}

// token makes a token and lets the member know of it.
func (w *world) token(member bool, life time.Duration) datastore.Token {
	w.t.Helper()
	token := datastore.NewToken(sha256.Sum256(w.keys.CA.DER()), member, time.Now().Add(life), []netip.AddrPort{w.at})
	at, err := datastore.TokenKey(token.Name())
	if err != nil {
		w.t.Fatal(err)
	}
	op, err := datastore.RecordOp(at, token.Record(time.Now()))
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(op)
	return token
}

func (w *world) commit(op datastore.Op) {
	w.t.Helper()
	if _, err := w.service.Store.Commit(w.t.Context(), datastore.Txn{Then: []datastore.Op{op}}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) client(t datastore.Token) *Client {
	return &Client{Endpoints: t.Endpoints, Authorities: [][sha256.Size]byte{t.Authority}}
}

func key(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, _, err := pki.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// pair is a certificate that was made, with its key.
func pair(t *testing.T, a *Answer, k *ecdsa.PrivateKey) *tls.Certificate {
	t.Helper()
	cert, err := pki.ParseCertificate(a.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: k, Leaf: cert}
}

func says(t *testing.T, what string, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v; want one line with %q", what, err, text)
	}
}

func TestTokenIsGoodOnce(t *testing.T) {
	w := newWorld(t, time.Hour)
	token, k := w.token(false, time.Hour), key(t)
	c := w.client(token)
	a, err := c.Join(t.Context(), token, "n2", k, "")
	if err != nil {
		t.Fatal(err)
	}
	cert := pair(t, a, k).Leaf
	if cert.Subject.CommonName != "n2" || cert.Subject.Organization[0] != datastore.RoleNode || len(cert.ExtKeyUsage) != 1 ||
		cert.ExtKeyUsage[0] != 2 || cert.IsCA || a.Member != nil || a.Endpoints[0] != w.service.Own[0] {
		t.Errorf("%+v, certificate %+v", a, cert.Subject)
	}
	// An answer that was lost is given again, to the same key alone.
	if _, err := c.Join(t.Context(), token, "n2", k, ""); err != nil {
		t.Errorf("again: %v", err)
	}
	_, err = c.Join(t.Context(), token, "n2", key(t), "")
	says(t, "another key", err, "was used by node n2 at")
	_, err = c.Join(t.Context(), token, "n3", k, "")
	says(t, "another name", err, "was used by node n2 at")
	second := w.token(false, time.Hour)
	_, err = c.Join(t.Context(), second, "n2", key(t), "")
	says(t, "a name that is taken", err, "take another name")
	node, err := datastore.Key(datastore.KindNode, "n4")
	if err != nil {
		t.Fatal(err)
	}
	w.commit(datastore.Op{Key: node, Value: []byte("{}")})
	_, err = c.Join(t.Context(), second, "n4", key(t), "")
	says(t, "a name that is registered", err, "node n4 is in the cluster")
	for _, name := range []string{"", "a/b", "add"} {
		_, err = c.Join(t.Context(), second, name, key(t), "")
		says(t, "a name that is none", err, "node ")
	}
	_, err = c.Join(t.Context(), second, "n5", key(t), "https://127.0.0.1:2380")
	says(t, "a member by a node's token", err, "but no member of the datastore")
	// None of that used it up.
	if _, err := c.Join(t.Context(), second, "n3", key(t), ""); err != nil {
		t.Error(err)
	}
}

func TestTokensThatAreNoneAnyMore(t *testing.T) {
	w := newWorld(t, time.Hour)
	expired := w.token(false, -time.Second)
	_, err := w.client(expired).Join(t.Context(), expired, "n2", key(t), "")
	says(t, "expired", err, "the token expired at")
	guessed := w.token(false, time.Hour)
	guessed.Secret[0] ^= 1
	_, err = w.client(guessed).Join(t.Context(), guessed, "n2", key(t), "")
	says(t, "another secret", err, "not known here")
	wrong := w.token(false, time.Hour)
	wrong.Authority[0] ^= 1
	_, err = w.client(wrong).Join(t.Context(), wrong, "n2", key(t), "")
	says(t, "another authority", err, "its authority is another")
	nowhere := w.token(false, time.Hour)
	nowhere.Endpoints = []netip.AddrPort{netip.AddrPortFrom(w.at.Addr(), 1)}
	_, err = w.client(nowhere).Join(t.Context(), nowhere, "n2", key(t), "")
	says(t, "nobody there", err, "connection refused")
	if !errors.Is(err, datastore.ErrUnavailable) {
		t.Error(err)
	}
	// The second endpoint answers.
	nowhere.Endpoints = append(nowhere.Endpoints, w.at)
	if _, err := w.client(nowhere).Join(t.Context(), nowhere, "n2", key(t), ""); err != nil {
		t.Error(err)
	}
}

// TestClocks: a year off, either way, and an hour.
func TestClocks(t *testing.T) {
	w := newWorld(t, time.Hour)
	token := w.token(false, time.Hour)
	for off, text := range map[time.Duration]string{
		365 * 24 * time.Hour:  fmt.Sprintf("this machine's clock is wrong: it says %d-", time.Now().Add(365*24*time.Hour).UTC().Year()),
		-365 * 24 * time.Hour: fmt.Sprintf("the cluster's %d-", time.Now().UTC().Year()),
		time.Hour:             "the cluster's",
		-45 * time.Minute:     "the cluster's",
	} {
		c := w.client(token)
		c.Now = func() time.Time { return time.Now().Add(off) }
		_, err := c.Join(t.Context(), token, "n2", key(t), "")
		says(t, off.String(), err, text)
	}
	if _, err := w.client(token).Join(t.Context(), token, "n2", key(t), ""); err != nil {
		t.Errorf("the token was used by a clock that is wrong: %v", err)
	}
}

func TestRenewal(t *testing.T) {
	w := newWorld(t, time.Hour)
	token, k := w.token(false, time.Hour), key(t)
	c := w.client(token)
	a, err := c.Join(t.Context(), token, "n2", k, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Renew(t.Context(), "n2", k)
	says(t, "without a certificate", err, "no certificate of this cluster")
	c.Certificate = pair(t, a, k)
	b, err := c.Renew(t.Context(), "n2", k)
	if err != nil || bytes.Equal(a.Certificate, b.Certificate) {
		t.Errorf("renewed: %v", err)
	}
	_, err = c.Renew(t.Context(), "n1", k)
	says(t, "another's name", err, "not renewed for another name")
	_, err = c.Renew(t.Context(), "n2", key(t))
	says(t, "another's key", err, "not renewed for another name")
	// A datastore that was lost knows of nobody: the certificate speaks for itself.
	at, err := datastore.JoinedKey("n2")
	if err != nil {
		t.Fatal(err)
	}
	w.commit(datastore.Op{Key: at})
	if _, err = c.Renew(t.Context(), "n2", k); err != nil {
		t.Error(err)
	}
	var n datastore.JoinedNode
	if _, err := datastore.Record(t.Context(), w.service.Store, at, &n); err != nil || n.Member || n.Key == "" {
		t.Errorf("%+v, %v", n, err)
	}
	n.Removed = time.Now()
	op, err := datastore.RecordOp(at, n)
	if err != nil {
		t.Fatal(err)
	}
	w.commit(op)
	_, err = c.Renew(t.Context(), "n2", k)
	says(t, "removed", err, "was removed from the cluster at")
	// The name is free then, and the old key good for nothing.
	third, k3 := w.token(false, time.Hour), key(t)
	if _, err := w.client(third).Join(t.Context(), third, "n2", k3, ""); err != nil {
		t.Error(err)
	}
	_, err = c.Renew(t.Context(), "n2", k)
	says(t, "another has the name", err, "is another node's by now")
	// A certificate for the API makes nobody a node.
	text, err := w.keys.CA.Sign(&k3.PublicKey, pki.Node{Name: "n9", Use: pki.UseClient, Role: datastore.APIRead.Organisation()})
	if err != nil {
		t.Fatal(err)
	}
	c.Certificate = pair(t, &Answer{Certificate: text}, k3)
	_, err = c.Renew(t.Context(), "n9", k3)
	says(t, "an API's user", err, "is for the API, and no node's")
	// Of another cluster, and expired.
	for what, ca := range map[string]*pki.Authority{"another cluster's": w.keys.Peer, "expired": w.keys.CA} {
		text, err := ca.Sign(&k3.PublicKey, pki.Node{Name: "n2", Use: pki.UseClient, Role: datastore.RoleNode, NotAfter: time.Now().Add(-time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		c.Certificate = pair(t, &Answer{Certificate: text}, k3)
		_, err = c.Renew(t.Context(), "n2", k3)
		says(t, what, err, "it refuses this node's certificate")
	}
}

func TestMember(t *testing.T) {
	w := newWorld(t, time.Hour)
	token, k := w.token(true, time.Hour), key(t)
	c := w.client(token)
	w.members = errors.New("not now")
	_, err := c.Join(t.Context(), token, "n2", k, "https://127.0.0.1:2380")
	says(t, "no member", err, "did not become a member: not now")
	w.members = nil
	_, err = c.Join(t.Context(), token, "n2", k, "http://example.org")
	says(t, "a URL that is none", err, "want https://ADDRESS:PORT")
	// Token and name are free again, for another key too.
	k = key(t)
	a, err := c.Join(t.Context(), token, "n3", k, "https://127.0.0.1:2380")
	if err != nil {
		t.Fatal(err)
	}
	if a.Member == nil || a.Member.Voters != 2 || len(a.Member.Members) != 2 || len(a.Member.AuthorityKey) == 0 || len(a.Member.PeerCAKey) == 0 {
		t.Errorf("%+v", a.Member)
	}
	if role := pair(t, a, k).Leaf.Subject.Organization[0]; role != datastore.RoleMember {
		t.Error(role)
	}
	// A node's token tells nobody the keys.
	plain := w.token(false, time.Hour)
	a, err = w.client(plain).Join(t.Context(), plain, "n4", key(t), "")
	if err != nil || a.Member != nil {
		t.Errorf("%+v, %v", a, err)
	}
}

// joined is what is kept of a node; change it if it is to be another.
func (w *world) joined(name string, change func(*datastore.JoinedNode)) (n datastore.JoinedNode) {
	w.t.Helper()
	at, err := datastore.JoinedKey(name)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := datastore.Record(w.t.Context(), w.service.Store, at, &n); err != nil {
		w.t.Fatal(err)
	}
	if change == nil {
		return n
	}
	change(&n)
	op, err := datastore.RecordOp(at, n)
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(op)
	return n
}

func remove(n *datastore.JoinedNode) { n.Member, n.Removed = false, time.Now().UTC() }

// TestRemovedStaysOut: the token that a removed node came in with lets it in no more, nor
// makes one a member again that was one.
func TestRemovedStaysOut(t *testing.T) {
	w := newWorld(t, time.Hour)
	const peer = "https://127.0.0.1:2380"
	for _, url := range []string{"", peer} {
		token, k := w.token(true, time.Hour), key(t)
		c := w.client(token)
		if _, err := c.Join(t.Context(), token, "n2", k, url); err != nil {
			t.Fatal(err)
		}
		w.joined("n2", remove)
		_, err := c.Join(t.Context(), token, "n2", k, "")
		says(t, "removed", err, "node n2 was removed from the cluster at")
		if n := w.joined("n2", nil); n.Removed.IsZero() {
			t.Errorf("%q: %+v", url, n)
		}
		// With another token it comes back, with the same key too.
		token = w.token(false, time.Hour)
		if _, err := w.client(token).Join(t.Context(), token, "n2", k, ""); err != nil {
			t.Error(err)
		}
		w.joined("n2", remove)
	}
	token, k := w.token(true, time.Hour), key(t)
	c := w.client(token)
	if _, err := c.Join(t.Context(), token, "n3", k, peer); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), token, "n3", k, peer); err != nil {
		t.Errorf("again: %v", err)
	}
	w.joined("n3", func(n *datastore.JoinedNode) { n.Member = false })
	_, err := c.Join(t.Context(), token, "n3", k, peer)
	says(t, "demoted", err, "node n3 is no member of the datastore any more")
	if n := w.joined("n3", nil); n.Member {
		t.Errorf("%+v", n)
	}
}

// TestNoMemberLeavesWhatWas: who does not become a member changes nothing of who had the
// name before, and nothing that people did meanwhile.
func TestNoMemberLeavesWhatWas(t *testing.T) {
	w := newWorld(t, time.Hour)
	const peer = "https://127.0.0.1:2380"
	first, k := w.token(false, time.Hour), key(t)
	a, err := w.client(first).Join(t.Context(), first, "n2", k, "")
	if err != nil {
		t.Fatal(err)
	}
	was := w.joined("n2", remove)
	w.members = errors.New("not now")
	token := w.token(true, time.Hour)
	_, err = w.client(token).Join(t.Context(), token, "n2", key(t), peer)
	says(t, "no member", err, "did not become a member")
	if is := w.joined("n2", nil); is != was {
		t.Errorf("%+v; want %+v", is, was)
	}
	old := w.client(first)
	old.Certificate = pair(t, a, k)
	_, err = old.Renew(t.Context(), "n2", k)
	says(t, "the old machine", err, "was removed from the cluster at")
	// Removed while it was being made a member.
	w.adding = func() { w.joined("n3", remove) }
	_, err = w.client(token).Join(t.Context(), token, "n3", key(t), peer)
	says(t, "removed meanwhile", err, "did not become a member")
	if n := w.joined("n3", nil); n.Removed.IsZero() {
		t.Errorf("removed meanwhile: %+v", n)
	}
}

// TestStrangers: what is no request is refused in words, and bounded.
func TestStrangers(t *testing.T) {
	w := newWorld(t, time.Hour)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for name, body := range map[string]string{
		"nothing":     "",
		"no JSON":     "hello",
		"another key": `{"x":1}`,
		"10 MB":       `{"token":"` + strings.Repeat("a", 10<<20) + `"}`,
		"no request":  fmt.Sprintf(`{"csr":"","time":%q}`, time.Now().Format(time.RFC3339)),
	} {
		resp, err := client.Post("https://"+w.at.String()+joinPath, "application/json", strings.NewReader(body))
		if err != nil {
			if name != "10 MB" { // the connection may be closed before all of it is sent
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var no refusal
		if err := decode(resp.Body, &no); err != nil || resp.StatusCode != http.StatusForbidden || no.Message == "" {
			t.Errorf("%s: %s, %v, %+v", name, resp.Status, err, no)
		}
		resp.Body.Close()
	}
}

// TestSilentStrangers: who connects and says nothing, however often, holds a bounded
// number of descriptors.
func TestSilentStrangers(t *testing.T) {
	w := newWorld(t, time.Hour)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &netlab.Census{Listener: l}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.service.Serve(ctx, c) }()
	const strangers = maxConnections + 100
	netlab.Crowd(t, c, strangers)
	if c.All.Load() != strangers || c.Most.Load() > maxConnections+1 { // the one is about to be closed
		t.Errorf("%d of %d connections at once", c.Most.Load(), c.All.Load())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
