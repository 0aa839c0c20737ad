package acl

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestGolden compiles the models in testdata for node "n1" and compares the text.
// A file holds a comment, "-- model --" with one manifest a line, and
// "-- ruleset.nft --" with everything or "-- endpoints.nft --" without the static
// part. UPDATE_GOLDEN=1 writes the files anew.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txtar"), func(t *testing.T) { golden(t, f) })
	}
}

func golden(t *testing.T, file string) {
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), "-- model --\n")
	whole := strings.Contains(rest, "-- ruleset.nft --\n")
	name := "-- endpoints.nft --\n"
	if whole {
		name = "-- ruleset.nft --\n"
	}
	model, want, ok2 := strings.Cut(rest, name)
	if !ok || !ok2 {
		t.Fatalf("%s: sections missing", file)
	}
	x := NewIndex("n1", testOptions())
	for i, line := range strings.Split(strings.TrimSpace(model), "\n") {
		o, err := datastore.DecodeManifest([]byte(line))
		if err != nil {
			t.Fatalf("%s: manifest %d: %v", file, i+1, err)
		}
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	rules := x.Ruleset()
	check := exec.Command("unshare", "-n", "nft", "-c", "-f", "-")
	check.Stdin = strings.NewReader(rules.String())
	if out, err := check.CombinedOutput(); err != nil {
		t.Errorf("nft -c: %v\n%s", err, out)
	}
	got := rules.String()
	if !whole {
		got = withoutStatic(rules)
	}
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(head+"-- model --\n"+model+name+got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("%s: UPDATE_GOLDEN=1 go test ./acl writes it anew\n--- got\n%s--- want\n%s", file, got, want)
	}
}

// withoutStatic is the text without what is the same for every model.
func withoutStatic(r *Ruleset) string {
	out := &Ruleset{Sets: map[string]*Set{}, Chains: map[string]*Chain{}}
	static := Static(testOptions())
	for name, s := range r.Sets {
		if static.Sets[name] == nil || len(static.Sets[name].Elements) != len(s.Elements) {
			out.Sets[name] = s
		}
	}
	for name, c := range r.Chains {
		if static.Chains[name] == nil {
			out.Chains[name] = c
		}
	}
	return out.String()
}

// TestNamesAreStable: a changed name would make every node rewrite its table.
func TestNamesAreStable(t *testing.T) {
	got := fmt.Sprint(profileChain(inbound, "web"), " ", className(tracked, outbound, []stage{{owners: []owner{{name: "db"}, {name: "web"}}}}), " ", hashName("tag4", "web"), " ",
		ruleID(owner{kind: datastore.KindPolicy, name: "web", tier: "default"}, inbound, "allow", 0))
	if want := "in_4b5e57f6eb2f class_out_0a590e788820 tag4_4b5e57f6eb2f 6f7b3bda6e5e"; got != want {
		t.Errorf("names %s, want %s", got, want)
	}
}

func FuzzClip(f *testing.F) {
	f.Add("profile web inbound: allow from tag web")
	f.Add(strings.Repeat("é", 100))
	f.Add("a\"b\\c\n\x00\xff")
	f.Fuzz(func(t *testing.T, s string) {
		c := clip(s)
		if len(c) > maxComment || strings.ContainsAny(c, "\"\\\n\x00") {
			t.Errorf("clip(%q) = %q", s, c)
		}
	})
}
