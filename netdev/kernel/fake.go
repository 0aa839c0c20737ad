package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"netctl/datastore"
	"netctl/netdev"
)

// Fake keeps the state that Kernel would keep in the kernel; it is for tests of
// those who use one and has Kernel's methods. The zero value is a host without
// interfaces. A namespace is any number: OpenNetns(pid, fd) gives one whose FD
// and Ino are fd.
type Fake struct {
	// Fail, if set, is asked before each operation ("create", "up", "detach",
	// "check", "hold", "forward", "netns") on an object; an error is returned instead.
	Fail func(op, object string) error
	// Silent, if set, says which peers of WireGuard do not answer.
	Silent func(key WireGuardKey) bool
	// Sent is what every peer of WireGuard was sent, in bytes.
	Sent atomic.Uint64

	mu       sync.Mutex
	index    int
	wires    map[string]*fakeWire // by link
	host     []Address
	forward  []string
	closed   map[int]bool // interfaces of the host that do not forward
	path     ReturnPath
	watchers map[int]chan Event
	tunnels  map[string]fakeTunnel // by name
	others   []Interface
	ways     []Route
	dropped  map[int]bool // namespaces that are gone
}

type fakeWire struct {
	Wire
	index   int
	up      bool
	name    string   // what it is called now
	group   uint32   // what it is in now
	altered []string // what else is not what an attach makes
	spoilt  []string // the same, of the workload's side
}

func (w *fakeWire) link() Link {
	return Link{Name: w.name, Index: w.index, Up: w.up, MTU: w.MTU, Altered: w.group != netdev.Group}
}

// event is what a change of it is told by; needs mu held.
func (w *fakeWire) event() Event {
	l := w.link()
	ev := Event{Change: LinkChanged, Link: l.Name, Index: l.Index, Up: l.Up, MTU: l.MTU, Altered: l.Altered}
	if w.group != netdev.Group {
		ev.Change = HostChanged
	}
	return ev
}

// find is the wire of an index or, if there is none, of a link's name; nil: there is
// none. It needs mu held.
func (f *Fake) find(link string, index int) *fakeWire {
	var named *fakeWire
	for _, w := range f.wires {
		if index != 0 && w.index == index {
			return w
		}
		if w.name == link {
			named = w
		}
	}
	return named
}

func (f *Fake) fail(op, object string) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(op, object)
}

// Create is Kernel.Create.
func (f *Fake) Create(w Wire) (Made, error) {
	mac, err := w.prepare()
	if err == nil {
		err = f.fail("create", w.Link)
	}
	if err != nil {
		return Made{}, fmt.Errorf("wire %s: %w", w.Interface, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wires[w.Link] != nil {
		return Made{}, fmt.Errorf("wire %s: %s on the host: %w", w.Interface, w.Link, datastore.ErrExists)
	}
	for _, o := range f.wires {
		if !w.Tap.Is() && !o.Tap.Is() && o.Netns == w.Netns && o.Interface == w.Interface && w.Peer == "" && o.Peer == "" {
			return Made{}, fmt.Errorf("wire %s: %s in the network namespace: %w", w.Interface, w.Interface, datastore.ErrExists)
		}
	}
	if f.wires == nil {
		f.wires = map[string]*fakeWire{}
	}
	w.MAC = mac.String()
	f.index++
	f.wires[w.Link] = &fakeWire{Wire: w, index: f.index, name: w.Link, group: netdev.Group}
	f.tell(f.wires[w.Link].event())
	return Made{MAC: w.MAC, Index: f.index}, nil
}

// Up is Kernel.Up.
func (f *Fake) Up(link string) error {
	if err := f.fail("up", link); err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.find(link, 0)
	if w == nil {
		return fmt.Errorf("set %s up: %w", link, os.ErrNotExist)
	}
	w.up = true
	f.tell(w.event())
	return nil
}

// Alter does to a link what another program would, and tells of it as the kernel
// would: what it is called and which group it is in (as they are, if empty and 0),
// and what else an attach set on it.
func (f *Fake) Alter(link, name string, group uint32, rest ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.wires[link]
	if name != "" {
		w.name = name
	}
	if group != 0 {
		w.group = group
	}
	w.altered = append(w.altered, rest...)
	if len(rest) > 0 {
		f.tell(Event{Change: SideChanged, Index: w.index})
		return
	}
	f.tell(w.event())
}

// Hold is Kernel.Hold.
func (f *Fake) Hold(w Wire, raise bool) (differed []string, err error) {
	if err := f.fail("hold", w.Link); err != nil {
		return nil, fmt.Errorf("hold %s: %w", w.Link, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have := f.find(w.Link, w.Index)
	if have == nil {
		return nil, fmt.Errorf("hold %s: %w", w.Link, os.ErrNotExist)
	}
	for _, text := range []string{unlike(w.Link, "bandwidth", have.Bandwidth, w.Bandwidth), unlike(w.Link, "name", have.name, w.Link), unlike(w.Link, "group", have.group, netdev.Group), when(raise && !have.up, w.Link+" is down")} {
		if text != "" {
			differed = append(differed, text)
		}
	}
	differed = append(differed, have.altered...)
	have.name, have.group, have.altered, have.up, have.Bandwidth = w.Link, netdev.Group, nil, have.up || raise, w.Bandwidth
	if len(differed) > 0 {
		f.tell(have.event())
	}
	return differed, nil
}

// Spoil does to a workload's side what its own programs could: what an attach set there is
// gone.
func (f *Fake) Spoil(link string, what ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wires[link].spoilt = append(f.wires[link].spoilt, what...)
}

// Mend is Kernel.Mend.
func (f *Fake) Mend(w Wire) ([]string, error) {
	if err := f.fail("mend", w.Link); err != nil {
		return nil, fmt.Errorf("mend %s: %w", w.Interface, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have := f.find(w.Link, w.Index)
	if have == nil || have.Netns != w.Netns {
		return nil, fmt.Errorf("mend %s: %w", w.Interface, os.ErrNotExist)
	}
	differed := have.spoilt
	have.spoilt = nil
	return differed, nil
}

// MendAt is Kernel.MendAt.
func (f *Fake) MendAt(w Wire, at Place) ([]string, error) {
	w.Netns = int(at.Ino)
	return f.Mend(w)
}

// Lives is Kernel.Lives: a namespace lives unless it was dropped.
func (f *Fake) Lives(p Place) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.dropped[int(p.Ino)]
}

// Resize is Kernel.Resize.
func (f *Fake) Resize(w Wire, at Place, mtu int) error {
	if err := f.fail("resize", w.Link); err != nil {
		return fmt.Errorf("mtu of %s: %w", w.Link, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have := f.find(w.Link, w.Index)
	if have == nil || !w.Tap.Is() && int(at.Ino) != have.Netns {
		return fmt.Errorf("mtu of %s: %w", w.Link, os.ErrNotExist)
	}
	have.MTU = mtu
	f.tell(have.event())
	return nil
}

// Settle is Kernel.Settle, of a side that nobody takes anywhere.
func (f *Fake) Settle(w Wire, _ Place, _ []netip.Prefix) (bool, error) {
	return false, f.fail("settle", w.Link)
}

// SetDown sets a link down as another program would.
func (f *Fake) SetDown(link string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.wires[link]
	if w == nil {
		return fmt.Errorf("set %s down: %w", link, os.ErrNotExist)
	}
	w.up = false
	f.tell(w.event())
	return nil
}

// Detach is Kernel.Detach.
func (f *Fake) Detach(link string, index int) error {
	if err := f.fail("detach", link); err != nil {
		return fmt.Errorf("detach %s: %w", link, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if w := f.find(link, index); w != nil {
		delete(f.wires, w.Link)
	}
	return nil
}

// DropRules is Kernel.DropRules; the workloads of a Fake have none.
func (f *Fake) DropRules(path string, _, _ uint64, _ []netip.Addr, _ []netip.Prefix) error {
	return f.fail("rules", path)
}

// Drop is what happens when a workload's namespace ends: its links are gone.
func (f *Fake) Drop(netns int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hide(netns)
	f.cut(netns)
}

// Hide is what happens when nothing leads to a namespace any more that lives on.
func (f *Fake) Hide(netns int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hide(netns)
}

func (f *Fake) hide(netns int) {
	if f.dropped == nil {
		f.dropped = map[int]bool{}
	}
	f.dropped[netns] = true
}

// Cut is what happens when somebody deletes the links of a namespace that lives on.
func (f *Fake) Cut(netns int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut(netns)
}

func (f *Fake) cut(netns int) {
	for link, w := range f.wires {
		if w.Netns == netns {
			delete(f.wires, link)
			f.tell(Event{Change: LinkGone, Link: w.name, Index: w.index})
		}
	}
}

// Run is Kernel.Run.
func (f *Fake) Run(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// Check is Kernel.Check.
func (f *Fake) Check(w Wire) error {
	if err := f.fail("check", w.Link); err != nil {
		return fmt.Errorf("check %s: %w", w.Interface, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	have := f.wires[w.Link]
	var errs []error
	switch {
	case have == nil:
		errs = append(errs, fmt.Errorf("%s is gone", w.Link))
	case have.Netns != w.Netns || have.Interface != w.Interface:
		errs = append(errs, fmt.Errorf("%s is gone from the network namespace", w.Interface))
	default:
		if !have.up {
			errs = append(errs, fmt.Errorf("%s is down", w.Link))
		}
		if w.MAC != "" && !strings.EqualFold(w.MAC, have.MAC) {
			errs = append(errs, fmt.Errorf("%s: mac is %s, not %s", w.Interface, have.MAC, w.MAC))
		}
		for _, text := range have.spoilt {
			errs = append(errs, errors.New(text))
		}
		for _, a := range w.Addresses {
			if !slices.Contains(have.Addresses, a) {
				errs = append(errs, fmt.Errorf("%s: address %s is missing", w.Interface, a))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("check %s: %w", w.Interface, err)
	}
	return nil
}

// Links is Kernel.Links.
func (f *Fake) Links(also ...int) ([]Link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Link
	for _, w := range f.wires {
		if w.group == netdev.Group || slices.Contains(also, w.index) {
			list = append(list, w.link())
		}
	}
	slices.SortFunc(list, func(a, b Link) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// SetAddresses makes the host's own addresses anew.
func (f *Fake) SetAddresses(list ...Address) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.host = slices.Clone(list)
	f.tell(Event{Change: HostChanged})
}

// Addresses is Kernel.Addresses.
func (f *Fake) Addresses() ([]Address, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.host), nil
}

// Subnets is Kernel.Subnets.
func (f *Fake) Subnets() ([]netip.Prefix, error) {
	list, err := f.Addresses()
	return subnets(list), err
}

// OpenNetns is Kernel.OpenNetns.
func (f *Fake) OpenNetns(pid, fd int) (*Netns, error) {
	if err := f.fail("netns", fmt.Sprintf("%d/%d", pid, fd)); err != nil {
		return nil, err
	}
	return &Netns{fd: fd, close: func() error { return nil }, Ino: uint64(fd)}, nil
}

// Watch is Kernel.Watch.
func (f *Fake) Watch(ctx context.Context, fn func(Event)) error {
	const room = 1024
	ch := make(chan Event, room)
	f.mu.Lock()
	if f.watchers == nil {
		f.watchers = map[int]chan Event{}
	}
	f.index++
	id := f.index
	f.watchers[id] = ch
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.watchers, id)
		f.mu.Unlock()
	}()
	fn(Event{Change: Resync})
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev := <-ch:
			fn(ev)
		}
	}
}

// WatchPeers is Kernel.WatchPeers; nothing changes there.
func (f *Fake) WatchPeers(ctx context.Context, _ func(Event)) error {
	<-ctx.Done()
	return ctx.Err()
}

// Tell tells who watches of an event, after all those that were.
func (f *Fake) Tell(ev Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tell(ev)
}

// tell needs mu held.
func (f *Fake) tell(ev Event) {
	for _, ch := range f.watchers {
		select {
		case ch <- ev:
		default: // as with a full socket; a test has no thousand events
		}
	}
}

// String prints the state as ip-link(8), ip-address(8) and ip-route(8) would.
func (f *Fake) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, s := range slices.Sorted(slices.Values(f.forward)) {
		fmt.Fprintf(&b, "%s = 1\n", s)
	}
	for _, a := range f.host {
		fmt.Fprintf(&b, "%s dev %s\n", a.Prefix, a.Link)
	}
	var links []string
	for l := range f.wires {
		links = append(links, l)
	}
	slices.Sort(links)
	for _, l := range links {
		w := f.wires[l]
		state := "DOWN"
		if w.up {
			state = "UP"
		}
		fmt.Fprintf(&b, "%s: mtu %d state %s group %d link/ether %s netns %d\n", l, w.MTU, state, netdev.Group, netdev.HostMAC, w.Netns)
		for i, r := range []datastore.Rate{w.Bandwidth.Ingress, w.Bandwidth.Egress} {
			if r.Bits != 0 {
				fmt.Fprintf(&b, "  qdisc tbf %s rate %dbit\n", []string{"dev " + l, "dev " + netdev.ShaperName(l)}[i], r.Bits)
			}
		}
		if w.Peer != "" {
			fmt.Fprintf(&b, "  %s: link/ether %s\n", w.Peer, w.MAC)
			continue
		}
		fmt.Fprintf(&b, "  %s: link/ether %s\n", w.Interface, w.MAC)
		for _, a := range w.Addresses {
			fmt.Fprintf(&b, "    inet %s/%d\n", a, a.BitLen())
		}
		if w.has(true) {
			fmt.Fprintf(&b, "    default via %s dev %s\n    %s dev %s scope link\n", w.Gateway4, w.Interface, w.Gateway4, w.Interface)
		}
		if w.has(false) {
			fmt.Fprintf(&b, "    default via %s dev %s\n", w.Gateway6, w.Interface)
		}
	}
	return b.String()
}

// Neighbours is Kernel.Neighbours; the tables are empty.
func (f *Fake) Neighbours() ([]NeighbourTable, error) {
	return []NeighbourTable{{Name: "arp_cache", Most: 1024}, {Name: "ndisc_cache", Most: 1024}}, nil
}
