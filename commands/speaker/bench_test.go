//go:build bench

package speaker

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// benchRoutes is what one peer announces: as many as the speaker accepts.
const benchRoutes = prefixLimit

// flooded is what a table of benchRoutes cost one receiver.
type flooded struct {
	in, out  time.Duration // Established to the last route in the kernel; the peer's end to the last one gone
	cpuIn    time.Duration
	cpuOut   time.Duration
	pssIdle  float64 // MB, before
	pss      float64 // MB, with all routes
	pssAfter float64 // MB, once they are gone
}

// TestBenchRoutes has a BIRD announce 100,000 host routes, first to a BIRD and
// then to the speaker, and compares what that costs.
func TestBenchRoutes(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 3})
	r.pool("10.66.0.0/15")
	source, birds, ours := r.lab.Hosts[0], r.lab.Hosts[1], r.lab.Hosts[2]
	r.register(source)
	r.register(ours)
	s := &benchSource{t: t, host: source, dir: t.TempDir()}

	reference := s.flood(birds, func() *netlab.Process {
		conf := filepath.Join(s.dir, "receiver.conf")
		file(t, conf, fmt.Sprintf(`
router id %[1]s;
protocol device { }
protocol kernel { ipv4 { import none; export all; }; }
protocol bgp { local %[1]s as 64511; neighbor %[2]s as 64511; connect delay time 1; connect retry time 1; error wait time 1, 2; ipv4 { import all; export none; }; }
`, birds.Addr.Addr(), source.Addr.Addr()))
		return daemon(t, birds, "bird", "/usr/sbin/bird", "-f", "-c", conf, "-s", filepath.Join(s.dir, "receiver"), "-P", filepath.Join(s.dir, "receiver.pid"))
	})
	measured := s.flood(ours, func() *netlab.Process {
		n := &netctlNode{rig: r, host: ours, cfg: Config{StateDir: filepath.Join(r.dir, "ours")}}
		n.identify()
		conf := filepath.Join(r.dir, "netctl.yaml")
		file(t, conf, fmt.Sprintf("node: %s\nstateDir: %s\ndatastore: {endpoints: [%q]}\n", ours.Name, n.cfg.StateDir, r.options().Endpoints[0]))
		return daemon(t, ours, "speaker", netlab.Binary(t), "speaker", "--config", conf)
	})
	fmt.Printf("\n%-52s %12s %12s %7s %7s\n", "100,000 routes from one peer", "netctl", "BIRD", "ratio", "bound")
	for _, row := range []struct {
		what        string
		ours, birds float64
		unit        string
		bound       float64
	}{
		{"Established to the last route in the kernel", measured.in.Seconds(), reference.in.Seconds(), "s", 1.5},
		{"CPU until then", measured.cpuIn.Seconds(), reference.cpuIn.Seconds(), "s", 0},
		{"PSS before the session", measured.pssIdle, reference.pssIdle, "MB", 0},
		{"PSS with all routes", measured.pss, reference.pss, "MB", 4},
		{"the peer's end to the last route gone", measured.out.Seconds(), reference.out.Seconds(), "s", 1.5},
		{"CPU of that", measured.cpuOut.Seconds(), reference.cpuOut.Seconds(), "s", 0},
		{"PSS after it", measured.pssAfter, reference.pssAfter, "MB", 0},
	} {
		ratio, bound, verdict := row.ours/row.birds, "-", ""
		if row.bound > 0 {
			bound = fmt.Sprintf("%.1f", row.bound)
			if ratio > row.bound {
				verdict = "  OVER"
				t.Errorf("%s: ratio %.2f is over %.1f", row.what, ratio, row.bound)
			}
		}
		fmt.Printf("%-52s %9.2f %-2s %9.2f %-2s %7.2f %7s%s\n", row.what, row.ours, row.unit, row.birds, row.unit, ratio, bound, verdict)
	}
}

// benchSource is the BIRD that announces.
type benchSource struct {
	t    *testing.T
	host *netlab.Host
	dir  string
}

// flood starts a receiver, announces everything to it, and takes it away again by
// killing the source.
func (s *benchSource) flood(h *netlab.Host, start func() *netlab.Process) flooded {
	t := s.t
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintf(&b, `
router id %[1]s;
timeformat protocol iso long ms;
protocol device { }
protocol bgp receiver { disabled; local %[1]s as 64511; neighbor %[2]s as 64511; connect delay time 1; connect retry time 1; error wait time 1, 2;
  graceful restart off; ipv4 { import none; export all; next hop self; }; }
protocol static { ipv4;
`, s.host.Addr.Addr(), h.Addr.Addr())
	a := netip.MustParseAddr("10.66.0.0")
	for range benchRoutes {
		fmt.Fprintf(&b, "route %s/32 blackhole;\n", a)
		a = a.Next()
	}
	b.WriteString("}\n")
	conf, ctl := filepath.Join(s.dir, "source.conf"), filepath.Join(s.dir, "source")
	file(t, conf, b.String())
	_ = os.Remove(ctl) // of the source before

	receiver := start()
	defer func() { receiver.Kill(); <-receiver.Done() }()
	before := prefixes(t, h)
	source := daemon(t, s.host, "source", "/usr/sbin/bird", "-f", "-c", conf, "-s", ctl, "-P", filepath.Join(s.dir, "source.pid"))
	birdc := func(args ...string) string {
		return netlab.Must(t, s.host, append([]string{"/usr/sbin/birdc", "-s", ctl}, args...)...)
	}
	netlab.Until(t, 20*time.Second, "the source has its routes", func() string {
		out, err := netlab.Try(t, s.host, "/usr/sbin/birdc", "-s", ctl, "show", "route", "count")
		if err != nil || !strings.Contains(out, strconv.Itoa(benchRoutes)+" routes") {
			return out
		}
		return ""
	})
	netlab.Until(t, 20*time.Second, "the receiver rests", rests(t, receiver.PID))
	cpu := used(t, receiver.PID)
	out := flooded{pssIdle: pss(t, receiver.PID)}
	birdc("enable", "receiver")
	defer s.stir(ctl)()
	s.until(h, before+benchRoutes)
	out.in, out.cpuIn = time.Since(s.established(ctl)), used(t, receiver.PID)-cpu
	netlab.Until(t, 20*time.Second, "the receiver rests", rests(t, receiver.PID))
	out.pss = pss(t, receiver.PID)

	cpu = used(t, receiver.PID)
	began := time.Now()
	source.Kill()
	s.until(h, before)
	out.out, out.cpuOut = time.Since(began), used(t, receiver.PID)-cpu
	netlab.Until(t, 20*time.Second, "the receiver rests", rests(t, receiver.PID))
	out.pssAfter = pss(t, receiver.PID)
	return out
}

// stir keeps a BIRD's loop turning until the function it returns is called: to a
// receiver that takes everything at once, BIRD 2.0.12 sends the last UPDATE only
// when something else wakes it, up to three seconds later.
func (s *benchSource) stir(ctl string) (end func()) {
	conn, err := net.Dial("unix", ctl)
	if err != nil {
		s.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
			if _, err := conn.Write([]byte("show status\n")); err != nil {
				return
			}
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	}()
	return func() {
		_ = conn.Close()
		<-done
	}
}

func (s *benchSource) until(h *netlab.Host, want int) {
	s.t.Helper()
	netlab.Until(s.t, 2*time.Minute, "the kernel's routes", func() string {
		if n := prefixes(s.t, h); n != want {
			return fmt.Sprintf("%d, want %d", n, want)
		}
		return ""
	})
}

// established is when the source's session came up, as BIRD says.
func (s *benchSource) established(ctl string) time.Time {
	s.t.Helper()
	out := netlab.Must(s.t, s.host, "/usr/sbin/birdc", "-s", ctl, "show", "protocols", "receiver")
	for _, l := range strings.Split(out, "\n") {
		if f := strings.Fields(l); len(f) > 6 && f[0] == "receiver" && f[6] == "Established" {
			at, err := time.ParseInLocation("2006-01-02 15:04:05.000", f[4]+" "+f[5], time.Local)
			if err != nil {
				s.t.Fatal(err)
			}
			return at
		}
	}
	s.t.Fatalf("no session: %s", out)
	return time.Time{}
}

// prefixes counts the routes in a host's main table.
func prefixes(t *testing.T, h *netlab.Host) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/fib_triestat", h.PID))
	if err != nil {
		t.Fatal(err)
	}
	_, main, _ := strings.Cut(string(text), "Main:")
	_, n, _ := strings.Cut(main, "Prefixes:")
	n, _, _ = strings.Cut(n, "\n")
	count, err := strconv.Atoi(strings.TrimSpace(n))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return count
}

// used is the CPU time of a process.
func used(t *testing.T, pid int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// rests says "" once a process has used no CPU for some looks.
func rests(t *testing.T, pid int) func() string {
	last, quiet := used(t, pid), 0
	return func() string {
		now := used(t, pid)
		if quiet++; now != last {
			last, quiet = now, 0
		}
		if quiet < 20 {
			return "busy"
		}
		return ""
	}
}

// pss is a process's proportional share of memory in MB.
func pss(t *testing.T, pid int) float64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(text), "\n") {
		if f := strings.Fields(l); len(f) == 3 && f[0] == "Pss:" {
			n, _ := strconv.Atoi(f[1])
			return float64(n) / 1024
		}
	}
	t.Fatalf("no Pss in %s", text)
	return 0
}
