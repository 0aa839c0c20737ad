package runtimes

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"netctl/commands/engine"
)

// fakeDocker answers as Docker's API does to what is asked of networks. One test
// goroutine at a time asks it.
type fakeDocker struct {
	socket string
	use    bool // its networks are in use
	list   []engine.Network
}

func newFakeDocker(t *testing.T) *fakeDocker {
	t.Helper()
	f := &fakeDocker{socket: filepath.Join(t.TempDir(), "api.sock")}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /networks", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(f.list) })
	mux.HandleFunc("POST /networks/create", func(w http.ResponseWriter, r *http.Request) {
		var n engine.Network
		if err := json.NewDecoder(r.Body).Decode(&n); err != nil {
			t.Error(err)
		}
		n.ID = fmt.Sprintf("id%d", len(f.list))
		f.list = append(f.list, n)
		w.WriteHeader(http.StatusCreated)
	})
	mux.HandleFunc("DELETE /networks/{id}", func(w http.ResponseWriter, r *http.Request) {
		if f.use {
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `{"message":"error while removing network: network web has active endpoints"}`)
			return
		}
		f.list = slices.DeleteFunc(f.list, func(n engine.Network) bool { return n.ID == r.PathValue("id") })
		w.WriteHeader(http.StatusNoContent)
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return f
}

// add is a person who makes a network.
func (f *fakeDocker) add(name, driver string) {
	f.list = append(f.list, engine.Network{ID: "hand", Name: name, Driver: driver})
}
