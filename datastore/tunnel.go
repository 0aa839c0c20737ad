package datastore

// TunnelKind is a form of encapsulation between the addresses of two nodes.
type TunnelKind string

// The kinds of tunnels: IPv4 in IPv4, and either family in VXLAN between IPv4 or
// IPv6 addresses.
const (
	TunnelIPIP   TunnelKind = "ipip"
	TunnelVXLAN  TunnelKind = "vxlan"
	TunnelVXLAN6 TunnelKind = "vxlan6"
	// TunnelWireGuard is either family, encrypted, between IPv4 or IPv6 addresses.
	TunnelWireGuard TunnelKind = "wireguard"
)

// TunnelOf is a node's end of tunnels of a kind.
func (n *Node) TunnelOf(kind TunnelKind) (Tunnel, bool) {
	for _, t := range n.Status.Tunnels {
		if t.Kind == kind {
			return t, true
		}
	}
	return Tunnel{}, false
}

// Tunnel is one end of tunnels to other nodes.
type Tunnel struct {
	Kind TunnelKind `json:"kind"`
	// MAC is the hardware address of its device, of VXLAN; of WireGuard it only names the
	// end in IPv6 routes.
	MAC string `json:"mac,omitempty"`
	// Key is the public key of WireGuard, in base64.
	Key string `json:"key,omitempty"`
	// Pending says that others are to know the end, and not to send by it yet.
	Pending bool `json:"pending,omitempty"`
}
