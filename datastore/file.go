package datastore

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// FileOptions say how WriteFile places a file.
type FileOptions struct {
	// Mode is the file's; 0 is 0600.
	Mode fs.FileMode
	// New refuses to replace a file: ErrExists.
	New bool
	// Volatile is for what goes with the boot: it survives the process only, and
	// nothing waits for the disk.
	Volatile bool
}

// WriteFile makes text the contents of the file at path in one step: a crash, of the
// machine too unless it is Volatile, leaves the old file or the new one. The folder
// is made (0700) if need be. A process that is killed meanwhile may leave a file
// whose name starts with a dot beside it.
func WriteFile(path string, text []byte, o FileOptions) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // 0600 at most
	if err != nil {
		return err
	}
	placed := false
	defer func() {
		if !placed {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(cmp.Or(o.Mode, 0o600)) // whatever the umask says
	}
	if err == nil && !o.Volatile {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if o.New { // a link, unlike a rename, fails if the name is taken
		err = os.Link(f.Name(), path)
	} else {
		err = os.Rename(f.Name(), path)
		placed = err == nil
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s: %w", path, ErrExists)
	case err != nil || o.Volatile:
		return err
	}
	return syncFolder(dir)
}

// syncFolder puts the names in a folder on the disk (fsync(2): syncing a file does
// not sync its name).
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // there are file systems that know no such thing
	}
	return errors.Join(err, d.Close())
}
