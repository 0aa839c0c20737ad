package commands

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/datastore"
)

// TestStatusWithoutDatastore: an etcd that takes connections and answers nothing
// must not make the agent look away.
func TestStatusWithoutDatastore(t *testing.T) {
	dir := t.TempDir()
	silent, err := net.Listen("unix", filepath.Join(dir, "etcd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	log := slog.New(slog.DiscardHandler)
	agent, err := control.Listen(filepath.Join(dir, "agent.sock"), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.AgentStatus, error) {
		return control.AgentStatus{PID: 1}, nil
	}))
	go func() { served <- serve.Serve(ctx, agent, mux) }()
	defer func() { cancel(); <-served }()
	var out, errs strings.Builder
	code := Main([]string{"netctl", "status", "--run-dir", dir, "--state-dir", dir}, strings.NewReader(""), &out, &errs)
	if code != exitNo || !strings.Contains(out.String(), "netctl agent is running.") {
		t.Errorf("exit code %d\n%s%s", code, out.String(), errs.String())
	}
}

// TestStatusWithoutTheDatastoresFiles: certificates that cannot be read are the
// datastore's problem, and the sockets are asked all the same.
func TestStatusWithoutTheDatastoresFiles(t *testing.T) {
	dir := t.TempDir()
	agent, err := control.Listen(filepath.Join(dir, "agent.sock"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	mux := http.NewServeMux()
	why := "datastore unavailable: https://192.0.2.1:2379: our ca cannot be used: open " + dir + "/ca.crt: no such file or directory"
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.AgentStatus, error) {
		return control.AgentStatus{PID: 1, Endpoints: 7, Store: "list /netctl/v1/: " + why}, nil
	}))
	go func() { served <- serve.Serve(ctx, agent, mux) }()
	defer func() { cancel(); <-served }()
	var out, errs strings.Builder
	code := Main([]string{"netctl", "status", "--run-dir", dir, "--state-dir", dir, "--datastore-endpoints", "https://192.0.2.1:2379",
		"--datastore-ca", dir + "/ca.crt", "--datastore-cert", dir + "/n1.crt", "--datastore-key", dir + "/n1.key"}, strings.NewReader(""), &out, &errs)
	if code != exitNo || !strings.HasPrefix(out.String(), "! "+why+"\n") || !strings.Contains(out.String(), "netctl agent is running.") ||
		!strings.Contains(out.String(), "7 endpoints") || errs.Len() > 0 {
		t.Errorf("exit code %d\n%s%s", code, out.String(), errs.String())
	}
}

// TestStatusText holds the text against the one that the documents show.
func TestStatusText(t *testing.T) {
	time.Local = time.UTC
	now := time.Date(2026, 3, 4, 15, 40, 0, 0, time.UTC)
	session := control.Session{SessionStatus: datastore.SessionStatus{Peer: netip.MustParseAddr("192.168.99.103"), Type: "node-to-node mesh", State: "Established",
		Since: time.Date(2026, 3, 4, 15, 31, 10, 0, time.UTC), Reason: "an old one"}, Received: 3, Accepted: 3, Sent: 1}
	r := &nodeReport{Node: "slave", Running: true, InSync: true, Started: now.Add(-17*time.Minute - 8*time.Second), Endpoints: 12, Version: "v1.0.0",
		Datastore: "datastore https://192.168.99.102:2379 healthy (3 members)",
		Addresses: []netip.Addr{netip.MustParseAddr("192.168.99.102")}, AS: "64511 (inherited)", Sessions: []control.Session{session}}
	r.finish()
	a := &app{}
	want := `netctl agent is running. Up 17 minutes, in sync, 12 endpoints
netctl version 1.0.0, datastore https://192.168.99.102:2379 healthy (3 members)

IPv4 BGP status
IP: 192.168.99.102    AS Number: 64511 (inherited)
+----------------+-------------------+-------+----------+-------------+
|  Peer address  |     Peer type     | State |  Since   |     Info    |
+----------------+-------------------+-------+----------+-------------+
| 192.168.99.103 | node-to-node mesh |   up  | 15:31:10 | Established |
+----------------+-------------------+-------+----------+-------------+

IPv6 BGP status
No IPv6 address configured.
`
	if got := a.reportText(r, false, now); got != want || !r.Healthy {
		t.Errorf("healthy %v, got\n%swant\n%s", r.Healthy, got, want)
	}

	r.Sessions[0].BFD = "down: nothing heard"
	if got := sessionInfo(r.Sessions[0]); got != "Established, BFD down: nothing heard" {
		t.Errorf("got %q", got)
	}
	r.Sessions[0].BFD = ""
	r.Sessions[0].State, r.Sessions[0].Off = "Idle", true
	if r.finish(); !r.Healthy {
		t.Errorf("a session that is shut down on purpose: %q", r.Problems)
	}
	r.Sessions[0].Off = false
	r.Sessions[0].Accepted, r.Sessions[0].Stale = 2, 1
	r.Sessions[0].State, r.Sessions[0].Reason, r.Sessions[0].Since = "Active", "connection refused", now.Add(-25*time.Hour)
	r.Addresses = append(r.Addresses, netip.MustParseAddr("fd00:99::2"))
	r.Endpoints = 1
	r.finish()
	want = `! BGP session to 192.168.99.103 is down: Active: connection refused, 1 stale

netctl agent is running. Up 17 minutes, in sync, 1 endpoint
netctl version 1.0.0, datastore https://192.168.99.102:2379 healthy (3 members)

IPv4 BGP status
IP: 192.168.99.102    AS Number: 64511 (inherited)
+----------------+-------------------+-------+------------+-------------------------------------+----------+----------+------+
|  Peer address  |     Peer type     | State |   Since    |                 Info                | Received | Accepted | Sent |
+----------------+-------------------+-------+------------+-------------------------------------+----------+----------+------+
| 192.168.99.103 | node-to-node mesh |  down | 2026-03-03 | Active: connection refused, 1 stale |    3     |    2     |  1   |
+----------------+-------------------+-------+------------+-------------------------------------+----------+----------+------+

IPv6 BGP status
IP: fd00:99::2    AS Number: 64511 (inherited)
No IPv6 sessions: IPv6 routes go over the IPv4 ones.

Refused routes
1 route; netctl status on node slave names them
`
	if got := a.reportText(r, true, now); got != want || r.Healthy {
		t.Errorf("healthy %v, got\n%swant\n%s", r.Healthy, got, want)
	}
}

// TestRefusedText: what the import guard refuses is named and nothing to worry.
func TestRefusedText(t *testing.T) {
	r := &nodeReport{Running: true, InSync: true}
	r.fromSpeaker(control.SpeakerStatus{
		Sessions: []control.Session{{SessionStatus: datastore.SessionStatus{Peer: netip.MustParseAddr("10.0.0.2"), State: "Established"}, Received: 9, Accepted: 2, Stale: 12}},
		Refused:  []string{"1", "2", "3", "4", "5", "6", "7"},
	})
	r.finish()
	text := (&app{}).reportText(r, false, time.Now())
	if !strings.HasSuffix(text, "\n\nRefused routes\n1\n2\n3\n4\n5\nand 2 more\n") || !r.Healthy || r.RefusedCount != 7 {
		t.Errorf("healthy %v, %d, %s", r.Healthy, r.RefusedCount, text)
	}
	if got := sessionInfo(r.Sessions[0]); got != "Established, 12 stale" {
		t.Errorf("info %q", got)
	}
	js, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(js), `"refusedCount":7,"refused":["1","2"`) {
		t.Errorf("%s, %v", js, err)
	}
}

// TestStatusDetached: a store that does not know the node takes nothing from what
// its sockets say, and every reason is told once.
func TestStatusDetached(t *testing.T) {
	const empty = "detached from the datastore: it holds no cluster identity"
	up := control.SpeakerStatus{
		Detached: empty, AS: 64511, ASSource: "inherited", Addresses: []netip.Addr{netip.MustParseAddr("192.168.99.102")},
		Sessions: []control.Session{{SessionStatus: datastore.SessionStatus{Peer: netip.MustParseAddr("192.168.99.103"), Type: "node-to-node mesh", State: "Established"}}},
	}
	for _, c := range []struct {
		name     string
		agent    control.AgentStatus
		speaker  control.SpeakerStatus
		storeErr error
		want     []string
	}{
		{"both", control.AgentStatus{Detached: empty}, up, nil, []string{"agent, speaker: " + empty}},
		{"one", control.AgentStatus{InSync: true}, up, nil, []string{"speaker: " + empty}},
		{
			"away", control.AgentStatus{Store: "watch /netctl/v1/: datastore unavailable: refused"}, up,
			fmt.Errorf("list /netctl/v1/: %w: refused", datastore.ErrUnavailable), []string{"datastore unavailable: refused", "speaker: " + empty},
		},
		{
			"away for want of an address", control.AgentStatus{Store: "watch /netctl/v1/: datastore unavailable: refused", Problems: []string{"ACL", "IPv4 address: gone"}}, up,
			fmt.Errorf("list /netctl/v1/: %w: refused", datastore.ErrUnavailable), []string{"IPv4 address: gone", "datastore unavailable: refused", "speaker: " + empty, "ACL"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			s := &settings{Node: "n1"}
			s.Agent.Socket, s.Speaker.Socket = filepath.Join(dir, "agent.sock"), filepath.Join(dir, "speaker.sock")
			answer(t, s.Agent.Socket, c.agent)
			answer(t, s.Speaker.Socket, c.speaker)
			r := localReport(t.Context(), s, datastore.NewView(), c.storeErr)
			if !slices.Equal(r.Problems, c.want) {
				t.Errorf("problems %q, want %q", r.Problems, c.want)
			}
			text := (&app{}).reportText(r, false, time.Now())
			for _, want := range []string{"IP: 192.168.99.102    AS Number: 64511 (inherited)", "| 192.168.99.103 | node-to-node mesh |   up  |"} {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in\n%s", want, text)
				}
			}
		})
	}
}

// TestStatusOfReflector: a machine with a reflector alone lacks nothing.
func TestStatusOfReflector(t *testing.T) {
	dir := t.TempDir()
	s := &settings{Node: "rr1"}
	s.Agent.Socket, s.Speaker.Socket = filepath.Join(dir, "agent.sock"), filepath.Join(dir, "speaker.sock")
	answer(t, s.Speaker.Socket, control.SpeakerStatus{Bare: true})
	local := localReport(t.Context(), s, datastore.NewView(), nil)
	now := time.Now()
	v := datastore.NewView()
	_, op, err := datastore.OpPut(&datastore.Report{Metadata: datastore.Metadata{Name: datastore.ReportName("rr1", datastore.ReportSpeaker)},
		Status: datastore.ReportStatus{Seen: now, Bare: true}})
	if err == nil {
		_, err = v.Apply(datastore.Entry{Key: op.Key, Value: op.Value, Revision: 1})
	}
	if err != nil {
		t.Fatal(err)
	}
	node := &datastore.Node{Metadata: datastore.Metadata{Name: "rr1"}}
	for _, r := range []*nodeReport{local, remoteReport(v, node, now)} {
		if text := (&app{}).reportText(r, false, now); !r.Healthy || !strings.HasPrefix(text, "netctl reflector is running.\n") {
			t.Errorf("healthy %v:\n%s", r.Healthy, text)
		}
	}
	if r := remoteReport(v, node, now.Add(time.Hour)); r.Healthy || r.Reflector || len(r.Problems) != 1 {
		t.Errorf("silent for an hour: %+v", r)
	}
}

// answer serves a role's status on a socket.
func answer[T any](t *testing.T, socket string, status T) {
	t.Helper()
	l, err := control.Listen(socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (T, error) { return status, nil }))
	go func() { done <- serve.Serve(ctx, l, mux) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// viewWith holds what both roles of a node reported.
func viewWith(t *testing.T, node string, status datastore.ReportStatus) *datastore.View {
	t.Helper()
	v := datastore.NewView()
	if status.Seen.IsZero() {
		return v
	}
	for _, role := range []string{datastore.ReportAgent, datastore.ReportSpeaker} {
		_, op, err := datastore.OpPut(&datastore.Report{Metadata: datastore.Metadata{Name: datastore.ReportName(node, role)}, Status: status})
		if err == nil {
			_, err = v.Apply(datastore.Entry{Key: op.Key, Value: op.Value, Revision: 1})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return v
}

func TestRemoteReport(t *testing.T) {
	now := time.Date(2026, 3, 4, 15, 40, 0, 0, time.UTC)
	for _, c := range []struct {
		status datastore.ReportStatus
		want   string // the problem; empty: healthy
	}{
		{datastore.ReportStatus{Seen: now.Add(-10 * time.Minute)}, ""},
		{datastore.ReportStatus{}, "node n has never reported"},
		{datastore.ReportStatus{Seen: now.Add(-3 * time.Hour)}, "node n has not reported for 3 hours"},
		{datastore.ReportStatus{Seen: now, Problems: []string{"drift"}}, "drift"},
		{datastore.ReportStatus{Seen: now, Behind: true, Problems: []string{"routes: no"}}, "routes: no"},
		{datastore.ReportStatus{Seen: now, Sessions: []datastore.SessionStatus{{Peer: netip.MustParseAddr("10.0.0.1"), State: "OpenSent", Reason: "bad peer AS 64512"}}},
			"BGP session to 10.0.0.1 is down: OpenSent: bad peer AS 64512"},
	} {
		n := &datastore.Node{Metadata: datastore.Metadata{Name: "n"}}
		r := remoteReport(viewWith(t, "n", c.status), n, now)
		if text := (&app{}).reportText(r, false, now); !strings.Contains(text, "netctl version unknown, ") {
			t.Errorf("%+v:\n%s", c.status, text)
		}
		if r.InSync == c.status.Behind {
			t.Errorf("%+v: in sync %v", c.status, r.InSync)
		}
		if got := strings.Join(r.Problems, "; "); got != c.want || r.Healthy != (c.want == "") {
			t.Errorf("got %q, healthy %v; want %q", got, r.Healthy, c.want)
		}
	}
}

func TestCentre(t *testing.T) {
	for _, c := range []struct {
		in    string
		width int
		want  string
	}{
		{"up", 5, "  up "}, {"abc", 6, " abc  "}, {"abc", 7, "  abc  "}, {"", 3, "   "}, {"ü", 2, "ü "}, {"full", 4, "full"},
	} {
		if got := centre(c.in, c.width); got != c.want {
			t.Errorf("%q in %d: got %q, want %q", c.in, c.width, got, c.want)
		}
	}
}

func TestSince(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 seconds", time.Second: "1 second", 59 * time.Second: "59 seconds", time.Minute: "1 minute",
		3*time.Hour + 59*time.Minute: "3 hours", 50 * time.Hour: "2 days",
	} {
		if got := since(d); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}

// TestStatusOfHangingAgent: an agent that takes the call and answers nothing must
// not make the speaker look away, nor be called one that does not run.
func TestStatusOfHangingAgent(t *testing.T) {
	dir := t.TempDir()
	s := &settings{Node: "n"}
	s.Agent.Socket, s.Speaker.Socket = filepath.Join(dir, "agent.sock"), filepath.Join(dir, "speaker.sock")
	silent, err := net.Listen("unix", s.Agent.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	l, err := control.Listen(s.Speaker.Socket, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("GET /v1/status", serve.Call(func(context.Context, struct{}) (control.SpeakerStatus, error) {
		defer close(asked)
		return control.SpeakerStatus{AS: 64999}, nil
	}))
	serving, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve.Serve(serving, l, mux) }()
	defer func() { stop(); <-served }()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	r := localReport(ctx, s, nil, nil)
	select {
	case <-asked:
	default:
		t.Error("the speaker was not asked")
	}
	text := (&app{}).reportText(r, false, time.Now())
	if r.AS != "64999" || len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "did not answer in time") ||
		!strings.Contains(text, "netctl agent does not answer.") {
		t.Errorf("%+v\n%s", r, text)
	}
}

func TestConcerns(t *testing.T) {
	for problem, want := range map[string]bool{
		"endpoint n1/cni/a/eth0 lost its link": true, "restore n1/cni/a/eth0: no": true, "lost n1/cni/a/eth0": true,
		"endpoint n1/cni/a/eth01 lost its link": false, "endpoint n1/cni/ab/eth0 lost": false,
	} {
		if got := concerns(problem, "n1/cni/a/eth0"); got != want {
			t.Errorf("%s: %v", problem, got)
		}
	}
}

// TestStatusOfWhatOthersHave: what cannot be read of another node is named, and the node that
// passes it over is healthy.
func TestStatusOfWhatOthersHave(t *testing.T) {
	bad := "/netctl/v1/endpoints/n2/a/b/c: apiVersion: must be netctl/v1; `netctl delete endpoint n2/a/b/c --force` removes it"
	r := &nodeReport{Node: "n1"}
	r.fromAgent(control.AgentStatus{InSync: true, Unread: slices.Repeat([]string{bad}, mostRefused+2)})
	r.finish()
	text := (&app{}).reportText(r, false, time.Now())
	if !r.Healthy || strings.Contains(text, "! ") || strings.Count(text, "\n  "+bad) != mostRefused || !strings.Contains(text, "\n  and 2 more, which `netctl ipam check` names\n") {
		t.Errorf("healthy %v\n%s", r.Healthy, text)
	}
}
