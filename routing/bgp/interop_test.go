package bgp

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The two sides of every interop test.
const (
	ourAddress, ourAddress6     = "10.9.0.1", "fd00:9::1"
	theirAddress, theirAddress6 = "10.9.0.2", "fd00:9::2"
)

// foreign is another BGP speaker on a host of its own. It announces
// 10.1.0.0/26, 10.1.0.64/26 and fd80:1::/122 and puts what it learns into its
// kernel.
type foreign struct {
	host *host
	// routes are those in the kernel.
	routes func() []string
	// restart kills it and starts it again; stop only kills it.
	restart, stop func()
	// ask is its answer to a command.
	ask func(string) string
}

var (
	theirs = []string{
		"10.1.0.0/26 via " + theirAddress, "10.1.0.64/26 via " + theirAddress, "fd80:1::/122 via " + theirAddress6,
	}
	ours = []string{
		"10.0.0.0/26 via " + ourAddress, "10.0.0.77/32 via " + ourAddress, "fd80::/122 via " + ourAddress6,
	}
)

// us starts the engine on h, as after a restart if stale routes are given.
func us(t *testing.T, h *host, k *kernel, stale []Route) (s *Speaker, stop func()) {
	t.Helper()
	s, err := New(Config{
		RouterID: addr(ourAddress), AS: 64511, Listen: []netip.AddrPort{netip.AddrPortFrom(addr(ourAddress), Port)},
		RestartTime: 30 * time.Second, Restarting: stale != nil, Stale: stale,
		ForwardingPreserved: map[Family]bool{IPv4: stale != nil, IPv6: stale != nil},
		Installer:           k, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.settle(s)
	err = s.Configure([]PeerConfig{{
		Address: addr(theirAddress), AS: 64511, LocalAddress: addr(ourAddress), Families: []Family{IPv4, IPv6},
		NextHopSelf: []netip.Addr{addr(ourAddress6)}, Aliases: []netip.Addr{addr(theirAddress6)},
		HoldTime: 9 * time.Second, ConnectRetry: time.Second,
	}})
	if err != nil {
		t.Fatal(err)
	}
	s.Originate(prefixes("10.0.0.0/26", "10.0.0.77/32", "fd80::/122"), nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return s, stop
}

func only(s *Speaker) Session {
	if all := s.Status(); len(all) == 1 {
		return all[0]
	}
	return Session{}
}

// interop runs everything against one foreign speaker.
func interop(t *testing.T, theyAre func(*host) foreign) {
	a, b := newHost(t), newHost(t)
	wire(a, b, []string{ourAddress + "/24", ourAddress6 + "/64"}, []string{theirAddress + "/24", theirAddress6 + "/64"})
	they := theyAre(b)
	k := &kernel{}
	s, stop := us(t, a, k, nil)

	equal := func(what string, got func() []string, want []string) {
		t.Helper()
		defer func() {
			if t.Failed() {
				t.Logf("%s: %q, routes %s", what, got(), b.ip("route show")+b.ip("-6 route show"))
			}
		}()
		eventually(t, what, func() bool { return len(got()) == len(want) })
		if got := got(); !slices.Equal(got, want) {
			t.Fatalf("%s: %q, want %q", what, got, want)
		}
	}
	equal("routes from them", k.text, theirs)
	equal("routes at theirs", they.routes, ours)
	st := only(s)
	if st.State != "Established" || st.Received != 3 || st.Accepted != 3 || st.Sent != 3 || !st.GracefulRestart {
		t.Errorf("session %+v", st)
	}

	// We restart: they delete nothing, and neither do we.
	deleted := they.host.watch()
	var stale []Route
	for _, r := range s.Routes() {
		stale = append(stale, Route{Prefix: r.Prefix, NextHops: r.NextHops})
	}
	stop()
	k2 := &kernel{}
	s, stop = us(t, a, k2, stale)
	eventually(t, "stale routes are announced again", func() bool {
		st := only(s)
		return st.State == "Established" && st.Received == 3 && st.Stale == 0
	})
	eventually(t, "they have our routes", func() bool { return slices.Equal(they.routes(), ours) })
	// A withdrawal that they take shows that they are past our End-of-RIB.
	s.Originate(nil, prefixes("10.0.0.77/32"))
	equal("routes after a withdrawal", they.routes, []string{ours[0], ours[2]})
	if got := deleted(); len(got) != 1 || !strings.Contains(got[0], "10.0.0.77") {
		t.Errorf("deleted at theirs: %q", got)
	}
	if got := k2.deletions(); len(got) != 0 || k2.count() != 0 {
		t.Errorf("deleted at ours: %v, %d batches", got, k2.count())
	}

	// They restart: nothing is withdrawn from our kernel.
	before := only(s).Established
	they.restart()
	eventually(t, "session after their restart", func() bool {
		st := only(s)
		return st.State == "Established" && st.Established > before && st.Stale == 0 && st.Received == 3
	})
	if got := k2.deletions(); len(got) != 0 || k2.count() != 0 {
		t.Errorf("deleted at ours: %v, %d batches", got, k2.count())
	}
	equal("routes at theirs", they.routes, []string{ours[0], ours[2]})

	// Shutdown ends the routes on both sides.
	cfg := PeerConfig{
		Address: addr(theirAddress), AS: 64511, LocalAddress: addr(ourAddress), Families: []Family{IPv4, IPv6},
		NextHopSelf: []netip.Addr{addr(ourAddress6)}, HoldTime: 9 * time.Second, Shutdown: "node is drained",
	}
	if err := s.Configure([]PeerConfig{cfg}); err != nil {
		t.Fatal(err)
	}
	equal("routes at theirs", they.routes, nil)
	if got := only(s).Words(time.Now()); got != "Idle: shut down: node is drained" {
		t.Errorf("session says %q", got)
	}
	if got := k2.deletions(); len(got) != 3 {
		t.Errorf("deleted at ours: %v", got)
	}
	stop()
}

func TestBIRD(t *testing.T) { interop(t, startBIRD) }

func TestFRR(t *testing.T) { interop(t, startFRR) }

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func startBIRD(h *host) foreign {
	return startDaemonBIRD(h, `
router id `+theirAddress+`;
graceful restart wait 30;
protocol device { scan time 1; }
protocol direct { ipv4; ipv6; }
protocol static s4 { ipv4; route 10.1.0.0/26 blackhole; route 10.1.0.64/26 blackhole; }
protocol static s6 { ipv6; route fd80:1::/122 blackhole; }
protocol kernel k4 { persist; graceful restart on; ipv4 { import none; export where source = RTS_BGP; }; }
protocol kernel k6 { persist; graceful restart on; ipv6 { import none; export where source = RTS_BGP; }; }
protocol bgp peer1 {
  local `+theirAddress+` as 64511;
  neighbor `+ourAddress+` as 64511;
  hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart on; graceful restart time 30;
  ipv4 { import all; export where source = RTS_STATIC; next hop self; };
  ipv6 { import all; export where source = RTS_STATIC; next hop address `+theirAddress6+`; };
}
`)
}

// startDaemonBIRD runs BIRD; restart kills it and starts it in recovery.
func startDaemonBIRD(h *host, text string) foreign {
	dir := h.t.TempDir()
	conf := write(h.t, dir, "bird.conf", text)
	args := []string{"-f", "-c", conf, "-s", filepath.Join(dir, "ctl"), "-P", filepath.Join(dir, "pid")}
	kill := h.daemon("/usr/sbin/bird", args...)
	return foreign{
		host:   h,
		routes: func() []string { return h.routes("bird") },
		stop:   func() { kill() },
		restart: func() {
			kill()
			kill = h.daemon("/usr/sbin/bird", append(args, "-R")...)
		},
		ask: func(command string) string {
			out, err := exec.Command("birdc", "-s", filepath.Join(dir, "ctl"), command).CombinedOutput()
			if err != nil {
				return err.Error()
			}
			return string(out)
		},
	}
}

func startFRR(h *host) foreign {
	return startDaemonFRR(h, `
router bgp 64511
 bgp router-id `+theirAddress+`
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 no bgp network import-check
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 neighbor `+ourAddress+` remote-as 64511
 neighbor `+ourAddress+` timers 3 9
 neighbor `+ourAddress+` timers connect 1
 address-family ipv4 unicast
  network 10.1.0.0/26
  network 10.1.0.64/26
  neighbor `+ourAddress+` activate
  neighbor `+ourAddress+` next-hop-self
 exit-address-family
 address-family ipv6 unicast
  network fd80:1::/122
  neighbor `+ourAddress+` activate
  neighbor `+ourAddress+` next-hop-self
 exit-address-family
`)
}

// startDaemonFRR runs zebra and bgpd; restart kills that and starts it again.
func startDaemonFRR(h *host, text string) foreign {
	// FRR gives up root, so the folders above must be open to it.
	dir, err := os.MkdirTemp("", fmt.Sprintf("netctl-frr-%d-", os.Getpid()))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	zebra := write(h.t, dir, "zebra.conf", "")
	conf := write(h.t, dir, "bgpd.conf", text)
	api := filepath.Join(dir, "zserv")
	if out, err := exec.Command("chown", "-R", "frr:frr", dir).CombinedOutput(); err != nil {
		h.t.Fatalf("%s", out)
	}
	common := func(name, conf string) []string {
		return []string{
			"-f", conf, "-i", filepath.Join(dir, name+".pid"), "-z", api, "--vty_socket", dir,
			"-u", "frr", "-g", "frr", "-P", "0", "--log", "stdout",
		}
	}
	h.daemon("/usr/lib/frr/zebra", common("zebra", zebra)...)
	eventually(h.t, "zebra", func() bool { _, err := os.Stat(api); return err == nil })
	start := func() func() {
		return h.daemon("/usr/lib/frr/bgpd", append(common("bgpd", conf), "-l", theirAddress)...)
	}
	kill := start()
	return foreign{
		host:    h,
		routes:  func() []string { return h.routes("bgp") },
		stop:    func() { kill() },
		restart: func() { kill(); kill = start() },
		ask: func(command string) string {
			out, err := exec.Command("vtysh", "--vty_socket", dir, "-d", "bgpd", "-c", command).CombinedOutput()
			if err != nil {
				return err.Error()
			}
			return string(out)
		},
	}
}
