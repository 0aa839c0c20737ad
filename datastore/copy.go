package datastore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// CopyFile is the name of the copy of the store that each node keeps in its state folder,
// a backup.
const CopyFile = "model.backup"

// formerCopy is added to the name of a copy of a generation before, and that generation;
// mostFormer are kept.
const (
	formerCopy = ".former"
	mostFormer = 5
)

// PutAside keeps the copy at path, which is of a generation of the cluster before, beside it
// under a name of its own: who writes the store again from it may have to do so twice.
func PutAside(path string, generation int64) error {
	if err := os.Rename(path, fmt.Sprintf("%s%s.%d", path, formerCopy, generation)); err != nil {
		return fmt.Errorf("keep the former copy: %w", err)
	}
	for i, old := range FormerCopies(path) {
		if i >= mostFormer {
			_ = os.Remove(old) // tried again with the next one
		}
	}
	return nil
}

// FormerCopies are the copies that PutAside kept, the newest first.
func FormerCopies(path string) (files []string) {
	files, _ = filepath.Glob(path + formerCopy + ".*") // the pattern is a good one
	generation := func(file string) int {
		n, _ := strconv.Atoi(file[strings.LastIndexByte(file, '.')+1:])
		return n
	}
	slices.SortFunc(files, func(a, b string) int { return generation(b) - generation(a) })
	return files
}

// copyChanges is added to the name of a copy: the changes since it was made, a line each as
// in a backup, without a value where the key is gone. The copy says what was last seen only
// if that file is there.
const copyChanges = ".changes"

// CopyLog notes what becomes of a store after a copy of it was made. It survives its
// process, and the machine as far as the kernel has written it. Not safe for concurrent use.
type CopyLog struct {
	path string
	// now is of the copy that there is, next of the one that is being made; nil: there is
	// none.
	now, next *os.File
}

// NewCopyLog notes changes beside the copy at path. It does nothing yet: those of an earlier
// process stay.
func NewCopyLog(path string) *CopyLog { return &CopyLog{path: path + copyChanges} }

// Miss says that changes may have been missed: the copy that there is, or is being made, does
// not say what was last seen.
func (l *CopyLog) Miss() error {
	l.drop(&l.next)
	l.drop(&l.now)
	if err := os.Remove(l.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (l *CopyLog) drop(f **os.File) {
	if *f != nil {
		_ = (*f).Close()
		_ = os.Remove((*f).Name())
		*f = nil
	}
}

// Begin says that a copy is being made of what there is now.
func (l *CopyLog) Begin() error {
	l.drop(&l.next)
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path+".next", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err == nil {
		l.next = f
	}
	return err
}

// Made says that the copy that was begun is in place, which holds for both of them until
// then: what both hold is counted once.
func (l *CopyLog) Made() error {
	if l.next == nil {
		return nil // something was missed meanwhile
	}
	if err := os.Rename(l.next.Name(), l.path); err != nil {
		return err
	}
	if l.now != nil {
		_ = l.now.Close()
	}
	l.now, l.next = l.next, nil
	return nil
}

// Note takes changes, before anything goes by them. What cannot be written is missed.
func (l *CopyLog) Note(events []Entry) error {
	if l.now == nil && l.next == nil {
		return nil
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	for _, e := range events {
		if e.Value != nil && !json.Valid(e.Value) {
			continue // nobody can read it
		}
		if err := enc.Encode(backupLine{e.Key, e.Revision, e.Value}); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", e.Key, err), l.Miss())
		}
	}
	for _, f := range []*os.File{l.now, l.next} {
		if f == nil {
			continue
		}
		if _, err := f.Write(out.Bytes()); err != nil {
			return errors.Join(err, l.Miss())
		}
	}
	return nil
}

// ReadCopy reads a node's copy with the changes since; whole says that it is what that node
// saw last. Errors are those of DecodeBackup, and fs.ErrNotExist.
func ReadCopy(path string) (b *Backup, whole bool, err error) {
	// The changes first: those of the copy before hold for the new one as well.
	changes, noChanges := os.ReadFile(path + copyChanges)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, false, err
	}
	b, err = DecodeBackup(text)
	if err != nil || errors.Is(noChanges, fs.ErrNotExist) {
		return b, false, err
	}
	if err := errors.Join(noChanges, b.change(changes)); err != nil {
		return nil, false, fmt.Errorf("%s: %w", path+copyChanges, err)
	}
	return b, true, nil
}

// change makes b what it is after the changes in text. A last line that is cut short is one
// that nothing went by yet.
func (b *Backup) change(text []byte) error {
	last := map[string]Entry{}
	for i := 1; ; i++ {
		one, rest, ended := bytes.Cut(text, []byte("\n"))
		if !ended {
			break
		}
		text = rest
		var l backupLine
		err := json.Unmarshal(one, &l)
		if e := (Entry{Key: l.Key, Value: l.Value, Revision: l.Revision}); err == nil && e.Revision > b.Revision {
			if bytes.Equal(e.Value, []byte("null")) {
				e.Value = nil
			} else if _, err = Decode(e.Key, e.Value); err != nil && needsOf(e.Value) <= ModelVersion {
				continue // what was last understood stays, as in a copy that is made anew
			}
			last[e.Key] = e
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", i, err)
		}
	}
	b.Entries = slices.DeleteFunc(b.Entries, func(e Entry) bool { _, is := last[e.Key]; return is })
	for _, e := range last {
		b.Revision = max(b.Revision, e.Revision)
		if e.Value != nil {
			b.Entries = append(b.Entries, e)
		}
	}
	slices.SortFunc(b.Entries, func(x, y Entry) int { return strings.Compare(x.Key, y.Key) })
	return nil
}
