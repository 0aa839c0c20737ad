package api

import (
	"bytes"
	"fmt"
	"log/slog"
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
			p := &datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprint("web", i)}}
			p.SetDefaults()
			key, err := datastore.Key(p.Kind(), p.Metadata.Name)
			if err != nil {
				t.Fatal(err)
			}
			value, err := datastore.Encode(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Apply(datastore.Batch{Revision: int64(2 + i), Events: []datastore.Entry{{Key: key, Value: value, Revision: int64(2 + i)}}}); err != nil {
				t.Fatal(err)
			}
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
