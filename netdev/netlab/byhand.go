package netlab

import "net/netip"

// ByHand are two workloads, each behind a router of its own, with a bridge between the
// routers: what endpoints of two nodes are, wired and routed without netctl.
type ByHand struct {
	From, To *Netns
	At       netip.Addr // of To
	Routers  [2]*Netns
}

// RoutedByHand makes them for a test.
func RoutedByHand(t TB) (h ByHand) {
	t.Helper()
	bridge := NetnsForTest(t)
	bridge.Run("ip", "link", "add", "name", "fabric", "up", "type", "bridge")
	ends := [2]struct{ own, router, other, next, port string }{
		{"10.1.0.2", "192.168.5.1/24", "10.2.0.2", "192.168.5.2", "p0"},
		{"10.2.0.2", "192.168.5.2/24", "10.1.0.2", "192.168.5.1", "p1"},
	}
	var works [2]*Netns
	for i, e := range ends {
		router, work := NetnsForTest(t), NetnsForTest(t)
		router.Run("sh", "-ec", "echo 1 > /proc/sys/net/ipv4/ip_forward; ip addr add 169.254.1.1/32 dev lo")
		router.Run("ip", "link", "add", "name", "wl", "up", "type", "veth", "peer", "name", "eth0", "netns", work.Name)
		router.Run("ip", "link", "add", "name", "eth0", "up", "type", "veth", "peer", "name", e.port, "netns", bridge.Name)
		bridge.Run("ip", "link", "set", e.port, "master", "fabric", "up")
		work.Run("sh", "-ec", "ip addr add "+e.own+"/32 dev eth0; ip link set eth0 up; ip route add 169.254.1.1 dev eth0; ip route add default via 169.254.1.1")
		router.Run("sh", "-ec", "ip addr add "+e.router+" dev eth0; ip route add "+e.own+" dev wl; ip route add "+e.other+" via "+e.next)
		h.Routers[i], works[i] = router, work
	}
	h.From, h.To, h.At = works[0], works[1], netip.MustParseAddr(ends[1].own)
	return h
}
