package kernel

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"

	"netctl/datastore"
	"netctl/netdev"
)

// Place is where an attach found a workload's namespace: a path, and what it named
// then; Ino is 0 where it named nothing yet.
type Place struct {
	Path     string
	Dev, Ino uint64
}

// openPlace opens the namespace if the path still leads to it; os.ErrNotExist: it does
// not.
func openPlace(p Place) (*Netns, error) {
	if p.Path == "" {
		return nil, fmt.Errorf("network namespace: nobody told its path: %w", os.ErrNotExist)
	}
	ns, err := openNetns(p.Path)
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", p.Path, err)
	}
	if p.Ino != 0 && (ns.Dev != p.Dev || ns.Ino != p.Ino) {
		_ = ns.Close()
		return nil, fmt.Errorf("network namespace %s: is another one now: %w", p.Path, os.ErrNotExist)
	}
	return ns, nil
}

// Lives says whether the namespace is where an attach found it.
func (k *Kernel) Lives(p Place) bool {
	ns, err := openPlace(p)
	if err == nil {
		_ = ns.Close()
	}
	return err == nil
}

// Resize gives both sides of a wire an MTU, those that send first: of a smaller one the
// workload's, of a larger one the host's. That the host sends nothing larger to the
// workload by then is the caller's to see to. A workload's side that somebody else made
// smaller stays so. When the workload's side cannot be changed the host's is left too,
// so that it takes what the workload sends.
func (k *Kernel) Resize(w Wire, at Place, mtu int) error {
	if err := k.resize(w, at, mtu); err != nil {
		return fmt.Errorf("mtu of %s: %w", w.Link, cause(err))
	}
	return nil
}

func (k *Kernel) resize(w Wire, at Place, mtu int) error {
	if lowest := w.lowestMTU(); mtu < lowest || mtu > netdev.MaxMTU {
		return fmt.Errorf("%d: must be %d to %d: %w", mtu, lowest, netdev.MaxMTU, datastore.ErrInvalid)
	}
	s, err := k.sideOf(w)
	if err != nil {
		return err
	}
	if w.Tap.Is() { // the machine is told with its next lease
		return k.host.LinkSetMTU(device(s.link.Index), mtu)
	}
	ns, err := openPlace(at)
	if err != nil {
		return err
	}
	defer ns.Close()
	inside, err := newHandle(ns.fd)
	if err != nil {
		return err
	}
	defer inside.Close()
	l, err := inside.LinkByIndex(s.link.peer)
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none) || err == nil && (l.Type() != "veth" || l.Attrs().ParentIndex != s.link.Index):
		return fmt.Errorf("%s in the network namespace: %w", w.Interface, os.ErrNotExist)
	case err != nil:
		return err
	}
	host := func() error { return k.host.LinkSetMTU(device(s.link.Index), mtu) }
	workload := func() error { return inside.LinkSetMTU(device(s.link.peer), mtu) }
	steps := []func() error{host, workload}
	switch have := l.Attrs().MTU; {
	case mtu < have:
		steps = []func() error{workload, host}
	case have < s.link.MTU: // as somebody else has it
		steps = steps[:1]
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// lowestMTU is the smallest that a wire may have.
func (w Wire) lowestMTU() int {
	if w.has(false) {
		return netdev.MinMTU6
	}
	return netdev.MinMTU
}
