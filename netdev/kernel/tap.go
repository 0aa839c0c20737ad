package kernel

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/netdev"
)

// tunDevice is what TAP devices are made with (Documentation/networking/tuntap.rst).
const tunDevice = "/dev/net/tun"

// createTap makes a TAP that stays when nobody has it open, with all that an attach
// makes of it; it stays down. A name that is taken is ErrExists.
func (k *Kernel) createTap(w Wire) (Made, error) {
	err := k.newTap(w)
	if errors.Is(err, unix.EBUSY) && k.retire.flush() == nil {
		err = k.newTap(w)
	}
	switch {
	case errors.Is(err, unix.EBUSY):
		return Made{}, fmt.Errorf("tap %s: %s on the host: %w", w.Tap.Name, w.Link, datastore.ErrExists)
	case errors.Is(err, os.ErrNotExist):
		return Made{}, fmt.Errorf("tap %s: %w: load the module tun", w.Tap.Name, err)
	case err != nil:
		return Made{}, fmt.Errorf("tap %s: create %s: %w", w.Tap.Name, w.Link, cause(err))
	}
	l, err := k.link(0, w.Link)
	if err == nil {
		err = k.dress(w, l)
	}
	if err != nil {
		if undo := k.host.LinkDel(device(l.Index)); l.Index != 0 && undo != nil {
			err = errors.Join(err, fmt.Errorf("remove %s: %w", w.Link, cause(undo)))
		}
		if w.Bandwidth.Egress.Bits != 0 {
			err = errors.Join(err, k.dropShaper(w.Link))
		}
		return Made{}, fmt.Errorf("tap %s: %w", w.Tap.Name, err)
	}
	return Made{MAC: w.MAC, Index: l.Index}, nil
}

// dress makes a TAP that was just made what an attach makes of it.
func (k *Kernel) dress(w Wire, l rawLink) error {
	mac, err := net.ParseMAC(w.MAC)
	if err != nil {
		return err
	}
	s := &side{k: k, wire: w, link: l, mac: mac}
	for _, f := range s.facts() {
		if f.raises {
			continue
		}
		text, err := f.differs()
		if err == nil && text != "" {
			err = f.put()
		}
		if err != nil {
			return cause(err)
		}
	}
	return nil
}

// newTap makes the device; EBUSY: the link's name is taken.
func (k *Kernel) newTap(w Wire) error {
	return inNetns(k.own.FD(), func() error {
		fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: tunDevice, Err: err}
		}
		defer unix.Close(fd)
		ifr, err := unix.NewIfreq(w.Link)
		if err != nil {
			return err
		}
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
		if w.Tap.MultiQueue {
			flags |= unix.IFF_MULTI_QUEUE
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			return err
		}
		// It goes with the descriptor unless all of this is done.
		if w.Tap.Owner != 0 || w.Tap.Group == 0 {
			err = unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(w.Tap.Owner))
		}
		if err == nil && w.Tap.Group != 0 {
			err = unix.IoctlSetInt(fd, unix.TUNSETGROUP, int(w.Tap.Group))
		}
		if err == nil {
			err = unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1)
		}
		return err
	})
}

// alias is the name by which a virtual machine's program opens the link (ip-link(8),
// altname; since Linux 5.5).
func (s *side) alias() fact {
	name := s.wire.Tap.Name
	return fact{
		differs: func() (string, error) {
			l, err := s.k.link(0, name)
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Sprintf("%s: the name %s is missing", s.wire.Link, name), nil
			}
			if err == nil && l.Index != s.link.Index {
				err = fmt.Errorf("%s is the name of interface %s too: %w", name, l.Name, datastore.ErrExists)
			}
			return "", err
		},
		put: func() error { return s.k.host.LinkAddAltName(device(s.link.Index), name) },
	}
}

// dropAliases takes a TAP's name from a link that goes, so that another one can have it.
func (k *Kernel) dropAliases(l rawLink) {
	for _, name := range l.aliases {
		_ = k.host.LinkDelAltName(device(l.Index), name) // it goes with the link
	}
}

// wired says whether a link is of a kind that attaches make.
func (l rawLink) wired() bool { return l.kind == "veth" || l.kind == "tun" }

// checkTap reports what of a TAP cannot be.
func (w Wire) checkTap() error {
	if !w.Tap.Is() {
		return nil
	}
	if err := netdev.ValidInterface(w.Tap.Name); err != nil {
		return err
	}
	if w.Tap.Name == w.Link {
		return fmt.Errorf("tap %s: is the name of its link: %w", w.Tap.Name, datastore.ErrInvalid)
	}
	return nil
}
