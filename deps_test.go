package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the path of this module.
const module = "netctl"

// layer is the height of each package; imports go strictly down. A package that
// is not listed fails the test: a new one gets its place here first.
func layer() map[string]int {
	return map[string]int{
		"": 7, "commands": 6, "commands/plugin": 6,
		"commands/agent": 5, "commands/api": 5, "commands/bench": 5, "commands/cni": 5, "commands/datastore": 5, "commands/docker": 5, "commands/diags": 5, "commands/doctor": 5, "commands/install": 5, "commands/lab": 5, "commands/netavark": 5, "commands/node": 5, "commands/speaker": 5, "commands/ui": 5,
		"commands/workload": 4, "commands/serve": 4, "commands/retry": 4, "commands/join": 4, "commands/telemetry": 4, "commands/runtimes": 4,
		"acl/nft": 3, "acl/iptables": 3, "acl/conntrack": 3, "acl/nflog": 3, "acl/dns": 3, "routing/fib": 3, "routing/ra": 3, "routing/bgp": 3, "routing/bfd": 3, "netdev/kernel": 3, "netdev/netlab": 3, "netdev/qemulab": 3, "netdev/tap": 3,
		"datastore/etcd": 3, "datastore/embed": 3, "datastore/memory": 3, "datastore/ipam": 3, "datastore/pki": 3, "datastore/identity": 3,
		"datastore/storetest": 3, "commands/control": 3,
		"acl": 2, "routing": 2, "netdev": 2, "routing/gate": 2, "commands/engine": 2, "commands/calico": 2,
		"datastore": 1,
	}
}

// sideways are the only imports between packages of one layer.
func sideways() map[string]string {
	return map[string]string{"netdev/netlab": "netdev/kernel", "commands/reflector": "commands/speaker", "commands/telemetry": "commands/serve", "commands/runtimes": "commands/serve"}
}

// owners says which packages may import a dependency; a trailing /… means the
// packages below too. Tests may import what they like.
func owners() map[string][]string {
	return map[string][]string{
		"github.com/spf13/":                   {"commands"},
		"go.yaml.in/":                         {"commands"},
		"github.com/vishvananda/netlink":      {"netdev/kernel", "netdev/netlab", "acl/iptables"},
		"github.com/vishvananda/netns":        {"netdev/kernel"},
		"github.com/mdlayher/netlink":         {"acl/nft", "acl/conntrack", "acl/nflog", "netdev/kernel"},
		"golang.org/x/net":                    {"acl/dns"},
		"golang.org/x/sys":                    {"commands/…", "acl/…", "routing/…", "netdev/…", "datastore/…"},
		"golang.org/x/sync":                   {"commands/…", "acl/…", "routing/…", "netdev/…", "datastore/…"},
		"go.uber.org/zap":                     {"datastore/etcd", "datastore/embed"},
		"google.golang.org/grpc":              {"datastore/etcd", "datastore/embed"},
		"go.etcd.io/etcd/api":                 {"datastore/etcd", "datastore/embed"},
		"go.etcd.io/etcd/client/pkg":          {"datastore/etcd", "datastore/embed"},
		"go.etcd.io/etcd/client/v3":           {"datastore/etcd"},
		"go.etcd.io/etcd/server":              {"datastore/embed"},
		"github.com/google/nftables":          {"acl/nft"},
		"github.com/osrg/gobgp/v3/pkg/packet": {"routing/bgp"},
		"github.com/coreos/go-iptables":       {"acl/iptables"},
		"github.com/insomniacslk/dhcp":        {"netdev/tap"},
		"github.com/mdlayher/ndp":             {"netdev/tap"},
		"github.com/prometheus/":              {"commands/datastore"},
		"os/exec":                             {"acl/iptables", "netdev/netlab", "netdev/qemulab", "commands/node", "commands/cni", "commands/doctor", "commands"},
	}
}

// thin are packages of which only the standard library, datastore and control
// may be imported: nothing else runs when a runtime calls the plugin.
func thin() map[string][]string {
	return map[string][]string{
		"commands/cni":      {"commands/control", "datastore"},
		"commands/netavark": {"commands/control", "datastore"},
		"commands/plugin":   {"commands/cni", "commands/netavark"},
		"commands/control":  {"datastore"},
		"datastore":         {},
	}
}

type file struct {
	dir, name string
	imports   []string
}

func sourceFiles(t *testing.T) []file {
	t.Helper()
	var files []file
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		syntax, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		f := file{dir: strings.TrimPrefix(filepath.Dir(path), "."), name: path}
		for _, imp := range syntax.Imports {
			p, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			f.imports = append(f.imports, p)
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("found only %d Go files", len(files))
	}
	return files
}

// TestImportsGoDown holds every import of our own against the layers.
func TestImportsGoDown(t *testing.T) {
	for _, f := range sourceFiles(t) {
		from, ok := layer()[f.dir]
		if !ok {
			t.Errorf("%s: package %q has no layer", f.name, f.dir)
			continue
		}
		if strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		for _, imp := range f.imports {
			own, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				continue
			}
			if to := layer()[own]; to >= from && sideways()[f.dir] != own {
				t.Errorf("%s imports %s: imports go down only, siblings never", f.name, own)
			}
		}
	}
}

// TestDependenciesHaveOwners holds every import of others against the owners.
func TestDependenciesHaveOwners(t *testing.T) {
	for _, f := range sourceFiles(t) {
		if strings.HasSuffix(f.name, "_test.go") || strings.Contains(f.dir, "storetest") {
			continue
		}
		for _, imp := range f.imports {
			if strings.HasPrefix(imp, module+"/") {
				if allowed, is := thin()[f.dir]; is && !slices.Contains(allowed, strings.TrimPrefix(imp, module+"/")) {
					t.Errorf("%s imports %s: this package stays thin", f.name, imp)
				}
				continue
			}
			if _, is := thin()[f.dir]; is && strings.Contains(strings.Split(imp, "/")[0], ".") {
				t.Errorf("%s imports %s: this package has the standard library and nothing else", f.name, imp)
			}
			if _, is := thin()[f.dir]; is && imp == "net/http" {
				t.Errorf("%s imports %s: starting it costs a plugin's call more than the call", f.name, imp)
			}
			if who, known := ownersOf(imp); known && !allows(who, f.dir) {
				t.Errorf("%s imports %s: only %s may", f.name, imp, strings.Join(who, ", "))
			} else if !known && strings.Contains(strings.Split(imp, "/")[0], ".") {
				t.Errorf("%s imports %s: no package owns this dependency", f.name, imp)
			}
		}
	}
}

func ownersOf(imp string) ([]string, bool) {
	for prefix, who := range owners() {
		if imp == prefix || strings.HasPrefix(imp, strings.TrimSuffix(prefix, "/")+"/") {
			return who, true
		}
	}
	return nil, false
}

func allows(who []string, dir string) bool {
	for _, w := range who {
		if below, ok := strings.CutSuffix(w, "/…"); ok {
			if strings.HasPrefix(dir, below+"/") {
				return true
			}
		} else if w == dir {
			return true
		}
	}
	return false
}

// TestTopLevel allows no folder that the house does not have.
func TestTopLevel(t *testing.T) {
	want := []string{"acl", "commands", "completions", "datastore", "docs", "netdev", "routing"}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(want, e.Name()) {
			t.Errorf("folder %s/ is not part of the house: %s", e.Name(), strings.Join(want, " "))
		}
	}
}

// TestFilesStaySmall bounds a file to 500 lines.
func TestFilesStaySmall(t *testing.T) {
	for _, f := range sourceFiles(t) {
		text, err := os.ReadFile(f.name)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(text), "\n"); n > 500 {
			t.Errorf("%s has %d lines: one idea a file, at most 500 lines", f.name, n)
		}
	}
}
