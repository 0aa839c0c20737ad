package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// answerTimeout is how long the kernel's answer may be missing. The wait for the
// kernel's lock comes before it, so only a lost answer takes that long.
const answerTimeout = 10 * time.Second

// newHandle opens a routing netlink socket in a network namespace. inNetns takes
// the thread there and not NewHandleAt, which would let it go on in a namespace
// that it cannot leave, and hides the errno.
func newHandle(netns int) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := inNetns(netns, func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err == nil {
		err = errors.Join(h.SetSocketTimeout(answerTimeout), h.SetStrictCheck(true))
	}
	if err != nil {
		if h != nil {
			h.Close()
		}
		return nil, fmt.Errorf("open netlink socket: %w", cause(err))
	}
	return h, nil
}

// linkByName reads one link; os.ErrNotExist if there is none.
func linkByName(h *netlink.Handle, name string) (*netlink.LinkAttrs, error) {
	l, err := h.LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, os.ErrNotExist
	}
	if err != nil {
		return nil, cause(err)
	}
	return l.Attrs(), nil
}

// device is a link of which only the index matters.
func device(index int) *netlink.Device {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// hostNet is an address with its host prefix.
func hostNet(a netip.Addr) *net.IPNet {
	return network(netip.PrefixFrom(a, a.BitLen()))
}

// newAddress is a host address; an IPv6 one without duplicate address detection
// (RFC 4862, section 5.4): IPAM guarantees that it is unique.
func newAddress(a netip.Addr) *netlink.Addr {
	addr := &netlink.Addr{IPNet: hostNet(a)}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

// onLink is a route to a gateway on the link itself.
func onLink(index int, gateway netip.Addr, table, metric int) *netlink.Route {
	r := &netlink.Route{LinkIndex: index, Dst: hostNet(gateway), Protocol: unix.RTPROT_BOOT, Table: table, Priority: metric}
	if gateway.Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// defaultVia is the default route; metric 0 is the kernel's default.
func defaultVia(index int, gateway netip.Addr, table, metric int) *netlink.Route {
	return &netlink.Route{LinkIndex: index, Gw: gateway.AsSlice(), Protocol: unix.RTPROT_BOOT, Table: table, Priority: metric}
}

// ruleFrom has what is from an address looked up in a table.
func ruleFrom(a netip.Addr, table int) *netlink.Rule {
	r := netlink.NewRule()
	r.Src, r.Table = hostNet(a), table
	return r
}

// again calls list once more while what it read changed meanwhile.
func again[T any](list func() ([]T, error)) ([]T, error) {
	for i := 0; ; i++ {
		res, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return res, err
		}
		if i == dumpTries {
			return res, nil
		}
	}
}
