package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"netctl/datastore"
)

// disk does every step that changes something; fail, if set, is asked before each of
// them: it is how tests break one.
type disk struct{ fail func(op, path string) error }

// errKilled stands for the end of the process: nothing is undone after it.
var errKilled = errors.New("killed")

func (d disk) do(op, path string, fn func() error) error {
	if d.fail != nil {
		if err := d.fail(op, path); err != nil {
			return fmt.Errorf("%s %s: %w", op, path, err)
		}
	}
	return fn()
}

// beside is a hidden name in the same folder.
func beside(at, what string) string {
	return filepath.Join(filepath.Dir(at), ".netctl-"+what+"."+filepath.Base(at))
}

// Apply does what was planned: all of it, or nothing.
func (p *Plan) Apply() (err error) {
	var undo []func() error
	defer func() {
		if err == nil || errors.Is(err, errKilled) {
			return
		}
		for _, fn := range slices.Backward(undo) {
			if e := fn(); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, fmt.Errorf("put back: %w", e))
			}
		}
	}()
	state, err := place(p.root, Manifest)
	if err != nil {
		return err
	}
	// What is above the manifest comes first: from then on all that is made is known.
	above := func(dir string) bool { return strings.HasPrefix(state, dir+"/") }
	if err := p.makeFolders(above, &undo); err != nil {
		return err
	}
	unlock, err := lockFolder(filepath.Dir(state))
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.sweep(state); err != nil {
		return err
	}
	if p.next == nil {
		return p.remove(state, above)
	}
	p.next.Folders = p.rememberFolders()
	both := &manifest{Prefix: p.next.Prefix, Entries: slices.Clone(p.next.Entries), Folders: p.next.Folders}
	if p.old != nil {
		for _, e := range p.old.Entries {
			both.add(e)
		}
	}
	undo = append(undo, func() error { return p.writeManifest(state, p.old) })
	if err := p.disk.do("write", state, func() error { return p.writeManifest(state, both) }); err != nil {
		return err
	}
	if err := p.makeFolders(func(dir string) bool { return !above(dir) }, &undo); err != nil {
		return err
	}
	return p.lay(state, &undo)
}

// makeFolders makes those of the missing folders.
func (p *Plan) makeFolders(those func(dir string) bool, undo *[]func() error) error {
	for _, dir := range p.folders {
		if !those(dir) {
			continue
		}
		mode := fs.FileMode(0o755)
		if filepath.Base(dir) == filepath.Base(filepath.Dir(Manifest)) {
			mode = 0o700
		}
		if err := p.disk.do("make folder", dir, func() error { return makeFolder(dir, mode) }); err != nil {
			return err
		}
		*undo = append(*undo, func() error { return os.Remove(dir) })
	}
	return nil
}

// sweep removes what an install that was killed left beside its files.
func (p *Plan) sweep(state string) error {
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(state), ".install.json-*")) // the pattern is right
	for _, s := range p.Steps {
		if s.at != "" {
			left = append(left, beside(s.at, "new"), beside(s.at, "old"))
		}
	}
	if p.old != nil {
		for _, e := range p.old.Entries {
			at, err := place(p.root, e.Path)
			if err != nil {
				return err
			}
			left = append(left, beside(at, "new"), beside(at, "old"))
		}
	}
	for _, file := range left {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return err
		}
	}
	return nil
}

// lay lays everything down; undo takes how each step is undone.
func (p *Plan) lay(state string, undo *[]func() error) error {
	for _, s := range p.Steps {
		if s.Action != Write && s.Action != Replace {
			continue
		}
		*undo = append(*undo, func() error { return os.Remove(beside(s.at, "new")) })
		if err := p.disk.do("write", s.at, func() error { return s.stage() }); err != nil {
			return err
		}
	}
	for _, s := range p.Steps {
		if err := p.commit(s, undo); err != nil {
			return err
		}
	}
	if err := p.disk.do("write", state, func() error { return p.writeManifest(state, p.next) }); err != nil {
		return err
	}
	for _, s := range p.Steps {
		if s.Action != Replace && s.Action != Remove {
			continue
		}
		if err := p.disk.do("remove", beside(s.at, "old"), func() error { return os.Remove(beside(s.at, "old")) }); errors.Is(err, errKilled) {
			return err
		} // otherwise the next install does it
	}
	return nil
}

// commit puts one step in its place; what was there is beside it until all is done.
func (p *Plan) commit(s Step, undo *[]func() error) error {
	old := beside(s.at, "old")
	switch s.Action {
	case Write:
		*undo = append(*undo, func() error { return os.Remove(s.at) })
		return p.disk.do("place", s.at, func() error { return os.Rename(beside(s.at, "new"), s.at) })
	case Replace:
		if err := p.disk.do("keep", s.at, func() error { return os.Link(s.at, old) }); err != nil {
			return err
		}
		*undo = append(*undo, func() error { return putBack(old, s.at) })
		if s.save {
			if err := p.disk.do("keep", s.at, func() error { return os.Link(s.at, s.at+".orig") }); err != nil {
				return fmt.Errorf("keep what is there: %w", err)
			}
			*undo = append(*undo, func() error { return os.Remove(s.at + ".orig") })
		}
		return p.disk.do("place", s.at, func() error { return os.Rename(beside(s.at, "new"), s.at) })
	case Remove:
		*undo = append(*undo, func() error { return os.Rename(old, s.at) })
		return p.disk.do("remove", s.at, func() error { return os.Rename(s.at, old) })
	}
	return nil
}

// putBack undoes a replacement. Two names of one file stay both after a rename.
func putBack(old, at string) error {
	if err := os.Rename(old, at); err != nil {
		return err
	}
	return os.Remove(old)
}

// stage writes what is to be laid down beside its place.
func (s *Step) stage() (err error) {
	at := beside(s.at, "new")
	if s.item.Target != "" {
		return os.Symlink(s.item.Target, at)
	}
	var in io.Reader = bytes.NewReader(s.item.Text)
	if s.item.Source != "" {
		f, err := os.Open(s.item.Source)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	out, err := os.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(s.item.Mode)
	}
	if err == nil && s.item.Source != "" {
		err = out.Sync() // the small ones can be written again
	}
	return errors.Join(err, out.Close())
}

// remove takes away what was laid down: the manifest, and the folders above it, last. One
// that is stopped is finished by the next.
func (p *Plan) remove(state string, above func(dir string) bool) error {
	for _, s := range p.Steps {
		if s.Action != Remove {
			continue
		}
		if err := p.disk.do("remove", s.at, func() error { return os.Remove(s.at) }); err != nil {
			return err
		}
	}
	empty := func(those func(string) bool) error {
		for _, dir := range slices.Backward(p.old.Folders) {
			at, err := place(p.root, dir)
			if err == nil && those(at) {
				err = p.disk.do("remove", at, func() error { return os.Remove(at) })
			}
			if errors.Is(err, errKilled) {
				return err
			} // a folder with something in it stays
		}
		return nil
	}
	if err := empty(func(dir string) bool { return !above(dir) }); err != nil {
		return err
	}
	if err := p.disk.do("remove", state, func() error { return os.Remove(state) }); err != nil {
		return err
	}
	return empty(above)
}

// rememberFolders are those that installs made, as paths of the machine.
func (p *Plan) rememberFolders() (list []string) {
	if p.old != nil {
		list = slices.Clone(p.old.Folders)
	}
	for _, dir := range p.folders {
		rel := dir
		if p.root != "" {
			if r, err := filepath.Rel(p.root, dir); err == nil {
				rel = "/" + r
			}
		}
		if !slices.Contains(list, rel) {
			list = append(list, rel)
		}
	}
	return list
}

func (p *Plan) writeManifest(at string, m *manifest) error {
	if m == nil {
		return os.Remove(at)
	}
	return datastore.WriteFile(at, m.text(), datastore.FileOptions{})
}

// makeFolder makes a folder that may be there meanwhile; the mode is not the umask's.
func makeFolder(dir string, mode fs.FileMode) error {
	err := os.Mkdir(dir, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, mode)
	}
	return err
}

// lockFolder makes sure that nobody else installs or uninstalls meanwhile.
func lockFolder(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errors.New("another install or uninstall is at it: wait for its end")
		}
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
