//go:build bench

package commands_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/netdev/netlab"
)

// TestBenchThousand fills a node with 1,000 endpoints: what the last ADDs take beside the
// first, the agent's memory, `netctl status`, and an agent that starts again.
func TestBenchThousand(t *testing.T) {
	h := upLab(t, 1).Hosts[0]
	c := &caller{path: netlab.Plugin(t), conf: netlab.Conf("bench")}
	const endpoints, some = 1000, 60
	for i := range endpoints {
		c.w = container(t, h, fmt.Sprintf("m%d", i))
		c.add = append(c.add, c.call(t, h, "ADD"))
	}
	first, last := append([]time.Duration(nil), c.add[:some]...), append([]time.Duration(nil), c.add[endpoints-some:]...)
	agent := func() int {
		t.Helper()
		list, err := h.Find("netctl-agent")
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		return list[0]
	}
	var status []time.Duration
	for range 10 {
		began := time.Now()
		netlab.Must(t, h, "netctl", "status")
		status = append(status, time.Since(began))
	}
	rss := rssOf(t, agent())
	client := control.NewAgentClient(h.Path("/run/netctl-node/agent.sock"))
	was := agent()
	if err := unix.Kill(was, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var began, synced time.Time
	netlab.Until(t, time.Minute, "the agent is in sync again", func() string {
		s, err := client.Status(t.Context())
		if err != nil || s.PID == was || !s.InSync || s.Endpoints != endpoints {
			return fmt.Sprint(s, err)
		}
		began, synced = s.Started, time.Now()
		return ""
	})
	report(t, []row{
		{fmt.Sprintf("CNI ADD, the last %d of %d endpoints", some, endpoints), median(last), median(first), "ms", fmt.Sprintf("the first %d", some), 1.2},
		{fmt.Sprintf("agent with %d endpoints: RSS", endpoints), rss, 80, "MiB", "limit", 1},
		{fmt.Sprintf("netctl status with %d endpoints, median of 10", endpoints), median(status), 100, "ms", "limit", 1},
		{fmt.Sprintf("agent with %d endpoints killed: start → in sync", endpoints), float64(synced.Sub(began).Milliseconds()), 2000, "ms", "limit", 1},
	})
}

// rssOf is a process's resident memory in MiB.
func rssOf(t *testing.T, pid int) (mib float64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, is := strings.CutPrefix(line, "VmRSS:"); is {
			var kib float64
			if _, err := fmt.Sscan(rest, &kib); err != nil {
				t.Fatal(err)
			}
			mib = kib / 1024
		}
	}
	return mib
}
