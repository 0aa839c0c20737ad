//go:build bench

package commands_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// row is one line of the table: what was measured, and beside it the reference
// of the same run or the fixed limit.
type row struct {
	what             string
	measured, beside float64
	unit, reference  string
	bound            float64 // of measured/beside; 0: printed only
}

// report prints the table and fails for every row over its bound.
func report(t *testing.T, rows []row) {
	t.Helper()
	fmt.Printf("\n%-52s %12s %12s  %-24s %7s %7s\n", "", "netctl", "reference", "", "ratio", "bound")
	for _, r := range rows {
		ratio, verdict, bound := r.measured/r.beside, "", "-"
		if r.bound > 0 {
			bound = fmt.Sprintf("%.2f", r.bound)
			if ratio > r.bound {
				verdict = "  OVER"
				t.Errorf("%s: ratio %.2f is over %.2f", r.what, ratio, r.bound)
			}
		}
		fmt.Printf("%-52s %9.2f %-3s %9.2f %-3s  %-24s %7.2f %7s%s\n", r.what, r.measured, r.unit, r.beside, r.unit, r.reference, ratio, bound, verdict)
	}
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

// plugin executes a CNI plugin once and times it; it must succeed.
func plugin(t *testing.T, path, verb, id, netns, conf string) time.Duration {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(path)
	cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + netns, "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni", "PATH=/usr/sbin:/usr/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(conf), &out, &errs
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s%s", path, verb, err, out.String(), errs.String())
	}
	return time.Since(began)
}

const ptp = "/usr/lib/cni/ptp"

// versionRows are what starts cost: of the plugin as it is installed, and of a link to
// the whole program.
func versionRows(t *testing.T) []row {
	var ours, whole, theirs []time.Duration
	for range 100 {
		ours = append(ours, plugin(t, netlab.Plugin(t), "VERSION", "x", "x", `{"cniVersion":"1.0.0"}`))
		whole = append(whole, plugin(t, netlab.Binary(t), "VERSION", "x", "x", `{"cniVersion":"1.0.0"}`))
		theirs = append(theirs, plugin(t, ptp, "VERSION", "x", "x", `{"cniVersion":"1.0.0"}`))
	}
	return []row{
		{"CNI VERSION, median of 100", median(ours), median(theirs), "ms", "ptp", 1.3},
		{"  the same by a link to netctl", median(whole), median(theirs), "ms", "ptp", 4},
	}
}

// upLab is a lab with a pool.
func upLab(t *testing.T, nodes int) *netlab.Lab {
	t.Helper()
	l := labOf(t, nodes)
	netlab.Must(t, l.Hosts[0], "netctl", "pool", "add", "10.65.0.0/16")
	return l
}

// caller is a plugin with its configuration, and how long its calls took.
type caller struct {
	name, path, conf string
	w                *netlab.Container
	add, del         []time.Duration
	addAll, delAll   time.Duration // of parallelCalls by parallelWorkers
}

const (
	attachRounds    = 60
	parallelCalls   = 50
	parallelWorkers = 8
)

// attachRows times ADD and DEL on one node, each beside ptp with host-local: one after
// the other, and several at once.
func attachRows(t *testing.T, h *netlab.Host) []row {
	store := filepath.Join(t.TempDir(), "host-local")
	program := &caller{name: "p", path: netlab.Plugin(t), conf: netlab.Conf("bench")}
	link := &caller{name: "l", path: "/opt/cni/bin/netctl", conf: netlab.Conf("bench")}
	reference := &caller{name: "r", path: ptp, conf: fmt.Sprintf(`{"cniVersion":"1.0.0","name":"ref","type":"ptp","ipam":{"type":"host-local","subnet":"10.99.0.0/16","dataDir":%q}}`, store)}
	all := []*caller{program, link, reference}
	for i := range attachRounds {
		for _, c := range all {
			c.w = container(t, h, fmt.Sprintf("%s%d", c.name, i))
		}
		for _, c := range all {
			c.add = append(c.add, c.call(t, h, "ADD"))
		}
		for _, c := range all {
			c.del = append(c.del, c.call(t, h, "DEL"))
		}
	}
	for _, c := range all {
		c.atOnce(t, h)
	}
	last := func(d []time.Duration) float64 { // the 99th percentile; median sorted them
		return float64(d[len(d)*99/100].Microseconds()) / 1000
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	const beside = "ptp + host-local"
	return []row{
		{fmt.Sprintf("CNI ADD, median of %d", attachRounds), median(program.add), median(reference.add), "ms", beside, 1.1},
		{"  the same by a link to netctl", median(link.add), median(reference.add), "ms", beside, 1.5},
		{"CNI ADD, 99th percentile", last(program.add), last(reference.add), "ms", beside, 0},
		{fmt.Sprintf("CNI DEL, median of %d", attachRounds), median(program.del), median(reference.del), "ms", beside, 0.5},
		{"  the same by a link to netctl", median(link.del), median(reference.del), "ms", beside, 1},
		{fmt.Sprintf("%d ADDs by %d workers", parallelCalls, parallelWorkers), ms(program.addAll), ms(reference.addAll), "ms", beside, 1},
		{fmt.Sprintf("%d DELs by %d workers", parallelCalls, parallelWorkers), ms(program.delAll), ms(reference.delAll), "ms", beside, 1.5},
	}
}

// call executes the plugin for its container and times it.
func (c *caller) call(t *testing.T, h *netlab.Host, verb string) (took time.Duration) {
	t.Helper()
	if err := h.Do(func() error {
		took = plugin(t, c.path, verb, c.w.ID, c.w.Path(), c.conf)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return took
}

// atOnce times all ADDs, and then all DELs, of several workers.
func (c *caller) atOnce(t *testing.T, h *netlab.Host) {
	t.Helper()
	list := make([]*netlab.Container, parallelCalls)
	for i := range list {
		list[i] = container(t, h, fmt.Sprintf("%sx%d", c.name, i))
	}
	enter := []string{"--net=" + h.NetnsPath(), "--mount=/proc/" + strconv.Itoa(h.PID) + "/ns/mnt", "--", c.path}
	run := func(verb string) time.Duration {
		began := time.Now()
		var workers sync.WaitGroup
		next := make(chan *netlab.Container)
		for range parallelWorkers {
			workers.Go(func() {
				for w := range next {
					cmd := exec.Command("nsenter", enter...)
					cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + w.ID, "CNI_NETNS=" + w.Path(), "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni", "PATH=/usr/sbin:/usr/bin"}
					cmd.Stdin = strings.NewReader(c.conf)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("%s %s: %v: %s", c.path, verb, err, out)
					}
				}
			})
		}
		for _, w := range list {
			next <- w
		}
		close(next)
		workers.Wait()
		return time.Since(began)
	}
	c.addAll, c.delAll = run("ADD"), run("DEL")
}

// openRow kills a node's agent while somebody flushes the packet filter, and counts
// the denied echoes of one a millisecond that are answered until its successor has
// closed it.
func openRow(t *testing.T, h *netlab.Host) row {
	to := netip.MustParseAddr("10.65.200.1")
	netlab.Attached(t, h, "guarded", "bench", "IP="+to.String())
	flood, err := netlab.StartFlood(netlab.Attached(t, h, "stranger", "elsewhere", ""), to, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer flood.Stop()
	var open []time.Duration
	for range 5 {
		time.Sleep(11 * time.Second) // the supervisor starts at once who ran for 10 s
		before := flood.Answered()
		agent, err := h.Find("netctl-agent")
		if err != nil || len(agent) != 1 {
			t.Fatalf("the agent: %v, %v", agent, err)
		}
		if err := unix.Kill(agent[0], unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		netlab.Must(t, h, "nft", "flush", "ruleset")
		netlab.Until(t, 20*time.Second, "closed again", func() string {
			answered := flood.Answered()
			time.Sleep(100 * time.Millisecond)
			if more := flood.Answered() - answered; more > 0 {
				return fmt.Sprint(more, " denied echoes answered")
			}
			return ""
		})
		open = append(open, time.Duration(flood.Answered()-before)*time.Millisecond)
	}
	return row{"agent killed and ruleset flushed: open, median of 5", median(open), 30, "ms", "limit", 1}
}

func container(t *testing.T, h *netlab.Host, name string) *netlab.Container {
	t.Helper()
	c, err := h.Container(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// reachRows times from the return of an ADD on one node to the first answer at a
// container of the same network on another.
func reachRows(t *testing.T, a, b *netlab.Host) []row {
	from := netlab.Attached(t, b, "watch", "bench", "")
	first := func(name, address string) time.Duration {
		flood, err := netlab.StartFlood(from, netip.MustParseAddr(address), time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		defer flood.Stop()
		netlab.Attached(t, a, name, "bench", "IP="+address)
		began := time.Now()
		for flood.Answered() == 0 {
			if time.Since(began) > 10*time.Second {
				t.Fatalf("%s is not reached within 10 s", address)
			}
			time.Sleep(200 * time.Microsecond)
		}
		return time.Since(began)
	}
	var fresh, known []time.Duration
	for i := range 20 {
		fresh = append(fresh, first(fmt.Sprintf("new%d", i), fmt.Sprintf("10.65.%d.1", 100+i)))
		known = append(known, first(fmt.Sprintf("old%d", i), fmt.Sprintf("10.65.%d.2", 100+i)))
	}
	return []row{
		{"ADD → first answer elsewhere, known block (0: before)", median(known), 50, "ms", "limit", 1},
		{"ADD → first answer elsewhere, new block (0: before)", median(fresh), 300, "ms", "limit", 1},
	}
}

// processesIn lists the processes of the netctl binary in a host.
func processesIn(t *testing.T, h *netlab.Host) []int {
	t.Helper()
	var pids []int
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range all {
		var st unix.Stat_t
		exe, _ := os.Readlink(filepath.Join(dir, "exe"))
		if unix.Stat(filepath.Join(dir, "ns/net"), &st) != nil || st.Ino != h.Netns || !strings.Contains(filepath.Base(exe), "netctl") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) < 3 {
		t.Fatalf("%s runs only %d processes of netctl", h.Name, len(pids))
	}
	return pids
}

// usage is the proportional memory in MiB and the CPU time of processes.
func usage(t *testing.T, pids []int) (pss float64, cpu time.Duration) {
	t.Helper()
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); f[0] == "Pss:" {
				kib, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					t.Fatal(err)
				}
				pss += kib / 1024
			}
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, i := range []int{11, 12} { // utime, stime: proc_pid_stat(5)
			ticks, err := strconv.Atoi(f[i])
			if err != nil {
				t.Fatal(err)
			}
			cpu += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return pss, cpu
}

// idleRows measures a node with every role and 100 endpoints at rest.
func idleRows(t *testing.T) []row {
	l := upLab(t, 1)
	h := l.Hosts[0]
	for i := range 100 {
		netlab.Attached(t, h, fmt.Sprintf("c%d", i), "bench", "")
	}
	const rest = 20 * time.Second
	pids := processesIn(t, h)
	pause(t.Context(), rest/2) // let what the attaches started come to rest
	_, before := usage(t, pids)
	pause(t.Context(), rest)
	pss, after := usage(t, pids)
	return []row{
		{"netctl node, every role, 100 endpoints: PSS", pss, 150, "MiB", "limit", 1},
		{"  the same at rest: CPU of one core", 100 * float64(after-before) / float64(rest), 2, "%", "limit", 1},
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// benchmark runs a Go benchmark of another package ten times and returns one of
// its metrics.
func benchmark(t *testing.T, pkg, name, metric string) float64 {
	t.Helper()
	return benchmarks(t, pkg, name, 10, metric)[0]
}

// benchmarks runs a Go benchmark of another package and returns some of its metrics.
func benchmarks(t *testing.T, pkg, name string, times int, metrics ...string) []float64 {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "test", "-run", "^$", "-bench", "^"+name+"$", "-benchtime", fmt.Sprint(times, "x"), "netctl/"+pkg).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", pkg, name, err, out)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], name) {
			continue
		}
		var values []float64
		for _, metric := range metrics {
			i := slices.Index(f, metric)
			if i < 1 {
				t.Fatalf("%s %s: no %s in\n%s", pkg, name, metric, out)
			}
			v, err := strconv.ParseFloat(f[i-1], 64)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, v)
		}
		return values
	}
	t.Fatalf("%s %s: no result in\n%s", pkg, name, out)
	return nil
}

// TestBench measures what netctl promises, each beside a reference of the same run.
func TestBench(t *testing.T) {
	rows := versionRows(t)
	t.Run("attach", func(t *testing.T) {
		l := upLab(t, 2)
		rows = append(rows, attachRows(t, l.Hosts[0])...)
		rows = append(rows, reachRows(t, l.Hosts[0], l.Hosts[1])...)
		rows = append(rows, openRow(t, l.Hosts[1]))
		rows = append(rows, routedRows(t, l.Hosts[0], l.Hosts[1])...)
	})
	// Alone: processes of another lab would share the memory of the program.
	t.Run("idle", func(t *testing.T) { rows = append(rows, idleRows(t)...) })
	rows = append(rows,
		row{"speaker killed: start → Established, worst of 10", benchmark(t, "commands/speaker", "BenchmarkRestart", "worst-ms"), 1000, "ms", "limit", 1},
		row{"BGP: 10k routes of one peer to 50 others", benchmark(t, "routing/bgp", "BenchmarkFanout", "ns/op") / 1e6, benchmark(t, "routing/bgp", "BenchmarkFanoutBIRD", "ns/op") / 1e6, "ms", "BIRD 2", 0})
	report(t, rows)
}

// TestBenchAttach is the part of TestBench that attaches.
func TestBenchAttach(t *testing.T) {
	rows := versionRows(t)
	report(t, append(rows, attachRows(t, upLab(t, 2).Hosts[0])...))
}

// TestBenchReflector measures the engine as a reflector beside BIRD as one.
func TestBenchReflector(t *testing.T) {
	var rows []row
	for _, r := range []struct{ what, name string }{
		{"10k routes", "10k"}, {"100k routes", "100k"}, {"10k IPv6 routes", "6x10k"}, {"100k IPv6 routes", "6x100k"},
		{"10k, 100 attribute sets", "Sets10k"}, {"100k, 100 attribute sets", "Sets100k"}, {"10k IPv6, 100 attribute sets", "6Sets10k"},
		{"10k, one an UPDATE", "Single10k"}, {"100k, one an UPDATE", "Single100k"}, {"10k IPv6, one an UPDATE", "6Single10k"},
		{"10k routes, 1,000 clients", "1000Clients"},
	} {
		rows = append(rows, reflectorRow(t, r.what, "BenchmarkReflect"+r.name, 0.1))
	}
	t.Run("one route", func(t *testing.T) { rows = append(rows, oneRouteRows(t)...) })
	t.Run("memory", func(t *testing.T) { rows = append(rows, reflectorMemoryRows(t)...) })
	report(t, rows)
}

// oneRouteRows are how long one route takes to the last of 50 clients, which is mostly
// fifty times what the kernel needs for a message, with both. They are measured in turn, so
// that what the machine does besides meets both, and count by the medians of the rounds.
func oneRouteRows(t *testing.T) []row {
	const rounds, times = 7, 1000
	var p50, p99, p50s, p99s []float64
	for range rounds {
		ours := benchmarks(t, "routing/bgp", "BenchmarkReflectOne", times, "p50-ms", "p99-ms")
		birds := benchmarks(t, "routing/bgp", "BenchmarkReflectOneBIRD", times, "p50-ms", "p99-ms")
		p50, p99, p50s, p99s = append(p50, ours[0]), append(p99, ours[1]), append(p50s, birds[0]), append(p99s, birds[1])
	}
	for _, l := range [][]float64{p50, p99, p50s, p99s} {
		slices.Sort(l)
	}
	return []row{
		{"BGP reflector, 50 clients: one route, p50", p50[rounds/2], p50s[rounds/2], "ms", "BIRD 2", 1.1},
		{"  p99", p99[rounds/2], p99s[rounds/2] + 1, "ms", "BIRD 2 + 1 ms", 1},
	}
}

// reflectorMemoryRows are what a process has with 100k routes, and what a client costs
// that reads nothing while they come and go.
func reflectorMemoryRows(t *testing.T) []row {
	ours := benchmarks(t, "routing/bgp", "BenchmarkReflectMemory", 10, "MiB")
	birds := benchmarks(t, "routing/bgp", "BenchmarkReflectMemoryBIRD", 10, "MiB")
	deaf := benchmarks(t, "routing/bgp", "BenchmarkReflectMemoryDeaf", 40, "MiB", "deaf-MiB", "p50-ms", "p50-deaf-ms")
	return []row{
		{"BGP reflector, 100k routes: PSS", ours[0], birds[0], "MiB", "BIRD 2", 2},
		{"  more with a client that reads nothing", max(0, deaf[1]-deaf[0]), 12, "MiB", "limit", 1},
		{"  the others' time with it", deaf[3], deaf[2], "ms", "without it", 1.25},
	}
}

// reflectorRow is a benchmark of the reflector, with 50 clients if nothing else is said,
// beside BIRD's.
func reflectorRow(t *testing.T, what, name string, bound float64) row {
	return row{"BGP reflector: " + what, benchmark(t, "routing/bgp", name, "ns/op") / 1e6,
		benchmark(t, "routing/bgp", name+"BIRD", "ns/op") / 1e6, "ms", "BIRD 2", bound}
}

// TestBudget holds size, start-up and memory against their limits.
func TestBudget(t *testing.T) {
	st, err := os.Stat(netlab.Binary(t))
	if err != nil {
		t.Fatal(err)
	}
	rows := []row{{"size of the binary", float64(st.Size()) / (1 << 20), 48, "MiB", "limit", 1}}
	report(t, slices.Concat(rows, versionRows(t), idleRows(t)))
}
