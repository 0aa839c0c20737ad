package commands

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"netctl/commands/api"
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
	files["docs/configuration.md"] = append(configurationPage(), footer(t, "configuration.md")...)
	description, err := api.Description(actions())
	if err != nil {
		t.Fatal(err)
	}
	files["docs/openapi.json"] = description
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

// atPrompt is a command that a page shows at the prompt of a host; see TestPages of commands/lab.
var atPrompt = regexp.MustCompile(`^    (node\d|fabric)# `)

// TestDocumentsCommands parses every netctl command line of README and docs/: the command
// is there, takes these flags, and so many arguments.
func TestDocumentsCommands(t *testing.T) {
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	parsed := 0
	for _, file := range append(files, "../README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		transcript := false // what stands below a node's prompt is run by a test of its own, and is output
		for i, line := range strings.Split(strings.ReplaceAll(string(text), "\\\n", ""), "\n") {
			if transcript = line == "" && transcript || strings.HasPrefix(line, "    ") && (transcript || atPrompt.MatchString(line)); transcript {
				continue
			}
			for _, args := range commandsOf(line) {
				parsed++
				if err := parses(args, true); err != nil {
					t.Errorf("%s:%d: netctl %s: %v", strings.TrimPrefix(file, "../"), i+1, strings.Join(args, " "), err)
				}
			}
			for _, quoted := range regexp.MustCompile("`netctl ([a-z][^`\n]*)`").FindAllStringSubmatch(line, -1) {
				if err := parses(shellWords(quoted[1]), false); err != nil {
					t.Errorf("%s:%d: `netctl %s`: %v", strings.TrimPrefix(file, "../"), i+1, quoted[1], err)
				}
			}
		}
	}
	if parsed < 80 {
		t.Errorf("%d command lines were found", parsed)
	}
	for _, wrong := range []string{"    netctl pool ad 10.0.0.0/8", "    sudo ./netctl status --nosuch", "    x=$(netctl pool show a b)", "    netctl init; netctl profile web rule ad x", "    netctl node remove"} {
		bad := false
		for _, args := range commandsOf(wrong) {
			bad = bad || parses(args, true) != nil
		}
		if !bad {
			t.Errorf("%s is taken for right", wrong)
		}
	}
}

// parses says what is wrong with the arguments of a command line; nothing is run. One that
// is not whole names a command alone, and perhaps flags.
func parses(args []string, whole bool) error {
	root := newRootCommand(&app{})
	root.InitDefaultHelpCmd()
	bindName(root, args)
	c, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	err = c.ParseFlags(rest)
	if !whole && err != nil && (errors.Is(err, pflag.ErrHelp) || strings.Contains(err.Error(), "needs an argument") || strings.Contains(err.Error(), "invalid argument")) {
		return nil
	}
	if err == nil && (whole || c.HasSubCommands()) {
		err = c.ValidateArgs(c.Flags().Args())
	}
	return err
}

// commandsOf are the arguments of each netctl of a line of examples. Lines that show a
// grammar have none.
func commandsOf(line string) (list [][]string) {
	if !strings.HasPrefix(line, "    ") || strings.ContainsAny(line, "…[") {
		return nil
	}
	first := true // a command's name may stand here
	var open []int
	for _, w := range shellWords(line) {
		switch {
		case strings.Contains(";|&()<>", w):
			first, open = true, nil
			continue
		case first && (w == "netctl" || w == "./netctl" || strings.HasSuffix(w, "/bin/netctl")):
			list = append(list, []string{})
			for _, i := range open { // what is behind its --
				list[i] = append(list[i], w)
			}
			open, first = append(open, len(list)-1), false
			continue
		}
		first = first && (w == "sudo" || w == "exec" || strings.Contains(w, "=")) || w == "--"
		for _, i := range open {
			list[i] = append(list[i], w)
		}
	}
	return list
}

// shellWords are the words of a line as a shell has them, as far as documents go: quotes,
// the end at a comment, and signs that part commands as words of their own.
func shellWords(line string) (words []string) {
	var word strings.Builder
	inWord, quote := false, rune(0)
	end := func() {
		if inWord {
			words = append(words, word.String())
		}
		word.Reset()
		inWord = false
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == '#' && !inWord:
			return words
		case r == ' ' || r == '\t':
			end()
		case strings.ContainsRune(";|&()<>", r):
			end()
			words = append(words, string(r))
		default:
			inWord = true
			word.WriteRune(r)
		}
	}
	end()
	return words
}
