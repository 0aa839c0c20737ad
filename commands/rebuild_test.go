package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/memory"
)

// copyOf writes a node's copy of a store with a pool and a profile with a rule.
func copyOf(t *testing.T, file, uuid string, generation, revision int64, rule string) {
	t.Helper()
	r, err := datastore.ParseRule(rule)
	if err != nil {
		t.Fatal(err)
	}
	objects := []datastore.Object{
		&datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.0.0.0/16")}},
		&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: []datastore.Rule{r}}},
		&datastore.Profile{Metadata: datastore.Metadata{Name: "unheard"}},
	}
	for _, o := range objects {
		o.SetDefaults()
		o.Meta().Revision = revision
	}
	objects[2].Meta().Revision = 0
	b, left := datastore.BackupOf(objects, datastore.Cluster{UUID: uuid, Generation: generation, Created: time.Unix(1, 0).UTC()}, revision, "v", time.Now())
	text, err := b.Encode()
	if err != nil || len(left) > 0 || len(b.Entries) != 2 {
		t.Fatal(err, left, len(b.Entries))
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRebuildRefusesAndChooses: the newest copy of one cluster, into a datastore that is
// empty or plainly that cluster's; everything else in one line, and nothing is written.
func TestRebuildRefusesAndChooses(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("NETCTL_NODE", "n1")
	t.Setenv("NETCTL_STATE_DIR", dir)
	t.Setenv("NETCTL_RUN_DIR", dir)
	own := filepath.Join(dir, datastore.CopyFile)
	file := func(name string) string { return filepath.Join(dir, name) }
	copyOf(t, file("old"), "u", 1, 7, "allow tcp to ports 1")
	copyOf(t, file("new"), "u", 1, 9, "allow tcp to ports 2")
	copyOf(t, file("adopted"), "u", 2, 3, "allow tcp to ports 3")
	copyOf(t, file("other"), "w", 1, 99, "allow tcp to ports 4")
	if err := os.WriteFile(file("junk"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster := func(s *memory.Store, uuid string) {
		value, err := datastore.Cluster{UUID: uuid, Generation: 1, Created: time.Unix(1, 0).UTC()}.Encode()
		if err == nil {
			_, err = s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: datastore.ClusterKey, Value: value}}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stranger := func(s *memory.Store) {
		if err := datastore.Create(t.Context(), s, &datastore.Profile{Metadata: datastore.Metadata{Name: "stranger"}}); err != nil {
			t.Fatal(err)
		}
	}
	for what, c := range map[string]struct {
		files string
		store func(*memory.Store)
		own   string // becomes this node's copy; "cluster U": the node is of that one
		want  string // the profile's port, or what is refused
	}{
		"own copy":             {"", nil, "old", "ports 1"},
		"no copy":              {"", nil, "", "this node has followed no datastore"},
		"the newest":           {"old new", nil, "", "ports 2"},
		"the next generation":  {"new adopted old", nil, "", "ports 3"},
		"of two clusters":      {"new other", nil, "", "name copies of one cluster"},
		"no backup":            {"junk", nil, "", "is no backup"},
		"another's datastore":  {"new", func(s *memory.Store) { cluster(s, "w") }, "", "holds cluster w, and the copy is of cluster u"},
		"its own datastore":    {"new", func(s *memory.Store) { cluster(s, "u") }, "", "ports 2"},
		"another's node":       {"new", nil, "cluster w", "this node belongs to cluster w: name copies of that one's nodes, or `netctl restore FILE --force` takes"},
		"somebody's datastore": {"new", stranger, "", "is not empty, and names no cluster"},
	} {
		t.Run(what, func(t *testing.T) {
			_ = os.Remove(own)
			if uuid, is := strings.CutPrefix(c.own, "cluster "); is {
				if err := os.WriteFile(filepath.Join(dir, "cluster.json"), []byte(`{"uuid":"`+uuid+`","generation":1}`), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if c.own != "" {
				text, err := os.ReadFile(file(c.own))
				if err == nil {
					err = os.WriteFile(own, text, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s := memory.New()
			if c.store != nil {
				c.store(s)
			}
			before, err := s.List(t.Context(), datastore.Prefix)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"datastore", "rebuild"}
			for _, f := range strings.Fields(c.files) {
				args = append(args, file(f))
			}
			var out bytes.Buffer
			a := &app{in: strings.NewReader(""), out: &out, err: &out, opened: &readStore{Store: s, kinds: map[string]bool{}}}
			failed := a.run(t.Context(), args)
			if strings.HasPrefix(c.want, "ports ") {
				p, err := datastore.Get[*datastore.Profile](t.Context(), s, "web")
				if failed != nil || err != nil || !strings.HasSuffix(p.Spec.Inbound[0].String(), c.want) {
					t.Errorf("%v, %v, %+v\n%s", failed, err, p, out.String())
				}
				return
			}
			if failed == nil || !strings.Contains(failed.Error(), c.want) || strings.Contains(failed.Error(), "\n") {
				t.Errorf("got %v", failed)
			}
			if after, err := s.List(t.Context(), datastore.Prefix); err != nil || after.Revision != before.Revision {
				t.Errorf("something was written: %v", err)
			}
		})
		_ = os.Remove(filepath.Join(dir, "cluster.json"))
	}
}

// TestAdoptRefusesWhatWasLost: an empty datastore is not adopted where there is a copy of what
// it held; without one, or where it holds something, it is.
func TestAdoptRefusesWhatWasLost(t *testing.T) {
	dir := t.TempDir()
	empty, held := memory.New(), memory.New()
	if err := datastore.Create(t.Context(), held, &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}); err != nil {
		t.Fatal(err)
	}
	if err := notLost(t.Context(), empty, dir); err != nil {
		t.Errorf("without a copy: %v", err)
	}
	copyOf(t, filepath.Join(dir, datastore.CopyFile), "u", 1, 7, "allow")
	if err := notLost(t.Context(), held, dir); err != nil {
		t.Errorf("of one that holds something: %v", err)
	}
	if err := notLost(t.Context(), empty, dir); err == nil || !strings.Contains(err.Error(), "a copy of what it held, 2 objects with every rule: `netctl datastore rebuild`") {
		t.Errorf("of an empty one: %v", err)
	}
}

// TestAdoptAtOnce: an agent that has not noticed that the datastore is empty, as one that just
// started, keeps nobody from adopting that.
func TestAdoptAtOnce(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("NETCTL_STATE_DIR", dir)
	t.Setenv("NETCTL_RUN_DIR", dir)
	var status control.AgentStatus
	l, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(status) })}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	identity := `{"uuid":"6f1c2d34-0000-4000-8000-000000000001","generation":4,"store":7}`
	if err := os.WriteFile(filepath.Join(dir, "cluster.json"), []byte(identity), 0o600); err != nil {
		t.Fatal(err)
	}
	s := memory.New()
	for _, c := range []struct {
		inSync bool
		want   string
	}{
		{true, "generation 5."}, // nothing is in the datastore, whatever the agent thinks
		{false, "generation 6."},
		{true, "Nothing to adopt"},
	} {
		status.InSync = c.inSync
		a, out, _ := appOn(t, &readStore{Store: s, kinds: map[string]bool{}})
		if err := a.run(t.Context(), []string{"datastore", "adopt"}); err != nil || !strings.Contains(out.String(), c.want) {
			t.Errorf("want %q: %v, %s", c.want, err, out)
		}
	}
}

// byRights is a store as the node n7 has it that joined.
type byRights struct {
	datastore.Store
	asked int
}

func (s *byRights) Commit(ctx context.Context, t datastore.Txn) (int64, error) {
	s.asked++
	g := datastore.Grant{Node: "n7", Get: func(key string, _ int64) (datastore.Entry, error) { return s.Get(ctx, key) }}
	if err := g.Write(t); err != nil {
		return 0, err
	}
	return s.Store.Commit(ctx, t)
}

// TestRestoreWithoutTheRights: a node that is no member is told so before anything is tried.
func TestRestoreWithoutTheRights(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("NETCTL_NODE", "n7")
	t.Setenv("NETCTL_STATE_DIR", dir)
	t.Setenv("NETCTL_RUN_DIR", dir)
	file := filepath.Join(dir, "backup")
	copyOf(t, file, "u", 1, 7, "allow")
	s := &byRights{Store: memory.New()}
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, opened: &readStore{Store: s, kinds: map[string]bool{}}}
	err := a.run(t.Context(), []string{"restore", file})
	if err == nil || s.asked != 1 || !strings.Contains(err.Error(), ": nothing was written: it takes the rights of a member of the datastore, ") || strings.Contains(err.Error(), "again") {
		t.Errorf("asked %d times: %v", s.asked, err)
	}
}
