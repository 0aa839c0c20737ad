package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"netctl/commands/control"
)

// folder is where the file is that tells the next agent of a debt; it comes back when
// somebody removes it.
func (d *debt) folder() control.Folder {
	return control.Folder{Dir: filepath.Dir(d.path), Look: func(name string) error {
		if d.path == "" || name != "" && name != filepath.Base(d.path) {
			return nil
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if _, err := os.Lstat(d.path); !d.there || !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return os.WriteFile(d.path, nil, 0o600)
	}}
}
