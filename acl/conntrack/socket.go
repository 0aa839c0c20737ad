package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// socket is a netlink socket for what goes through the whole table: the kernel fills a
// buffer of the size that it is asked with, and each call costs.
type socket struct {
	fd     int
	buffer []byte
}

// newSocket opens one in the current network namespace.
func newSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	if err != nil {
		return nil, fmt.Errorf("open conntrack socket: %w", err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20)
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readBuffer)
	return &socket{fd: fd, buffer: make([]byte, 1<<16)}, nil
}

func (s *socket) close() { _ = unix.Close(s.fd) }

// Conn is what Cutters work with that follow each other. It is closed by Close alone: where
// nftables has just changed, the kernel's closing of a netfilter socket waits until what
// that change took away is gone, for some ten milliseconds, and every other change waits
// for it (nft_rcv_nl_event, Linux 6.18).
type Conn struct{ lister, deleter *socket }

// Open opens one in the current network namespace.
func Open() (*Conn, error) {
	c := &Conn{}
	for _, s := range []**socket{&c.lister, &c.deleter} {
		var err error
		if *s, err = newSocket(); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// Close ends it.
func (c *Conn) Close() {
	for _, s := range []*socket{c.lister, c.deleter} {
		if s != nil {
			s.close()
		}
	}
}

func (s *socket) send(b []byte) error {
	for {
		if err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// receive returns the next messages, and what follows their headers, until the next call.
func (s *socket) receive() (iter.Seq2[unix.NlMsghdr, []byte], error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buffer, 0)
		if err == nil {
			return messages(s.buffer[:n]), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, err
		}
	}
}

// messages are those in b; one that is cut off ends them.
func messages(b []byte) iter.Seq2[unix.NlMsghdr, []byte] {
	return func(yield func(unix.NlMsghdr, []byte) bool) {
		order := binary.NativeEndian
		for len(b) >= unix.SizeofNlMsghdr {
			h := unix.NlMsghdr{Len: order.Uint32(b), Type: order.Uint16(b[4:]), Flags: order.Uint16(b[6:]), Seq: order.Uint32(b[8:])}
			if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) || !yield(h, b[unix.SizeofNlMsghdr:h.Len]) {
				return
			}
			b = b[min(len(b), int(h.Len+3)&^3):]
		}
	}
}

// errorOf is what an answer of type NLMSG_ERROR, or the end of a list, says.
func errorOf(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(data)); code < 0 {
		return unix.Errno(-code)
	}
	return nil
}

// appendHead appends the headers of a message, whose length is yet to be set.
func appendHead(b []byte, msg, flags uint16, seq uint32, family byte) []byte {
	order := binary.NativeEndian
	b = order.AppendUint32(b, 0)
	b = order.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|msg)
	b = order.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = order.AppendUint32(order.AppendUint32(b, seq), 0)
	return append(b, family, unix.NFNETLINK_V0, 0, 0)
}

// appendAttribute appends an attribute; nil: none.
func appendAttribute(b []byte, kind uint16, value []byte) []byte {
	if value == nil {
		return b
	}
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, "\x00\x00\x00"[:-len(value)&3]...)
}

// list is socket.list with one of its own.
func list(family byte, filter []byte, fn func(*entry) error) error {
	s, err := newSocket()
	if err != nil {
		return err
	}
	defer s.close()
	return s.list(family, filter, fn)
}

// list calls fn for each entry of a family, or with AF_UNSPEC of both in one walk of the
// kernel's through its table; an error ends it, and the socket is of no use any more. What of
// the entry is kept has to be cloned. The kernel filters the list if there is a filter and
// it can.
func (s *socket) list(family byte, filter []byte, fn func(*entry) error) error {
	ask := append(appendHead(nil, msgGet, unix.NLM_F_DUMP, 1, family), filter...)
	binary.NativeEndian.PutUint32(ask, uint32(len(ask)))
	if err := s.send(ask); err != nil {
		return fmt.Errorf("list conntrack entries: %w", err)
	}
	for e := (entry{}); ; {
		answers, err := s.receive()
		if err != nil {
			return fmt.Errorf("list conntrack entries: %w", err)
		}
		for h, data := range answers {
			switch h.Type {
			case unix.NLMSG_ERROR:
				return fmt.Errorf("list conntrack entries: %w", errorOf(data))
			case unix.NLMSG_DONE:
				if err := errorOf(data); err != nil {
					return fmt.Errorf("list conntrack entries: %w", err)
				}
				return nil
			}
			if e, err = parse(data); err == nil {
				err = fn(&e)
			}
			if err != nil {
				return err
			}
		}
	}
}
