package datastore

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// copied writes a copy that holds profiles.
func copied(t *testing.T, path string, revision int64, names ...string) {
	t.Helper()
	b := &Backup{Cluster: Cluster{UUID: "u", Generation: 1}, Revision: revision, Model: ModelVersion, Time: time.Now()}
	for _, name := range names {
		b.Entries = append(b.Entries, profileEntry(name, revision))
	}
	text, err := b.Encode()
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func profileEntry(name string, revision int64) Entry {
	return Entry{Key: Prefix + "profiles/" + name, Revision: revision,
		Value: []byte(`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"` + name + `"},"spec":{"tags":["web"],"inbound":[],"outbound":[]}}`)}
}

// said is what a copy holds with its changes.
func said(t *testing.T, path string) string {
	t.Helper()
	b, whole, err := ReadCopy(path)
	if err != nil {
		return err.Error()
	}
	words := []string{}
	for _, e := range b.Entries {
		words = append(words, strings.TrimPrefix(e.Key, Prefix+"profiles/"))
	}
	if !whole {
		words = append(words, "and perhaps others")
	}
	return strings.Join(words, " ")
}

func TestCopyLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", CopyFile)
	l := NewCopyLog(path)
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is := func(want string) {
		t.Helper()
		if got := said(t, path); got != want {
			t.Fatalf("the copy says %q, want %q", got, want)
		}
	}
	ok(l.Note([]Entry{profileEntry("early", 1)})) // there is no copy
	ok(l.Begin())
	copied(t, path, 5, "a", "b")
	is("a b and perhaps others")
	ok(l.Note([]Entry{profileEntry("c", 6)})) // while it was written
	ok(l.Made())
	is("a b c")
	ok(l.Note([]Entry{{Key: Prefix + "profiles/a", Revision: 7}, profileEntry("b", 7), profileEntry("d", 8)}))
	is("b c d")
	b, _, err := ReadCopy(path)
	if err != nil || b.Revision != 8 || b.Entries[0].Revision != 7 {
		t.Errorf("%+v, %v", b, err)
	}

	ok(l.Begin())
	ok(l.Note([]Entry{profileEntry("e", 9)}))
	is("b c d e") // the old copy with all of its changes
	copied(t, path, 8, "b", "c", "d")
	ok(l.Note([]Entry{{Key: Prefix + "profiles/b", Revision: 10}}))
	is("c d e") // the new one with the changes of the old one
	ok(l.Made())
	is("c d e")
	if NewCopyLog(path); said(t, path) != "c d e" {
		t.Error("another process changed it by looking on")
	}

	// What nobody can read leaves what was there.
	ok(l.Note([]Entry{{Key: Prefix + "profiles/c", Revision: 11, Value: []byte("{}")}, {Key: Prefix + "endpoints/n2/x", Revision: 12, Value: []byte("x")}}))
	is("c d e")

	// Killed in the middle of a line: nothing went by it yet.
	changes, err := os.ReadFile(path + copyChanges)
	ok(err)
	ok(os.WriteFile(path+copyChanges, append(changes, `{"key":"/netctl/v1/pro`...), 0o600))
	is("c d e")
	ok(os.WriteFile(path+copyChanges, append([]byte("{\"key\n"), changes...), 0o600))
	if got := said(t, path); !strings.Contains(got, "line 1") {
		t.Errorf("damaged: %s", got)
	}

	// Something was missed while a copy is made: neither says what was last seen.
	ok(l.Begin())
	ok(l.Miss())
	ok(l.Note([]Entry{profileEntry("f", 12)}))
	copied(t, path, 10, "c", "d", "e")
	ok(l.Made())
	is("c d e and perhaps others")
	ok(l.Begin())
	ok(l.Made())
	is("c d e")

	// What cannot be written is missed.
	ok(l.now.Close())
	if err := l.Note([]Entry{profileEntry("g", 13)}); err == nil {
		t.Error("written into a closed file")
	}
	is("c d e and perhaps others")
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("left: %v", left)
	}
}

// TestPutAside: each copy that is put aside stays under its own name, and not for ever.
func TestPutAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), CopyFile)
	for g := range int64(12) {
		copied(t, path, g+1, strings.Repeat("x", int(g)+1))
		if err := PutAside(path, g); err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	for _, file := range FormerCopies(path) {
		b, _, err := ReadCopy(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, filepath.Ext(file)+" "+strconv.FormatInt(b.Revision, 10))
	}
	if got := strings.Join(all, ", "); got != ".11 12, .10 11, .9 10, .8 9, .7 8" {
		t.Errorf("kept: %s", got)
	}
}
