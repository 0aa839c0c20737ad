package kernel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/datastore"
)

// newNetns makes a namespace that lives as long as the test.
func newNetns(t testing.TB) int {
	t.Helper()
	type result struct {
		fd  int
		err error
	}
	ch := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		fd := -1
		if err == nil {
			fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		ch <- result{fd, err}
	}()
	r := <-ch
	if r.err != nil {
		t.Fatalf("new network namespace: %v", r.err)
	}
	t.Cleanup(func() { _ = unix.Close(r.fd) })
	return r.fd
}

// host is a namespace that is a host, with a Kernel in it.
type host struct {
	*Kernel
	ns  int
	log *strings.Builder
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{ns: newNetns(t), log: &strings.Builder{}}
	err := inNetns(h.ns, func() (err error) {
		h.Kernel, err = Open(slog.New(slog.NewTextHandler(h.log, nil)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// run executes a command in a namespace.
func run(t testing.TB, ns int, args ...string) string {
	t.Helper()
	out, err := try(ns, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func try(ns int, args ...string) (out string, err error) {
	err = inNetns(ns, func() error {
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		out = string(b)
		return err
	})
	return out, err
}

func contains(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, w := range wants {
		if !strings.Contains(text, w) {
			t.Errorf("%q is missing in\n%s", w, text)
		}
	}
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestWire(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	w := Wire{Netns: inside, Interface: "eth0", Link: "nc0123456789a", MAC: "02:00:00:00:00:07", MTU: 1400, Addresses: addrs("10.0.0.48", "fd80::48")}
	if err := forward(h); err != nil {
		t.Fatal(err)
	}
	made, err := h.Create(w)
	if err != nil || made.MAC != w.MAC {
		t.Fatalf("Create = %+v, %v", made, err)
	}
	if out := run(t, h.ns, "ip", "link", "show", w.Link); !strings.Contains(out, "state DOWN") {
		t.Errorf("the host side is up before Up:\n%s", out)
	}
	if err := h.Up(w.Link); err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, h.ns, "ip", "-d", "link", "show", w.Link), "link/ether ee:ee:ee:ee:ee:ee", "mtu 1400", "state UP", "group 28259", "veth")
	until(t, "an address that is not tentative", func() bool { // the kernel's work queue ends that, even without a probe
		return strings.Contains(run(t, h.ns, "ip", "-6", "addr", "show", w.Link), "fe80::ecee:eeff:feee:eeee/64 scope link \n")
	})
	settings := run(t, h.ns, "sh", "-c", "cd /proc/sys/net; cat ipv4/conf/$0/proxy_arp ipv4/conf/$0/forwarding ipv4/neigh/$0/proxy_delay ipv6/conf/$0/accept_ra ipv6/conf/$0/dad_transmits", w.Link)
	if settings != "1\n1\n0\n0\n0\n" {
		t.Errorf("settings of the host side: %q", settings)
	}
	contains(t, run(t, inside, "ip", "addr"), "link/ether 02:00:00:00:00:07", "inet 10.0.0.48/32 scope global eth0", "inet6 fd80::48/128 scope global", "LOOPBACK,UP")
	contains(t, run(t, inside, "ip", "route"), "default via 169.254.1.1 dev eth0", "169.254.1.1 dev eth0 scope link")
	contains(t, run(t, inside, "ip", "-6", "route"), "default via fe80::ecee:eeff:feee:eeee dev eth0")

	// The rest of the host, which others own: then packets flow at once, without
	// the delay of a proxy and without duplicate address detection.
	run(t, h.ns, "ip", "link", "set", "lo", "up")
	run(t, h.ns, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	run(t, h.ns, "ip", "addr", "add", "2001:db8::1/128", "dev", "lo", "nodad")
	run(t, h.ns, "ip", "route", "add", "169.254.1.1", "dev", "lo", "scope", "link")
	run(t, h.ns, "ip", "route", "add", "10.0.0.48", "dev", w.Link)
	run(t, h.ns, "ip", "route", "add", "fd80::48", "dev", w.Link)
	until(t, "the host's own IPv6 address", func() bool {
		return strings.Contains(run(t, h.ns, "ip", "-6", "route", "show", "table", "local"), "local 2001:db8::1 ")
	})
	run(t, inside, "ping", "-n", "-c1", "-W3", "192.0.2.1")
	run(t, inside, "ping", "-n", "-c1", "-W3", "2001:db8::1")
	contains(t, run(t, inside, "ip", "neigh"), "169.254.1.1 dev eth0 lladdr ee:ee:ee:ee:ee:ee")
	if err := h.Check(w); err != nil {
		t.Error(err)
	}
	links, err := h.Links()
	if err != nil || len(links) != 1 || links[0].Name != w.Link || !links[0].Up || links[0].MTU != 1400 {
		t.Errorf("Links = %+v, %v", links, err)
	}
}

func TestSysctlsAreOfTheHostsNamespace(t *testing.T) {
	h := newHost(t)
	run(t, h.ns, "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward") // a new namespace has what the machine has
	if _, err := h.Forwarding4(); err != nil {                        // from a thread in the test's own namespace
		t.Fatal(err)
	}
	if got := run(t, h.ns, "cat", "/proc/sys/net/ipv4/ip_forward"); got != "1\n" {
		t.Errorf("ip_forward = %q", got)
	}
	contains(t, h.log.String(), "host setting changed", "setting=net/ipv4/ip_forward old=0 new=1")
	before := h.log.String()
	if _, err := h.Forwarding4(); err != nil || h.log.String() != before {
		t.Errorf("a second call: %v, log %q", err, h.log)
	}
}

func TestCreateRefuses(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	good := Wire{Netns: inside, Interface: "eth0", Link: "ncaaaaaaaaaaa", Addresses: addrs("10.0.0.1")}
	if _, err := h.Create(good); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for name, c := range map[string]struct {
		change func(*Wire)
		is     error
		says   string
	}{
		"interface taken": {func(w *Wire) { w.Link = "ncb" }, datastore.ErrExists, "wire eth0: eth0 in the network namespace: already exists, and is not netctl's"},
		"link taken":      {func(w *Wire) { w.Interface = "eth1" }, datastore.ErrExists, "wire eth1: ncaaaaaaaaaaa on the host: already exists"},
		"address twice":   {func(w *Wire) { w.Link, w.Interface, w.Addresses = "ncb", "eth1", addrs("10.0.0.2", "10.0.0.2") }, datastore.ErrExists, "address 10.0.0.2"},
		"no address":      {func(w *Wire) { w.Addresses = nil }, datastore.ErrInvalid, "no address"},
		"mac":             {func(w *Wire) { w.MAC = "01:00:5e:00:00:01" }, datastore.ErrInvalid, `mac "01:00:5e:00:00:01"`},
		"mtu":             {func(w *Wire) { w.MTU = 60 }, datastore.ErrInvalid, "mtu 60: must be 68 to 65535"},
		"mtu for IPv6":    {func(w *Wire) { w.MTU, w.Addresses = 1279, addrs("fd80::1") }, datastore.ErrInvalid, "must be 1280"},
		"name":            {func(w *Wire) { w.Interface = "a/b" }, datastore.ErrInvalid, `interface "a/b"`},
		"not a namespace": {func(w *Wire) { w.Link, w.Netns = "ncb", int(file.Fd()) }, unix.EINVAL, "wire eth0: network namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			w := good
			c.change(&w)
			_, err := h.Create(w)
			if !errors.Is(err, c.is) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("error %v", err)
			}
		})
	}
	if out := run(t, h.ns, "ip", "-br", "link", "show", "group", "28259"); strings.Count(out, "\n") != 1 {
		t.Errorf("a refused wire left something:\n%s", out)
	}
	if out := run(t, inside, "ip", "-br", "link"); strings.Count(out, "\n") != 2 {
		t.Errorf("a refused wire left something in the namespace:\n%s", out)
	}
}

func TestWireWhereIPv6IsOff(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	for _, ns := range []int{h.ns, inside} {
		run(t, ns, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	}
	run(t, h.ns, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/addr_gen_mode")
	w := Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("fd80::1")}
	if _, err := h.Create(w); err != nil {
		t.Fatal(err)
	}
	if err := h.Up(w.Link); err != nil {
		t.Fatal(err)
	}
	contains(t, run(t, h.ns, "ip", "-6", "addr", "show", w.Link), "fe80::ecee:eeff:feee:eeee/64")
	if err := h.Check(w); err != nil {
		t.Error(err)
	}
	run(t, h.ns, "ip", "route", "add", "fd80::1", "dev", w.Link)
	until(t, "an answer", func() bool { // nobody is asked for a MAC, so the first may come before the address is ready
		_, err := try(inside, "ping", "-n", "-c1", "-W1", "fe80::ecee:eeff:feee:eeee%eth0")
		return err == nil
	})
}

func TestCheckTellsEverything(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	w := Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1", "fd80::1"), MTU: 1400}
	made, err := h.Create(w)
	if err != nil {
		t.Fatal(err)
	}
	w.MAC, w.Index = made.MAC, made.Index
	if err := h.Up("nc0"); err != nil {
		t.Fatal(err)
	}
	run(t, inside, "ip", "route", "add", "10.9.0.0/16", "via", "169.254.1.1")
	run(t, inside, "ip", "addr", "add", "10.8.0.1/24", "dev", "eth0")
	if err := h.Check(w); err != nil {
		t.Errorf("a later plugin's additions: %v", err)
	}
	for _, c := range []struct {
		ns   int
		cmd  string
		says string
	}{
		{h.ns, "ip link set nc0 down", "nc0 is down"},
		{h.ns, "ip link set nc0 group 7", "nc0: group is 7"},
		{h.ns, "ip link set nc0 address 02:00:00:00:00:01", "nc0: mac is 02:00:00:00:00:01"},
		{h.ns, "echo 0 > /proc/sys/net/ipv4/conf/nc0/proxy_arp", "nc0: proxy_arp is 0, not 1"},
		{inside, "ip addr del 10.0.0.1/32 dev eth0", "eth0: address 10.0.0.1 is missing"},
		{inside, "ip route del default", "eth0: default route via 169.254.1.1 is missing"},
		{inside, "ip -6 route del default", "eth0: default route via fe80::ecee:eeff:feee:eeee is missing"},
		{inside, "ip link set eth0 mtu 1500", "eth0: mtu is 1500, not 1400"},
		{inside, "ip link set eth0 address 02:00:00:00:00:02", "eth0: mac is 02:00:00:00:00:02"},
		{inside, "ip link set eth0 down", "eth0 is down"},
		{inside, "ip link set eth0 name eth7", "eth0 is gone from the network namespace"},
		{h.ns, "ip link del nc0", "nc0 is gone"},
	} {
		run(t, c.ns, "sh", "-c", c.cmd)
		if err := h.Check(w); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("after %q: %v", c.cmd, err)
		}
	}
}

// until waits for a condition, as long as a test may take.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
		runtime.Gosched()
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 2e6}, nil)
	}
}

func TestSecondInterface(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	var wires []Wire
	for i := range 2 {
		w := Wire{Netns: inside, Interface: fmt.Sprintf("eth%d", i), Link: fmt.Sprintf("nc%d", i),
			Addresses: addrs(fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("fd80::%d", i))}
		if _, err := h.Create(w); err != nil {
			t.Fatal(err)
		}
		if err := h.Up(w.Link); err != nil {
			t.Fatal(err)
		}
		wires = append(wires, w)
	}
	for _, w := range wires {
		if err := h.Check(w); err != nil {
			t.Error(err)
		}
	}
	contains(t, run(t, inside, "ip", "route", "get", "192.0.2.1"), "via 169.254.1.1 dev eth0")
	contains(t, run(t, inside, "ip", "route", "get", "192.0.2.1", "oif", "eth1"), "via 169.254.1.1 dev eth1 src 10.0.0.1")
	// What answers from the second interface's address goes out there.
	contains(t, run(t, inside, "ip", "route", "get", "192.0.2.1", "from", "10.0.0.1"), "via 169.254.1.1 dev eth1")
	contains(t, run(t, inside, "ip", "route", "get", "2001:db8::1", "from", "fd80::1"), "via fe80::ecee:eeff:feee:eeee dev eth1")
	contains(t, run(t, inside, "ip", "route", "get", "192.0.2.1", "from", "10.0.0.0"), "via 169.254.1.1 dev eth0")
}

func TestDetach(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	const n = 20
	for i := range n {
		w := Wire{Netns: inside, Interface: fmt.Sprintf("eth%d", i), Link: fmt.Sprintf("nc%d", i), Addresses: addrs(fmt.Sprintf("10.0.0.%d", i))}
		if _, err := h.Create(w); err != nil {
			t.Fatal(err)
		}
		if err := h.Up(w.Link); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		if err := h.Detach(fmt.Sprintf("nc%d", i), 0); err != nil {
			t.Fatal(err)
		}
	}
	if links, err := h.Links(); err != nil || len(links) != 0 {
		t.Errorf("Links after Detach = %v, %v", links, err)
	}
	if out := run(t, h.ns, "ip", "-br", "link"); strings.Contains(out, "UP") {
		t.Errorf("in service after Detach:\n%s", out)
	}
	if err := h.Detach("nc0", 0); err != nil {
		t.Errorf("a second Detach: %v", err)
	}
	// The same names are free again before anything is deleted: Run is not there.
	if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1")}); err != nil {
		t.Errorf("the same interface again: %v", err)
	}
	if err := h.Detach("nc0", 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- h.Run(ctx) }()
	until(t, "deletion", func() bool {
		links, err := h.links()
		return err == nil && len(links) == 1
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
}

func TestDetachLeavesStrangersAlone(t *testing.T) {
	h := newHost(t)
	run(t, h.ns, "ip", "link", "add", "nc0", "type", "bridge")
	if err := h.Detach("nc0", 0); err == nil || !strings.Contains(err.Error(), "not an interface of netctl") {
		t.Errorf("Detach: %v", err)
	}
	run(t, h.ns, "ip", "link", "show", "nc0")
}

func TestAddressesAndSubnets(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	run(t, h.ns, "sh", "-ec", `ip link set lo up
		ip link add d0 type bridge; ip link set d0 up
		ip addr add 192.168.99.102/24 dev d0; ip addr add 192.168.99.103/24 dev d0
		ip addr add fd00:99::102/64 dev d0 nodad
		ip addr add 10.9.0.1 peer 10.9.0.2/32 dev d0; ip addr add 10.255.0.1/32 dev lo
		ip addr add fd00:99::103/64 dev d0 nodad preferred_lft 0`)
	if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1", "fd80::1")}); err != nil {
		t.Fatal(err)
	}
	if err := h.Up("nc0"); err != nil {
		t.Fatal(err)
	}
	run(t, h.ns, "ip", "addr", "add", "172.30.0.1/16", "dev", "nc0")
	got, err := h.Subnets()
	if want := "[10.9.0.2/32 10.255.0.1/32 192.168.99.0/24 fd00:99::/64]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("Subnets = %v, %v; want %s", got, err, want)
	}
	list, err := h.Addresses()
	text := fmt.Sprintf("%+v", list)
	for _, want := range []string{"192.168.99.102/24 Subnet:192.168.99.0/24 Link:d0", "10.255.0.1/32 Subnet:10.255.0.1/32 Link:lo"} {
		if err != nil || len(list) != 6 || !strings.Contains(text, want) || strings.Count(text, "Passing:true") != 2 || strings.Count(text, "Loopback:true") != 1 {
			t.Errorf("Addresses = %s, %v", text, err)
		}
	}
}

func TestWatch(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	ctx, cancel := context.WithCancel(context.Background())
	events, done := make(chan Event, 1000), make(chan error)
	go func() { done <- h.Watch(ctx, func(ev Event) { events <- ev }) }()
	wait := func(what string, ok func(Event) bool) {
		t.Helper()
		deadline := time.After(30 * time.Second)
		for {
			select {
			case ev := <-events:
				if ok(ev) {
					return
				}
			case <-deadline:
				t.Fatalf("no event: %s", what)
			}
		}
	}
	wait("ready", func(ev Event) bool { return ev.Change == Resync })
	if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	wait("created", func(ev Event) bool { return ev.Change == LinkChanged && ev.Link == "nc0" && !ev.Up })
	if err := h.Up("nc0"); err != nil {
		t.Fatal(err)
	}
	wait("up", func(ev Event) bool { return ev.Change == LinkChanged && ev.Link == "nc0" && ev.Up && !ev.Altered })
	run(t, inside, "ip", "link", "del", "eth0") // what the end of the namespace does
	wait("gone", func(ev Event) bool { return ev.Change == LinkGone && ev.Link == "nc0" })
	run(t, h.ns, "ip", "link", "add", "d0", "type", "bridge")
	wait("a host's interface", func(ev Event) bool { return ev.Change == HostChanged && ev.Link == "d0" })
	run(t, h.ns, "ip", "addr", "add", "192.0.2.1/24", "dev", "d0")
	wait("a host's address", func(ev Event) bool { return ev.Change == HostChanged && ev.Link == "" })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch: %v", err)
	}
}

func TestForwarding6KeepsRouterAdvertisements(t *testing.T) {
	h, inside := newHost(t), newNetns(t)
	run(t, h.ns, "sh", "-ec", `ip link add d0 type bridge; ip link add d1 type bridge
		echo 1 > /proc/sys/net/ipv6/conf/d0/accept_ra; echo 0 > /proc/sys/net/ipv6/conf/d1/accept_ra`)
	if _, err := h.Create(Wire{Netns: inside, Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1")}); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Forwarding6(); err != nil {
		t.Fatal(err)
	}
	got := run(t, h.ns, "sh", "-c", "cd /proc/sys/net/ipv6/conf; cat d0/accept_ra d1/accept_ra nc0/accept_ra all/forwarding")
	if got != "2\n0\n0\n1\n" {
		t.Errorf("d0, d1, nc0, forwarding = %q", got)
	}
	contains(t, h.log.String(), "setting=net/ipv6/conf/d0/accept_ra old=1 new=2", "setting=net/ipv6/conf/all/forwarding old=0 new=1")
}

func TestOpenNetns(t *testing.T) {
	h, other := newHost(t), newNetns(t)
	n, err := h.OpenNetns(os.Getpid(), other)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if n.Same(h.own) || n.Ino == 0 {
		t.Errorf("Netns = %+v", n)
	}
	if _, err := h.Create(Wire{Netns: n.FD(), Interface: "eth0", Link: "nc0", Addresses: addrs("10.0.0.1")}); err != nil {
		t.Error(err)
	}
	fifo := t.TempDir() + "/fifo"
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	pipe, err := unix.Open(fifo, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe)
	uts, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(uts)
	for fd, says := range map[int]string{pipe: "not a namespace", uts: "a namespace of another kind", h.ns: "is the host's own", 9999: "no such file"} {
		if _, err := h.OpenNetns(os.Getpid(), fd); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("descriptor %d: %v, want %q", fd, err, says)
		}
	}
}
