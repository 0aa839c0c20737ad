package agent

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/acl/nft"
	"netctl/netdev/netlab"
)

// generation is the host's count of commits to nftables.
func (s *site) generation() (n uint32) {
	s.t.Helper()
	err := s.node.Do(func() error {
		table, err := nft.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer table.Close()
		n, err = table.Generation()
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// startedAnew kills the agent of a host with n more endpoints: the next one
// finds everything right and writes nothing to the kernel.
func startedAnew(t *testing.T, s *site, n int) {
	for i := range n {
		c, _ := s.attach(fmt.Sprint("many", i), "dataman", nil)
		defer func() {
			if err := s.detach(c); err != nil {
				t.Error(err)
			}
		}()
	}
	netlab.Must(t, s.node, "nft", "add", "table", "ip", "settled") // past the agent's own writes
	before := s.generation()
	monitor, err := s.node.Start("monitor", netlab.Cmd{Args: []string{"ip", "monitor", "link", "address", "route", "rule"}})
	if err != nil {
		t.Fatal(err)
	}
	mark := func(prefix string) { // is heard, so what came before is too
		s.until("monitor hears "+prefix, func() string {
			netlab.Must(t, s.node, "sh", "-c", "ip route add blackhole "+prefix+" proto 99; ip route del blackhole "+prefix)
			if !strings.Contains(monitor.Output(), prefix) {
				return monitor.Output()
			}
			return ""
		})
	}
	mark("192.0.2.1")
	began := time.Now()
	s.kill(unix.SIGKILL)
	t.Logf("%d endpoints: in sync after %v", n, time.Since(began))
	mark("192.0.2.2")
	// The table that has connections tracked went with the socket.
	if now := s.generation(); now != before+1 {
		t.Errorf("%d commits to nftables, want that of the tracking table alone", now-before)
	}
	for line := range strings.Lines(monitor.Output()) {
		// The error is ip's own, of a peer whose namespace went while it asked for it.
		if !strings.Contains(line, "blackhole 192.0.2.") && !strings.HasPrefix(line, "Error: Peer netns") {
			t.Errorf("written to the kernel: %s", line)
		}
	}
	if err := monitor.Stop(); err != nil {
		t.Log(err)
	}
	netlab.Must(t, s.node, "nft", "delete", "table", "ip", "settled")
}
