package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// maxManifest bounds its file in bytes.
const maxManifest = 1 << 20

// Entry is something that was laid down: a file of that sum, or a link.
type Entry struct {
	Path string `json:"path"`
	// SHA256 is of the contents, in hex; "" for a link.
	SHA256 string `json:"sha256,omitempty"`
	Link   string `json:"link,omitempty"`
}

// manifest is all that an install laid down. A path is in it several times while an
// install goes on: what is there is one of them.
type manifest struct {
	Prefix  string   `json:"prefix"`
	Entries []Entry  `json:"entries"`
	Folders []string `json:"folders,omitempty"` // that did not exist, the topmost first
}

// readManifest is nil if nothing was installed.
func readManifest(root string) (*manifest, error) {
	file, err := place(root, Manifest)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what was installed: %w", err)
	}
	m := new(manifest)
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if len(text) > maxManifest {
		err = fmt.Errorf("%d bytes", len(text))
	} else if err = dec.Decode(m); err == nil {
		err = m.check()
	}
	if err != nil {
		return nil, fmt.Errorf("what was installed: %s is unusable: %w; without it an install takes what is there for yours", file, err)
	}
	return m, nil
}

func (m *manifest) check() error {
	for _, e := range m.Entries {
		if !path.IsAbs(e.Path) || path.Clean(e.Path) != e.Path || (e.SHA256 == "") == (e.Link == "") {
			return fmt.Errorf("entry %q", e.Path)
		}
	}
	for _, f := range m.Folders {
		if !path.IsAbs(f) || path.Clean(f) != f {
			return fmt.Errorf("folder %q", f)
		}
	}
	return nil
}

func (m *manifest) text() []byte {
	text, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		panic(err) // strings alone
	}
	return append(text, '\n')
}

// has says whether what is at that place was laid down.
func (m *manifest) has(e Entry) bool { return m != nil && slices.Contains(m.Entries, e) }

// knows says whether something was laid down at that path.
func (m *manifest) knows(name string) bool {
	return m != nil && slices.ContainsFunc(m.Entries, func(e Entry) bool { return e.Path == name })
}

func (m *manifest) add(e Entry) {
	if !slices.Contains(m.Entries, e) {
		m.Entries = append(m.Entries, e)
	}
}

// found is what there is at a place.
type found struct {
	Entry
	mode fs.FileMode
	// netctl says that it is a build of this program, or of the plugin.
	netctl bool
}

// mark is in every build of this program and of the plugin: the name of a function.
const mark = "netctl/commands/cni.Run"

// leadsTo says whether it is a link to a path.
func (f *found) leadsTo(name string) bool {
	to := f.Link
	if to != "" && !path.IsAbs(to) {
		to = path.Join(path.Dir(f.Path), to)
	}
	return to != "" && path.Clean(to) == name
}

// look reads what is at a place of the path name; nil: nothing.
func look(at, name string) (*found, error) {
	st, err := os.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		if strings.Contains(err.Error(), "not a directory") {
			return nil, nil // missingFolders says so
		}
		return nil, err
	}
	f := &found{Entry: Entry{Path: name}, mode: st.Mode().Perm()}
	switch {
	case st.Mode()&fs.ModeSymlink != 0:
		f.Link, err = os.Readlink(at)
		return f, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s: neither a file nor a link, it is in the way: move it away", at)
	}
	in, err := os.Open(at)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	f.SHA256, f.netctl, err = sum(in)
	return f, err
}

// sum reads all: its sum, and whether it is a build of ours.
func sum(r io.Reader) (sha string, netctl bool, err error) {
	hash, seen := sha256.New(), &finder{word: []byte(mark)}
	if _, err := io.Copy(io.MultiWriter(hash, seen), r); err != nil {
		return "", false, err
	}
	return hex.EncodeToString(hash.Sum(nil)), seen.found, nil
}

// finder looks for a word in what is written to it.
type finder struct {
	word, tail []byte
	found      bool
}

func (f *finder) Write(b []byte) (int, error) {
	if !f.found {
		f.tail = append(f.tail, b...)
		f.found = bytes.Contains(f.tail, f.word)
		f.tail = append(f.tail[:0], f.tail[max(0, len(f.tail)-len(f.word)):]...)
	}
	return len(b), nil
}
