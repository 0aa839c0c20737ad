package netlab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// wire makes the fabric: one bridge for the first interfaces, where the default
// route leads, and one for each subnet of the second interfaces, over which BGP
// runs. The fabric's end of interface eth<i> of node<n> is called n<n>.<i>: to set
// that down is to pull the cable.
func (l *Lab) wire(o Options) error {
	var f strings.Builder
	var up strings.Builder
	bridge := func(name string, addrs ...netip.Prefix) {
		fmt.Fprintf(&f, "link add %s type bridge\n", name)
		fmt.Fprintf(&up, "link set %s up\n", name)
		for _, a := range addrs {
			f.WriteString(addAddress(a, name))
		}
	}
	bridge("mgmt", hostIn(o.mgmt(), 1))
	for i := range o.Subnets {
		var addrs []netip.Prefix
		for _, s := range o.subnets(i) {
			addrs = append(addrs, hostIn(s, 1))
		}
		bridge(fmt.Sprintf("net%d", i), addrs...)
	}
	inner := make([]string, len(l.Hosts))
	for i, h := range l.Hosts { // all have their addresses before the first is told of the others
		at := i % o.Subnets
		list := o.subnets(at)
		h.Main, h.Addr = hostIn(o.mgmt(), firstHost+i), hostIn(list[0], firstHost+i)
		if len(list) > 1 {
			h.Addr6 = hostIn(list[1], firstHost+i)
		}
		for n, master := range []string{"mgmt", fmt.Sprintf("net%d", at)} {
			fmt.Fprintf(&f, "link add n%d.%d type veth peer name eth%d address %s netns %d\n", i+1, n, n, macOf(i, n), h.PID)
			fmt.Fprintf(&f, "link set n%d.%d master %s up\n", i+1, n, master)
		}
		inner[i] = h.network(o, at)
	}
	if len(l.Hosts) > mostLearning {
		for i := range l.Hosts {
			inner[i] += l.neighbours(i, o.Subnets)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	settings := "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad"
	route := settings + "; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding"
	if err := l.Fabric.batch(ctx, route, "link set lo up\n"+f.String()); err != nil {
		return fmt.Errorf("fabric: %w", err)
	}
	for i, h := range l.Hosts {
		if err := h.batch(ctx, settings, inner[i]); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	// The kernel acts at once when a veth gets its carrier, but on a bridge that is up
	// only within a second: bridges go up last, and then have one from the start.
	if err := l.Fabric.linksReady(ctx, "type", "veth"); err != nil {
		return fmt.Errorf("fabric: %w", err)
	}
	if err := l.Fabric.batch(ctx, ":", up.String()); err != nil {
		return fmt.Errorf("fabric: %w", err)
	}
	for _, h := range l.all() {
		if err := h.linksReady(ctx); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return nil
}

// mostLearning is the largest number of hosts that find each other by ARP. The
// kernel has one table for all namespaces, and with 32 hosts in a mesh it is full
// (net.ipv4.neigh.default.gc_thresh3, 1024); permanent entries do not count.
const mostLearning = 20

// Neighbours is about how many entries of the kernel's neighbour table, permanent ones
// aside, the hosts of a lab take of a family: each other, and the fabric in both
// directions and subnets.
func (o Options) Neighbours() int {
	n := 4 * o.Nodes
	if o.Nodes <= mostLearning {
		n += o.Nodes * (o.Nodes - 1)
	}
	return n
}

// macOf is the hardware address of interface eth<n> of host i.
func macOf(i, n int) string { return fmt.Sprintf("02:6e:63:%02x:%02x:%02x", n, i>>8, i&0xff) }

// neighbours are permanent entries of host i for every other host in its subnet, as
// input of ip -batch.
func (l *Lab) neighbours(i, subnets int) string {
	var b strings.Builder
	for j, other := range l.Hosts {
		if j == i || j%subnets != i%subnets {
			continue
		}
		for _, a := range []netip.Prefix{other.Addr, other.Addr6} {
			if a.IsValid() {
				fmt.Fprintf(&b, "neigh replace %s lladdr %s dev eth1 nud permanent\n", a.Addr(), macOf(j, 1))
			}
		}
	}
	return b.String()
}

// linksReady waits until every interface, or those of a kind, carries packets.
func (h *Host) linksReady(ctx context.Context, kind ...string) error {
	for {
		out, err := h.Exec(ctx, Cmd{Args: append([]string{"ip", "-o", "-d", "link", "show"}, kind...)})
		if err != nil {
			return err
		}
		waits := ""
		for line := range strings.Lines(out) {
			if !carries(line, len(kind) == 0) {
				waits = line
			}
		}
		if waits == "" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("an interface does not come up: %s", waits)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// carries reads a line of ip -o -d link. The state of a bridge is told late, its
// ports forward only once it is up.
func carries(line string, bridgesUp bool) bool {
	switch {
	case strings.Contains(line, "LOOPBACK") || strings.Contains(line, "@NONE: "):
		return true // modules of tunnels put a device of theirs (tunl0) into every namespace
	case strings.Contains(line, " bridge forward_delay "):
		return strings.Contains(line, "LOWER_UP")
	case bridgesUp && strings.Contains(line, "bridge_slave") && !strings.Contains(line, "bridge_slave state forwarding"):
		return false
	}
	return strings.Contains(line, " state UP ")
}

// network is the host's own side, as input of ip -batch.
func (h *Host) network(o Options, at int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "link set lo up\nlink set eth0 up\nlink set eth1 up\n")
	b.WriteString(addAddress(h.Main, "eth0") + addAddress(h.Addr, "eth1"))
	if h.Addr6.IsValid() {
		b.WriteString(addAddress(h.Addr6, "eth1"))
	}
	fmt.Fprintf(&b, "route add default via %s\n", hostIn(h.Main.Masked(), 1).Addr())
	for i := range o.Subnets {
		if i == at {
			continue
		}
		near := o.subnets(at)
		for n, far := range o.subnets(i) {
			fmt.Fprintf(&b, "route add %s via %s\n", far, hostIn(near[n], 1).Addr())
		}
	}
	return b.String()
}

// addAddress is a line of ip -batch that gives an interface an address at once.
func addAddress(a netip.Prefix, link string) string {
	nodad := ""
	if a.Addr().Is6() {
		nodad = " nodad"
	}
	return fmt.Sprintf("addr add %s dev %s%s\n", a, link, nodad)
}

// batch makes settings with a shell and then runs ip -batch.
func (h *Host) batch(ctx context.Context, settings, script string) error {
	_, err := h.Exec(ctx, Cmd{Args: []string{"sh", "-c", settings + "; exec ip -batch -"}, Stdin: script})
	return err
}
