package install

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Action is what becomes of one path.
type Action string

// The actions.
const (
	Write   Action = "write"   // nothing was there
	Replace Action = "replace" // what an install laid down is another
	Same    Action = "same"    // nothing to do
	Kept    Action = "kept"    // it is a person's; Why says what that means
	Remove  Action = "remove"  // it was laid down and is not any more
)

// Step is what becomes of one path.
type Step struct {
	Action Action
	Path   string
	Why    string

	item Item
	at   string // in the file system
	was  *found
	sum  string
	save bool // what is there is kept beside it
}

// Plan is what an install or uninstall will do.
type Plan struct {
	Steps []Step

	root    string
	binary  string // where the program itself goes
	old     *manifest
	next    *manifest
	folders []string // to be made
	disk    disk
}

// Changes are the steps that change or keep something, in the order of their paths'
// laying down.
func (p *Plan) Changes() []Step {
	return slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool { return s.Action == Same })
}

// Prefix is the folder of bin and share of the install in the folder root; "": there is
// none.
func Prefix(root string) (string, error) {
	m, err := readManifest(root)
	if m == nil || err != nil {
		return "", err
	}
	return m.Prefix, nil
}

// Untouched says whether file is the configuration that an install in the folder root
// laid down, or a package, and nobody changed it since: it is nobody's then.
func Untouched(root, file string) (bool, error) {
	m, err := readManifest(root)
	if err != nil {
		return false, err
	}
	at, err := place(root, ConfigFile)
	if err != nil {
		return false, err
	}
	if file, err = filepath.Abs(file); err != nil || file != at {
		return false, err
	}
	is, err := look(at, ConfigFile)
	if is == nil || err != nil {
		return false, err
	}
	it := Item{Path: ConfigFile, Text: config(DefaultRoles())} // a package has no manifest
	packaged, err := it.entry()
	return m.has(is.Entry) || is.Entry == packaged, err
}

// New plans an install; it changes nothing. Everything that can be seen to be in the way
// is an error.
func New(o Options) (*Plan, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Root != "" {
		if st, err := os.Stat(o.Root); err != nil {
			return nil, optionError("root: %v", err)
		} else if !st.IsDir() {
			return nil, optionError("root %s: not a folder", o.Root)
		}
	}
	old, err := readManifest(o.Root)
	if err != nil {
		return nil, err
	}
	p := &Plan{root: o.Root, binary: o.Binary(), old: old, next: &manifest{Prefix: o.Prefix}}
	networks, err := place(o.Root, NetworksDir+"/any")
	if err != nil {
		return nil, err
	}
	names := networksIn(filepath.Dir(networks))
	var errs []error
	failed := func(err error) {
		if err != nil && !slices.ContainsFunc(errs, func(e error) bool { return e.Error() == err.Error() }) {
			errs = append(errs, err) // what is in the way of many is said once
		}
	}
	for _, it := range o.items(names) {
		s, err := p.step(it, o.Replace)
		if err != nil {
			failed(err)
			continue
		}
		p.Steps = append(p.Steps, s)
	}
	if o.conflist(names) == "" {
		p.Steps = append(p.Steps, Step{Action: Kept, Path: NetworksDir, Why: fmt.Sprintf("%s is there already, and a CRI runtime takes the first: ask for one of netctl with --conflist NAME", names[0])})
	}
	failed(p.needFolders(Manifest))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return p, p.stale()
}

// step decides about one item.
func (p *Plan) step(it Item, replace bool) (s Step, err error) {
	s = Step{Path: it.Path, item: it}
	if s.at, err = place(p.root, it.Path); err != nil {
		return s, err
	}
	if err := p.needFolders(it.Path); err != nil {
		return s, err
	}
	if s.was, err = look(s.at, it.Path); err != nil {
		return s, err
	}
	want, err := it.entry()
	if err != nil {
		return s, err
	}
	s.sum = want.SHA256
	ours := s.was != nil && p.old.has(s.was.Entry)
	switch {
	case s.was == nil:
		s.Action = Write
	case s.was.Entry == want && (it.Target != "" || it.Yours || s.was.mode == it.Mode):
		s.Action = Same
		if !ours {
			return s, nil // it is not netctl's to take away
		}
	case ours, s.was.Entry == want, !it.Yours && (s.was.netctl || s.was.leadsTo(p.binary)):
		s.Action = Replace
	case replace && !it.Yours:
		s.Action, s.save = Replace, true
		s.Why = "what was there is " + it.Path + ".orig now"
	case it.Must:
		return s, fmt.Errorf("%s is not netctl's: move it away, choose another --prefix, or say --replace", s.at)
	case it.Yours:
		s.Action, s.Why = Kept, "yours"
	case p.old.knows(it.Path):
		s.Action, s.Why = Kept, "changed since it was installed; --replace puts the new one there and keeps yours beside it"
	default:
		s.Action, s.Why = Kept, "not netctl's; --replace puts netctl's there and keeps this one beside it"
	}
	if s.Action == Kept && p.old.knows(it.Path) {
		for _, e := range p.old.Entries { // should it be as it was again
			if e.Path == it.Path {
				p.next.add(e)
			}
		}
	}
	if s.Action != Kept {
		p.next.add(want)
	}
	return s, nil
}

// entry is the item as the manifest has it.
func (it *Item) entry() (e Entry, err error) {
	e = Entry{Path: it.Path, Link: it.Target}
	switch {
	case it.Target != "":
	case it.Source != "":
		f, err := os.Open(it.Source)
		if err != nil {
			return e, err
		}
		defer f.Close()
		e.SHA256, _, err = sum(f)
		return e, err
	default:
		e.SHA256, _, err = sum(bytes.NewReader(it.Text))
	}
	return e, err
}

// needFolders notes the folders above a path that are to be made.
func (p *Plan) needFolders(name string) error {
	at, err := place(p.root, name)
	if err != nil {
		return err
	}
	missing, err := missingFolders(at)
	if err != nil {
		return err
	}
	for _, dir := range missing {
		if !slices.Contains(p.folders, dir) {
			p.folders = append(p.folders, dir)
		}
	}
	if len(missing) == 0 {
		return writable(filepath.Dir(at))
	}
	return writable(filepath.Dir(missing[0]))
}

func writable(dir string) error {
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return fmt.Errorf("%s: cannot be written: %w", dir, err)
	}
	return nil
}

// stale plans the removal of what an earlier install laid down and this one does not.
func (p *Plan) stale() error {
	if p.old == nil {
		return nil
	}
	for _, e := range p.old.Entries {
		if slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Path == e.Path }) {
			continue
		}
		if err := p.takeAway(e); err != nil {
			return err
		}
	}
	return nil
}

// takeAway plans the removal of something that was laid down, if it still is what it was.
func (p *Plan) takeAway(e Entry) error {
	s := Step{Action: Remove, Path: e.Path}
	var err error
	if s.at, err = place(p.root, e.Path); err != nil {
		return err
	}
	if s.was, err = look(s.at, e.Path); err != nil && !strings.Contains(err.Error(), "in the way") {
		return err
	}
	switch {
	case err != nil:
		s.Action, s.Why = Kept, "not what was installed"
	case s.was == nil:
		return nil
	case !p.old.has(s.was.Entry):
		s.Action, s.Why = Kept, "changed since it was installed: yours"
	}
	if !slices.ContainsFunc(p.Steps, func(t Step) bool { return t.Path == s.Path }) {
		p.Steps = append(p.Steps, s)
	}
	if p.next != nil {
		p.next.add(e) // until the next install, which finds what is left beside it
	}
	return nil
}

// NewUninstall plans to take away what was laid down in the folder root; nil: nothing
// was.
func NewUninstall(root string) (*Plan, error) {
	old, err := readManifest(root)
	if old == nil || err != nil {
		return nil, err
	}
	p := &Plan{root: root, old: old}
	for _, e := range old.Entries {
		if err := p.takeAway(e); err != nil {
			return nil, err
		}
	}
	return p, nil
}
