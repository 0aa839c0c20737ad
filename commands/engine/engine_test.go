package engine

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// serve is an API that answers as a test says.
func serve(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: answer}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return New(socket)
}

// TestEvents: what happens is told of from the moment on at which nothing can be missed,
// until Docker ends.
func TestEvents(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if f := r.URL.Query().Get("filters"); !strings.Contains(f, `"network"`) || !strings.Contains(f, `"destroy"`) {
			t.Errorf("filters %s", f)
		}
		fmt.Fprint(w, `{"Type":"network","Action":"create"}`+"\n"+`{"Type":"network","Action":"destroy"}`+"\n")
	})
	calls := 0
	if err := c.Events(t.Context(), func() { calls++ }); err == nil || calls != 3 {
		t.Errorf("%d calls, ended by %v", calls, err)
	}
}

// TestErrors: an error says what Docker says, in one line, and whether there is no such thing.
func TestErrors(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/none") {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"message":"network none not found"}`)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintln(w, "network web has active endpoints")
	})
	if _, err := c.Network(t.Context(), "none"); !errors.Is(err, ErrNoSuch) || !strings.HasSuffix(err.Error(), ": network none not found") {
		t.Errorf("a network that is not there: %v", err)
	}
	if err := c.RemoveNetwork(t.Context(), "web"); err == nil || err.Error() != "of Docker's API: 403 Forbidden: network web has active endpoints" {
		t.Errorf("a network in use: %v", err)
	}
}
