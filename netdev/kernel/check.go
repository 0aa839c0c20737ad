package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// Check compares both sides of a wire with what Create and Up make of it and
// returns everything that differs. Other addresses and routes inside the
// namespace are nobody's business. An empty MAC and an MTU of 0 match any.
func (k *Kernel) Check(w Wire) error {
	mac := w.MAC
	if _, err := w.prepare(); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	w.MAC = mac
	inside, err := dial(w.Netns)
	if err != nil {
		return fmt.Errorf("check %s: network namespace: %w", w.Interface, err)
	}
	defer inside.close()
	if err := errors.Join(k.checkHost(w), checkInside(inside, w)); err != nil {
		return fmt.Errorf("check %s: %w", w.Interface, err)
	}
	return nil
}

func (k *Kernel) checkHost(w Wire) error {
	l, err := k.conn.link(w.Link)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is gone", w.Link)
	case err != nil:
		return fmt.Errorf("%s: %w", w.Link, err)
	}
	var errs []error
	if l.group != netdev.Group {
		errs = append(errs, fmt.Errorf("%s: group is %d, not %d", w.Link, l.group, netdev.Group))
	}
	if !l.Up {
		errs = append(errs, fmt.Errorf("%s is down", w.Link))
	}
	if l.mac.String() != netdev.HostMAC {
		errs = append(errs, fmt.Errorf("%s: mac is %s, not %s", w.Link, l.mac, netdev.HostMAC))
	}
	for _, x := range hostSettings(w) {
		v, err := k.sys.read(x.dir, w.Link+"/"+x.name)
		if err == nil && v != x.value {
			errs = append(errs, fmt.Errorf("%s: %s is %s, not %s", w.Link, x.name, v, x.value))
		}
	}
	return errors.Join(errs...)
}

func checkInside(c *conn, w Wire) error {
	l, err := c.link(w.Interface)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is gone from the network namespace", w.Interface)
	case err != nil:
		return fmt.Errorf("%s in the network namespace: %w", w.Interface, err)
	}
	var errs []error
	if !l.Up {
		errs = append(errs, fmt.Errorf("%s is down", w.Interface))
	}
	if mac, err := net.ParseMAC(w.MAC); err == nil && !bytes.Equal(mac, l.mac) {
		errs = append(errs, fmt.Errorf("%s: mac is %s, not %s", w.Interface, l.mac, w.MAC))
	}
	if w.MTU != 0 && l.MTU != w.MTU {
		errs = append(errs, fmt.Errorf("%s: mtu is %d, not %d", w.Interface, l.MTU, w.MTU))
	}
	has, err := c.addressesOf(l.Index)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, a := range w.Addresses {
		if !has[netip.PrefixFrom(a, a.BitLen())] {
			errs = append(errs, fmt.Errorf("%s: address %s is missing", w.Interface, a))
		}
	}
	for _, gw := range []netip.Addr{w.Gateway4, w.Gateway6} {
		if !w.has(gw.Is4()) {
			continue
		}
		ok, err := c.defaultVia(l.Index, gw)
		if err == nil && !ok {
			err = fmt.Errorf("%s: default route via %s is missing", w.Interface, gw)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *conn) addressesOf(index int) (map[netip.Prefix]bool, error) {
	head := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(head[4:], uint32(index))
	res, err := c.dump(message(unix.RTM_GETADDR, 0, head, nil))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	has := map[netip.Prefix]bool{}
	for _, m := range res {
		a, err := parseAddress(m)
		if err != nil {
			return nil, err
		}
		if a.index == index {
			has[a.prefix] = true
		}
	}
	return has, nil
}

// defaultVia reports whether the main table has a default route through gateway
// and the link.
func (c *conn) defaultVia(index int, gateway netip.Addr) (bool, error) {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[4] = family(gateway), unix.RT_TABLE_MAIN
	res, err := c.dump(message(unix.RTM_GETROUTE, 0, head, func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.RTA_OIF, uint32(index))
	}))
	if err != nil {
		return false, fmt.Errorf("list routes: %w", err)
	}
	for _, m := range res {
		if len(m.Data) < unix.SizeofRtMsg || m.Data[1] != 0 || m.Data[4] != unix.RT_TABLE_MAIN {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofRtMsg:])
		if err != nil {
			return false, fmt.Errorf("list routes: %w", err)
		}
		var oif uint32
		var via netip.Addr
		for ad.Next() {
			switch ad.Type() {
			case unix.RTA_OIF:
				oif = ad.Uint32()
			case unix.RTA_GATEWAY:
				via, _ = netip.AddrFromSlice(ad.Bytes())
			}
		}
		if ad.Err() == nil && int(oif) == index && via == gateway {
			return true, nil
		}
	}
	return false, nil
}
