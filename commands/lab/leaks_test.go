package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// leaksEnv is how many operations a runtime makes in TestLeaks, and leakSeedEnv with which
// seed.
const (
	leaksEnv     = "NETCTL_LEAKS"
	leakSeedEnv  = "NETCTL_LEAKS_SEED"
	fewLeaks     = 24
	leakSeed     = 20152
	leakSlots    = 8 // containers at a time
	leakParallel = 4 // of which so many have something done to them at once
	leakPool     = "10.9.0.0/26"
	leakAlive    = "10.9.0.60"
	leakLives    = "10.9.0.59"
)

func ofEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: must be a number", name, text)
	}
	return n
}

// churner is a runtime's side of netctl. Any call may be cut off by its context, as by a
// kill -9.
type churner interface {
	// add attaches a container that publishes a port of the host, or none.
	add(ctx context.Context, s *slot) error
	// del detaches it; where its namespace is gone it says so.
	del(ctx context.Context, s *slot) error
	// forget is the end of the runtime, and of all that it knows of a container.
	forget(s *slot)
}

// slot is a place for one container after the other.
type slot struct {
	with     churner
	n, gen   int
	c        *netlab.Container // nil: none
	addr     string            // as the runtime was told; empty: it was not
	endpoint string            // of Docker's
	held     string
	port     int
}

// churn is the history of all of them.
type churn struct {
	*machine
	seed   uint64
	rng    *rand.Rand
	docker *dockerChurn
	slots  [][]*slot // by runtime
	lives  []*netlab.Container
	flood  *netlab.Flood
	boots  int
	brief  bool // too short to see Docker's driver find out what Docker forgot

	made, refused, killed atomic.Int32
}

// TestLeaks has all runtimes of one node make containers and take them away (NETCTL_LEAKS
// operations each, of NETCTL_LEAKS_SEED; `make test-all` makes 500), while the plugin, the
// driver, the agent and the datastore are killed, namespaces vanish and a runtime forgets
// what it had; in a long history the machine boots, too. When it is over nothing is left in
// the kernel, in the store or on the disk, and what lived all along missed no packet.
func TestLeaks(t *testing.T) {
	l := forTest(t, Config{Nodes: 1, Settings: "agent:\n    lostAfter: 2s\n    runtimes: []\n"})
	h := l.Hosts[0]
	netlab.Must(t, h, "netctl", "pool", "add", leakPool)
	for _, network := range []string{"leaky", "leakydock"} {
		netlab.Must(t, h, "netctl", "network", "create", network, "--runtime", "none")
	}
	m := newMachine(t, h)
	operations, seed := ofEnv(t, leaksEnv, fewLeaks), uint64(ofEnv(t, leakSeedEnv, leakSeed))
	c := &churn{machine: m, seed: seed, rng: rand.New(rand.NewPCG(seed, 15)), docker: newDockerChurn(m), brief: operations <= fewLeaks}
	for i, with := range []churner{c.docker, &cniChurn{m}, newPodmanChurn(m), &manualChurn{m, false}, &manualChurn{m, true}} {
		c.slots = append(c.slots, nil)
		for n := range leakSlots {
			c.slots[i] = append(c.slots[i], &slot{n: i*leakSlots + n, with: with})
		}
	}
	c.startFlood()
	before := c.state()
	c.history(operations)
	c.livesOn()
	c.end()
	wait := patience
	if !c.brief {
		wait += 3 * time.Minute // the driver has looked twice for what Docker forgot
	}
	netlab.Until(t, wait, fmt.Sprintf("nothing is left over (seed %d)", seed), func() string { return different(before, c.state()) })
	c.endFlood()
}

// startFlood attaches what lives all along, or from one boot to the next.
func (c *churn) startFlood() {
	c.t.Helper()
	a := netlab.Attached(c.t, c.host, "lives", "stays", "IP="+leakLives+";MAC=02:00:00:00:00:01") // the same after a boot
	c.lives = []*netlab.Container{a, netlab.Attached(c.t, c.host, "too", "stays", "IP="+leakAlive+";MAC=02:00:00:00:00:02")}
	var err error
	if c.flood, err = netlab.StartFlood(a, netip.MustParseAddr(leakAlive), 5*time.Millisecond); err != nil {
		c.t.Fatal(err)
	}
}

func (c *churn) endFlood() {
	c.t.Helper()
	if r := c.flood.Stop(); len(r.Lost) > 0 {
		c.t.Errorf("seed %d: of what lives: %s", c.seed, r)
	}
}

// history is what happens.
func (c *churn) history(operations int) {
	for done := 0; done < operations; done += leakParallel {
		var all sync.WaitGroup
		for _, slots := range c.slots {
			atOnce := leakParallel
			if c.brief && isManual(slots[0]) {
				atOnce = 1
			}
			for _, n := range c.rng.Perm(leakSlots)[:atOnce] {
				all.Go(c.step(slots[n]))
			}
		}
		// A role or two die in the middle.
		kind, after := c.rng.IntN(24), time.Duration(c.rng.IntN(40))*time.Millisecond
		if c.brief { // each of them once at the least
			kind = done / leakParallel
		}
		all.Go(func() {
			<-time.After(after)
			switch kind {
			case 1:
				c.killRole("agent")
			case 2:
				c.killRole("datastore")
			case 3:
				c.docker.kill()
			case 4:
				c.killRole("agent")
				c.docker.kill()
			case 5:
				c.killRole("datastore")
				c.killRole("agent")
			}
		})
		all.Wait()
		if kind == 6 && !c.brief {
			c.reboot()
		}
	}
}

func (c *churn) killRole(role string) {
	list, _ := c.host.Find("netctl-" + role)
	for _, pid := range list {
		c.killed.Add(1)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// step is one operation on a slot; what it is, is known before it begins.
func (c *churn) step(s *slot) func() {
	kind, life := c.rng.IntN(10), c.t.Context()
	cancel := func() {}
	if c.rng.IntN(5) == 0 {
		life, cancel = context.WithTimeout(life, time.Duration(c.rng.IntN(40))*time.Millisecond)
	}
	published := c.rng.IntN(3) == 0
	return func() {
		defer cancel()
		switch {
		case s.c == nil:
			s.gen++
			made, err := c.host.Container(fmt.Sprintf("l%d-%d", s.n, s.gen))
			if err != nil {
				c.t.Error(err)
				return
			}
			if s.c, s.port = made, 0; published {
				s.port = 20000 + s.n
			}
			s.addr = ""
			c.count(s, s.with.add(life, s))
		case s.addr == "" && kind < 3 || kind < 1: // what failed, or was cut off, is said again
			c.count(s, s.with.add(life, s))
		case kind < 2: // its processes die, and the runtime hears of it
			_ = c.vanish(s)
			c.gone(s, s.with.del(life, s))
		case kind < 4 && lasts(s): // its link is deleted, and made again
			_ = c.vanish(s)
		case kind < 4: // the runtime dies with it, and its folder is deleted
			if _ = s.c.Remove(); c.brief && s.with == churner(c.docker) {
				c.gone(s, s.with.del(life, s))
				return
			}
			s.with.forget(s)
			s.c, s.addr = nil, ""
		case kind < 5: // a container is removed under way
			var removed sync.WaitGroup
			removed.Go(func() { _ = c.vanish(s) })
			err := s.with.del(life, s)
			removed.Wait()
			c.gone(s, err)
		case kind < 9:
			c.gone(s, s.with.del(life, s))
		}
	}
}

// count takes note of an attach. That it was refused is no fault: the runtime takes away
// what it could not make.
func (c *churn) count(s *slot, err error) {
	if err != nil {
		s.addr = ""
		c.refused.Add(1)
		return
	}
	c.made.Add(1)
}

// gone ends a container whose detach succeeded; a runtime tries the others again.
func (c *churn) gone(s *slot, err error) {
	if s.addr = ""; err != nil {
		return
	}
	_ = s.c.Remove()
	s.c = nil
}

// livesOn: all that was attached and not taken away is whole.
func (c *churn) livesOn() {
	c.t.Helper()
	netlab.Until(c.t, patience, "the node is in order", func() string {
		ctx, cancel := context.WithTimeout(c.t.Context(), patience)
		defer cancel()
		return strings.Join(ailments(ctx, c.host, 0), "; ")
	})
	live, rules := 0, c.must("nft list table inet netctl")
	for s := range c.all() {
		if s.c == nil || s.addr == "" {
			continue
		}
		if live++; lasts(s) {
			netlab.Until(c.t, patience, "a TAP that lives", func() string { return c.whole(s) })
			continue
		}
		if out, err := netlab.Try(c.t, s.c, "ip", "-4", "-o", "addr", "show", "dev", "eth0"); err != nil || !strings.Contains(out, " "+s.addr+"/32 ") {
			c.t.Errorf("seed %d: %s had %s: %s%v", c.seed, s.c.ID, s.addr, out, err)
			continue
		}
		reaches(c.t, c.host, s.addr)
		if s.port != 0 && !strings.Contains(rules, fmt.Sprint("dport ", s.port, " ")) {
			c.t.Errorf("seed %d: %s does not publish %d any more:\n%s", c.seed, s.c.ID, s.port, rules)
		}
	}
	c.t.Logf("seed %d: %d attached, %d not, %d roles killed, %d boots; %d of %d live at the end", c.seed, c.made.Load(), c.refused.Load(), c.killed.Load(), c.boots, live, len(c.slots)*leakSlots)
}

// all goes over the slots.
func (c *churn) all() iter.Seq[*slot] {
	return slices.Values(slices.Concat(c.slots[:]...))
}

// end takes everything away, one half by the runtime and the other by the death of it.
func (c *churn) end() {
	c.t.Helper()
	for s := range c.all() {
		if s.c == nil {
			continue
		}
		if s.n%2 == 0 || lasts(s) || c.brief && s.with == churner(c.docker) {
			netlab.Until(c.t, patience, "detach", func() string { return text(s.with.del(c.t.Context(), s)) })
			_ = s.c.Remove()
		} else {
			if err := s.c.Remove(); err != nil {
				c.t.Error(err)
			}
			s.with.forget(s)
		}
	}
}

// state is everything of netctl's on the host, one line for a thing.
func (c *churn) state() string {
	c.t.Helper()
	var b strings.Builder
	for _, script := range []string{
		"ip -br link | sed 's/@.*//;s/ .*//'", "ip rule; ip -6 rule", "ip route show table all proto netctl; ip -6 route show table all proto netctl",
		"nft list ruleset", "iptables-save -c | grep -v '^[#:]'; true", "netctl get endpoints; netctl ipam check; netctl get networks",
		"cd /run/netctl-node; find endpoints pending docker -type f 2>/dev/null | grep -v '/networks\\?[./]'; true",
		"cat /proc/net/nf_conntrack 2>/dev/null | grep -o 'dport=200[0-9]*' | sort -u; true",
	} {
		out, err := c.sh(script)
		b.WriteString(elements.ReplaceAllString(counters.ReplaceAllString(out, ""), "\n"))
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.String()
}

// counters are what changes, or goes, by itself; elements of sets stand in lines of their own, in no order.
var (
	counters = regexp.MustCompile(`packets \d+ bytes \d+|\[\d+:\d+\] |\S+ timeout \w+ expires \w+|expires \w+`)
	elements = regexp.MustCompile(`elements = \{|,\s|\}`)
	flows    = regexp.MustCompile(`\s*"(nc[0-9a-f]+)" limit rate `)
)

// different are the lines that only one of both has, but for the new flows that what
// was there before has now.
func different(before, now string) string {
	var b strings.Builder
	for _, side := range []struct{ sign, of, not string }{{"-", before, now}, {"+", now, before}} {
		have := map[string]bool{}
		for line := range strings.Lines(side.not) {
			have[strings.TrimSpace(line)] = true
		}
		for line := range strings.Lines(side.of) {
			line = strings.TrimSpace(line)
			if flow := flows.FindStringSubmatch(line); !have[line] && (flow == nil || !strings.Contains(before, flow[1]+" ")) {
				b.WriteString("\n" + side.sign + line)
			}
		}
	}
	return b.String()
}

// cniChurn calls the plugin as containerd does.
type cniChurn struct{ *machine }

func (c *cniChurn) call(ctx context.Context, verb string, s *slot) (string, error) {
	ports := ""
	if s.port != 0 {
		ports = fmt.Sprintf(`,"runtimeConfig":{"portMappings":[{"HostPort":%d,"ContainerPort":80,"Protocol":"tcp","HostIP":""}]}`, s.port)
	}
	netns := s.c.Path()
	if _, err := os.Stat(netns); err != nil && verb == "DEL" {
		netns = ""
	}
	return c.host.Exec(ctx, netlab.Cmd{Args: []string{"/opt/cni/bin/netctl"},
		Stdin: `{"cniVersion":"1.0.0","name":"leaky","type":"netctl","capabilities":{"portMappings":true}` + ports + `}`,
		Env:   []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + s.c.ID, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin"}})
}

func (c *cniChurn) add(ctx context.Context, s *slot) error {
	out, err := c.call(ctx, "ADD", s)
	if err != nil {
		return err
	}
	var r struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.IPs) != 1 {
		return fmt.Errorf("%s: %w", out, err)
	}
	s.addr = r.IPs[0].Address.Addr().String()
	return nil
}

func (c *cniChurn) del(ctx context.Context, s *slot) error {
	_, err := c.call(ctx, "DEL", s)
	return err
}

func (c *cniChurn) forget(*slot) {}

// podmanChurn calls the plugin as netavark does.
type podmanChurn struct {
	*machine
	network, plugin string
}

func newPodmanChurn(m *machine) churner {
	p := newPodman(m.t, m.host)
	return &podmanChurn{m, p.network("leaky", ""), p.plugin}
}

func (c *podmanChurn) call(ctx context.Context, s *slot, verb string) (string, error) {
	ports := ""
	if s.port != 0 {
		ports = fmt.Sprintf(`,"port_mappings":[{"container_port":80,"host_ip":"","host_port":%d,"protocol":"tcp","range":1}]`, s.port)
	}
	return c.host.Exec(ctx, netlab.Cmd{Args: []string{c.plugin, verb, s.c.Path()}, Stdin: input(s.c, s.c.Name, c.network, `"interface_name":"eth0"`, ports)})
}

func (c *podmanChurn) add(ctx context.Context, s *slot) error {
	out, err := c.call(ctx, s, "setup")
	if err != nil {
		return err
	}
	var r struct {
		Interfaces map[string]struct {
			Subnets []struct{ IPNet netip.Prefix }
		}
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Interfaces["eth0"].Subnets) != 1 {
		return fmt.Errorf("%s: %w", out, err)
	}
	s.addr = r.Interfaces["eth0"].Subnets[0].IPNet.Addr().String()
	return nil
}

func (c *podmanChurn) del(ctx context.Context, s *slot) error {
	_, err := c.call(ctx, s, "teardown")
	return err
}

func (c *podmanChurn) forget(*slot) {}
