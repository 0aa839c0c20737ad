package speaker

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// TestLeafSpineBFD: a spine hangs with its links up, and BFD finds it dead: at most half a
// second is lost, where the hold time of both sides is ninety. BFD runs between link-local
// addresses, with FRR's bfdd at `neighbor IFACE interface`, and a speaker that restarts is
// no dead path there either.
func TestLeafSpineBFD(t *testing.T) {
	const (
		detection = 300 * time.Millisecond
		most      = 500 * time.Millisecond
		hold      = 90 * time.Second
		tries     = 5
	)
	x := newLeafSpine(t, 3, func(s *datastore.PeerSpec) {
		s.HoldTime, s.BFD = new(int(hold.Seconds())), &datastore.BFD{Interval: 100, Multiplier: 3}
	}, " neighbor LINK timers 30 90\n neighbor LINK bfd\n neighbor LINK bfd profile fast\n")
	whole := func() {
		t.Helper()
		x.carried(0, 1)
		x.settle(2)
		for _, n := range x.leaves {
			n.paths("up", "up")
		}
	}
	whole()
	s := x.leaves[0].session("up1")
	if d := s.BFDSession; d == nil || d.State != "Up" || d.RemoteState != "Up" || d.Detection != float64(detection/time.Millisecond) || s.HoldTime != int(hold.Seconds()) {
		t.Fatalf("session %+v, BFD %+v", s, d)
	}
	for try := 1; ; try++ {
		hung, lost := x.death(fmt.Sprintf("a spine hangs %d", try), x.freeze)
		switch {
		case t.Failed():
			return
		case lost >= hold/10:
			t.Fatalf("lost %v: BFD, which takes %v, did not find the dead spine", lost, detection)
		}
		s := x.leaves[0].session(fmt.Sprintf("up%d", hung+1))
		if s.Notice != "this side said BFD down: control detection time expired" || s.BFDSession.LastDiagnostic != "control detection time expired" {
			t.Errorf("session %+v, BFD %+v", s, s.BFDSession)
		}
		x.thaw(hung)
		whole()
		// A machine that is busy takes its time in between.
		if lost <= most {
			break
		}
		if try == tries {
			t.Fatalf("more than %v lost %d times", most, tries)
		}
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		x.sub(signal.String(), func(t *testing.T) {
			monitors := []*monitor{x.monitor(x.spines[0]), x.monitor(x.spines[1]), x.monitor(x.leaves[1].host)}
			n := x.leaves[0]
			_ = n.proc.Signal(signal)
			<-n.proc.Done()
			n.up()
			whole()
			for _, m := range monitors {
				if gone := m.deletions(t); len(gone) > 0 {
					t.Errorf("%s deleted routes:\n%s", m.host.Name, strings.Join(gone, "\n"))
				}
			}
		})
	}
}

// session is what a node's speaker says of its session with a peer.
func (n *netctlNode) session(peer string) control.BGPSession {
	n.rig.t.Helper()
	s, err := control.NewSpeakerClient(filepath.Join(n.cfg.RunDir, "speaker.sock")).BGPSession(n.rig.ctx, peer, false)
	if err != nil {
		n.rig.t.Fatal(err)
	}
	return s
}
