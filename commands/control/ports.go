package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"netctl/datastore"
)

// MaxHostPorts bounds how many ports of the node one call publishes: each is a few
// rules of the packet filter.
const MaxHostPorts = 1024

// HostAddress reads the address of the host to which a runtime binds a published port.
// Zero is every one, which runtimes write as "", 0.0.0.0 or ::.
func HostAddress(text string) (netip.Addr, error) {
	if text == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(text)
	switch a = a.Unmap(); {
	case err != nil || a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%q is no address", text)
	case a.IsLoopback():
		return netip.Addr{}, fmt.Errorf("%s cannot lead to a container of netctl: leave the address out, or name one of this host's own", a)
	case a.IsUnspecified():
		return netip.Addr{}, nil
	}
	return a, nil
}

// AddHostPort adds a port that a runtime publishes to those that it publishes already,
// and refuses what cannot be. The same once more, as runtimes say it for each family of
// addresses, is one.
func AddHostPort(list []datastore.HostPort, protocol, hostIP string, hostPort, port int) ([]datastore.HostPort, error) {
	const least, most = 1, 1<<16 - 1
	p := datastore.HostPort{Protocol: strings.ToLower(protocol)}
	wrong := func(format string, args ...any) ([]datastore.HostPort, error) {
		return nil, fmt.Errorf("published port %d to %d/%s: %w", hostPort, port, protocol, fmt.Errorf(format, args...))
	}
	var err error
	switch p.HostIP, err = HostAddress(hostIP); {
	case hostPort < least || hostPort > most:
		return wrong("the host's port must be from %d to %d", least, most)
	case port < least || port > most:
		return wrong("the container's port must be from %d to %d", least, most)
	case err != nil:
		return wrong("%w", err)
	}
	p.HostPort, p.Port = uint16(hostPort), uint16(port)
	if err := p.Validate(); err != nil {
		return wrong("%s", strings.TrimPrefix(err.Error(), ".")) // the field is the protocol
	}
	for _, o := range list {
		if o == p {
			return list, nil
		}
		if o.Overlaps(p) {
			return wrong("the same port of the host is to lead to %d as well", o.Port)
		}
	}
	if len(list) == MaxHostPorts {
		return wrong("there are more than %d", MaxHostPorts)
	}
	return append(list, p), nil
}

// PublishOrDetach publishes the ports of what was attached right now; none: it does
// nothing. If that fails it is detached again, later if not now, so that nothing is left
// of an attach that the runtime is told has failed.
func (c *AgentClient) PublishOrDetach(ctx context.Context, r AttachRequest, a Attachment, ports []datastore.HostPort) error {
	if len(ports) == 0 {
		return nil
	}
	err := published(a, ports)
	if err == nil {
		err = c.Publish(ctx, PortRequest{Target: r.Target, Ports: ports})
	}
	if err == nil {
		return nil
	}
	gone := DetachRequest{Target: r.Target, Network: r.Network}
	if _, left := KeepDetach(filepath.Join(filepath.Dir(c.socket), "pending"), gone, c.Detach(ctx, gone)); left != nil && !errors.Is(left, datastore.ErrNotFound) {
		return &Error{ErrorOf(err).Code, fmt.Sprintf("%v; it stays attached: %v", err, left)}
	}
	return err
}

// published refuses a port of an address whose family the endpoint does not have:
// nobody would answer there.
func published(a Attachment, ports []datastore.HostPort) error {
	for _, p := range ports {
		same := func(addr netip.Addr) bool { return addr.Is4() == p.HostIP.Is4() }
		if p.HostIP.IsValid() && !slices.ContainsFunc(a.Addresses, same) {
			return fmt.Errorf("published port %s to %d/%s: %w: the container has no address of that family",
				netip.AddrPortFrom(p.HostIP, p.HostPort), p.Port, p.Protocol, datastore.ErrInvalid)
		}
	}
	return nil
}
