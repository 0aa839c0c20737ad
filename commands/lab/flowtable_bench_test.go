//go:build bench

package lab

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
	"netctl/netdev/qemulab"
)

// TestBenchFlowtable has the flowtable measured on a kernel that has one; the machine is
// emulated, which says little of speed and something of ratios.
func TestBenchFlowtable(t *testing.T) {
	benchInGuest(t, "TestFlowtable", "nf_flow_table_inet", "nft_flow_offload")
}

// benchInGuest runs a test of this binary in a guest.
func benchInGuest(t *testing.T, name string, modules ...string) {
	t.Helper()
	if os.Getenv("NETCTL_GUEST") == "" {
		t.Skip("boots a guest: set NETCTL_GUEST once `make guest` was run")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := qemulab.Guest{
		Modules: slices.Concat(guestModules, []string{"nf_log_syslog"}, modules),
		Tools:   []string{"ip", "ping", "nft", "conntrack", "nsenter"},
		Files:   map[string]string{"/bin/netctl": netlab.Binary(t), "/bin/tests": self},
		Script: `mkdir -p /etc/cni/net.d /etc/iproute2/rt_protos.d /var/lib/netctl-node /var/lib/cni /opt/cni/bin && touch /etc/netctl.yaml &&
			/bin/tests -test.count=1 -test.v -test.timeout=18m -test.run='^` + name + `$'`,
		Env:       []string{inGuest + "=1", "NETCTL_BINARY=/bin/netctl"},
		MemoryMiB: 1536,
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	var out strings.Builder
	err = g.Run(ctx, &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "--- PASS: "+name+" ") {
		t.Error(name + " did not run")
	}
}

// TestFlowtable measures TCP between containers of two nodes as they are, with a flowtable
// of somebody's own that takes over flows which netctl's rules let pass, and by the same
// namespaces wired and routed by hand: without rules, with connection tracking, and with a
// flowtable. A flow there that a rule denies from then on is cut.
func TestFlowtable(t *testing.T) {
	if os.Getenv(inGuest) == "" {
		t.Skip("runs in the guest of TestBenchFlowtable")
	}
	const rounds = 7
	l := forTest(t, Config{Nodes: 2, Subnets: 1, Ready: 6 * time.Minute})
	netlab.Must(t, l.Hosts[0], "netctl", "pool", "add", pool4)
	a, _, _ := attach(t, l.Hosts[0], "a", "web")
	b, b4, _ := attach(t, l.Hosts[1], "b", "web")
	pings(t, a, b4)
	hand := netlab.RoutedByHand(t)
	from, to, routers := bare{hand.From}, bare{hand.To}, []netlab.Place{bare{hand.Routers[0]}, bare{hand.Routers[1]}}
	// Both routers of each; the ruleset goes before the next one is measured.
	rules := func(routers []netlab.Place, text func(devices string) string) func() {
		for _, r := range routers {
			var devices []string
			for line := range strings.Lines(netlab.Must(t, r, "ip", "-o", "link", "show", "type", "veth")) {
				name, _, _ := strings.Cut(strings.Fields(line)[1], "@")
				devices = append(devices, strings.TrimSuffix(name, ":"))
			}
			netlab.Must(t, r, "nft", text(strings.Join(devices, ", ")))
		}
		return func() {
			for _, r := range routers {
				netlab.Must(t, r, "nft", "delete table inet bench")
			}
		}
	}
	tracking := func(string) string {
		return "table inet bench { chain f { type filter hook forward priority 100; ct state established accept; }; }"
	}
	offload := func(devices string) string {
		return "table inet bench { flowtable ft { hook ingress priority 0; devices = { " + devices + " }; }; " +
			"chain f { type filter hook forward priority 100; meta l4proto { tcp, udp } ct state established flow add @ft; }; }"
	}
	none := func(string) string { return "table inet bench {}" }
	nodes := []netlab.Place{l.Hosts[0], l.Hosts[1]}
	ways := []*flowWay{
		{name: "by hand", from: from, to: to, at: hand.At, routers: routers, rules: none},
		{name: "by hand, tracking", from: from, to: to, at: hand.At, routers: routers, rules: tracking},
		{name: "by hand, flowtable", from: from, to: to, at: hand.At, routers: routers, rules: offload},
		{name: "netctl", from: a, to: b, at: b4, routers: nodes, rules: none},
		{name: "netctl, flowtable", from: a, to: b, at: b4, routers: nodes, rules: offload},
	}
	for range rounds { // in turn, so that what the machine does besides meets all
		for _, w := range ways {
			undo := rules(w.routers, w.rules)
			w.measure(t)
			undo()
		}
	}
	for _, w := range ways {
		fmt.Printf("%-20s %8.1f MiB/s %4.0f %%   1 byte to and fro %7.1f µs %4.0f %%\n", w.name,
			middle(w.rates), 100*middle(w.rates)/middle(ways[0].rates), middle(w.waits), 100*middle(w.waits)/middle(ways[0].waits))
	}

	undo := rules(nodes, offload)
	defer undo()
	out, in := dialled(t, a, b, b4)
	defer out.Close()
	defer in.Close()
	say := func() error {
		_ = out.SetDeadline(time.Now().Add(2 * time.Second))
		_ = in.SetDeadline(time.Now().Add(2 * time.Second))
		one := make([]byte, 1)
		if _, err := out.Write(one); err != nil {
			return err
		}
		_, err := in.Read(one)
		return err
	}
	for range 20 {
		if err := say(); err != nil {
			t.Fatal(err)
		}
	}
	if tracked := netlab.Must(t, l.Hosts[1], "conntrack", "-L", "-p", "tcp", "-d", b4.String()); !strings.Contains(tracked, "[OFFLOAD]") {
		t.Errorf("not in the flowtable: %s", tracked)
	}
	netlab.Must(t, l.Hosts[1], "netctl", "profile", "web", "rule", "add", "inbound", "--at=1", "deny")
	began, last := time.Now(), time.Duration(0)
	for err := say(); err == nil; err = say() {
		if last = time.Since(began); last > patience {
			t.Fatal("a flow that a rule denies still passes")
		}
	}
	fmt.Printf("a flow that a rule denies has passed for another %v\n", last.Round(time.Millisecond))
}

// bare is a namespace as a place.
type bare struct{ *netlab.Netns }

func (b bare) Do(fn func() error) (err error) {
	b.Netns.Do(func() { err = fn() })
	return err
}

func (b bare) Exec(_ context.Context, c netlab.Cmd) (string, error) {
	out, err := b.Command(c.Args...).CombinedOutput()
	return string(out), err
}

// flowWay is one way, and what went by it: MiB a second, and microseconds for one byte to
// and fro.
type flowWay struct {
	name         string
	from, to     netlab.Place
	at           netip.Addr
	routers      []netlab.Place
	rules        func(devices string) string
	rates, waits []float64
}

// dialled is a connection; in is the other side's end.
func dialled(t *testing.T, from, to netlab.Place, at netip.Addr) (out, in net.Conn) {
	t.Helper()
	var l net.Listener
	if err := to.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err := from.Do(func() (err error) {
		out, err = net.DialTimeout("tcp", l.Addr().String(), patience)
		return err
	})
	if err == nil {
		in, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out, in
}

func (w *flowWay) measure(t *testing.T) {
	t.Helper()
	const length, times = time.Second, 2000
	out, in := dialled(t, w.from, w.to, w.at)
	began := time.Now()
	go func() {
		defer out.Close()
		piece := make([]byte, 128<<10)
		for time.Since(began) < length {
			if _, err := out.Write(piece); err != nil {
				return
			}
		}
	}()
	sum, err := io.Copy(io.Discard, in)
	if err != nil {
		t.Fatal(err)
	}
	w.rates = append(w.rates, float64(sum)/(1<<20)/time.Since(began).Seconds())
	_ = in.Close()
	out, in = dialled(t, w.from, w.to, w.at)
	defer out.Close()
	defer in.Close()
	go func() { _, _ = io.Copy(in, in) }()
	one := make([]byte, 1)
	began = time.Now()
	for range times {
		if _, err := out.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, one); err != nil {
			t.Fatal(err)
		}
	}
	w.waits = append(w.waits, float64(time.Since(began).Microseconds())/times)
}
