package telemetry

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ticks is USER_HZ, the unit of times in /proc (proc(5)): 100 on every machine that Go
// runs on.
const ticks = 100

// procfs puts what /proc says of this process (proc(5)).
func procfs(p *Page) {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		p.Put("process_max_fds", float64(limit.Cur))
	}
	text, err := os.ReadFile("/proc/self/stat")
	_, after, ok := strings.Cut(string(text), ") ") // the name before may hold anything
	f := strings.Fields(after)                      // the first is field 3
	if err != nil || !ok || len(f) < 22 {
		return
	}
	field := func(n int) float64 {
		v, _ := strconv.ParseFloat(f[n-3], 64)
		return v
	}
	p.Put("process_cpu_seconds_total", (field(14)+field(15))/ticks)
	p.Put("process_resident_memory_bytes", field(24)*float64(os.Getpagesize()))
	if boot, ok := bootTime(); ok {
		p.Put("process_start_time_seconds", boot+field(22)/ticks)
	}
}

// bootTime is when the machine started, in Unix time.
func bootTime() (float64, bool) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, false
	}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		if v, is := strings.CutPrefix(s.Text(), "btime "); is {
			n, err := strconv.ParseFloat(v, 64)
			return n, err == nil
		}
	}
	return 0, false
}
