package lab

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// TestTrace: what the kernels of two nodes do with a packet is told, with the rule that
// decides in the model's words, and nothing is left behind.
func TestTrace(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.0.0.0/16", "fd80:24e2:f998:72d6::/64")
	netlab.Must(t, n1, "netctl", "network", "create", "web", "--ipv6")
	netlab.Must(t, n1, "netctl", "network", "create", "db", "--ipv6")
	netlab.Must(t, n1, "netctl", "profile", "db", "rule", "add", "inbound", "allow", "tcp", "from", "tag", "web", "to", "ports", "5432")
	netlab.Must(t, n1, "netctl", "profile", "db", "rule", "add", "inbound", "reject", "tcp", "from", "tag", "web", "to", "ports", "5433")
	netlab.Must(t, n1, "netctl", "profile", "db", "rule", "add", "inbound", "allow", "sctp", "from", "tag", "web")
	netlab.Must(t, n1, "netctl", "tier", "create", "security", "--order", "10")
	netlab.Must(t, n1, "netctl", "policy", "create", "gate", "--tier", "security", "--selector", "all()", "--egress", "deny tcp to ports 6001", "--egress", "pass")
	web, _, _ := attach(t, n1, "w", "web")
	db, db4, db6 := attach(t, n2, "d", "db")
	near, _, _ := attach(t, n1, "n", "db")

	trace := func(on *netlab.Host, code int, words string, says ...string) {
		t.Helper()
		words = strings.NewReplacer("WEB", web.ID, "DB6", db6.String(), "DB", db.ID, "NEAR", near.ID).Replace(words)
		netlab.Until(t, patience, "trace "+words, func() string {
			out, got := exitOf(t, on, append([]string{"netctl", "trace"}, strings.Fields(words)...)...)
			for _, s := range says {
				if got != code || !strings.Contains(out, s) {
					return out
				}
			}
			return ""
		})
	}
	trace(n1, 0, "WEB DB tcp 5432", "Arrived: tcp from", "1 node1:", "2 node2:", "passed tier security, policy gate, egress rule 2: pass", "accepted by profile db, inbound rule 2: allow tcp from tag web to ports 5432", "at endpoint node2/cni/"+db.ID+"/eth0")
	trace(n2, 3, "WEB DB tcp 5433", "Dropped: on node2, by profile db, inbound rule 3: reject tcp from tag web to ports 5433")
	trace(n2, 3, "WEB DB tcp 5434", "Dropped: on node2, no inbound rule allows it")
	trace(n1, 3, "WEB DB6 tcp 6001", "Dropped: on node1, by tier security, policy gate, egress rule 1: deny tcp to ports 6001")
	trace(n1, 0, "WEB NEAR tcp 5432", "Arrived:", "of node1\n")
	trace(n1, 0, "node2 DB", "Arrived: icmp", "Sender: answered")
	trace(n1, 0, "WEB DB sctp 9", "Arrived: sctp")

	expected := fmt.Sprintf("allow %s %s tcp 5432\ndeny %[1]s %[2]s tcp 5434\n", web.ID, db.ID)
	out, err := n1.Exec(t.Context(), netlab.Cmd{Args: []string{"netctl", "policy", "test", "-", "--live"}, Stdin: expected})
	if err != nil || strings.Count(out, "ok     ") != 2 {
		t.Errorf("policy test --live: %v\n%s", err, out)
	}

	// What netctl allows another table rejects.
	netlab.Must(t, n2, "nft", "add table inet guard; add chain inet guard late { type filter hook forward priority 10; policy accept; }; add rule inet guard late ct state established accept; add rule inet guard late ip daddr 192.0.2.1 drop; add rule inet guard late counter reject")
	trace(n1, 3, "WEB DB tcp 5432", "THE KERNEL AND THE RULES DISAGREE: by the datastore's rules it is allowed, and it was dropped", "Dropped: on node2, by rule 3 of chain inet guard late")
	netlab.Until(t, patience, "what explain and status say", func() string {
		out, _ := exitOf(t, n1, "netctl", "explain", web.ID, db.ID, "tcp", "5432")
		return map[bool]string{false: out}[strings.Contains(out, "Note: node2: chain inet guard late (forward, priority 10) ends with reject")]
	})
	if out, code := exitOf(t, n1, "netctl", "explain", web.ID, db.ID, "tcp", "5432"); code != 0 || !strings.Contains(out, "Note: node2: chain inet guard late") {
		t.Errorf("explain: %d\n%s", code, out)
	}
	if out, code := exitOf(t, n2, "netctl", "status"); code != 3 || !strings.Contains(out, "chain inet guard late") {
		t.Errorf("status:\n%s", out)
	}
	netlab.Must(t, n2, "nft", "delete", "table", "inet", "guard")

	for _, h := range l.Hosts[:2] {
		if out := netlab.Must(t, h, "nft", "list", "tables"); strings.Contains(out, "trace") {
			t.Errorf("left on %s:\n%s", h.Name, out)
		}
	}

	changes(t, n1, n2, web, db, db4)
}

// changes: a dry run says what a change would do, and one that nobody confirms is taken
// back, but for what somebody else changed meanwhile.
func changes(t *testing.T, n1, n2 *netlab.Host, web, db *netlab.Container, to netip.Addr) {
	run := func(text string, args ...string) string {
		t.Helper()
		out, err := n1.Exec(t.Context(), netlab.Cmd{Args: append([]string{"netctl"}, args...), Stdin: text})
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	revision := regexp.MustCompile(`(?m)^ *revision: .*\n`)
	get := func(profile string) string {
		return revision.ReplaceAllString(run("", "get", "profile", profile, "-o", "yaml"), "")
	}
	before := get("db")
	closed := strings.Replace(before, "    - allow tcp from tag web to ports 5432\n", "", 1)

	// An established connection is what a change would cut.
	var listener net.Listener
	if err := db.Do(func() (err error) { listener, err = net.Listen("tcp", ":5432"); return err }); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var flow net.Conn
	if err := web.Do(func() (err error) {
		flow, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, 5432).String(), patience)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	out := run(closed, "apply", "-f", "-", "--dry-run")
	for _, says := range []string{"Who may talk to whom: 2 of 12 pairs", web.ID + "/eth0 to ", ", and 1 pairs like it", "tcp 5432 (IPv4): denied now: no inbound rule allows it", "Flows that would be cut: 1 (node2 1)"} {
		if !strings.Contains(out, says) {
			t.Errorf("no %q in\n%s", says, out)
		}
	}
	if out := run(before, "apply", "-f", "-", "--dry-run"); strings.Contains(out, "Who may") || get("db") != before {
		t.Errorf("of no change:\n%s", out)
	}

	var history []struct{ Revision int64 }
	if err := json.Unmarshal([]byte(run("", "history", "profile", "db", "-o", "json")), &history); err != nil || len(history) == 0 {
		t.Fatalf("history: %v, %v", history, err)
	}
	for pairs, args := range map[int][]string{2: {"undo", fmt.Sprint(history[0].Revision), "--dry-run"}, 6: {"delete", "profile", "db", "--force", "--dry-run"}} {
		out := run("", args...)
		for _, says := range []string{"profile db ", " (dry run)\n", fmt.Sprintf("Who may talk to whom: %d of 12 pairs", pairs), " (IPv4): denied now: no inbound rule allows it", "Flows that would be cut: "} {
			if !strings.Contains(out, says) {
				t.Errorf("%v: no %q in\n%s", args, says, out)
			}
		}
	}
	if get("db") != before {
		t.Error("a dry run changed something")
	}

	// Nobody confirms this; what somebody else changes meanwhile stays.
	out = run(closed+"---\n"+strings.Replace(get("web"), "- web\n", "- web\n    - front\n", 1)+"---\napiVersion: netctl/v1\nkind: Policy\nmetadata: {name: lockout}\nspec: {selector: 'all()'}\n", "apply", "-f", "-", "--confirm", "5s")
	if !strings.Contains(out, "Taken back in 5s, unless this follows: netctl confirm ") {
		t.Errorf("apply --confirm:\n%s", out)
	}
	if get("db") == before {
		t.Error("it was not applied")
	}
	run("", "profile", "web", "tag", "add", "other")
	netlab.Until(t, patience, "what nobody confirmed taken back", func() string {
		if got := get("db"); got != before {
			return got
		}
		return ""
	})
	if _, code := exitOf(t, n1, "netctl", "policy", "show", "lockout"); code != 1 {
		t.Error("the policy that was made is still there")
	}
	if got := get("web"); !strings.Contains(got, "- front\n") || !strings.Contains(got, "- other\n") {
		t.Errorf("somebody else's change was undone:\n%s", got)
	}
	if out := run("", "history", "--limit", "2"); !strings.Contains(out, "netctl agent: nobody confirmed a change") {
		t.Errorf("history:\n%s", out)
	}

	run("", "profile", "db", "rule", "add", "inbound", "--confirm", "5s", "deny", "tcp", "to", "ports", "9")
	if out := run("", "confirm"); !strings.Contains(out, "confirmed: netctl profile db rule add") {
		t.Errorf("confirm:\n%s", out)
	}
	if out, code := exitOf(t, n1, "netctl", "confirm"); code != 1 || !strings.Contains(out, "no change waits to be confirmed") {
		t.Errorf("confirm of nothing: %d\n%s", code, out)
	}
	if !strings.Contains(get("db"), "deny tcp to ports 9") {
		t.Error("what was confirmed is gone")
	}
}
