package commands

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestHelp holds every command to what a person may expect of its help: one
// line, two examples that begin with the command, the exit codes.
func TestHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" {
			return
		}
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || strings.Contains(c.Short, "\n") {
			t.Errorf("%s: the summary is %q", c.CommandPath(), c.Short)
		}
		if !strings.Contains(c.Long, "Exit codes: ") {
			t.Errorf("%s: no exit codes", c.CommandPath())
		}
		if c.HasParent() {
			lines := strings.Split(c.Example, "\n")
			if len(lines) < 2 {
				t.Errorf("%s: fewer than two examples", c.CommandPath())
			}
			for _, l := range lines {
				if !strings.Contains(l, "netctl ") || !strings.HasPrefix(l, "  ") {
					t.Errorf("%s: example %q", c.CommandPath(), l)
				}
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&app{}))
}

// TestVerbsAndFlags holds the nouns to one grammar: the same verbs everywhere, each
// with the flags that the others of that name have, and one meaning for each flag.
func TestVerbsAndFlags(t *testing.T) {
	verbs := []string{"show", "add", "create", "remove", "set", "append", "update", "json", "info", "release", "check", "up", "down", "exec", "status", "adopt", "rebuild", "drain", "undrain", "rotate-key", "rotate", "trace", "list", "grant", "revoke", "test", "serve", "counters", "promote", "stage", "suggest"}
	type meaning struct{ kind, short string }
	meanings := map[string]meaning{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		path := strings.TrimPrefix(c.CommandPath(), "netctl ")
		words := strings.Fields(path)
		verb := words[len(words)-1]
		// import is followed by whose resources they are, bgp by a setting.
		settings := len(words) == 1 || words[0] == "import" || strings.HasPrefix(path, "bgp ") || strings.Contains(path, " set ")
		if !c.HasSubCommands() && !settings && !slices.Contains(verbs, verb) {
			t.Errorf("%s: %q is no verb of the others", path, verb)
		}
		if verb == "show" && c.Flags().Lookup("output") == nil {
			t.Errorf("%s: no --output", path)
		}
		if verb == "remove" && len(words) == 2 && c.Flags().Lookup("force") == nil {
			t.Errorf("%s: no --force", path)
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if path == "diags" && f.Name == "output" {
				return // what it puts out is a file
			}
			now := meaning{f.Value.Type(), f.Shorthand}
			// A network has one profile, an endpoint several.
			if was, ok := meanings[f.Name]; ok && was != now && f.Name != "profile" {
				t.Errorf("%s --%s is a %v, elsewhere a %v", path, f.Name, now, was)
			}
			meanings[f.Name] = now
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRootCommand(&app{}))
}
