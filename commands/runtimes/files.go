package runtimes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"netctl/commands/control"
	"netctl/datastore"
)

// maxFile bounds what is read of a network's file, in bytes.
const maxFile = 1 << 20

// files is a place of which each network is a file in a folder.
type files struct {
	dir string
	log *slog.Logger
	// name is the file of a network that netctl makes; of is its inverse, "" for others.
	name func(network string) string
	of   func(file string) string
	// ends are how the names of the files end that the runtimes read.
	ends []string
	text func(Network) []byte
	who  func() []string
}

func (p *files) serves() []string { return p.who() }

// look reads the folder. A file that cannot be read as a network is nobody's, but under
// the name of one of netctl's.
func (p *files) look(context.Context) (map[string]found, error) {
	entries, err := os.ReadDir(p.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	have := map[string]found{}
	for _, e := range entries {
		own := p.of(e.Name())
		f := found{at: filepath.Join(p.dir, e.Name())}
		text, err := read(f.at)
		if errors.Is(err, fs.ErrNotExist) || err != nil && own == "" || !slices.Contains(p.ends, filepath.Ext(e.Name())) {
			continue
		}
		var is struct{ Name string }
		_ = json.Unmarshal(text, &is) // else it has no name
		if is.Name != "" && is.Name != own {
			book(have, is.Name, f)
		}
		if own != "" {
			f.ours, f.changed = unsealed(text)
			f.changed = f.changed || is.Name != own
			f.same = func(n Network) bool { return string(p.text(n)) == string(text) }
			book(have, own, f)
		}
	}
	return have, nil
}

// book takes note of a network; of two with one name netctl's counts.
func book(have map[string]found, name string, f found) {
	other, ok := have[name]
	switch {
	case ok && other.ours:
		other.also = f.at
		f = other
	case ok:
		f.also = other.at
	}
	have[name] = f
}

// read is the text of a regular file.
func read(path string) ([]byte, error) {
	if is, err := os.Stat(path); err != nil || !is.Mode().IsRegular() { // a pipe would never end
		return nil, cmp.Or(err, errors.New(path+": is no file"))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

func (p *files) put(_ context.Context, n Network, have *found) error {
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		return readOnly(err)
	}
	err := datastore.WriteFile(filepath.Join(p.dir, p.name(n.Name)), p.text(n), datastore.FileOptions{Mode: 0o644, New: have == nil})
	return readOnly(err)
}

func (p *files) remove(_ context.Context, have found) error {
	if err := os.Remove(have.at); !errors.Is(err, fs.ErrNotExist) {
		return readOnly(err)
	}
	return nil
}

func (p *files) watch(ctx context.Context, changed func()) error {
	if len(p.serves()) == 0 {
		return nil
	}
	err := control.WatchFolders(ctx, p.log, control.Folder{Dir: p.dir, Foreign: true, Look: func(string) error { changed(); return nil }})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it comes with the first network
	}
	return err
}

// readOnly says what to do about a folder that the agent's unit may not write: it was not
// there when the unit started.
func readOnly(err error) error {
	if errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("%w: restart netctl's unit, which found no such folder when it started", err)
	}
	return err
}
