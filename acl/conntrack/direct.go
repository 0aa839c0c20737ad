package conntrack

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"netctl/datastore"
)

const (
	statusDNAT = 1 << 5 // IPS_DST_NAT: another than its destination answers
	udp        = 17     // IANA protocol number
)

// DeleteDirect deletes the UDP entries of what is sent to ports of the host, by one of its
// addresses, and goes to the host itself: they are older than the rules that publish the
// ports, and who sends all the time keeps its entry for ever. Of TCP and SCTP the host
// has refused the connection. It works in the current network namespace.
func DeleteDirect(host []netip.Addr, ports []datastore.HostPort) error {
	ports = slices.DeleteFunc(slices.Clone(ports), func(p datastore.HostPort) bool { return p.Protocol != "udp" })
	if len(ports) == 0 {
		return nil
	}
	// Without DNAT who answers is who was sent to.
	is := func(e *entry) bool {
		to := e.reply.src
		return e.orig.protocol == udp && e.status&statusDNAT == 0 && slices.Contains(host, to) &&
			slices.ContainsFunc(ports, func(p datastore.HostPort) bool {
				return p.HostPort == e.orig.dstPort && (!p.HostIP.IsValid() || p.HostIP == to)
			})
	}
	c, err := Open()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.deleteWhere(unix.AF_UNSPEC, nil, is)
}
