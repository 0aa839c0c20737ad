package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// maxLinks is how many symbolic links lead to a file at most, as in the kernel.
const maxLinks = 40

// place is where a path of the machine lies below the folder root, with symbolic links
// followed as the image itself will: absolute ones begin at root, and none leads out
// of it. The last name is not followed. What does not exist is taken as it is.
func place(root, name string) (string, error) {
	if root == "" {
		root = "/"
	}
	done, left := "/", strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	for links := 0; len(left) > 1; {
		part := left[0]
		left = left[1:]
		if part == ".." {
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil { // no link, or nothing
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s: too many symbolic links", name)
		}
		if path.IsAbs(target) {
			done = "/"
		}
		left = append(strings.Split(strings.Trim(path.Clean(target), "/"), "/"), left...)
	}
	return filepath.Join(root, done, left[0]), nil
}

// missingFolders are the folders above file that do not exist, the topmost first. What
// is there and no folder is an error.
func missingFolders(file string) (list []string, err error) {
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if _, err := os.Lstat(dir); err == nil {
				return nil, fmt.Errorf("%s: a link to nothing, it must be a folder: put that right", dir)
			}
			list = append([]string{dir}, list...)
			continue
		case err != nil:
			if strings.Contains(err.Error(), "not a directory") {
				continue // what is above it says so
			}
			return nil, err
		case !st.IsDir():
			return nil, fmt.Errorf("%s: a file, it must be a folder: move it away", dir)
		}
		return list, nil
	}
}
