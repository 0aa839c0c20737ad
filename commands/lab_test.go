package commands

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"netctl/commands/lab"
)

func TestLabFile(t *testing.T) {
	l := labFile{Nodes: 2, Subnets: 1}
	if settings, err := l.parse([]byte("# nothing\n")); err != nil || settings != "" || !reflect.DeepEqual(l, labFile{Nodes: 2, Subnets: 1}) {
		t.Errorf("an empty file: %+v, %q, %v", l, settings, err)
	}
	settings, err := l.parse([]byte("subnets: 2\nsettings: {log: {level: debug}}\n"))
	if err != nil || l.Nodes != 2 || l.Subnets != 2 || settings != "log:\n    level: debug\n" {
		t.Errorf("%+v, %q, %v", l, settings, err)
	}
	l = labFile{}
	if settings, err := l.parse([]byte("settings: {agent: {}}\n")); err != nil || settings != "" {
		t.Errorf("an empty section: %q, %v", settings, err)
	}
	if _, err := l.parse([]byte("nodes: 1\n---\nnodes: 2\n")); err == nil || err.Error() != "one document only" {
		t.Errorf("two documents: %v", err)
	}
}

// FuzzLabFile: the settings that a lab adds to its nodes' configuration are the
// file's, in block style, and none that the lab sets.
func FuzzLabFile(f *testing.F) {
	f.Add("nodes: 1\nsettings:\n  agent:\n    lostAfter: 2s\n")
	f.Fuzz(func(t *testing.T, text string) {
		var l labFile
		settings, err := l.parse([]byte(text))
		if err != nil {
			return
		}
		var back map[string]any
		if err := yaml.Unmarshal([]byte(settings), &back); err != nil || len(back) != len(l.Settings) {
			t.Fatalf("%q becomes %q: %v", text, settings, err)
		}
		for key := range back {
			if slices.Contains(lab.Reserved(), key) {
				t.Fatalf("%q sets %s", text, key)
			}
		}
		if _, ok := back["agent"].(map[string]any); ok && !strings.Contains("\n"+settings, "\nagent:\n") {
			t.Fatalf("%q becomes %q, whose agent section the lab cannot continue", text, settings)
		}
	})
}
