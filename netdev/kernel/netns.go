package kernel

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netctl/datastore"
)

// Netns is an open network namespace. Device and inode identify it as long as it
// is open.
type Netns struct {
	fd       int
	close    func() error
	Dev, Ino uint64
}

// FD is the descriptor, valid until Close.
func (n *Netns) FD() int { return n.fd }

// Close releases the namespace.
func (n *Netns) Close() error { return n.close() }

// Same reports whether both are the same namespace.
func (n *Netns) Same(o *Netns) bool { return n.Dev == o.Dev && n.Ino == o.Ino }

func openThreadNetns() (*Netns, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	n, err := identify(f)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("own network namespace: %w", err)
	}
	return n, nil
}

func identify(f *os.File) (*Netns, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	return &Netns{fd: int(f.Fd()), close: f.Close, Dev: st.Dev, Ino: st.Ino}, nil
}

// OpenNetns opens the network namespace that process pid has open as descriptor
// fd. It must be one, and not the one this Kernel works in: else the error wraps
// datastore.ErrInvalid, and says what it is, but not where.
func (k *Kernel) OpenNetns(pid, fd int) (*Netns, error) {
	n, err := openNetns(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
	if err != nil {
		return nil, err
	}
	if n.Same(k.own) {
		_ = n.Close()
		return nil, fmt.Errorf("is the host's own, and must be the workload's: %w", datastore.ErrInvalid)
	}
	return n, nil
}

// OpenNetnsFile opens the network namespace that a file names.
func OpenNetnsFile(path string) (*Netns, error) { return openNetns(path) }

// Do calls fn on a thread that is in the namespace.
func (n *Netns) Do(fn func() error) error { return inNetns(n.fd, fn) }

// openNetns looks before it opens: to open a FIFO or a device named by a stranger
// would block or have effects.
func openNetns(path string) (*Netns, error) {
	look, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(look)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(look, &fs); err != nil {
		return nil, err
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("not a namespace, as /run/netns/NAME and /proc/PID/ns/net are: %w", datastore.ErrInvalid)
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", look))
	if err != nil {
		return nil, err
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err == nil && kind != unix.CLONE_NEWNET {
		err = fmt.Errorf("a namespace of another kind, no network namespace: %w", datastore.ErrInvalid)
	}
	var n *Netns
	if err == nil {
		n, err = identify(f)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return n, nil
}

// inNetns calls fn on a thread that is in the network namespace; a thread that
// cannot go back is given up.
func inNetns(fd int, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := netns.Get()
		if err == nil {
			defer own.Close()
			err = netns.Set(netns.NsHandle(fd))
		}
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = fn()
		if back := netns.Set(own); back == nil {
			runtime.UnlockOSThread()
		} else {
			err = errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
		}
		done <- err
	}()
	return <-done
}
