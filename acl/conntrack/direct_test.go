package conntrack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestDeleteDirect: what goes to the host itself by a published UDP port goes, of either
// family; what is led on, of other ports, addresses, protocols and hosts stays.
func TestDeleteDirect(t *testing.T) {
	n := newNetns(t)
	const (
		gone = false
		kept = true
	)
	flows := []struct {
		flow string
		kept bool
	}{
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dport 53", gone},
		{"-p udp -s 198.51.100.2 -d 198.51.100.1 --dport 53", gone}, // the host's own
		{"-p udp -s 2001:db8::9 -d 2001:db8::1 --dport 53", gone},
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dport 53 -w 5", gone},                      // in another zone
		{"-p udp -s 192.0.2.9 -d 198.51.100.2 --dport 54", gone},                           // published at this address
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dport 54", kept},                           // and at this it is not
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dst-nat 10.0.0.5 --dport 53", kept},        // to an endpoint
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dst-nat 198.51.100.2:77 --dport 53", kept}, // somebody's redirect
		{"-p udp -s 10.0.0.5 -d 192.0.2.9 --src-nat 198.51.100.1 --dport 53", kept},        // an endpoint's, outwards
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dport 55", kept},                           // another port
		{"-p udp -s 192.0.2.9 -d 198.51.100.1 --dport 80", kept},                           // published of tcp
		{"-p tcp -s 192.0.2.9 -d 198.51.100.1 --dport 53 --state ESTABLISHED", kept},       // another protocol
		{"-p udp -s 192.0.2.9 -d 192.0.2.10 --dport 53", kept},                             // not ours
	}
	for i, f := range flows {
		n.Run(strings.Fields(fmt.Sprintf("conntrack -I -t 600 %s --sport %d", f.flow, 1000+i))...)
	}
	var host []netip.Addr
	for _, a := range []string{"198.51.100.1", "198.51.100.2", "2001:db8::1"} {
		host = append(host, netip.MustParseAddr(a))
	}
	n.Do(func() {
		if err := DeleteDirect(host, []datastore.HostPort{
			{Protocol: "udp", HostPort: 53, Port: 5353}, {Protocol: "tcp", HostPort: 80, Port: 80},
			{Protocol: "udp", HostPort: 54, Port: 54, HostIP: netip.MustParseAddr("198.51.100.2")},
		}); err != nil {
			t.Error(err)
		}
	})
	left := n.Run("conntrack", "-L", "-f", "ipv4") + n.Run("conntrack", "-L", "-f", "ipv6")
	for i, f := range flows {
		if is := strings.Contains(left, fmt.Sprintf("sport=%d ", 1000+i)); is != f.kept {
			t.Errorf("%s: left %v, want %v\n%s", f.flow, is, f.kept, left)
		}
	}
}
