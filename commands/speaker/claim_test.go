package speaker

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
	"netctl/routing"
)

// TestClaim: a follower plans for a node of its own host only.
func TestClaim(t *testing.T) {
	other := machine("a", "192.168.99.1/24")
	other.Status.Host = "00000000000000ff"
	free := machine("a", "192.168.99.1/24")
	free.Status.Host = ""
	own := machine("a", "192.168.99.1/24")
	ran := routing.Plan{Node: "a", Host: hostOf("a"), AS: 64511, RouterID: netip.MustParseAddr("192.168.99.1"), RestartTime: 120}
	renamed, unnamed := ran, ran
	renamed.Node, unnamed.Node, unnamed.Host = "z", "", ""
	elsewhere := machine("z", "192.168.99.26/24") // another name of this host
	elsewhere.Status.Host = hostOf("a")
	none := filepath.Join(t.TempDir(), "host")
	for name, c := range map[string]struct {
		before routing.Plan
		host   string
		node   *datastore.Node
		why    string // begins so
		more   *datastore.Node
	}{
		"another host's":                {ran, "", other, "node a is registered by host 00000000000000ff (at 192.168.99.1), this host is ", nil},
		"another host's, first start":   {routing.Plan{}, none, other, "node a is registered by host 00000000000000ff", nil},
		"another host's, no ID of ours": {ran, none, other, "node a is registered by host 00000000000000ff", nil},
		"ours":                          {routing.Plan{}, "", own, "", nil},
		"ours, the file is lost":        {ran, none, own, "", nil},
		"first start, no registration":  {routing.Plan{}, "", free, "node a is registered by no host yet: start its agent", nil},
		"first start, nothing there":    {routing.Plan{}, none, nil, "node a is not in the datastore: start its agent", nil},
		"renamed, no registration":      {renamed, "", free, "node a is registered by no host yet: start its agent", nil},
		"renamed, nothing there":        {renamed, "", nil, "node a is not in the datastore: start its agent", nil},
		"renamed, the other name stays": {renamed, "", nil, "this host is registered as node z, not a: set `node: z` again", elsewhere},
		"renamed, added by hand":        {renamed, "", free, "this host is registered as node z, not a: ", elsewhere},
		"renamed and registered":        {renamed, "", own, "", elsewhere},
		"ran, no registration":          {ran, "", free, "", nil},
		"ran, nothing there":            {ran, "", nil, "", nil},
		"ran, an older file":            {unnamed, "", free, "", nil},
		"unreadable":                    {ran, t.TempDir(), own, "read host ID: ", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if c.host == "" {
				c.host = hostFile(t, "a")
			}
			var log said
			st := &state{}
			f := newFollower("a", c.host, st, func() {}, slog.New(slog.NewTextHandler(&log, nil)))
			f.resume(c.before)
			entries := []datastore.Entry{stored(t, 1, machine("b", "192.168.99.2/24"))}
			if c.node != nil {
				entries = append(entries, stored(t, 2, c.node))
			}
			if c.more != nil {
				entries = append(entries, stored(t, 3, c.more))
			}
			for range 2 {
				if err := f.Replace(datastore.Snapshot{Revision: 5, Entries: entries}); err != nil {
					t.Fatal(err)
				}
			}
			defer f.release()
			_, attached := st.sessions()
			if !strings.HasPrefix(st.alien, c.why) || (st.alien == "") != (c.why == "") || attached != (c.why == "") || (len(f.plans) == 1) != (c.why == "") {
				t.Errorf("says %q, attached %v, %d plans", st.alien, attached, len(f.plans))
			}
			if n := log.count("nothing is changed"); (n == 1) != (c.why != "") {
				t.Errorf("said %d times: %s", n, log.b.String())
			}
			// Its agent registers it.
			if err := f.Apply(datastore.Batch{Revision: 6, Events: []datastore.Entry{stored(t, 6, own)}}); err != nil {
				t.Fatal(err)
			}
			if want := c.host == none && c.why != "" || c.why == "read host ID: "; (st.alien != "") != want {
				t.Errorf("afterwards %q", st.alien)
			}
		})
	}
}

// TestTakenAway: the node goes to another host while this one runs as it, and
// comes back by way of being removed.
func TestTakenAway(t *testing.T) {
	l := newLossy(t, 120)
	other := machine("a", "192.168.99.7/24")
	other.Status.Host = "00000000000000ff"
	l.apply(stored(t, 20, other))
	l.apply(datastore.Entry{Key: l.all[0].Key, Revision: 21})
	l.apply(l.all[0])
	if len(l.plans) != 0 || l.state.alien != "" || l.log.count("nothing is changed") != 2 {
		t.Errorf("%d plans, %q; %s", len(l.plans), l.state.alien, l.log.b.String())
	}
}

// TestAnotherHostsNode starts the speaker of a host that has routes and sessions
// under the name of another host's node, and of a host that is new.
func TestAnotherHostsNode(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 3})
	r.pool("10.65.0.0/16")
	n1, n2 := r.node(r.lab.Hosts[0]), r.node(r.lab.Hosts[1])
	n1.block("10.65.0.0/26")
	n2.block("10.65.1.0/26")
	to1, to2 := "10.65.1.0/26 via 192.168.99.103 dev eth1", "10.65.0.0/26 via 192.168.99.102 dev eth1"
	r.expect(n1.host, "88", to1)
	r.expect(n2.host, "88", to2)
	r.settle(1)
	file := filepath.Join(n2.cfg.StateDir, "speaker.json")
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	monitors := []*monitor{r.monitor(n1.host), r.monitor(n2.host)}

	n2.proc.Kill()
	n2.cfg.Node = "node1"
	n2.up()
	refused := "node node1 is registered by host " + hostOf("node1")
	held := func() string {
		s, err := n2.status()
		if err != nil {
			return err.Error()
		}
		if len(s.Problems) != 1 || !strings.HasPrefix(s.Problems[0], refused) {
			return strings.Join(s.Problems, "\n")
		}
		return ""
	}
	netlab.Until(t, 20*time.Second, "it is said", held)
	r.settle(1)
	if n := strings.Count(n2.proc.Output(), "msg=\"node is not this host's, nothing is changed\""); n != 1 {
		t.Errorf("said %d times: %s", n, n2.proc.Output())
	}
	if now, err := os.ReadFile(file); err != nil || string(now) != string(was) {
		t.Errorf("speaker.json is %s, %v\nwas %s", now, err, was)
	}
	r.expect(n2.host, "88", to2)
	// Its routes are announced on; what the datastore says meanwhile is not followed.
	n2.block("10.65.2.0/26")
	r.expect(n1.host, "88", to1, "10.65.2.0/26 via 192.168.99.103 dev eth1")
	report, err := datastore.Get[*datastore.Report](r.ctx, r.store, datastore.ReportName("node1", datastore.ReportSpeaker))
	if err == nil && len(report.Status.Sessions) > 0 && report.Status.Sessions[0].Peer != n2.host.Addr.Addr() {
		t.Errorf("node1 reports %+v", report.Status.Sessions)
	}

	// A new host waits for its registration, and then goes on by itself.
	n3 := r.run(r.lab.Hosts[2])
	netlab.Until(t, 20*time.Second, "the new host waits", func() string {
		s, err := n3.status()
		if err != nil {
			return err.Error()
		}
		if got := strings.Join(s.Problems, "\n"); got != "node node3 is not in the datastore: start its agent" {
			return "problems: " + got
		}
		return ""
	})
	if _, err := os.Stat(filepath.Join(n3.cfg.StateDir, "speaker.json")); !os.IsNotExist(err) {
		t.Errorf("speaker.json of a host that waits: %v", err)
	}

	// The node's name is right again.
	n2.proc.Kill()
	n2.cfg.Node = "node2"
	n2.up()
	r.register(n3.host)
	r.settle(2)
	for _, m := range monitors {
		if gone := m.deletions(t); len(gone) > 0 {
			t.Errorf("%s deleted routes:\n%s", m.host.Name, strings.Join(gone, "\n"))
		}
	}
}
