package agent

import (
	"fmt"
	"strings"
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
	base, kernel := len(s.endpoints()), s.kernel()
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
		} else if err := control.StorePending(s.node.Path("/run/netctl-node/pending"), control.DetachRequest{Orchestrator: "cni", Workload: c.ID, Interface: "eth0"}); err != nil {
			t.Fatal(err)
		}
		s.until("nothing left", func() string {
			if got := s.endpoints(); len(got) != base {
				return strings.Join(got, " ")
			}
			if now := s.kernel(); now != kernel {
				return differ(kernel, now)
			}
			if left := netlab.Must(t, s.node, "sh", "-c", "ls /run/netctl-node/pending /run/netctl-node/endpoints | grep -c json || true"); strings.TrimSpace(left) != fmt.Sprint(base) {
				return left + " records and pending detaches"
			}
			return ""
		})
	}
	report, err := ipam.Check(t.Context(), s.store)
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Findings) != 0 || report.Addresses != base {
		t.Errorf("ipam check of %d endpoints: %+v", base, report)
	}
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
