package commands

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	for _, c := range documented(root) {
		var md bytes.Buffer
		if err := doc.GenMarkdownCustom(c, &md, func(s string) string { return strings.ReplaceAll(s, "_", "-") }); err != nil {
			t.Fatal(err)
		}
		files["docs/cli/"+manName(c)+".md"] = md.Bytes()
	}
	for name, page := range manPages(root) {
		files["docs/man/"+name] = page
	}
	files["docs/configuration.md"] = configurationPage()
	for _, shell := range []string{"bash", "zsh", "fish"} {
		var out bytes.Buffer
		if code := runForTest(&out, "completion", shell); code != exitOK {
			t.Fatalf("completion %s: exit code %d", shell, code)
		}
		files["completions/netctl."+shell] = out.Bytes()
	}
	return files
}

// configurationPage is docs/configuration.md, from the table of settings.
func configurationPage() []byte {
	var b bytes.Buffer
	b.WriteString("# Configuration\n\n" +
		"Every role and command of a machine reads one YAML file: `--config FILE`, else `NETCTL_CONFIG`, else `/etc/netctl.yaml` if it exists.\n" +
		"A flag wins over the environment, that over the file, that over the default. An unknown key is an error that names file and line.\n" +
		"`netctl config` prints what holds here and where each value comes from. Lists in flags and variables are parted by commas.\n\n" +
		"| key | default | environment | flag | meaning |\n|---|---|---|---|---|\n")
	for _, s := range settingTable() {
		def := fmt.Sprint(s.def)
		if list, ok := s.def.([]string); ok {
			def = strings.Join(list, ",")
		}
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | `--%s` | %s |\n", strings.ReplaceAll(s.key, delimiter, ": "), def, s.env, s.flag, strings.ReplaceAll(s.usage, "`", ""))
	}
	b.WriteString("\nAn example with nested keys:\n\n    node: n1\n    roles: [datastore, agent, speaker]\n    labels: [Rack=A1, topology.zone=z1]\n" +
		"    datastore:\n      endpoints: [https://192.168.99.102:2379]\n      ca: /etc/netctl-tls/ca.crt\n      cert: /etc/netctl-tls/n1.crt\n      key: /etc/netctl-tls/n1.key\n" +
		"    agent:\n      interface: enp0s8\n      workloadToHost: [udp/53, tcp/53]\n")
	return b.Bytes()
}

// runForTest runs a command line as Main does, output only.
func runForTest(out *bytes.Buffer, args ...string) int {
	return Main(append([]string{"netctl"}, args...), strings.NewReader(""), out, out)
}
