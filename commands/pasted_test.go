package commands

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPasted: the line that is printed for a new node may be given whole.
func TestPasted(t *testing.T) {
	for line, want := range map[string]string{
		"nctA": "nctA", "netctl join nctA": "nctA", "sudo /usr/local/bin/netctl join nctA": "nctA", "join nctA": "nctA", "join": "join",
	} {
		for _, args := range [][]string{strings.Fields(line), {line}} {
			if got, err := pasted(args); err != nil || got != want {
				t.Errorf("%q: %q, %v", args, got, err)
			}
		}
	}
	for _, args := range [][]string{{"nctA", "nctB"}, {"netctl", "join", "nctA", "B"}, {""}} {
		if got, err := pasted(args); err == nil || !strings.Contains(err.Error(), "want one token") {
			t.Errorf("%q: %q, %v", args, got, err)
		}
	}
}

// TestVersionOf: a file that is no program or no netctl is told so, whatever its mode.
func TestVersionOf(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for path, want := range map[string]string{
		dir:                                 "is no file",
		filepath.Join(dir, "absent"):        "no such file",
		file("text", "root:x:0:0\n", 0o644): "is no program",
		file("script", "#!/bin/sh\necho netctl 1\n", 0o755):        "is no program",
		file("other", "\x7fELF path\tother\n", 0o755):              "is no netctl for this machine",
		file("ours", "\x7fELF path\tnetctl\nmod\tnetctl\n", 0o644): "cannot be run: chmod +x " + filepath.Join(dir, "ours"),
		file("half", "\x7fELF path\tnetctl\nmod\tnetctl\n", 0o755): "is no netctl for this machine",
	} {
		if v, err := versionOf(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v; want %q", path, v, err, want)
		}
	}
}
