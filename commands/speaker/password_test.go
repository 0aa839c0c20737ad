package speaker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestPasswords reads passwords of every kind; the last good one stays.
func TestPasswords(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) datastore.PeerPassword {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return datastore.PeerPassword{File: path}
	}
	p := passwords{}
	long := strings.Repeat("x", maxPassword)
	for text, want := range map[string]string{"a b": "a b", "a\n": "a", "a\r\n": "a", long + "\n": long, "ü": "ü"} {
		if got, err := p.read(write("good", text)); got != want || err != nil {
			t.Errorf("%q is read as %q, %v", text, got, err)
		}
	}
	for name, text := range map[string]string{"empty": "", "line": "\n", "lines": "a\nb", "long": long + "x", "zero": "a\x00"} {
		if got, err := p.read(write(name, text)); got != "" || err == nil || !strings.HasSuffix(err.Error(), "must hold one line of 1 to 80 bytes") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, of := range []datastore.PeerPassword{{File: dir}, {File: filepath.Join(dir, "none")}, {Credential: "tor"}} {
		if got, err := p.read(of); got != "" || err == nil {
			t.Errorf("%+v: %q, %v", of, got, err)
		}
	}
	write("tor", "secret\n")
	p.credentials = dir
	if got, err := p.read(datastore.PeerPassword{Credential: "tor"}); got != "secret" || err != nil {
		t.Errorf("credential: %q, %v", got, err)
	}
	p = passwords{}
	of := write("changes", "one")
	if got, _ := p.read(of); got != "one" || p.changed() {
		t.Errorf("%q, changed", got)
	}
	write("changes", "two")
	if !p.changed() {
		t.Error("a change is not seen")
	}
	if err := os.Remove(of.File); err != nil {
		t.Fatal(err)
	}
	if got, err := p.read(of); got != "one" || err == nil {
		t.Errorf("gone: %q, %v", got, err)
	}
}
