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

	"netctl/datastore"
	"netctl/netdev"
)

// Fake keeps the state that Kernel would keep in the kernel; it is for tests of
// those who use one and has Kernel's methods. The zero value is a host without
// interfaces. A namespace is any number: OpenNetns(pid, fd) gives one whose FD
// and Ino are fd.
type Fake struct {
	// Fail, if set, is asked before each operation ("create", "up", "detach",
	// "check", "netns") on an object; an error is returned instead.
	Fail func(op, object string) error

	mu       sync.Mutex
	index    int
	wires    map[string]*fakeWire // by link
	host     []Address
	forward  []string
	watchers map[int]chan Event
}

type fakeWire struct {
	Wire
	index int
	up    bool
}

func (f *Fake) fail(op, object string) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(op, object)
}

// Create is Kernel.Create.
func (f *Fake) Create(w Wire) (string, error) {
	mac, err := w.prepare()
	if err == nil {
		err = f.fail("create", w.Link)
	}
	if err != nil {
		return "", fmt.Errorf("wire %s: %w", w.Interface, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.wires[w.Link] != nil {
		return "", fmt.Errorf("wire %s: %s on the host: %w", w.Interface, w.Link, datastore.ErrExists)
	}
	for _, o := range f.wires {
		if o.Netns == w.Netns && o.Interface == w.Interface {
			return "", fmt.Errorf("wire %s: %s in the network namespace: %w", w.Interface, w.Interface, datastore.ErrExists)
		}
	}
	if f.wires == nil {
		f.wires = map[string]*fakeWire{}
	}
	w.MAC = mac.String()
	f.index++
	f.wires[w.Link] = &fakeWire{Wire: w, index: f.index}
	f.tell(Event{Change: LinkChanged, Link: w.Link, Index: f.index, MTU: w.MTU})
	return w.MAC, nil
}

// Up is Kernel.Up.
func (f *Fake) Up(link string) error {
	if err := f.fail("up", link); err != nil {
		return fmt.Errorf("set %s up: %w", link, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w := f.wires[link]
	if w == nil {
		return fmt.Errorf("set %s up: %w", link, os.ErrNotExist)
	}
	w.up = true
	f.tell(Event{Change: LinkChanged, Link: link, Index: w.index, Up: true, MTU: w.MTU})
	return nil
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
	f.tell(Event{Change: LinkChanged, Link: link, Index: w.index, MTU: w.MTU})
	return nil
}

// Detach is Kernel.Detach.
func (f *Fake) Detach(link string) error {
	if err := f.fail("detach", link); err != nil {
		return fmt.Errorf("detach %s: %w", link, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.wires, link)
	return nil
}

// DropRules is Kernel.DropRules; the workloads of a Fake have none.
func (f *Fake) DropRules(path string, _, _ uint64, _ []netip.Addr) error {
	return f.fail("rules", path)
}

// Drop is what happens when a workload's namespace ends: its links are gone.
func (f *Fake) Drop(netns int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for link, w := range f.wires {
		if w.Netns == netns {
			delete(f.wires, link)
			f.tell(Event{Change: LinkGone, Link: link, Index: w.index})
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
func (f *Fake) Links() ([]Link, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Link
	for name, w := range f.wires {
		list = append(list, Link{Name: name, Index: w.index, Up: w.up, MTU: w.MTU})
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

// Forwarding4 is Kernel.Forwarding4.
func (f *Fake) Forwarding4() error { return f.setForward("ip_forward") }

// Forwarding6 is Kernel.Forwarding6.
func (f *Fake) Forwarding6() error { return f.setForward("forwarding6") }

func (f *Fake) setForward(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Contains(f.forward, what) {
		f.forward = append(f.forward, what)
	}
	return nil
}

// OpenNetns is Kernel.OpenNetns.
func (f *Fake) OpenNetns(pid, fd int) (*Netns, error) {
	if err := f.fail("netns", fmt.Sprintf("%d/%d", pid, fd)); err != nil {
		return nil, fmt.Errorf("network namespace of process %d, descriptor %d: %w", pid, fd, err)
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
