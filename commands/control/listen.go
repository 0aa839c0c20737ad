package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"netctl/datastore"
)

// shutdownGrace is how long Serve lets calls in progress finish.
const shutdownGrace = 10 * time.Second

// Listener is a unix socket that only processes of root and of the listener's
// own user can use. Each of its connections knows the PID of its peer.
type Listener struct {
	unix *net.UnixListener
	log  *slog.Logger
}

// Listen makes the socket (0600, its folder 0700 if it does not exist). A
// socket that nobody serves any more is replaced; one that somebody serves is an
// error.
func Listen(path string, log *slog.Logger) (*Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	switch conn, err := net.Dial("unix", path); {
	case err == nil:
		conn.Close()
		return nil, fmt.Errorf("listen %s: another process serves this socket", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		// Nobody listens: left over by a process that was killed.
		if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("listen %s: exists and is no socket", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("listen %s: %w", path, err)
		}
	}
	unix, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		unix.Close()
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	return &Listener{unix, log}, nil
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
		conn, err := l.unix.AcceptUnix()
		if err != nil {
			return nil, err
		}
		cred, err := peerOf(conn)
		if err == nil && (cred.Uid == 0 || cred.Uid == uint32(os.Geteuid())) {
			return &peerConn{conn, cred}, nil
		}
		if err != nil {
			l.log.Warn("caller unknown, refused", "socket", l.unix.Addr().String(), "error", err)
		} else {
			l.log.Warn("caller is not root, refused", "socket", l.unix.Addr().String(), "uid", cred.Uid, "pid", cred.Pid)
		}
		conn.Close()
	}
}

// Close implements net.Listener and removes the socket.
func (l *Listener) Close() error { return l.unix.Close() }

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.unix.Addr() }

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

type peerKey struct{}

// PeerPID is the PID of the process whose request ctx belongs to; 0 if ctx is
// not of a request that Serve took.
func PeerPID(ctx context.Context) int {
	if cred, ok := ctx.Value(peerKey{}).(*syscall.Ucred); ok {
		return int(cred.Pid)
	}
	return 0
}

// Serve answers requests with h until ctx ends, then lets those in progress
// finish for a bounded time and closes l. It returns nil when ctx ended.
func Serve(ctx context.Context, l *Listener, h http.Handler) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(l.log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*peerConn); ok {
				ctx = context.WithValue(ctx, peerKey{}, p.peer)
			}
			return ctx
		},
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	})
	err := srv.Serve(l)
	if stop() {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	<-ended
	return nil
}

// Call makes a handler of a function: the body is decoded strictly (unknown
// fields and trailing bytes are refused), errors are answered as Error. A
// request without a body leaves the zero Q.
func Call[Q, A any](fn func(context.Context, Q) (A, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var (
			q   Q
			a   any
			err = decode(http.MaxBytesReader(w, r.Body, maxBody), &q)
		)
		if err == nil {
			a, err = fn(r.Context(), q)
		}
		status := http.StatusOK
		if e := ErrorOf(err); e != nil {
			a, status = e, e.status()
		}
		body, err := json.Marshal(a)
		if err != nil {
			body, status = []byte(`{"code":"internal","message":"answer cannot be encoded"}`), http.StatusInternalServerError
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})
}

func decode(r io.Reader, into any) error {
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	switch err := dec.Decode(into); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return fmt.Errorf("request: %w: %w", datastore.ErrInvalid, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("request: %w: more than one JSON value", datastore.ErrInvalid)
	}
	return nil
}
