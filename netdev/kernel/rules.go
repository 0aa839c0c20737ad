package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DropRules removes the rules that Create made for the addresses of an interface that is
// not the first in its namespace, and that outlive the interface. The namespace is the
// one that path names, if that still is dev and ino: else its workload is gone, and they
// with it; an ino of 0 is whatever it names. Those that Settle made for destinations go
// too.
func (k *Kernel) DropRules(path string, dev, ino uint64, addresses []netip.Addr, to []netip.Prefix) error {
	if path == "" {
		return nil
	}
	ns, err := openNetns(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("rules in %s: %w", path, err)
	}
	defer ns.Close()
	if ino != 0 && (ns.Dev != dev || ns.Ino != ino) {
		return nil
	}
	h, err := newHandle(ns.fd)
	if err != nil {
		return fmt.Errorf("rules in %s: %w", path, err)
	}
	defer h.Close()
	err = h.SetStrictCheck(false) // the library asks for rules with a link's header
	if err == nil {
		err = dropRules(h, addresses, to)
	}
	if err != nil {
		return fmt.Errorf("rules in %s: %w", path, err)
	}
	return nil
}

// dropRules removes the rules of addresses that lead to a table of secondRoutes. Which
// that is those by the source say, which no other interface has: rules by the destination
// may be alike for several interfaces, but for the table.
func dropRules(h *netlink.Handle, addresses []netip.Addr, to []netip.Prefix) error {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		ours, theirs := map[string]bool{}, map[string]bool{}
		for _, a := range addresses {
			if a.Is4() == (family == netlink.FAMILY_V4) {
				ours[hostNet(a).String()] = true
			}
		}
		if len(ours) == 0 {
			continue
		}
		for _, p := range to {
			theirs[network(p).String()] = true
		}
		rules, err := again(func() ([]netlink.Rule, error) { return h.RuleList(family) })
		errs = append(errs, err)
		var from, dst []netlink.Rule
		tables := map[int]bool{}
		for _, r := range rules {
			switch {
			case r.Table <= secondTable:
			case r.Src != nil && ours[r.Src.String()]:
				from = append(from, r)
				tables[r.Table] = true
			case r.Dst != nil && theirs[r.Dst.String()]:
				dst = append(dst, r)
			}
		}
		dst = slices.DeleteFunc(dst, func(r netlink.Rule) bool { return !tables[r.Table] })
		for _, r := range append(dst, from...) { // those that say which, last
			if err := h.RuleDel(&r); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("remove rule %s: %w", r, cause(err)))
			}
		}
	}
	return errors.Join(errs...)
}
