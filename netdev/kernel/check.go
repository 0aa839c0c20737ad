package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	inside, err := newHandle(w.Netns)
	if err != nil {
		return fmt.Errorf("check %s: network namespace: %w", w.Interface, err)
	}
	defer inside.Close()
	c, err := dial(w.Netns)
	if err != nil {
		return fmt.Errorf("check %s: network namespace: %w", w.Interface, err)
	}
	defer func() { _ = c.close() }()
	if err := errors.Join(k.checkHost(w), checkInside(inside, c, w)); err != nil {
		return fmt.Errorf("check %s: %w", w.Interface, err)
	}
	return nil
}

func (k *Kernel) checkHost(w Wire) error {
	s, err := k.sideOf(w)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is gone", w.Link)
	case err != nil:
		return fmt.Errorf("%s: %w", w.Link, err)
	}
	return differences(s.facts())
}

func checkInside(h *netlink.Handle, c *conn, w Wire) error {
	l, err := linkByName(h, w.Interface)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s is gone from the network namespace", w.Interface)
	case err != nil:
		return fmt.Errorf("%s in the network namespace: %w", w.Interface, err)
	}
	var errs []error
	if l.RawFlags&unix.IFF_UP == 0 {
		errs = append(errs, fmt.Errorf("%s is down", w.Interface))
	}
	if mac, err := net.ParseMAC(w.MAC); err == nil && !bytes.Equal(mac, l.HardwareAddr) {
		errs = append(errs, fmt.Errorf("%s: mac is %s, not %s", w.Interface, l.HardwareAddr, w.MAC))
	}
	if w.MTU != 0 && l.MTU != w.MTU {
		errs = append(errs, fmt.Errorf("%s: mtu is %d, not %d", w.Interface, l.MTU, w.MTU))
	}
	errs = append(errs, differences(w.inside(c, l.Index)))
	has, err := addressesOf(h, l.Index)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, a := range w.Addresses {
		if !has[netip.PrefixFrom(a, a.BitLen())] {
			errs = append(errs, fmt.Errorf("%s: address %s is missing", w.Interface, a))
		}
	}
	for _, gw := range w.gateways() {
		ok, err := hasDefault(h, l.Index, gw)
		if err == nil && !ok {
			err = fmt.Errorf("%s: default route via %s is missing", w.Interface, gw)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func addressesOf(h *netlink.Handle, index int) (map[netip.Prefix]bool, error) {
	list, err := again(func() ([]netlink.Addr, error) { return h.AddrList(device(index), netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", cause(err))
	}
	has := map[netip.Prefix]bool{}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			bits, _ := a.Mask.Size()
			has[netip.PrefixFrom(ip, bits)] = true
		}
	}
	return has, nil
}

// hasDefault reports whether the main table has a default route through gateway
// and the link.
func hasDefault(h *netlink.Handle, index int, gateway netip.Addr) (bool, error) {
	family := netlink.FAMILY_V4
	if gateway.Is6() {
		family = netlink.FAMILY_V6
	}
	list, err := again(func() ([]netlink.Route, error) {
		filter := &netlink.Route{LinkIndex: index, Table: unix.RT_TABLE_MAIN}
		return h.RouteListFiltered(family, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return false, fmt.Errorf("list routes: %w", cause(err))
	}
	return slices.ContainsFunc(list, func(r netlink.Route) bool {
		bits, _ := r.Dst.Mask.Size()
		return bits == 0 && r.Gw.Equal(gateway.AsSlice())
	}), nil
}
