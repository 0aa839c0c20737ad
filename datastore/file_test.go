package datastore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "folder")
	path := filepath.Join(dir, "f")
	if err := WriteFile(path, nil, FileOptions{}); err != nil { // makes the folder
		t.Fatal(err)
	}
	for _, o := range []FileOptions{{}, {Volatile: true}, {Mode: 0o644}} {
		mask := syscall.Umask(0o277) // which has no say in a file's mode
		err := WriteFile(path, []byte("old"), o)
		syscall.Umask(mask)
		if err != nil {
			t.Fatal(err)
		}
		before, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := WriteFile(path, []byte("new"), o); err != nil {
			t.Fatal(err)
		}
		old := make([]byte, 8)
		n, _ := before.Read(old)
		before.Close()
		text, err := os.ReadFile(path)
		if err != nil || string(text) != "new" || string(old[:n]) != "old" {
			t.Fatalf("%+v: %q %v, and who had it open reads %q", o, text, err, old[:n])
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != max(o.Mode, 0o600) {
			t.Fatalf("%+v: mode %v %v", o, st.Mode(), err)
		}
		if err := WriteFile(path, []byte("third"), FileOptions{New: true}); !errors.Is(err, ErrExists) {
			t.Fatalf("a new file over one that is there: %v", err)
		}
		if text, _ := os.ReadFile(path); string(text) != "new" {
			t.Fatalf("a refused write left %q", text)
		}
	}
	if err := WriteFile(filepath.Join(dir, "made"), []byte("x"), FileOptions{New: true}); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(path, "g"), nil, FileOptions{}); err == nil {
		t.Fatal("a file became a folder")
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "taken"), nil, FileOptions{}); err == nil {
		t.Fatal("a folder became a file")
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) > 0 {
		t.Fatalf("left behind: %q %v", left, err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode() != fs.ModeDir|0o700 {
		t.Fatalf("folder %v %v", st.Mode(), err)
	}
}
