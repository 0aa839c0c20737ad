package commands

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestAPIHistory: what is done over the API is on record, by whom and how, and can be
// undone over it, which is on record too.
func TestAPIHistory(t *testing.T) {
	r := startRig(t, 0)
	alice, root := r.user(t, "alice", datastore.APIAdmin), r.local()
	do := func(c *http.Client, base, method, path, body string) {
		t.Helper()
		if status, text := ask(t, c, method, base+path, body); status/100 != 2 {
			t.Fatalf("%s %s: %d %s", method, path, status, text)
		}
	}
	do(alice, r.url, http.MethodPost, "/v1/profiles", profileManifest("web"))
	do(alice, r.url, http.MethodPut, "/v1/pools/10.1.0.0-16", poolManifest)
	do(alice, r.url, http.MethodPut, "/v1/pools/10.1.0.0-16", poolManifest) // changes nothing
	do(root, "http://netctl", http.MethodPost, "/v1/actions/profile/rule/add", `{"name":"web","args":["inbound","allow tcp to ports 80"]}`)
	do(alice, r.url, http.MethodGet, "/v1/actions/profile/show", "")
	do(alice, r.url, http.MethodPost, "/v1/actions/apply", fmt.Sprintf(`{"flags":{"filename":["-"]},"stdin":%q}`, profileManifest("db")))
	do(alice, r.url, http.MethodDelete, "/v1/profiles/db", "")
	history := func() []datastore.HistoryRecord {
		t.Helper()
		list, err := datastore.History(t.Context(), r.store)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	list := history()
	var rule int64
	for _, h := range list {
		if strings.Contains(h.Command, "rule") {
			rule = h.Revision
		}
	}
	do(alice, r.url, http.MethodPost, "/v1/actions/undo", fmt.Sprintf(`{"args":["%d"]}`, rule))
	if status, text := ask(t, root, http.MethodGet, "http://netctl/v1/profiles/web", ""); strings.Contains(text, "80") {
		t.Errorf("undone: %d %s", status, text)
	}
	var got []string
	host, _ := os.Hostname()
	for _, h := range history() {
		if h.Host != host || h.Node != "n1" || len(h.Changes) != 1 || h.Time.IsZero() {
			t.Errorf("%+v", h)
		}
		got = append(got, h.User+": "+h.Command)
	}
	want := []string{
		"alice: api create profile web", "alice: api apply pool 10.1.0.0/16", "root: api profile/rule/add web inbound allow tcp to ports 80",
		"alice: api apply", "alice: api delete profile db", fmt.Sprint("alice: api undo ", rule),
	}
	if !slices.Equal(got, want) {
		t.Errorf("on record:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// As the command line shows it by the same API.
	if status, text := ask(t, root, http.MethodGet, "http://netctl/v1/actions/history?output=table", ""); !strings.Contains(text, "alice@"+host+"  api undo ") || strings.Contains(text, "unknown") {
		t.Errorf("%d %s", status, text)
	}
}

// TestAPIGrantAmongOlder: no certificate is made while a node runs an older netctl, whose
// etcd would take it for everything, unless that is asked for.
func TestAPIGrantAmongOlder(t *testing.T) {
	r := startRig(t, 0)
	node := &datastore.Node{Metadata: datastore.Metadata{Name: "n2"}, Spec: datastore.NodeSpec{}}
	node.SetDefaults()
	if err := datastore.Create(t.Context(), r.store, node); err != nil {
		t.Fatal(err)
	}
	grant := func(more ...string) error {
		a, _, _ := r.store.app(t)
		a.loaded = &settings{}
		a.loaded.API.CA = filepath.Join(r.dir, "ca.crt")
		return a.run(t.Context(), append([]string{"api", "grant", "alice", "--role", "read", "--dir", t.TempDir()}, more...))
	}
	for v, refused := range map[string]bool{"": false, version: false, "99.0.0": false, "0.0.9": true, "unknown": true} {
		_, err := datastore.Modify(t.Context(), r.store, "n2", func(n *datastore.Node) error { n.Status.Version = v; return nil })
		if err != nil {
			t.Fatal(err)
		}
		err = grant()
		if refused != (err != nil) || err != nil && (strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "node n2 runs netctl "+v) ||
			!strings.Contains(err.Error(), "`netctl upgrade FILE --all`")) {
			t.Errorf("version %q: %v", v, err)
		}
		if err := grant("--force"); err != nil {
			t.Errorf("version %q with --force: %v", v, err)
		}
	}
}

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		v, than string
		want    bool
	}{
		{"1.2.3", "1.2.3", false}, {"v1.2.3", "1.2.3", false}, {"1.2.2", "1.2.3", true}, {"1.10.0", "1.9.0", false}, {"1.9.9", "1.10.0", true},
		{"1.2.3", "1.2.3-4-gabc1234", true}, {"1.2.3-4-gabc1234", "1.2.3", false}, {"1.2.3-4-gabc1234", "1.2.3-12-g1234567-dirty", true},
		{"1.2.3-dirty", "1.2.3", false}, {"1.2.3-rc1", "1.2.3", true}, {"1.2.3-rc1", "1.2.4", true}, {"1.3.0-rc1", "1.2.4", false},
		{"0.1.0-gabc1234", "0.1.0-gabc1235", true}, {"0.1.0-gabc1234", "1.0.0", true}, {"1.0.0", "0.1.0-gabc1234", false},
		{"unknown", "1.0.0", true}, {"1.0.0", "unknown", true}, {"1.2", "1.2.0", true},
	} {
		if older(c.v, c.than) != c.want {
			t.Errorf("%s before %s: %v", c.v, c.than, !c.want)
		}
	}
}
