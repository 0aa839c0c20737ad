package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/datastore"
)

// rewrite puts another value under a key of the store, as a newer netctl would.
func (w *world) rewrite(key, from, to string) (before string) {
	w.t.Helper()
	e, err := w.store.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	value := strings.Replace(string(e.Value), from, to, 1)
	if value == string(e.Value) {
		w.t.Fatalf("%s holds no %s", value, from)
	}
	w.put(key, value, e.Revision)
	return string(e.Value)
}

func (w *world) put(key, value string, revision int64) {
	w.t.Helper()
	if _, err := w.store.Commit(w.t.Context(), datastore.Txn{
		If:   []datastore.Condition{{Key: key, Revision: revision}},
		Then: []datastore.Op{{Key: key, Value: []byte(value)}},
	}); err != nil {
		w.t.Fatal(err)
	}
}

// TestProfileWithAnUnknownKey: a key that a newer netctl put into a profile
// troubles nobody, and stays there.
func TestProfileWithAnUnknownKey(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	key := datastore.KindPrefix(datastore.KindProfile) + "web"
	w.rewrite(key, `"spec":{`, `"spec":{"colour":"red",`)
	w.mustAttach("c2", "web", 102)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	before := w.nft.String()
	w.start()
	w.ready()
	w.mustAttach("c3", "web", 103)
	if s := w.status(); len(s.Problems) != 0 {
		t.Errorf("problems: %q", s.Problems)
	}
	if !strings.Contains(before, "10.0.0.") || len(w.nft.String()) <= len(before) {
		t.Errorf("before:\n%s\nafter:\n%s", before, w.nft)
	}
	e, err := w.store.Get(t.Context(), key)
	if err != nil || !strings.Contains(string(e.Value), `"colour":"red"`) {
		t.Errorf("%s, %v", e.Value, err)
	}
}

// TestProfileForANewerAgent: what was understood of a profile stays in force, also
// across a restart, until it can be read again.
func TestProfileForANewerAgent(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	before := w.nft.String()
	key := datastore.KindPrefix(datastore.KindProfile) + "web"
	old := w.rewrite(key, `"metadata":{"name":"web"`, `"metadata":{"name":"web","needs":9`)
	told := func() string {
		for _, p := range w.status().Problems {
			if strings.Contains(p, `needs "9"`) && strings.Contains(p, "stays in force") {
				return ""
			}
		}
		return "not among the problems: " + strings.Join(w.status().Problems, "; ")
	}
	w.until(told)
	file := filepath.Join(w.cfg.StateDir, understoodFile)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	w.until(func() string { // it comes back
		if _, err := os.Stat(file); err != nil {
			return err.Error()
		}
		return ""
	})
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	if why := told(); why != "" || w.nft.String() != before {
		t.Fatalf("problems %q, before:\n%s\nafter the restart:\n%s", why, before, w.nft)
	}
	w.mustAttach("c2", "web", 102)
	e, err := w.store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	w.put(key, old, e.Revision)
	w.until(func() string { return strings.Join(w.status().Problems, "; ") })
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
}
