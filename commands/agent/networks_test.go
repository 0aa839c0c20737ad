package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/commands/runtimes"
	"netctl/datastore"
)

// TestNetworksOfRuntimes: the agent makes the networks that the datastore has, takes away
// those that it has no more, leaves what a person changed and says so in its status and its
// report; an agent that starts finds what changed meanwhile.
func TestNetworksOfRuntimes(t *testing.T) {
	w := newWorld(t)
	root := t.TempDir()
	dir := filepath.Join(root, "etc/cni/net.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w.cfg.Runtimes = runtimes.Config{Runtimes: datastore.Runtimes(), Root: root}
	network := func(name string) *datastore.Network {
		n := &datastore.Network{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NetworkSpec{Runtimes: []string{"cni"}}}
		n.SetDefaults()
		return n
	}
	files := func(want string) {
		t.Helper()
		w.until(func() string {
			list, err := filepath.Glob(dir + "/*")
			if err != nil {
				t.Fatal(err)
			}
			for i := range list {
				list[i] = filepath.Base(list[i])
			}
			if is := strings.Join(list, " "); is != want {
				return "files: " + is
			}
			return ""
		})
	}
	says := func(want string) {
		t.Helper()
		w.until(func() string {
			s, err := w.api.status(t.Context(), struct{}{})
			if is := strings.Join(s.Problems, "; "); err != nil || !strings.Contains(is, want) || want == "" && is != "" {
				return "problems: " + is
			}
			return ""
		})
	}
	w.create(network("web"))
	w.start()
	files("netctl-web.conflist")
	w.create(network("db"))
	w.create(&datastore.Network{Metadata: datastore.Metadata{Name: "vms"}, Spec: datastore.NetworkSpec{Profile: "vms"}})
	files("netctl-db.conflist netctl-web.conflist")
	if err := os.Remove(filepath.Join(dir, "netctl-web.conflist")); err != nil {
		t.Fatal(err)
	}
	files("netctl-db.conflist netctl-web.conflist") // it is back
	mine := []byte(`{"name":"db","plugins":[{"type":"bridge"}]}`)
	if err := os.WriteFile(filepath.Join(dir, "netctl-db.conflist"), mine, 0o600); err != nil {
		t.Fatal(err)
	}
	says("network db in cni: differs: " + filepath.Join(dir, "netctl-db.conflist") + " was made by hand")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web", "db"} {
		if err := datastore.Delete(t.Context(), w.db(), network(name)); err != nil {
			t.Fatal(err)
		}
	}
	w.start()
	files("netctl-db.conflist")
	says("")
	if now, err := os.ReadFile(filepath.Join(dir, "netctl-db.conflist")); err != nil || string(now) != string(mine) {
		t.Errorf("what was made by hand is %s now (%v)", now, err)
	}
}

// TestOnlyPools: Docker is told of a subnet where a network has one pool of a family.
func TestOnlyPools(t *testing.T) {
	for _, c := range []struct {
		pools, want string
		v6          bool
	}{
		{"10.0.0.0/16", "10.0.0.0/16", false},
		{"10.0.0.0/16 10.1.0.0/16", "", false},
		{"10.0.0.0/16 fd00::/64", "10.0.0.0/16", false},
		{"10.0.0.0/16 10.1.0.0/16 fd00::/64", "fd00::/64", true},
		{"", "", true},
	} {
		s := datastore.NetworkSpec{IPv6: c.v6}
		for p := range strings.FieldsSeq(c.pools) {
			s.Pools = append(s.Pools, netip.MustParsePrefix(p))
		}
		var is []string
		for _, p := range onlyPools(s) {
			is = append(is, p.String())
		}
		if strings.Join(is, " ") != c.want {
			t.Errorf("%s: %v", c.pools, is)
		}
	}
}
