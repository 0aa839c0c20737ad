package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"netctl/netdev"
)

// Retired counts the links that are out of service and not deleted yet.
func (k *Kernel) Retired() (n int, err error) {
	all, err := k.links()
	if err != nil {
		return 0, fmt.Errorf("list links: %w", err)
	}
	for _, l := range all {
		if l.group == netdev.GroupRetired {
			n++
		}
	}
	return n, nil
}

// Purge deletes every link of netctl's; the kernel's own tunnel is put back as it was.
// It is for a host whose roles have ended for good.
func (k *Kernel) Purge() error {
	var errs []error
	for _, group := range []uint32{netdev.Group, netdev.GroupRetired, netdev.GroupShaper} {
		if err := k.retire.conn.deleteGroup(group); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete links of endpoints: %w", err))
		}
	}
	tunnels, err := k.Tunnels()
	errs = append(errs, err)
	for _, name := range tunnels {
		errs = append(errs, k.RemoveTunnel(name))
	}
	return errors.Join(errs...)
}
