package control

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"
)

// lookEvery is how often folders are looked at on a host that has no inotify
// instance or watch left (fs.inotify.max_user_instances).
const lookEvery = time.Second

// Folder is a folder in which files matter to a role.
type Folder struct {
	Dir string
	// Foreign is somebody else's: it is not made, and the watch ends when it is not there
	// (fs.ErrNotExist).
	Foreign bool
	// Look is told the name of a file that came, went, was replaced or written, or "" where
	// any may have. Its error ends the watch.
	Look func(name string) error
}

// make has the folder there.
func (f Folder) make() error {
	if !f.Foreign {
		return os.MkdirAll(f.Dir, 0o700)
	}
	_, err := os.Stat(f.Dir)
	return err
}

// mostLooks bounds how often a look is repeated.
const mostLooks = 100

// look is Look, once more if what it made was removed meanwhile.
func (f Folder) look(name string) error {
	for tries := 1; ; tries++ {
		if err := f.Look(name); !errors.Is(err, fs.ErrNotExist) || tries == mostLooks {
			return err
		}
	}
}

// WatchFolders has each folder looked at once, and then whenever a file in it
// appears complete, goes, or is replaced or written (inotify(7)), until ctx ends (nil) or a look
// fails. A folder that is not there, or goes, is made (0700) unless it is foreign.
func WatchFolders(ctx context.Context, log *slog.Logger, folders ...Folder) error {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return lookRegularly(ctx, log, err, folders)
	}
	w := &folderWatch{file: os.NewFile(uintptr(fd), "inotify"), fd: fd, of: map[int32][]Folder{}}
	defer w.file.Close()
	defer context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })()
	for _, f := range folders {
		if err == nil {
			err = w.arm(f)
		}
	}
	for err == nil {
		err = w.next()
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, errNoWatch):
		return lookRegularly(ctx, log, err, folders)
	}
	return err
}

// lookRegularly is WatchFolders without inotify.
func lookRegularly(ctx context.Context, log *slog.Logger, why error, folders []Folder) error {
	log.Warn("files cannot be watched, they are looked at every second", "error", why)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, f := range folders {
			if err := f.make(); err != nil {
				return err
			}
			if err := f.look(""); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// folderWatch is an inotify instance.
type folderWatch struct {
	file *os.File
	fd   int
	of   map[int32][]Folder // by watch descriptor
}

// What is asked of a folder. Ours are renamed into their place: who closes one that could
// be written has changed it.
const (
	folderGone   = syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF | syscall.IN_UNMOUNT
	folderEvents = syscall.IN_CLOSE_WRITE | syscall.IN_MOVED_TO | syscall.IN_MOVED_FROM | syscall.IN_DELETE | syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF | syscall.IN_ONLYDIR
)

// errNoWatch says that the host's inotify watches are used up
// (fs.inotify.max_user_watches).
var errNoWatch = errors.New("no inotify watch left")

// arm begins to watch a folder and looks at it.
func (w *folderWatch) arm(f Folder) error {
	wd, err := w.watch(f)
	if err != nil {
		return err
	}
	w.of[wd] = append(w.of[wd], f)
	return f.look("")
}

// watch is the descriptor of the folder that has the name now.
func (w *folderWatch) watch(f Folder) (int32, error) {
	for {
		if err := f.make(); err != nil {
			return 0, err
		}
		wd, err := syscall.InotifyAddWatch(w.fd, f.Dir, folderEvents)
		switch {
		case err == nil:
			return int32(wd), nil
		case errors.Is(err, syscall.ENOSPC):
			return 0, errNoWatch
		case !errors.Is(err, fs.ErrNotExist): // else it went just now
			return 0, &fs.PathError{Op: "watch", Path: f.Dir, Err: err}
		}
	}
}

// next waits for events and works them off.
func (w *folderWatch) next() error {
	var buf [8 << 10]byte
	n, err := w.file.Read(buf[:])
	for at := 0; err == nil && at+syscall.SizeofInotifyEvent <= n; {
		wd := int32(binary.NativeEndian.Uint32(buf[at:]))
		mask := binary.NativeEndian.Uint32(buf[at+4:])
		size := int(binary.NativeEndian.Uint32(buf[at+12:]))
		at += syscall.SizeofInotifyEvent
		name := strings.TrimRight(string(buf[at:at+size]), "\x00")
		at += size
		err = w.event(wd, mask, name)
	}
	return err
}

func (w *folderWatch) event(wd int32, mask uint32, name string) error {
	if mask&syscall.IN_Q_OVERFLOW != 0 {
		for wd := range w.of {
			if err := w.rearm(wd); err != nil {
				return err
			}
		}
		return nil
	}
	if mask&folderGone != 0 {
		return w.rearm(wd)
	}
	folders := w.of[wd]
	for _, f := range folders {
		if err := f.look(name); err != nil {
			return err
		}
	}
	if mask&syscall.IN_DELETE != 0 && len(folders) > 0 {
		// The folder may have gone with it, unseen while somebody has it open.
		if now, err := w.watch(folders[0]); err != nil || now != wd {
			return errors.Join(err, w.rearm(wd))
		}
	}
	return nil
}

// rearm begins anew with the folders of a watch.
func (w *folderWatch) rearm(wd int32) error {
	folders := w.of[wd]
	delete(w.of, wd)
	_, _ = syscall.InotifyRmWatch(w.fd, uint32(wd)) // it may be gone already
	for _, f := range folders {
		if err := w.arm(f); err != nil {
			return err
		}
	}
	return nil
}
