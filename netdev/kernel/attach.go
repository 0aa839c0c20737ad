package kernel

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev"
)

// Wire says how one interface of a workload is to be wired.
type Wire struct {
	// Netns is a descriptor of the workload's network namespace.
	Netns int
	// Interface is the workload side's name, Link the host side's.
	Interface, Link string
	// MAC is the workload side's hardware address; empty: a random one.
	MAC string
	// MTU in bytes; 0: the kernel's default.
	MTU int
	// Addresses get a host prefix (/32, /128) each.
	Addresses []netip.Addr
	// Gateway4 and Gateway6 are the next hops of the default routes; zero:
	// netdev.Gateway4 and netdev.HostLinkLocal. A family without an address has
	// no route.
	Gateway4, Gateway6 netip.Addr
}

// has reports whether the wire has an address of IPv4 (true) or IPv6.
func (w Wire) has(v4 bool) bool {
	for _, a := range w.Addresses {
		if a.Is4() == v4 {
			return true
		}
	}
	return false
}

// prepare fills in what was left out and checks the rest.
func (w *Wire) prepare() (mac net.HardwareAddr, err error) {
	if err := errors.Join(netdev.ValidInterface(w.Interface), netdev.ValidInterface(w.Link)); err != nil {
		return nil, err
	}
	if len(w.Addresses) == 0 {
		return nil, fmt.Errorf("interface %s: no address: %w", w.Interface, datastore.ErrInvalid)
	}
	lowest := netdev.MinMTU
	if w.has(false) {
		lowest = netdev.MinMTU6
	}
	if w.MTU != 0 && (w.MTU < lowest || w.MTU > netdev.MaxMTU) {
		return nil, fmt.Errorf("interface %s: mtu %d: must be %d to %d: %w", w.Interface, w.MTU, lowest, netdev.MaxMTU, datastore.ErrInvalid)
	}
	if !w.Gateway4.IsValid() {
		w.Gateway4 = netdev.Gateway4()
	}
	if !w.Gateway6.IsValid() {
		w.Gateway6 = netdev.HostLinkLocal()
	}
	if !w.Gateway4.Is4() || !w.Gateway6.Is6() {
		return nil, fmt.Errorf("interface %s: gateways %s, %s: %w", w.Interface, w.Gateway4, w.Gateway6, datastore.ErrInvalid)
	}
	if w.MAC == "" {
		mac = make(net.HardwareAddr, 6)
		_, _ = rand.Read(mac) // never fails (crypto/rand)
		mac[0] = mac[0]&^1 | 2
		return mac, nil
	}
	mac, err = net.ParseMAC(w.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("interface %s: mac %q: must be six bytes, not multicast: %w", w.Interface, w.MAC, datastore.ErrInvalid)
	}
	return mac, nil
}

// Create makes the pair and sets both sides up, but leaves the host side down:
// the caller puts ACLs in place, calls Up, and then adds the routes to the
// endpoint (the kernel takes none through a link that is down). It returns the
// workload side's MAC. A name that is taken on either side is ErrExists; whatever
// fails, nothing is left behind.
func (k *Kernel) Create(w Wire) (mac string, err error) {
	peerMAC, err := w.prepare()
	if err != nil {
		return "", fmt.Errorf("wire: %w", err)
	}
	inside, err := dial(w.Netns)
	if err != nil {
		return "", fmt.Errorf("wire %s: network namespace: %w", w.Interface, err)
	}
	defer inside.close()
	if err := k.newPair(w, peerMAC, inside); err != nil {
		return "", fmt.Errorf("wire %s: %w", w.Interface, err)
	}
	err = k.sys.hostSide(w)
	if err == nil {
		err = setInside(inside, w)
	}
	if err != nil {
		if _, undo := k.conn.change(delLink(w.Link)); undo != nil {
			err = errors.Join(err, fmt.Errorf("remove %s: %w", w.Link, undo))
		}
		return "", fmt.Errorf("wire %s: %w", w.Interface, err)
	}
	return peerMAC.String(), nil
}

// newPair makes the veth. The workload side of a link that was retired a moment
// ago still holds its name: then the deletion is waited for, once.
func (k *Kernel) newPair(w Wire, peerMAC net.HardwareAddr, inside *conn) error {
	hostMAC, err := net.ParseMAC(netdev.HostMAC)
	if err != nil {
		return err
	}
	pair := newVeth(w, peerMAC, hostMAC, netdev.Group)
	_, err = k.conn.change(pair)
	if errors.Is(err, unix.EEXIST) && k.retire.flush() == nil {
		pair.Header.Sequence = 0
		_, err = k.conn.change(pair)
	}
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return fmt.Errorf("create %s: %w", w.Link, err)
		}
		return nil
	}
	if _, found := inside.link(w.Interface); found == nil {
		return fmt.Errorf("%s in the network namespace: %w", w.Interface, datastore.ErrExists)
	}
	return fmt.Errorf("%s on the host: %w", w.Link, datastore.ErrExists)
}

// step is one change inside a namespace, and what it is called in an error.
type step struct {
	what string
	msg  netlink.Message
}

// setInside does the workload side: loopback and interface up, addresses, routes.
func setInside(c *conn, w Wire) error {
	l, err := c.link(w.Interface)
	if err != nil {
		return fmt.Errorf("%s in the network namespace: %w", w.Interface, err)
	}
	if w.has(false) {
		if err := enableIPv6(w.Netns, w.Interface); err != nil {
			return err
		}
	}
	const loopback = 1
	steps := []step{
		{"set lo up", setLink(loopback, "", unix.IFF_UP, unix.IFF_UP, nil)},
		{"set up", setLink(l.Index, "", unix.IFF_UP, unix.IFF_UP, nil)},
	}
	for _, a := range w.Addresses {
		steps = append(steps, step{"address " + a.String(), newAddress(l.Index, a)})
	}
	lead := len(steps)
	steps = append(steps, gatewayRoutes(l.Index, w, unix.RT_TABLE_MAIN, 0)...)
	at, err := c.changeAll(steps)
	if at >= lead && errors.Is(err, unix.EEXIST) {
		steps = secondRoutes(l.Index, w)
		at, err = c.changeAll(steps)
	}
	if errors.Is(err, unix.EEXIST) {
		err = datastore.ErrExists
	}
	if err != nil {
		return fmt.Errorf("%s: %w", steps[at].what, err)
	}
	return nil
}

// secondTable, plus the interface's index, is the metric and the table of the
// routes of an interface that is not the first in its namespace.
const secondTable = 1024

// secondRoutes are those of an interface that finds the default route taken. Its
// own come after that and count for what is bound to the interface; what has one
// of its addresses, such as the answer to a connection, goes by a table of its own
// (ip-rule(8)). The rules stay when the interface goes, and then find nothing.
func secondRoutes(index int, w Wire) []step {
	number := secondTable + uint32(index)
	steps := append(gatewayRoutes(index, w, unix.RT_TABLE_MAIN, number), gatewayRoutes(index, w, number, 0)...)
	for _, a := range w.Addresses {
		steps = append(steps, step{"rule from " + a.String(), newRule(a, number)})
	}
	return steps
}

func gatewayRoutes(index int, w Wire, table, metric uint32) []step {
	var steps []step
	for _, gw := range []netip.Addr{w.Gateway4, w.Gateway6} {
		if !w.has(gw.Is4()) {
			continue
		}
		if !(gw.Is6() && gw.IsLinkLocalUnicast()) {
			steps = append(steps, step{"route " + gw.String(), newRoute(index, gw, netip.Addr{}, table, metric)})
		}
		steps = append(steps, step{"default via " + gw.String(), newRoute(index, netip.Addr{}, gw, table, metric)})
	}
	return steps
}

func (c *conn) changeAll(steps []step) (int, error) {
	msgs := make([]netlink.Message, len(steps))
	for i, s := range steps {
		msgs[i] = s.msg
	}
	return c.change(msgs...)
}

// Up sets the host side up. The error wraps os.ErrNotExist if there is no such
// link.
func (k *Kernel) Up(link string) error {
	if _, err := k.conn.change(setLink(0, link, unix.IFF_UP, unix.IFF_UP, nil)); err != nil {
		return fmt.Errorf("set %s up: %w", link, absent(err))
	}
	return nil
}

func delLink(name string) netlink.Message {
	return message(unix.RTM_DELLINK, 0, ifinfo(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	})
}

// link reads one link by name; os.ErrNotExist if there is none.
func (c *conn) link(name string) (rawLink, error) {
	res, err := c.ask(message(unix.RTM_GETLINK, 0, ifinfo(0, 0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	}))
	if err != nil {
		return rawLink{}, absent(err)
	}
	for _, m := range res {
		if m.Header.Type == unix.RTM_NEWLINK {
			return parseLink(m)
		}
	}
	return rawLink{}, os.ErrNotExist
}

// absent makes the kernel's "no such device" one that errors.Is os.ErrNotExist.
func absent(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return os.ErrNotExist
	}
	return err
}
