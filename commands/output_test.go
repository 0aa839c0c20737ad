package commands

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestOthersWords: whatever is in what a command prints, a terminal does nothing for it, and
// nobody adds a line to a table, a problem, an event, a warning or an error.
func TestOthersWords(t *testing.T) {
	const evil, tame = "a\nall is well\x1b[2J\u009b", `a; all is well\u001b[2J\u009b`
	var out, errs bytes.Buffer
	a := &app{out: &out, err: &errs}
	r := &nodeReport{}
	r.problem("%s", evil)
	a.warn("%s", evil)
	for what, got := range map[string]string{
		"problem": strings.Join(r.Problems, "|"),
		"event":   strings.TrimSpace(strings.SplitAfter(eventLine(datastore.Event{Kind: "x", Text: evil}, false), "x            ")[1]),
		"error":   oneLine(errors.New(evil)),
		"warning": strings.TrimSuffix(strings.TrimPrefix(errs.String(), warningPrefix), "\n"),
	} {
		if got != tame {
			t.Errorf("%s: %q", what, got)
		}
	}
	if text := table([]string{"Name"}, [][]string{{evil}}); strings.Count(text, "\n") != 5 || !strings.Contains(text, "| "+tame+" |") {
		t.Errorf("table:\n%q", text)
	}
	if err := a.print(red + "! bad" + unmarked + "\n\tb\x1b[2J\x1b]0;x\a\n"); err != nil || out.String() != red+"! bad"+unmarked+"\n\tb"+`\u001b[2J\u001b]0;x\u0007`+"\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
