package netdev

import (
	"crypto/sha256"
	"fmt"
	"net"
	"strings"

	"netctl/datastore"
)

// TunnelKinds are the kinds of tunnels in the order in which they are told.
func TunnelKinds() []datastore.TunnelKind {
	return []datastore.TunnelKind{datastore.TunnelIPIP, datastore.TunnelVXLAN, datastore.TunnelVXLAN6, datastore.TunnelWireGuard}
}

// DefaultTunnels are the names of the devices of tunnels unless the configuration says
// otherwise. The kernel makes tunl0 itself.
func DefaultTunnels() map[datastore.TunnelKind]string {
	return map[datastore.TunnelKind]string{
		datastore.TunnelIPIP: "tunl0", datastore.TunnelVXLAN: "vxlan.netctl", datastore.TunnelVXLAN6: "vxlan6.netctl", datastore.TunnelWireGuard: "wg.netctl",
	}
}

// WireGuardPort is the UDP port of WireGuard tunnels unless the configuration says
// otherwise.
const WireGuardPort = 51820

// TunnelMAC is the hardware address of a machine's end of tunnels, by its ID: unicast,
// locally administered (IEEE 802, section 8.4).
func TunnelMAC(host string) string {
	sum := sha256.Sum256([]byte("tunnel\x00" + host))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac.String()
}

// ValidTunnel reports why the device of a tunnel cannot have a name beside links of
// endpoints, whose names begin with prefix.
func ValidTunnel(name, prefix string) error {
	if err := ValidInterface(name); err != nil {
		return err
	}
	if strings.HasPrefix(name, prefix) {
		return fmt.Errorf("interface %q: begins with %q, as those of endpoints do: %w", name, prefix, datastore.ErrInvalid)
	}
	return nil
}
