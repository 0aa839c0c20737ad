package api

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"netctl/datastore"
)

// countingWriter is a client that takes everything at once.
type countingWriter struct {
	bytes.Buffer
	writes int
}

func (w *countingWriter) Write(b []byte) (int, error) {
	w.writes++
	return w.Buffer.Write(b)
}

// change has a hub told of one, of so many bytes at least.
func change(t *testing.T, h *hub, revision int64, size int) {
	t.Helper()
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: "web", Labels: map[string]string{}}}
	p.SetDefaults()
	for i := range (size + 49) / 50 {
		p.Metadata.Labels[fmt.Sprint("label", i)] = strings.Repeat("x", 50)
	}
	key, err := datastore.Key(p.Kind(), p.Metadata.Name)
	if err != nil {
		t.Fatal(err)
	}
	value, err := datastore.Encode(p)
	if err == nil {
		err = h.Apply(datastore.Batch{Revision: revision, Events: []datastore.Entry{{Key: key, Value: value, Revision: revision}}})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestNeverReads: of what a client does not read little is kept that is its own, and it is let
// go once too much waits for it, though that are few changes; deliver waits for nobody.
func TestNeverReads(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	accepted, err := connListener{l}.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ours := accepted.(*conn)
	defer ours.Close()
	if err := ours.becomePrompt(); err != nil {
		t.Fatal(err)
	}
	h := newHub(nil, slog.New(slog.DiscardHandler))
	if err := h.Replace(datastore.Snapshot{Revision: 1}); err != nil {
		t.Fatal(err)
	}
	w, _, err := h.join(t.Context(), []datastore.Kind{datastore.KindProfile}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.push = (&client{to: ours, conn: ours, kinds: w.kinds, after: 1}).push
	w.take()
	const size, most = 10_000, 1000
	n := int64(0)
	for ; !w.lost && n < most; n++ {
		for i := range int64(10) {
			change(t, h, 2+10*n+i, size)
		}
		h.deliver()
		if len(ours.left) > mostPush+2*size {
			t.Fatalf("%d bytes are kept of what was not read", len(ours.left))
		}
	}
	if _, whole := w.take(); whole || n == most || len(ours.left) == 0 {
		t.Errorf("after %d changes it is not let go, or nothing is left: %d bytes", 10*n, len(ours.left))
	}
}

// TestOneEncodingOneWrite: a change is encoded once, however many watch, and each is
// written to once for all that came meanwhile.
func TestOneEncodingOneWrite(t *testing.T) {
	for _, watchers := range []int{1, 10, 1000} {
		h, encoded := newHub(nil, slog.New(slog.DiscardHandler)), 0
		h.encode = func(o datastore.Object) ([]byte, error) { encoded++; return datastore.EncodeManifest(o) }
		if err := h.Replace(datastore.Snapshot{Revision: 1}); err != nil {
			t.Fatal(err)
		}
		var clients []*countingWriter
		for range watchers {
			w, _, err := h.join(t.Context(), []datastore.Kind{datastore.KindProfile}, 0)
			if err != nil {
				t.Fatal(err)
			}
			to := &countingWriter{}
			w.push = (&client{to: to, conn: &conn{prompt: true}, kinds: w.kinds, after: 1}).push
			if list, whole := w.take(); len(list) > 0 || !whole {
				t.Fatal(list, whole)
			}
			clients = append(clients, to)
		}
		const changes = 5
		for i := range changes {
			change(t, h, int64(2+i), 0)
		}
		h.deliver()
		if encoded != changes {
			t.Errorf("%d watchers: %d encodings of %d changes", watchers, encoded, changes)
		}
		for _, c := range clients {
			if c.writes != 1 || bytes.Count(c.Bytes(), []byte("event: put\n")) != changes || !bytes.Equal(c.Bytes(), clients[0].Bytes()) {
				t.Fatalf("%d watchers: %d writes: %q", watchers, c.writes, c.Bytes())
			}
		}
	}
}
