package commands

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// TestGenerated holds docs/cli, docs/man and completions against the command
// tree; NETCTL_WRITE_DOCS=1 (make docs) writes them instead.
func TestGenerated(t *testing.T) {
	if version != "0.1.0-dev" {
		t.Fatalf("version %s is linked in, the documents would carry it", version)
	}
	want := generated(t)
	if os.Getenv("NETCTL_WRITE_DOCS") != "" {
		for name, text := range want {
			path := filepath.Join("..", name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	for name, text := range want {
		got, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Errorf("%v: run make docs", err)
		} else if !bytes.Equal(got, text) {
			t.Errorf("%s is stale: run make docs", name)
		}
	}
	for _, dir := range []string{"docs/cli", "docs/man"} {
		files, err := filepath.Glob(filepath.Join("..", dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if _, ok := want[filepath.Join(dir, filepath.Base(f))]; !ok {
				t.Errorf("%s belongs to no command: run make docs", f)
			}
		}
	}
}

// generated is every generated file by its name from the top of the tree.
func generated(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	root := newRootCommand(&app{})
	root.DisableAutoGenTag = true
	root.InitDefaultHelpCmd()
	date := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.IsAvailableCommand() && c != root || c.Name() == "help" {
			return
		}
		name := strings.ReplaceAll(c.CommandPath(), " ", "-")
		var md, man bytes.Buffer
		if err := doc.GenMarkdownCustom(c, &md, func(s string) string { return strings.ReplaceAll(s, "_", "-") }); err != nil {
			t.Fatal(err)
		}
		if err := doc.GenMan(c, &doc.GenManHeader{Section: "1", Source: "netctl", Manual: "netctl", Date: &date}, &man); err != nil {
			t.Fatal(err)
		}
		files["docs/cli/"+name+".md"] = md.Bytes()
		files["docs/man/"+name+".1"] = man.Bytes()
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out bytes.Buffer
		if code := runForTest(&out, "completion", shell); code != exitOK {
			t.Fatalf("completion %s: exit code %d", shell, code)
		}
		files["completions/netctl."+shell] = out.Bytes()
	}
	return files
}

// runForTest runs a command line as Main does, output only.
func runForTest(out *bytes.Buffer, args ...string) int {
	return Main(append([]string{"netctl"}, args...), strings.NewReader(""), out, out)
}
