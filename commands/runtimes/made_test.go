package runtimes

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/commands/engine"
)

// TestAllThatNetctlMade: what netctl made in runtimes is found and removed, with our driver and
// without it; what a person made or changed stays, and so does what Docker uses.
func TestAllThatNetctlMade(t *testing.T) {
	d, root := newFakeDocker(t), t.TempDir()
	cfg := Config{Root: root, DockerAPI: d.socket, DockerDriver: filepath.Join(t.TempDir(), "netctl.sock")}
	d.add("mine", "netctl")
	d.list = append(d.list, engine.Network{ID: "web", Name: "web", Driver: "netctl", Labels: map[string]string{labelOurs: "web"}})
	quiet := slog.New(slog.DiscardHandler)
	for _, p := range []*files{newConflists(cfg, quiet), newNetavark(cfg, quiet)} {
		for _, name := range []string{"web", "changed"} {
			if err := p.put(t.Context(), Network{Name: name}, nil); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(p.dir, p.name("changed"))
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, []byte(strings.Replace(string(text), `"netctl"`, `"other"`, 1)), 0o600)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(p.dir, "mine"+p.ends[0]), []byte(`{"name": "mine"}`), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	look := func() (all []Made, names string) {
		all, err := All(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			names += m.Network + map[bool]string{true: "! ", false: " "}[m.Changed]
		}
		return all, names
	}
	all, names := look()
	if names != "changed! web changed! web web " {
		t.Fatalf("made: %s%+v", names, all)
	}
	d.use = true
	var stood []string
	for _, m := range all {
		err := m.Remove(t.Context())
		_, docker := m.place.(*docker)
		switch {
		case m.Changed && (err == nil || !strings.Contains(err.Error(), "changed by hand")),
			docker && (err == nil || !strings.Contains(err.Error(), "has active endpoints")),
			!docker && !m.Changed && err != nil:
			t.Errorf("%s: %v", m.At, err)
		}
		if err != nil {
			stood = append(stood, m.At)
		}
	}
	if len(stood) != 3 {
		t.Errorf("what stays: %q", stood)
	}
	d.use = false
	if all, names = look(); names != "changed! changed! web " {
		t.Errorf("then: %s", names)
	}
	if err := all[2].Remove(t.Context()); err != nil || len(d.list) != 1 || d.list[0].Name != "mine" {
		t.Errorf("%v, Docker has %+v", err, d.list)
	}
	// Of a runtime that cannot be looked at is told beside what the others have.
	if err := os.RemoveAll(newConflists(cfg, quiet).dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(newConflists(cfg, quiet).dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if all, err := All(t.Context(), cfg); err == nil || len(all) != 1 || all[0].Network != "changed" {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := net.Dial("unix", cfg.DockerDriver); err == nil {
		t.Error("somebody stands in for the driver still")
	}
}
