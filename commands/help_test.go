package commands

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
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
