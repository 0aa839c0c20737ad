package control

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"netctl/datastore"
)

// Kept are files of a folder that belong to one role alone, and that it knows the
// contents of: one that is taken away, replaced or written while the role runs comes back
// as it was. It is safe for concurrent use.
type Kept struct {
	dir string
	how datastore.FileOptions

	mu    sync.Mutex
	files map[string][]byte // by name; what was read or written
}

// Keep returns the files in dir, which need not exist.
func Keep(dir string, how datastore.FileOptions) *Kept {
	return &Kept{dir: dir, how: how, files: map[string][]byte{}}
}

// Path is where a file is.
func (k *Kept) Path(name string) string { return filepath.Join(k.dir, name) }

// Read returns what a file held when it was read or written first or last; fs.ErrNotExist
// if there is none and was none.
func (k *Kept) Read(name string) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if had, known := k.files[name]; known {
		return slices.Clone(had), nil
	}
	text, err := os.ReadFile(k.Path(name))
	if err != nil {
		return nil, err
	}
	k.files[name] = slices.Clone(text)
	return text, nil
}

// Write replaces a file; see datastore.WriteFile.
func (k *Kept) Write(name string, text []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := datastore.WriteFile(k.Path(name), text, k.how); err != nil {
		return err
	}
	k.files[name] = slices.Clone(text)
	return nil
}

// Remove removes a file; that there is none is no error.
func (k *Kept) Remove(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.files, name)
	if err := os.Remove(k.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Folder is where the files are.
func (k *Kept) Folder() Folder {
	return Folder{Dir: k.dir, Look: func(name string) error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if name != "" {
			return k.restore(name)
		}
		for name := range k.files {
			if err := k.restore(name); err != nil {
				return err
			}
		}
		return nil
	}}
}

// restore writes a file that is not what it was.
func (k *Kept) restore(name string) error {
	text, known := k.files[name]
	if !known {
		return nil
	}
	switch is, err := os.ReadFile(k.Path(name)); {
	case err == nil && bytes.Equal(is, text):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil // it cannot be put right by writing either, or will be with the next event
	}
	return datastore.WriteFile(k.Path(name), text, k.how)
}
