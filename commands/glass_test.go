package commands

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// TestGlassText holds what `bgp routes` and `bgp session` print.
func TestGlassText(t *testing.T) {
	time.Local = time.UTC
	now := time.Date(2026, 3, 4, 15, 40, 0, 0, time.UTC)
	addr := netip.MustParseAddr
	med := uint32(7)
	answer := control.BGPPaths{More: 2, Paths: []control.BGPPath{
		{Prefix: netip.MustParsePrefix("10.65.0.0/26"), Origin: "igp", LocalPref: 100, Best: true, Why: "best: this node's own"},
		{Prefix: netip.MustParsePrefix("172.20.0.0/16"), Peer: addr("10.9.0.1"), NextHop: addr("10.9.0.1"), ASPath: "65001", Origin: "igp", LocalPref: 100, Best: true, Used: true, Why: "best: the only one"},
		{Prefix: netip.MustParsePrefix("172.20.0.0/16"), Peer: addr("10.9.0.2"), NextHop: addr("10.9.0.2"), ASPath: "65002", Origin: "igp", LocalPref: 100, MED: &med,
			Communities: []string{"no-export"}, Used: true, Why: "equal, router ID 10.9.0.2, not 10.9.0.1"},
	}}
	want := `+---+---------------+----------+----------+---------+-----------------------------------------+--------+------------+-----+-------------+
|   |     Prefix    | Next hop |   Peer   | AS path |                   Why                   | Origin | Local pref | MED | Communities |
+---+---------------+----------+----------+---------+-----------------------------------------+--------+------------+-----+-------------+
| * |  10.65.0.0/26 |   own    |   own    |         |          best: this node's own          |  igp   |    100     |     |             |
| * | 172.20.0.0/16 | 10.9.0.1 | 10.9.0.1 |  65001  |            best: the only one           |  igp   |    100     |     |             |
| = | 172.20.0.0/16 | 10.9.0.2 | 10.9.0.2 |  65002  | equal, router ID 10.9.0.2, not 10.9.0.1 |  igp   |    100     |  7  |  no-export  |
+---+---------------+----------+----------+---------+-----------------------------------------+--------+------------+-----+-------------+
and 2 more; name a prefix or a peer
`
	if got := pathTable(answer, true); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if got := pathTable(control.BGPPaths{}, false); got != "No paths.\n" {
		t.Errorf("got %q", got)
	}
	s := control.BGPSession{
		Session: control.Session{SessionStatus: datastore.SessionStatus{Peer: addr("10.9.0.1"), Type: "global", State: established, Since: now.Add(-time.Hour)}, Received: 7, Accepted: 3, Sent: 2},
		Name:    "tor", Description: "tor: a switch", AS: 65001, RouterID: addr("10.9.0.1"), Local: addr("10.9.0.2"), HoldTime: 9, Families: []string{"ipv4"},
		Offered: []string{"ipv4 unicast", "route refresh"}, Heard: []string{"ipv4 unicast"}, Established: 2, MessagesIn: 9, MessagesOut: 8, UpdatesIn: 3, UpdatesOut: 1,
		Limit: 100, LastError: "connection closed by peer", LastErrorAt: now.Add(-2 * time.Hour), Notice: "peer says administrative shutdown: repair", NoticeAt: now.Add(-48 * time.Hour),
	}
	want = `Peer:              10.9.0.1, tor: a switch, global
AS:                65001
State:             Established since 14:40:00
Established:       2 times
Local address:     10.9.0.2
Router ID:         10.9.0.1
Hold time:         9 s
Families:          ipv4
Offered:           ipv4 unicast; route refresh
Heard:             ipv4 unicast
Prefixes:          7 received, 3 accepted, 2 sent, 0 stale
Prefix limit:      100
Messages:          9 in, 8 out; 3 and 1 of them UPDATEs
Last error:        connection closed by peer (13:40:00)
Last notification: peer says administrative shutdown: repair (2026-03-02)
`
	if got := sessionText(s, now); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	s.BFD, s.BFDSession = "up", &control.BFDSession{
		State: "Up", RemoteState: "Up", Since: now.Add(-time.Minute), Ups: 2, Interval: 100, Detection: 300.5,
		LastDiagnostic: "control detection time expired", LastDiagnosticAt: now.Add(-2 * time.Minute), In: 7, Out: 8,
	}
	want = strings.Replace(want, "Established since", "Established, BFD up since", 1)
	want = strings.Replace(want, "Prefixes:", `BFD:               up since 15:39:00
BFD timers:        a packet every 100 ms, dead after 300.5 ms; came up 2 times
BFD packets:       7 in, 8 out
BFD diagnostic:    control detection time expired (15:38:00)
Prefixes:`, 1)
	if got := sessionText(s, now); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	s.BFD, s.BFDSession = "", nil
	want = strings.Replace(want, "Established, BFD up since", "Established since", 1)
	want = want[:strings.Index(want, "BFD:")] + want[strings.Index(want, "Prefixes:"):]
	s.Interface, s.Peer = "eth1", addr("fe80::1%eth1")
	want = strings.Replace(want, "10.9.0.1, tor: a switch, global\n", "eth1, tor: a switch, global\nPeer address:      fe80::1%eth1\n", 1)
	if got := sessionText(s, now); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	silent := control.BGPSession{Session: control.Session{SessionStatus: datastore.SessionStatus{Interface: "eth1", Type: "global", State: "Idle", Reason: "interface eth1 is down"}}, Description: "eth1"}
	if got, want := sessionText(silent, now), "Peer:              eth1, eth1, global\nPeer address:      not known\nAS:                any external one\nState:             Idle: interface eth1 is down\n"; !strings.HasPrefix(got, want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	at := control.BGPPaths{Paths: []control.BGPPath{{Prefix: netip.MustParsePrefix("10.0.0.0/26"), Peer: s.Peer, Interface: "eth1", NextHop: s.Peer, Why: "best"}}}
	if got := pathTable(at, false); !strings.Contains(got, "| fe80::1%eth1 | eth1 |") {
		t.Errorf("got\n%s", got)
	}
}
