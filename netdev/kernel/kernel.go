// Package kernel owns the network interfaces of endpoints and the devices of tunnels:
// it makes veth pairs and TAP devices, sets both sides up, takes them out of service, and tells what
// interfaces and addresses the host has.
//
// It never writes a route outside an endpoint's own namespace (routing/fib does),
// never filters a packet, never executes a program, and changes only interfaces
// that carry netdev.Group, netdev.GroupRetired, netdev.GroupTunnel or
// netdev.GroupShaper.
//
// Invariants: an endpoint's peer is born inside its namespace, so that nothing is
// ever moved; Create leaves the host side down, so that ACLs are in place before
// the first packet; a Create that fails leaves nothing behind; everything is done
// in the namespace in which Open was called, whatever thread calls later.
package kernel

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
)

// BootIDFile is where the kernel tells the ID of the current boot.
const BootIDFile = "/proc/sys/kernel/random/boot_id"

// BootID reads the ID of the current boot; file is BootIDFile but in tests.
func BootID(file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", fmt.Errorf("boot id %s: empty", file)
	}
	return id, nil
}

// Kernel is the interfaces of one network namespace. Its methods are safe for
// concurrent use.
type Kernel struct {
	log    *slog.Logger
	own    *Netns
	host   *netlink.Handle // changes, and what is asked about one link
	conn   *conn           // lists
	port   uint32          // the address of conn
	sys    *sysctls
	retire *retirer
}

// Open prepares to work in the network namespace of the calling thread. Run must
// run for detached links to be deleted. The error wraps os.ErrPermission where
// the privilege is missing.
func Open(log *slog.Logger) (_ *Kernel, err error) {
	k := &Kernel{log: log}
	defer func() {
		if err != nil {
			_ = k.Close()
		}
	}()
	if k.own, err = openThreadNetns(); err != nil {
		return nil, err
	}
	if k.host, err = newHandle(k.own.FD()); err != nil {
		return nil, err
	}
	if k.conn, err = dial(k.own.FD()); err != nil {
		return nil, err
	}
	k.port = k.conn.nl.PID()
	if k.sys, err = openSysctls(); err != nil {
		return nil, err
	}
	if k.retire, err = newRetirer(k.own.FD()); err != nil {
		return nil, err
	}
	return k, nil
}

// Close releases what Open opened; the kernel's state stays as it is. No other
// method may run meanwhile or be called after it.
func (k *Kernel) Close() error {
	var errs []error
	if k.retire != nil {
		errs = append(errs, k.retire.conn.close())
	}
	if k.sys != nil {
		errs = append(errs, k.sys.close())
	}
	if k.conn != nil {
		errs = append(errs, k.conn.close())
	}
	if k.host != nil {
		k.host.Close()
	}
	if k.own != nil {
		errs = append(errs, k.own.Close())
	}
	return errors.Join(errs...)
}
