package lab

import (
	"strings"
	"testing"

	"netctl/commands/doctor"
	"netctl/netdev/netlab"
)

// TestGuestDoctor: with every kind of tunnels in use nothing is found, each path being
// proved by the other node's own device; a packet filter between them that drops one of
// them is found, and nothing else.
func TestGuestDoctor(t *testing.T) {
	l, _, _, _, _ := guestLab(t, true)
	one, two := l.Hosts[0], l.Hosts[1]
	mode(t, one, "ipip")
	netlab.Must(t, one, "netctl", "pool", "add", "10.66.0.0/16", "--vxlan")
	netlab.Must(t, one, "sh", "-c", `echo '{"apiVersion": "netctl/v1", "kind": "Pool", "spec": {"cidr": "10.67.0.0/16", "encap": "wireguard"}}' | netctl apply -f -`)
	paths := []string{"kernel", "path-mtu", "path-bgp", "path-ipip", "path-vxlan", "path-wireguard", "clock"}
	netlab.Until(t, 2*patience, "every path is proved", func() string {
		bad, states := examine(t, one)
		for _, name := range paths {
			if states[name] != doctor.Fine {
				bad = append(bad, name+" is "+string(states[name]))
			}
		}
		if len(bad) > 0 {
			return strings.Join(bad, "\n")
		}
		out, err := netlab.Try(t, one, "netctl", "get", "node", "node2", "-o", "json")
		if err != nil {
			return err.Error()
		}
		for _, kind := range []string{`"ipip"`, `"vxlan"`, `"wireguard"`} {
			if !strings.Contains(out, kind) {
				return "node2 has no end of " + kind
			}
		}
		return ""
	})
	for check, rule := range map[string]string{"path-ipip": "ip protocol 4", "path-vxlan": "udp dport 4789", "path-wireguard": "udp dport 51820"} {
		netlab.Must(t, l.Fabric, "nft", "add table inet hurt; add chain inet hurt fwd_all { type filter hook forward priority 0; }; add rule inet hurt fwd_all "+rule+" drop")
		if check == "path-wireguard" { // a handshake is good for three minutes; with another key there is none yet
			before := publicKeyOf(t, two)
			netlab.Must(t, one, "netctl", "node", "rotate-key", two.Name)
			netlab.Until(t, 2*patience, "another key", func() string {
				if now := publicKeyOf(t, two); now == before {
					return now
				}
				return ""
			})
		}
		netlab.Until(t, 2*patience, check, func() string {
			bad, _ := examine(t, one)
			found := false
			for _, b := range bad {
				if strings.Contains(b, ": could not tell: ") {
					return b // the guest may be slow
				}
				found = found || strings.HasPrefix(b, check+": ") && strings.Contains(b, "to node2 (") && strings.Contains(b, "no answer, though")
				if !strings.HasPrefix(b, check+": ") {
					t.Errorf("with %s dropped: %s", rule, b)
				}
			}
			if !found {
				return strings.Join(append(bad, "is what is found"), "\n")
			}
			return ""
		})
		netlab.Must(t, l.Fabric, "nft", "delete table inet hurt")
	}
	netlab.Until(t, 2*patience, "undone", func() string {
		bad, _ := examine(t, one)
		return strings.Join(bad, "\n")
	})
}
