package fib

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// receiveBuffer is the longest message that is read, in bytes. The kernel fills
// at most 32 KB with parts of a list.
const receiveBuffer = 64 << 10

// socket is a routing netlink socket in the network namespace of the thread that
// opened it.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	port uint32 // its address, which the kernel puts on notifications of what it did
	seq  uint32 // of the last request
	buf  []byte
}

// dial opens a socket whose receive buffer holds that many bytes.
func dial(buffer int) (*socket, error) {
	s, err := openSocket(buffer)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return s, nil
}

func openSocket(buffer int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	s := &socket{file: os.NewFile(uintptr(fd), "rtnetlink"), buf: make([]byte, receiveBuffer)}
	// Lists are filtered by the kernel, refusals come with its words and without
	// the request that they refuse.
	for _, option := range []int{unix.NETLINK_GET_STRICT_CHK, unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, option, 1); err != nil {
			return nil, errors.Join(err, s.file.Close())
		}
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer); err != nil {
			return nil, errors.Join(err, s.file.Close())
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	address, err := unix.Getsockname(fd)
	if err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	s.port = address.(*unix.SockaddrNetlink).Pid
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

func (s *socket) close() error { return s.file.Close() }

// message is one netlink message; body is valid until the socket is read again.
type message struct {
	kind, flags uint16
	seq, port   uint32 // port is who asked for it, or for what it tells of
	body        []byte
}

// read waits for a datagram and calls fn for each message in it.
func (s *socket) read(fn func(message) error) error {
	var n int
	var failed error
	if err := s.raw.Read(func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), s.buf)
		return failed != unix.EAGAIN && failed != unix.EINTR
	}); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	return split(s.buf[:n], fn)
}

// readAll waits until there is something, then calls fn for each message of up to
// most datagrams, as long as there are any.
func (s *socket) readAll(most int, fn func(message) error) error {
	heard := 0
	var failed error
	if err := s.raw.Read(func(fd uintptr) bool {
		for heard < most {
			var n int
			n, failed = unix.Read(int(fd), s.buf)
			if errors.Is(failed, unix.EINTR) {
				continue
			}
			if errors.Is(failed, unix.EAGAIN) {
				failed = nil
				return heard > 0
			}
			if failed == nil {
				failed = split(s.buf[:n], fn)
			}
			if failed != nil {
				return true
			}
			heard++
		}
		return true
	}); err != nil {
		return err
	}
	return failed
}

// drain throws away what waits. A socket that overran drops what comes, without a word
// of it, until it was empty.
func (s *socket) drain() error {
	var failed error
	if err := s.raw.Read(func(fd uintptr) bool {
		for {
			if _, failed = unix.Read(int(fd), s.buf); errors.Is(failed, unix.EAGAIN) {
				failed = nil
				return true
			}
			if failed != nil && !errors.Is(failed, unix.EINTR) && !errors.Is(failed, unix.ENOBUFS) {
				return true
			}
		}
	}); err != nil {
		return err
	}
	return failed
}

// split calls fn for each message of a datagram (struct nlmsghdr).
func split(b []byte, fn func(message) error) error {
	for len(b) > 0 {
		if len(b) < unix.NLMSG_HDRLEN {
			return errShort
		}
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return errShort
		}
		m := message{
			kind: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]), body: b[unix.NLMSG_HDRLEN:n],
		}
		if err := fn(m); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

var errShort = errors.New("netlink message: longer than what was received")

// begin starts a message in b; finish sets its length.
func (s *socket) begin(b []byte, kind, flags uint16) []byte {
	s.seq++
	b = append(b, 0, 0, 0, 0)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, s.seq)
	return append(b, 0, 0, 0, 0)
}

func finish(b []byte, start int) {
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
}

// send writes messages in one system call. The kernel has worked them off when it
// returns.
func (s *socket) send(b []byte) error {
	var failed error
	if err := s.raw.Write(func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return failed != unix.EAGAIN && failed != unix.EINTR
	}); err != nil {
		return err
	}
	return failed
}

// errChanged means that a list changed while it was read.
var errChanged = errors.New("changed while it was read")

// dumpTries is how often a list is read again that changes all the time.
const dumpTries = 20

// ask sends one request and calls fn for each message of the answer; begin makes
// it anew for each try, since fn may be called for a list that is then read again.
func (s *socket) ask(ctx context.Context, kind, flags uint16, body []byte, begin func(), fn func([]byte)) error {
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		begin()
		err := s.askOnce(kind, flags, body, fn)
		if !errors.Is(err, errChanged) || try == dumpTries {
			return err
		}
	}
}

func (s *socket) askOnce(kind, flags uint16, body []byte, fn func([]byte)) error {
	request := append(s.begin(nil, kind, flags), body...)
	finish(request, 0)
	if err := s.send(request); err != nil {
		return err
	}
	list, done, changed := flags&unix.NLM_F_DUMP == unix.NLM_F_DUMP, false, false
	var failed error
	for !done {
		if err := s.read(func(m message) error {
			if m.seq != s.seq {
				return nil // of a request that was given up
			}
			changed = changed || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.kind {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				done = true
				failed = refusal(m)
			default:
				done = !list
				fn(m.body)
			}
			return nil
		}); err != nil {
			return err
		}
	}
	if failed == nil && changed {
		return errChanged
	}
	return failed
}

// refusal is the error in an NLMSG_ERROR or NLMSG_DONE message, with the kernel's
// words if it has any (NLMSGERR_ATTR_MSG); nil is an acknowledgement.
func refusal(m message) error {
	if len(m.body) < 4 {
		return nil
	}
	code := -int32(binary.NativeEndian.Uint32(m.body))
	if code <= 0 {
		return nil
	}
	number := unix.Errno(code)
	rest := m.body[4:]
	if m.kind == unix.NLMSG_ERROR {
		if len(rest) < unix.NLMSG_HDRLEN || m.flags&unix.NLM_F_ACK_TLVS == 0 {
			return number
		}
		skip := unix.NLMSG_HDRLEN
		if m.flags&unix.NLM_F_CAPPED == 0 {
			skip = int(binary.NativeEndian.Uint32(rest)+3) &^ 3
		}
		if skip < unix.NLMSG_HDRLEN || skip > len(rest) {
			return number
		}
		rest = rest[skip:]
	}
	for {
		kind, value, next, ok := netdev.Attribute(rest)
		if !ok {
			return number
		}
		if kind == unix.NLMSGERR_ATTR_MSG && len(value) > 1 {
			return fmt.Errorf("%w (%s)", number, value[:len(value)-1])
		}
		rest = next
	}
}

// join adds the socket to a multicast group.
func (s *socket) join(group int) error {
	return s.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
	})
}

// attach puts a filter on the socket, in place of the one it had.
func (s *socket) attach(program []unix.SockFilter) error {
	return s.control(func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
}

func (s *socket) control(fn func(fd int) error) error {
	var failed error
	if err := s.raw.Control(func(fd uintptr) { failed = fn(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// until makes reads end at a time with os.ErrDeadlineExceeded; zero: never.
func (s *socket) until(t time.Time) { _ = s.file.SetReadDeadline(t) }
