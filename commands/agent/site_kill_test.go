package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/datastore/ipam"
	"netctl/netdev/netlab"
)

// killed ends the agent without warning at ever later moments of an attach, and
// then of a detach. The runtime, told of a failure, detaches, as it always does;
// after that nothing of the workload is left anywhere.
func killed(t *testing.T, s *site) {
	base, kernel := len(s.endpoints()), s.settled()
	for i := range 8 {
		c := s.container(fmt.Sprint("kill", i))
		if i%2 == 1 {
			if _, err := s.tryAttach(c, "dataman", nil); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if i%2 == 1 {
				_ = s.detach(c)
			} else {
				_, _ = s.tryAttach(c, "dataman", nil)
			}
		}()
		<-time.After(time.Duration(i) * 700 * time.Microsecond)
		s.kill(unix.SIGKILL)
		<-done
		if i%4 < 2 {
			if err := s.detach(c); err != nil {
				t.Error(err)
			}
		} else if err := control.StorePending(s.node.Path("/run/netctl-node/pending"), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: c.ID, Interface: "eth0"}}); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, s, base, kernel)
	}
}

// nothingLeft waits until there are base endpoints and their records, addresses
// and pieces of the kernel, no more; blocks stay the node's.
func nothingLeft(t *testing.T, s *site, base int, kernel string) {
	t.Helper()
	s.until("nothing left", func() string {
		if got := s.endpoints(); len(got) != base {
			return strings.Join(got, " ")
		}
		for line := range strings.Lines(differ(kernel, s.kernel())) {
			if !strings.HasPrefix(line, "+ blackhole ") {
				return line
			}
		}
		if left := netlab.Must(t, s.node, "sh", "-c", "ls /run/netctl-node/pending /run/netctl-node/endpoints | grep -c json || true"); strings.TrimSpace(left) != fmt.Sprint(base) {
			return left + " records and pending detaches"
		}
		return ""
	})
	report, err := ipam.Check(t.Context(), s.store)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 0 || report.Addresses != base {
		t.Errorf("ipam check of %d endpoints: %+v", base, report)
	}
}

// retried ends the agent without warning again and again while runtimes attach
// and detach. They do what plugins do: an attach waits for the agent, and none may
// fail; a detach that failed is left in the folder of pending ones.
func retried(t *testing.T, s *site, kills int) {
	base, kernel := len(s.endpoints()), s.settled()
	s.wait = 30 * time.Second
	defer func() { s.wait = 0 }()
	ctx, stop := context.WithCancel(t.Context())
	var runtimes sync.WaitGroup
	var attached atomic.Int64
	for r := range 2 {
		c := s.container(fmt.Sprint("retry", r))
		runtimes.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.tryAttach(c, "dataman", nil); err == nil {
					attached.Add(1)
				} else {
					t.Errorf("attach: %v", err)
				}
				if rand.IntN(3) == 0 {
					continue // once more, without a detach
				}
				if s.detach(c) != nil {
					if err := control.StorePending(s.node.Path("/run/netctl-node/pending"), control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: c.ID, Interface: "eth0"}}); err != nil {
						t.Error(err)
					}
				}
			}
			s.until("detached", func() string {
				if err := s.detach(c); err != nil {
					return err.Error()
				}
				return ""
			})
		})
	}
	for range kills {
		<-time.After(time.Duration(rand.IntN(100)) * time.Millisecond)
		s.kill(unix.SIGKILL)
	}
	stop()
	runtimes.Wait()
	t.Logf("%d attached", attached.Load())
	nothingLeft(t, s, base, kernel)
}

// droppedByOthers sets the host's FORWARD policy to DROP, as Docker does, before
// and after rules of ours are there, in both flavours of iptables.
func droppedByOthers(t *testing.T, s *site, reach func()) {
	for _, binary := range []string{"iptables-nft", "iptables-legacy"} {
		netlab.Must(t, s.node, binary, "-P", "FORWARD", "DROP")
		reach()
		netlab.Must(t, s.node, binary, "-F", "FORWARD")
		reach()
		netlab.Must(t, s.node, "sh", "-c", binary+" -P FORWARD ACCEPT; "+binary+" -F FORWARD")
	}
	netlab.Must(t, s.node, "nft", "delete", "table", "ip", "filter")
}
