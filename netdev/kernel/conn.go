package kernel

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// conn is a routing netlink socket in one network namespace.
type conn struct {
	mu sync.Mutex // one batch at a time
	nl *netlink.Conn
}

func dial(netns int) (*conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netns, Strict: true})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", cause(err))
	}
	return &conn{nl: nl}, nil
}

func (c *conn) close() error { return c.nl.Close() }

// change sends all messages in one go and returns the first error with the index
// of its message; the kernel works off every message whatever became of those
// before it.
func (c *conn) change(msgs ...netlink.Message) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range msgs {
		msgs[i].Header.Flags |= netlink.Request | netlink.Acknowledge
	}
	if _, err := c.nl.SendMessages(msgs); err != nil {
		return 0, cause(err)
	}
	at, first := -1, error(nil)
	for i := range msgs {
		if _, err := c.nl.Receive(); err != nil && first == nil {
			at, first = i, cause(err)
		}
	}
	return at, first
}

// ask sends one request and returns its answers.
func (c *conn) ask(m netlink.Message) ([]netlink.Message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.Header.Flags |= netlink.Request
	res, err := c.nl.Execute(m)
	if err != nil {
		return nil, cause(err)
	}
	return res, nil
}

// dump is ask for a list. A list that changed while it was read is read again.
func (c *conn) dump(m netlink.Message) ([]netlink.Message, error) {
	m.Header.Flags |= netlink.Dump
	const tries = 20
	for i := 0; ; i++ {
		res, err := c.ask(m)
		if err != nil || i == tries || !slices.ContainsFunc(res, interrupted) {
			return res, err
		}
	}
}

// interrupted reports the kernel's mark on a list that changed while it was read.
func interrupted(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }

// cause unwraps mdlayher's error to the errno, with the kernel's own words if it
// gave any; a missing privilege says what is missing.
func cause(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: CAP_NET_ADMIN and CAP_SYS_ADMIN are needed, run it as root", unix.EPERM)
	}
	var op *netlink.OpError
	if !errors.As(err, &op) {
		return err
	}
	inner := op.Err
	var sys *os.SyscallError
	if errors.As(inner, &sys) {
		inner = sys.Err
	}
	if op.Message != "" {
		return fmt.Errorf("%w: %s", inner, op.Message)
	}
	return inner
}
