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

// conn is a routing netlink socket in one network namespace, for what
// netlink.Handle has no call for.
type conn struct {
	mu sync.Mutex // one request at a time
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

// deleteGroup deletes every link of a group and waits for it; ENODEV if there is
// none.
func (c *conn) deleteGroup(group uint32) error {
	_, err := c.ask(message(unix.RTM_DELLINK, netlink.Acknowledge, make([]byte, unix.SizeofIfInfomsg), func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_GROUP, group)
	}))
	return err
}

// dumpTries is how often a list is read again that changes all the time.
const dumpTries = 20

// dump is ask for a list. A list that changed while it was read is read again.
func (c *conn) dump(m netlink.Message) ([]netlink.Message, error) {
	m.Header.Flags |= netlink.Dump
	for i := 0; ; i++ {
		res, err := c.ask(m)
		if err != nil || i == dumpTries || !slices.ContainsFunc(res, interrupted) {
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
