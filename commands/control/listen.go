package control

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Listener is a unix socket that only processes of root and of the listener's
// own user can use. Each of its connections knows the PID of its peer. It may be
// made again while it is served.
type Listener struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex
	unix   *net.UnixListener
	file   fs.FileInfo // of the socket
	closed bool
}

// Listen makes the socket (0600, its folder 0700 if it does not exist). A
// socket that nobody serves any more is replaced; one that somebody serves is an
// error.
func Listen(path string, log *slog.Logger) (*Listener, error) {
	l := &Listener{path: path, log: log}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	return l, nil
}

// open listens, in the place of a socket that nobody serves. It is made beside its
// place and renamed: who finds it is answered.
func (l *Listener) open() error {
	dir := filepath.Dir(l.path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	conn, err := net.Dial("unix", l.path)
	if err == nil {
		conn.Close()
	}
	if err == nil || errors.Is(err, syscall.EAGAIN) { // its queue is full
		return errors.New("another process serves this socket")
	}
	if st, err := os.Lstat(l.path); err == nil && st.Mode()&fs.ModeSocket == 0 {
		return errors.New("exists and is no socket")
	}
	// Not a longer name: that of a socket has 107 bytes at most (unix(7)).
	made := filepath.Join(dir, "."+filepath.Base(l.path)[:1]+strconv.Itoa(os.Getpid()))
	if err := os.Remove(made); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unix, err := net.ListenUnix("unix", &net.UnixAddr{Name: made, Net: "unix"})
	if err != nil {
		return err
	}
	// What is left when the process ends, however, says that it was there.
	unix.SetUnlinkOnClose(false)
	err = os.Chmod(made, 0o600)
	var st fs.FileInfo
	if err == nil {
		st, err = os.Lstat(made)
	}
	if err == nil {
		err = os.Rename(made, l.path)
	}
	if err != nil {
		unix.Close()
		os.Remove(made)
		return err
	}
	if l.unix != nil {
		l.unix.Close()
	}
	l.unix, l.file = unix, st
	return nil
}

// Folder is where the socket is: it is made again when it goes.
func (l *Listener) Folder() Folder {
	return Folder{Dir: filepath.Dir(l.path), Look: func(name string) error {
		if name != "" && name != filepath.Base(l.path) {
			return nil
		}
		return l.renew()
	}}
}

// renew listens again if the socket is not the one that was made.
func (l *Listener) renew() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if st, err := os.Lstat(l.path); l.closed || err == nil && os.SameFile(st, l.file) {
		return nil
	}
	if err := l.open(); err != nil {
		return fmt.Errorf("listen %s again: %w", l.path, err)
	}
	l.log.Warn("socket was gone, made again", "socket", l.path)
	return nil
}

// current is the socket that is served now; false: none any more.
func (l *Listener) current() (*net.UnixListener, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unix, !l.closed
}

// peerConn is a connection whose other end is known.
type peerConn struct {
	*net.UnixConn
	peer *syscall.Ucred
}

// Accept implements net.Listener. A connection of another user is closed and
// never returned.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		unix, _ := l.current()
		conn, err := unix.AcceptUnix()
		if err != nil {
			if now, open := l.current(); open && now != unix {
				continue // it was made again
			}
			return nil, err
		}
		cred, err := peerOf(conn)
		if err == nil && (cred.Uid == 0 || cred.Uid == uint32(os.Geteuid())) {
			return &peerConn{conn, cred}, nil
		}
		if err != nil {
			l.log.Warn("caller unknown, refused", "socket", l.path, "error", err)
		} else {
			l.log.Warn("caller is not root, refused", "socket", l.path, "uid", cred.Uid, "pid", cred.Pid)
		}
		conn.Close()
	}
}

// Log is where what goes wrong with callers is written.
func (l *Listener) Log() *slog.Logger { return l.log }

// Close implements net.Listener. The socket stays: who finds it knows that somebody
// was there.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	return l.unix.Close()
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// PeerPID is the PID of the process at the other end.
func (p *peerConn) PeerPID() int { return int(p.peer.Pid) }

// peerOf asks the kernel who connected (unix(7), SO_PEERCRED).
func peerOf(conn *net.UnixConn) (cred *syscall.Ucred, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	if e := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); e != nil {
		return nil, e
	}
	return cred, err
}
