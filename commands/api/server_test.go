package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
	"netctl/datastore/memory"
)

// TestCertificatesOnRecord: of netctl's own authority a certificate is good while there is
// a record of it, of another one until there is a record against it.
func TestCertificatesOnRecord(t *testing.T) {
	cert := &x509.Certificate{Subject: pkix.Name{CommonName: "alice", Organization: []string{datastore.APIAdmin.Organisation()}},
		SerialNumber: big.NewInt(0x1f), NotAfter: time.Now().Add(time.Hour)}
	r := httptest.NewRequest(http.MethodGet, "/v1", nil)
	r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}
	for what, c := range map[string]struct {
		record    *datastore.APIUser
		own, alas bool // good where the authority is netctl's own, and where it is not
		says      string
	}{
		"no record": {nil, false, true, "is not on record, as after a restore (`netctl api grant alice --role admin` on a member"},
		"its":       {&datastore.APIUser{Name: "alice", Serial: "1f"}, true, true, ""},
		"another's": {&datastore.APIUser{Name: "alice", Serial: "20"}, false, false, "was revoked or replaced"},
		"revoked":   {&datastore.APIUser{Name: "alice", Revoked: time.Now()}, false, false, "was revoked or replaced"},
	} {
		store := memory.New()
		if c.record != nil {
			op, err := datastore.RecordOp(datastore.APIUserPrefix+"alice", c.record)
			if err == nil {
				_, err = store.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{op}})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, own := range []bool{true, false} {
			s := &server{Config: Config{Store: store, Granted: own}}
			_, err := s.caller(r)
			good := c.alas
			if own {
				good = c.own
			}
			if good != (err == nil) || err != nil && (!errors.Is(err, datastore.ErrDenied) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%s, own authority: %v: %v", what, own, err)
			}
		}
	}
}

// slow is a Backend that takes until it is let go on.
type slow struct {
	Backend
	inside atomic.Int32
	goOn   chan struct{}
}

func (b *slow) Name(_ datastore.Kind, s string) string { return s }

func (b *slow) List(context.Context, datastore.Kind) ([]datastore.Object, int64, error) {
	b.inside.Add(1)
	<-b.goOn
	b.inside.Add(-1)
	return nil, 1, nil
}

func (b *slow) Read(ctx context.Context, k datastore.Kind, name string) (datastore.Object, error) {
	_, _, err := b.List(ctx, k)
	return &datastore.Profile{Metadata: datastore.Metadata{Name: name}}, err
}

// patient is a client with all the time there is.
type patient struct{ *httptest.ResponseRecorder }

func (patient) SetWriteDeadline(time.Time) error { return nil }

func (b *slow) Write(ctx context.Context, _ Caller, o datastore.Object, _ int64, _ Mode) (Written, error) {
	_, _, err := b.List(ctx, o.Kind())
	return Written{Object: o, Verb: "updated"}, err
}

func (b *slow) Delete(ctx context.Context, _ Caller, k datastore.Kind, _ string, _ bool) ([]string, error) {
	_, _, err := b.List(ctx, k)
	return []string{"gone"}, err
}

// TestObjectsInTurns: however many list, read, begin to watch, write and delete at once, so
// many are at it; the others wait their turn, and are told when it does not come.
func TestObjectsInTurns(t *testing.T) {
	const manifest = `{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"web"},"spec":{}}`
	for request, want := range map[string]string{
		"GET /v1/profiles": `"items":[]`, "GET /v1/profiles/web": `"web"`, "GET /v1/profiles?watch": "event: synced\n", "PUT /v1/profiles/web": `"web"`, "DELETE /v1/profiles/web": "",
	} {
		method, path, _ := strings.Cut(request, " ")
		synctest.Test(t, func(t *testing.T) {
			b := &slow{goOn: make(chan struct{})}
			s, err := newServer(Config{Backend: b, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			if err := s.watch.Replace(datastore.Snapshot{Revision: 1}); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			h := s.handler()
			var all sync.WaitGroup
			many := func(n int) (list []*httptest.ResponseRecorder) {
				for range n {
					w := httptest.NewRecorder()
					list = append(list, w)
					all.Go(func() {
						h.ServeHTTP(patient{w}, httptest.NewRequestWithContext(ctx, method, path, strings.NewReader(manifest)))
					})
				}
				synctest.Wait()
				return list
			}
			first, late := many(maxTurns), many(100)
			if n := b.inside.Load(); n != maxTurns {
				t.Errorf("%s: %d at once", request, n)
			}
			time.Sleep(turnWait)
			synctest.Wait()
			for _, w := range late {
				if text := w.Body.String(); w.Code != http.StatusServiceUnavailable || !strings.Contains(text, "at once: try again") {
					t.Errorf("%s: %d %s", request, w.Code, text)
				}
			}
			waiting := many(100)
			close(b.goOn)
			synctest.Wait()
			for _, w := range append(first, waiting...) {
				if text := w.Body.String(); w.Code/100 != 2 || !strings.Contains(text, want) {
					t.Errorf("%s: %d %s", request, w.Code, text)
				}
			}
			if n := len(s.turns); n != 0 {
				t.Errorf("%s: %d turns did not end", request, n)
			}
			cancel() // watches
			all.Wait()
		})
	}
}

// TestTooLargeIsAnswered: who writes all of a body that is too large before it reads gets
// the answer, and no reset.
func TestTooLargeIsAnswered(t *testing.T) {
	s, err := newServer(Config{Store: memory.New(), Backend: &slow{}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.handler())
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 10 << 20
	if _, err := fmt.Fprintf(conn, "PUT /v1/profiles/web HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", size); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || !resp.Close || !strings.Contains(string(text), "larger than") {
		t.Errorf("%s, close %v: %s %v", resp.Status, resp.Close, text, err)
	}
}
