package qemulab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// writeImage writes the guest's first file system.
func (g Guest) writeImage(path string) (err error) {
	files := map[string]string{}
	for to, from := range g.Files {
		files[to] = from
	}
	list, err := modules(g.kernel(), g.Modules)
	if err != nil {
		return err
	}
	for _, m := range list {
		files["/modules/"+filepath.Base(m)] = filepath.Join(g.kernel(), m)
	}
	for _, tool := range append([]string{"busybox"}, g.Tools...) {
		if files["/bin/"+tool], err = exec.LookPath(tool); err != nil {
			return err
		}
	}
	// busybox's own shell takes its applets for programs of the same name.
	if files["/bin/sh"], err = exec.LookPath("sh"); err != nil {
		return err
	}
	programs := map[string]string{}
	for to, from := range files {
		if strings.HasPrefix(to, "/bin/") {
			programs[to] = from
		}
	}
	for _, from := range programs {
		libraries, err := needed(from)
		if err != nil {
			return err
		}
		for _, l := range libraries {
			files[l] = l
		}
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := &archive{out: bufio.NewWriterSize(f, 1<<20), folders: map[string]bool{"/": true}}
	w.add("/init", 0o100755, strings.NewReader(g.init(list)), int64(len(g.init(list))))
	for to, from := range files {
		w.copy(to, from)
	}
	w.end()
	return errors.Join(w.err, w.out.Flush(), f.Close())
}

// needed are the shared libraries of a program, and what loads them.
func needed(program string) (paths []string, err error) {
	out, err := exec.Command("ldd", program).Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) { // it is static
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				paths = append(paths, word)
			}
		}
	}
	return paths, nil
}

// archive writes a cpio archive in the form "newc", as the kernel reads it
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	out     *bufio.Writer
	folders map[string]bool // those that are in it
	inode   int
	err     error // the first
}

func (a *archive) copy(to, from string) {
	f, err := os.Open(from)
	if err != nil {
		a.fail(err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		a.fail(err)
		return
	}
	a.add(to, 0o100000|int(st.Mode().Perm()), f, st.Size())
}

func (a *archive) fail(err error) { a.err = errors.Join(a.err, err) }

// add writes one file, and its folders before it.
func (a *archive) add(name string, mode int, content io.Reader, size int64) {
	if dir := filepath.Dir(name); !a.folders[dir] {
		a.folders[dir] = true
		a.add(dir, 0o040755, strings.NewReader(""), 0)
	}
	a.entry(strings.TrimPrefix(name, "/"), mode, content, size)
}

func (a *archive) entry(name string, mode int, content io.Reader, size int64) {
	a.inode++
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	_, err := a.out.WriteString(head)
	a.pad(int64(len(head)))
	n, copied := io.Copy(a.out, content)
	a.pad(n)
	if n != size {
		copied = errors.Join(copied, fmt.Errorf("%s: %d bytes, not %d", name, n, size))
	}
	if err := errors.Join(err, copied); err != nil {
		a.fail(err)
	}
}

// pad fills up to a multiple of four bytes.
func (a *archive) pad(n int64) {
	for ; n%4 != 0; n++ {
		if err := a.out.WriteByte(0); err != nil {
			a.fail(err)
		}
	}
}

func (a *archive) end() { a.entry("TRAILER!!!", 0, strings.NewReader(""), 0) }
