package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"netctl/commands/bench"
	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

// benchWay is one way of connecting containers of two machines.
type benchWay struct {
	name string
	// needs is a link called bench9 without which there is no such way.
	needs string
	// make wires the way between the hosts of the lab and returns its ends.
	make func(ctx context.Context, l *benchLab) (from, to netlab.Place, at netip.Addr, err error)
}

// benchWays are those that `netctl bench --lab` compares, the host's own network first.
func benchWays() []benchWay {
	return []benchWay{
		{"host", "", func(_ context.Context, l *benchLab) (from, to netlab.Place, at netip.Addr, err error) {
			return l.a, l.b, l.b.Addr.Addr(), nil
		}},
		{"routed", "", benchPool("")},
		{"ipip", "name bench9 type ipip remote 192.0.2.1", benchPool("--ipip")},
		{"vxlan", "name bench9 type vxlan id 4098 dstport 8473", benchPool("--vxlan")},
		{"wireguard", "name bench9 type wireguard", benchPool("--wireguard")},
		{"bridge", "", benchBridge},
		{"macvlan", "link eth1 name bench9 type macvlan", benchMacvlan},
		{"overlay", "name bench9 type vxlan id 4098 dstport 8473", benchOverlay},
	}
}

// benchLab is a lab of two nodes, and what was wired in it.
type benchLab struct {
	a, b  *netlab.Host
	pools int
}

// run runs lines of shell on a host.
func run(ctx context.Context, h *netlab.Host, script string, args ...any) error {
	_, err := h.Exec(ctx, netlab.Cmd{Args: []string{"sh", "-ec", fmt.Sprintf(script, args...)}})
	return err
}

// pair makes a namespace on each host.
func (l *benchLab) pair(name string) (a, b *netlab.Container, err error) {
	if a, err = l.a.Container(name); err == nil {
		b, err = l.b.Container(name)
	}
	return a, b, err
}

// benchPool attaches a namespace on each node, with addresses of a pool of that mode.
func benchPool(mode string) func(context.Context, *benchLab) (netlab.Place, netlab.Place, netip.Addr, error) {
	return func(ctx context.Context, l *benchLab) (from, to netlab.Place, at netip.Addr, err error) {
		l.pools++
		pool := fmt.Sprintf("10.%d.0.0/16", 64+l.pools)
		if err := run(ctx, l.a, "netctl pool add %s %s", pool, mode); err != nil {
			return nil, nil, at, err
		}
		name := fmt.Sprintf("bench%d", l.pools)
		a, b, err := l.pair(name)
		if err != nil {
			return nil, nil, at, err
		}
		at = netip.AddrFrom4([4]byte{10, byte(64 + l.pools), 1, 10})
		for c, addr := range map[*netlab.Container]netip.Addr{a: netip.AddrFrom4([4]byte{10, byte(64 + l.pools), 0, 10}), b: at} {
			if err := run(ctx, c.Host, "netctl endpoint add --workload %s --netns %s --network bench --ip %s", name, c.Path(), addr); err != nil {
				return nil, nil, at, err
			}
		}
		return a, b, at, nil
	}
}

// benchBridge is Docker's own network: a bridge, masquerading, and a published port.
func benchBridge(ctx context.Context, l *benchLab) (from, to netlab.Place, at netip.Addr, err error) {
	a, b, err := l.pair("bridge")
	if err != nil {
		return nil, nil, at, err
	}
	for _, c := range []*netlab.Container{a, b} {
		if err := run(ctx, c.Host, `
			ip link add bench0 type bridge; ip address add 172.30.0.1/24 dev bench0; ip link set bench0 up
			ip link add bv0 type veth peer name eth0 netns %[1]s; ip link set bv0 master bench0 up
			nsenter --net=%[1]s sh -ec 'ip link set lo up; ip address add 172.30.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 172.30.0.1'
			nft -f - <<end
			table ip bench {
				chain pre { type nat hook prerouting priority dstnat; iifname "eth1" tcp dport %[2]d dnat to 172.30.0.2; iifname "eth1" udp dport %[2]d dnat to 172.30.0.2; }
				chain post { type nat hook postrouting priority srcnat; ip saddr 172.30.0.0/24 oifname != "bench0" masquerade; }
			}
end`, c.Path(), bench.DefaultPort); err != nil {
			return nil, nil, at, err
		}
	}
	return a, b, l.b.Addr.Addr(), nil
}

// benchMacvlan gives containers an interface on the machine's own.
func benchMacvlan(ctx context.Context, l *benchLab) (from, to netlab.Place, at netip.Addr, err error) {
	a, b, err := l.pair("macvlan")
	if err != nil {
		return nil, nil, at, err
	}
	at = netip.MustParseAddr("192.168.99.202")
	for c, addr := range map[*netlab.Container]string{a: "192.168.99.201", b: at.String()} {
		if err := run(ctx, c.Host, `
			ip link add mv0 link eth1 type macvlan mode bridge; ip link set mv0 netns %[1]s name eth0
			nsenter --net=%[1]s sh -ec 'ip link set lo up; ip address add %[2]s/24 dev eth0; ip link set eth0 up'`, c.Path(), addr); err != nil {
			return nil, nil, at, err
		}
	}
	return a, b, at, nil
}

// benchOverlay is the network of Swarm and Flannel: a bridge over VXLAN.
func benchOverlay(ctx context.Context, l *benchLab) (from, to netlab.Place, at netip.Addr, err error) {
	a, b, err := l.pair("overlay")
	if err != nil {
		return nil, nil, at, err
	}
	at = netip.MustParseAddr("172.31.0.2")
	for c, addr := range map[*netlab.Container]string{a: "172.31.0.1", b: at.String()} {
		other := l.a
		if c.Host == l.a {
			other = l.b
		}
		if err := run(ctx, c.Host, `
			ip link add ov0 type bridge; ip link set ov0 mtu 1450 up
			ip link add vx0 type vxlan id 4097 local %[3]s remote %[4]s dstport 8472; ip link set vx0 mtu 1450 master ov0 up
			ip link add ov1 type veth peer name eth0 netns %[1]s; ip link set ov1 mtu 1450 master ov0 up
			nsenter --net=%[1]s sh -ec 'ip link set lo up; ip address add %[2]s/24 dev eth0; ip link set eth0 mtu 1450 up'`,
			c.Path(), addr, c.Host.Addr.Addr(), other.Addr.Addr()); err != nil {
			return nil, nil, at, err
		}
	}
	return a, b, at, nil
}

// compareInLab measures the ways between two nodes of a lab of its own, which is gone when
// it returns. Those that this kernel does not have are left out, and said.
func (a *app) compareInLab(ctx context.Context, modes []string, p bench.Plan, progress io.Writer) (all []bench.Series, err error) {
	dir, err := os.MkdirTemp("", "netctl-bench-")
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	defer os.RemoveAll(dir)
	self, err := ownFile()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	hosts, err := lab.Up(ctx, lab.Config{Dir: filepath.Join(dir, "lab"), Nodes: 2, Binary: self, OneProcess: true}, progress)
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, hosts.Remove()) }()
	l := &benchLab{a: hosts.Hosts[0], b: hosts.Hosts[1]}
	var ways []bench.Way
	for _, w := range benchWays() {
		if len(modes) > 0 && !slices.Contains(modes, w.name) {
			continue
		}
		if w.needs != "" && run(ctx, l.a, "ip link add %s && ip link del bench9", w.needs) != nil {
			a.warn("%s is left out: this kernel makes no such link", w.name)
			continue
		}
		from, to, at, err := w.make(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("bench: %s: %w", w.name, err)
		}
		// Behind the bridge it is the published port that is sent to.
		listen := netip.AddrPortFrom(netip.IPv4Unspecified(), bench.DefaultPort)
		var r *bench.Receiver
		if err := to.Do(func() (err error) {
			r, err = bench.Listen(listen)
			return err
		}); err != nil {
			return nil, fmt.Errorf("bench: %s: %w", w.name, err)
		}
		defer r.Close()
		go func() { _ = r.Serve(ctx) }() // its end is that of the lab
		way := bench.Way{Name: w.name, Sender: bench.Sender{From: from.Do, To: netip.AddrPortFrom(at, bench.DefaultPort)}}
		if err := reaches(ctx, way); err != nil {
			return nil, fmt.Errorf("bench: %s: %w", w.name, err)
		}
		ways = append(ways, way)
	}
	return bench.Compare(ctx, ways, p, progress)
}

// reaches waits until a way carries something: routes are learned meanwhile.
func reaches(ctx context.Context, w bench.Way) (err error) {
	const within = 20 * time.Second
	for until := time.Now().Add(within); time.Now().Before(until) && ctx.Err() == nil; {
		if _, err = w.Run(ctx, bench.TCPLatency, 1, 50*time.Millisecond); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return err
}

// benchModes are the names of the ways.
func benchModes() (list []string) {
	for _, w := range benchWays() {
		list = append(list, w.name)
	}
	return list
}

func checkBenchModes(modes []string) error {
	for _, m := range modes {
		if !slices.Contains(benchModes(), m) {
			return usage("--modes %s: want %s", m, strings.Join(benchModes(), ", "))
		}
	}
	return nil
}
