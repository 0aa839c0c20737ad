package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev"
)

// Wire says how one interface of a workload is to be wired.
type Wire struct {
	// Netns is a descriptor of the workload's network namespace. It is not looked at
	// where Peer is set.
	Netns int
	// Peer is what the workload's side is called while it waits in this Kernel's own
	// namespace for somebody else to take it into the workload's, set it up and address
	// it; "": it is made in Netns, whole.
	Peer string
	// Interface is the workload side's name, Link the host side's.
	Interface, Link string
	// Index is the host side's, as Create told; 0: the link is known by its name.
	Index int
	// MAC is the workload side's hardware address; empty: a random one.
	MAC string
	// MTU in bytes; 0: the kernel's default. HostMTU is the host side's alone.
	MTU, HostMTU int
	// Addresses get a host prefix (/32, /128) each.
	Addresses []netip.Addr
	// Bandwidth is what the host side limits.
	Bandwidth datastore.Bandwidth
	// Gateway4 and Gateway6 are the next hops of the default routes; zero:
	// netdev.Gateway4 and netdev.HostLinkLocal. A family without an address has
	// no route.
	Gateway4, Gateway6 netip.Addr
	// Tap is what the link is where a virtual machine has it open: there is no Netns and
	// no Peer then, and no workload side that the kernel knows of.
	Tap datastore.Tap
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
	if err := errors.Join(netdev.ValidInterface(w.Interface), netdev.ValidInterface(w.Link), netdev.ValidInterface(cmp.Or(w.Peer, w.Interface))); err != nil {
		return nil, err
	}
	if err := w.checkTap(); err != nil {
		return nil, err
	}
	if len(w.Addresses) == 0 {
		return nil, fmt.Errorf("interface %s: no address: %w", w.Interface, datastore.ErrInvalid)
	}
	lowest := w.lowestMTU()
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
		return nil, fmt.Errorf("interface %s: gateways %s, %s: want one of IPv4 and one of IPv6: %w", w.Interface, w.Gateway4, w.Gateway6, datastore.ErrInvalid)
	}
	if w.MAC == "" {
		w.MAC = netdev.NewMAC()
	}
	mac, err = net.ParseMAC(w.MAC)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("interface %s: mac %q: must be six bytes, not multicast: %w", w.Interface, w.MAC, datastore.ErrInvalid)
	}
	return mac, nil
}

// Made is what Create made: the workload side's MAC and the host side's index.
type Made struct {
	MAC   string
	Index int
}

// Create makes the pair and sets both sides up, but leaves the host side down:
// the caller puts ACLs in place, calls Up, and then adds the routes to the
// endpoint (the kernel takes none through a link that is down). A TAP has no side
// but the host's. A name that is
// taken on either side is ErrExists; whatever fails, nothing is left behind.
func (k *Kernel) Create(w Wire) (Made, error) {
	peerMAC, err := w.prepare()
	if err != nil {
		return Made{}, fmt.Errorf("wire: %w", err)
	}
	if w.Tap.Is() {
		return k.createTap(w)
	}
	inside := k.host
	if w.Peer == "" {
		if inside, err = newHandle(w.Netns); err != nil {
			return Made{}, fmt.Errorf("wire %s: network namespace: %w", w.Interface, err)
		}
		defer inside.Close()
	}
	pair, err := k.newPair(w, peerMAC, inside)
	if err != nil {
		return Made{}, fmt.Errorf("wire %s: %w", w.Interface, err)
	}
	s := &side{k: k, wire: w, link: rawLink{Link: Link{Name: w.Link, Index: pair.Index}}, mac: peerMAC}
	err = s.fresh()
	if err == nil && w.Peer == "" {
		err = setInside(inside, w)
	}
	if err != nil {
		if undo := k.host.LinkDel(pair); undo != nil {
			err = errors.Join(err, fmt.Errorf("remove %s: %w", w.Link, cause(undo)))
		}
		if w.Bandwidth.Egress.Bits != 0 {
			err = errors.Join(err, k.dropShaper(w.Link))
		}
		return Made{}, fmt.Errorf("wire %s: %w", w.Interface, err)
	}
	return Made{MAC: peerMAC.String(), Index: pair.Index}, nil
}

// newPair makes the veth. The workload side of a link that was retired a moment
// ago still holds its name: then the deletion is waited for, once.
func (k *Kernel) newPair(w Wire, peerMAC net.HardwareAddr, inside *netlink.Handle) (*netlink.Veth, error) {
	hostMAC, err := net.ParseMAC(netdev.HostMAC)
	if err != nil {
		return nil, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.MTU, attrs.HardwareAddr = w.Link, netdev.Group, w.MTU, hostMAC
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr = w.Interface, peerMAC
	if w.Peer != "" {
		pair.PeerName = w.Peer
	} else {
		pair.PeerNamespace = netlink.NsFd(w.Netns)
	}
	err = k.host.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) && k.retire.flush() == nil {
		err = k.host.LinkAdd(pair)
	}
	if !errors.Is(err, unix.EEXIST) {
		if err != nil {
			return nil, fmt.Errorf("create %s: %w", w.Link, cause(err))
		}
		return pair, nil
	}
	if _, found := linkByName(inside, pair.PeerName); found == nil {
		return nil, fmt.Errorf("%s in the network namespace: %w, and is not netctl's: take it away, or ask for another name", pair.PeerName, datastore.ErrExists)
	}
	return nil, fmt.Errorf("%s on the host: %w", w.Link, datastore.ErrExists)
}

// step is one change inside a namespace, and what it is called in an error.
type step struct {
	what string
	do   func(*netlink.Handle) error
}

// setInside does the workload side: loopback and interface up, addresses, routes.
func setInside(h *netlink.Handle, w Wire) error {
	c, err := dial(w.Netns)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer func() { _ = c.close() }()
	l, err := linkByName(h, w.Interface)
	if err != nil {
		return fmt.Errorf("%s in the network namespace: %w", w.Interface, err)
	}
	if w.has(false) {
		if err := enableIPv6(w.Netns, w.Interface); err != nil {
			return err
		}
	}
	const loopback = 1
	up := func(index int) func(*netlink.Handle) error {
		return func(h *netlink.Handle) error { return h.LinkSetUp(device(index)) }
	}
	steps := []step{{"set lo up", up(loopback)}, {"set up", up(l.Index)}}
	for _, a := range w.Addresses {
		steps = append(steps, step{"address " + a.String(), func(h *netlink.Handle) error {
			return h.AddrAdd(device(l.Index), newAddress(a))
		}})
	}
	steps = append(steps, gatewayNeighbors(c, l.Index, w)...)
	lead := len(steps)
	steps = append(steps, gatewayRoutes(l.Index, w, unix.RT_TABLE_MAIN, 0)...)
	at, err := doAll(h, steps)
	if at >= lead && errors.Is(err, unix.EEXIST) {
		steps = secondRoutes(l.Index, w)
		at, err = doAll(h, steps)
	}
	if errors.Is(err, unix.EEXIST) {
		err = datastore.ErrExists
	}
	if err != nil {
		for _, a := range w.Addresses { // the rest goes with the interface
			_ = h.RuleDel(ruleFrom(a, secondTable+l.Index))
		}
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
// (ip-rule(8)). The rules stay when the interface goes, until DropRules.
func secondRoutes(index int, w Wire) []step {
	number := secondTable + index
	steps := append(gatewayRoutes(index, w, unix.RT_TABLE_MAIN, number), gatewayRoutes(index, w, number, 0)...)
	for _, a := range w.Addresses {
		steps = append(steps, step{"rule from " + a.String(), func(h *netlink.Handle) error {
			return h.RuleAdd(ruleFrom(a, number))
		}})
	}
	return steps
}

// gateways are the next hops of the families that the wire has.
func (w Wire) gateways() (list []netip.Addr) {
	for _, gw := range []netip.Addr{w.Gateway4, w.Gateway6} {
		if w.has(gw.Is4()) {
			list = append(list, gw)
		}
	}
	return list
}

// gatewayNeighbors spare the workload its questions for the gateways: see inside.
func gatewayNeighbors(c *conn, index int, w Wire) (steps []step) {
	for i, f := range w.inside(c, index) {
		steps = append(steps, step{"neighbour " + w.gateways()[i].String(), func(*netlink.Handle) error { return f.put() }})
	}
	return steps
}

func gatewayRoutes(index int, w Wire, table, metric int) []step {
	var steps []step
	add := func(what string, r *netlink.Route) {
		steps = append(steps, step{what, func(h *netlink.Handle) error { return h.RouteAdd(r) }})
	}
	for _, gw := range w.gateways() {
		if !(gw.Is6() && gw.IsLinkLocalUnicast()) {
			add("route "+gw.String(), onLink(index, gw, table, metric))
		}
		add("default via "+gw.String(), defaultVia(index, gw, table, metric))
	}
	return steps
}

// doAll does every step, whatever became of those before it, and returns the
// first error with the index of its step.
func doAll(h *netlink.Handle, steps []step) (int, error) {
	at, first := -1, error(nil)
	for i, s := range steps {
		if err := s.do(h); err != nil && first == nil {
			at, first = i, cause(err)
		}
	}
	return at, first
}

// Up sets the host side up. The error wraps os.ErrNotExist if there is no such
// link.
func (k *Kernel) Up(link string) error {
	l, err := k.link(0, link)
	if err == nil {
		err = absent(cause(k.raise(l)))
	}
	if err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	return nil
}

// raise sets a link up. The other side has a carrier then, which the kernel's work
// queue has to hear of before it sends anything; asked for the other side, the kernel
// (6.8 or later) does that first. Nothing asks for MACs, so that the very first packet
// is the workload's.
func (k *Kernel) raise(l rawLink) error {
	err := k.host.LinkSetUp(device(l.Index))
	if err == nil {
		_, _ = k.peerMAC(l)
	}
	return err
}

// absent makes the kernel's "no such device" one that errors.Is os.ErrNotExist.
func absent(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return os.ErrNotExist
	}
	return err
}
