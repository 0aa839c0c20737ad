package bgp

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// fanProcess holds how many clients the engine is to have that this process is: what a
// process costs is measured of one that does nothing else.
const fanProcess = "NETCTL_TEST_FAN"

func TestMain(m *testing.M) {
	clients, err := strconv.Atoi(os.Getenv(fanProcess))
	if err != nil {
		os.Exit(m.Run())
	}
	s, err := fan{clients: clients, reflect: true}.speaker()
	if err == nil {
		s.config.Installer = &tidy{}
		err = s.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// tidy gives garbage back to the system after many changes, as the speaker's installer
// does.
type tidy struct{ timer *time.Timer }

func (t *tidy) Install(changes []Change) {
	if t.timer == nil {
		t.timer = time.AfterFunc(time.Hour, debug.FreeOSMemory)
	}
	t.timer.Reset(300 * time.Millisecond)
}

// process measures this engine in a process of its own, and what that has.
func (f fan) process(b *testing.B) {
	h := newHost(b)
	cmd := h.command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", fanProcess, f.clients))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	f.weighed(b, h)
}

// birdProcess measures BIRD in the same way.
func (f fan) birdProcess(b *testing.B) {
	h := newHost(b)
	f.startBIRD(h)
	f.weighed(b, h)
}

// weighed is fanOut, and what the processes in the place have when everything is there
// for the last time; and for the last time with a deaf client.
func (f fan) weighed(b *testing.B, h *host) {
	var mib []float64
	f.full = func() {
		for busy := h.cpu(b); ; {
			time.Sleep(1500 * time.Millisecond)
			now := h.cpu(b)
			if now == busy {
				break
			}
			busy = now
		}
		mib = append(mib, h.pss(b))
	}
	fanOut(b, h, f)
	for i, m := range mib {
		b.ReportMetric(m, []string{"MiB", "deaf-MiB"}[i])
	}
}

// processes are the folders in /proc of those in the namespace, but for the one that
// holds it.
func (h *host) processes(b *testing.B) (list []string) {
	b.Helper()
	here, err := os.Readlink(h.path())
	if err != nil {
		b.Fatal(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		if ns, err := os.Readlink(dir + "/ns/net"); err == nil && ns == here && filepath.Base(dir) != strconv.Itoa(h.pid) {
			list = append(list, dir)
		}
	}
	return list
}

// pss is the proportional memory of the processes in MiB.
func (h *host) pss(b *testing.B) (mib float64) {
	b.Helper()
	for _, dir := range h.processes(b) {
		text, err := os.ReadFile(dir + "/smaps_rollup")
		if err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); f[0] == "Pss:" {
				kib, _ := strconv.ParseFloat(f[1], 64)
				mib += kib / 1024
			}
		}
	}
	return mib
}

// cpu is what the processes have used, in ticks (proc_pid_stat(5)).
func (h *host) cpu(b *testing.B) (ticks int) {
	b.Helper()
	for _, dir := range h.processes(b) {
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			b.Fatal(err)
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, i := range []int{11, 12} { // utime, stime
			n, _ := strconv.Atoi(f[i])
			ticks += n
		}
	}
	return ticks
}

// What a process has with 100k routes of 50 clients, with BIRD's beside it, and first
// without and then with a client that reads nothing while they come and go.
func BenchmarkReflectMemory(b *testing.B)     { reflected(100_000).to(fanClients).process(b) }
func BenchmarkReflectMemoryBIRD(b *testing.B) { reflected(100_000).to(fanClients).birdProcess(b) }
func BenchmarkReflectMemoryDeaf(b *testing.B) { reflected(100_000).to(fanClients).hushed().process(b) }
func BenchmarkReflectMemoryDeafBIRD(b *testing.B) {
	reflected(100_000).to(fanClients).hushed().birdProcess(b)
}

func (f fan) hushed() fan { f.deaf = true; return f }

// One route, as soon as the last client has it.
func BenchmarkReflectOne(b *testing.B)     { reflected(1).to(fanClients).process(b) }
func BenchmarkReflectOneBIRD(b *testing.B) { reflected(1).to(fanClients).birdProcess(b) }
