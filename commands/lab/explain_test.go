package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/netdev/netlab"
)

// answered says whether a packet to a port where nobody listens is answered, by a refusal,
// within a time.
func answered(t *testing.T, from netlab.Place, to netip.Addr, protocol string, port int, within time.Duration) bool {
	t.Helper()
	var err error
	if failed := from.Do(func() error {
		var c net.Conn
		d := net.Dialer{Timeout: within}
		if c, err = d.DialContext(t.Context(), protocol, net.JoinHostPort(to.String(), strconv.Itoa(port))); err != nil {
			return nil
		}
		defer c.Close()
		if protocol == "udp" {
			_ = c.SetDeadline(time.Now().Add(within))
			if _, err = c.Write([]byte("x")); err == nil {
				_, err = c.Read(make([]byte, 1))
			}
		}
		return nil
	}); failed != nil {
		t.Fatal(failed)
	}
	return err == nil || errors.Is(err, syscall.ECONNREFUSED)
}

// exitOf is a command's output and exit code.
func exitOf(t *testing.T, p netlab.Place, args ...string) (string, int) {
	t.Helper()
	out, failed := netlab.Try(t, p, args...)
	if failed == nil {
		return out, 0
	}
	return failed.Stdout + failed.Stderr, failed.Code
}

// agrees wants explain's answer to be that, and packets to fare so.
func agrees(t *testing.T, on *netlab.Host, from netlab.Place, to netip.Addr, allowed bool, says string, words ...string) {
	t.Helper()
	args := append([]string{"netctl", "explain"}, words...)
	out, code := exitOf(t, on, args...)
	if want := map[bool]int{true: 0, false: 3}[allowed]; code != want || !strings.Contains(out, says) {
		t.Errorf("%s: exit %d, want %d and %q\n%s", strings.Join(args, " "), code, want, says, out)
		return
	}
	port, err := strconv.Atoi(words[3])
	if err != nil {
		t.Fatal(err)
	}
	within := 2 * time.Second
	if !allowed {
		within = 300 * time.Millisecond
	}
	netlab.Until(t, patience, "what explain says of packets: "+strings.Join(args, " "), func() string {
		if answered(t, from, to, words[2], port, within) != allowed {
			return out
		}
		return ""
	})
}

// staged has a staged policy tell what it would deny, and deny it once it is promoted.
func staged(t *testing.T, n1, n2 *netlab.Host, web *netlab.Container, db4 netip.Addr) {
	netlab.Must(t, n1, "netctl", "policy", "create", "draft", "--tier", "security", "--order", "1", "--staged", "--selector", "has(store)", "--ingress", "deny tcp to ports 7000", "--ingress", "pass")
	const says = "tier security, staged policy draft, ingress rule 1: deny tcp to ports 7000"
	agrees(t, n1, web, db4, true, "with the staged policies in force: denied by "+says, web.ID, db4.String(), "tcp", "7000")
	p, err := n2.Start("drops", netlab.Cmd{Args: []string{"netctl", "drops", "-f"}})
	if err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "what the staged policy would deny", func() string {
		if !answered(t, web, db4, "tcp", 7000, patience) {
			t.Fatal("it is denied")
		}
		if out := p.Output(); !strings.Contains(out, " staged tcp ") || !strings.Contains(out, "inbound: "+says) {
			return "shown: " + out
		}
		return ""
	})
	if err := p.Stop(); err != nil {
		t.Errorf("drops -f: %v\n%s", err, p.Output())
	}
	if out := netlab.Must(t, n2, "netctl", "policy", "counters", "draft"); !strings.Contains(out, says) {
		t.Errorf("counters:\n%s", out)
	}
	promote := func(verb string, allowed bool, says string) {
		t.Helper()
		if verb != "" {
			netlab.Must(t, n1, "netctl", "policy", verb, "draft")
		}
		agrees(t, n1, web, db4, allowed, says, web.ID, db4.String(), "tcp", "7000")
	}
	promote("promote", false, "denied by tier security, policy draft, ingress rule 1")
	promote("stage", true, "staged policy draft")
	var list []struct{ Revision int64 }
	if err := json.Unmarshal([]byte(netlab.Must(t, n1, "netctl", "history", "policy", "draft", "-o", "json")), &list); err != nil || len(list) != 3 {
		t.Fatalf("history: %v, %v", list, err)
	}
	netlab.Must(t, n1, "netctl", "undo", fmt.Sprint(list[0].Revision))
	promote("", false, "denied by tier security, policy draft, ingress rule 1")
	netlab.Must(t, n1, "netctl", "policy", "remove", "draft")
	promote("", true, "policy open, ingress rule 1")

	// What is dropped becomes a policy that allows it, staged until it is promoted.
	agrees(t, n2, web, db4, false, "no ingress rule of tier default allows it", web.ID, db4.String(), "tcp", "7005")
	p, err = n2.Start("drops", netlab.Cmd{Args: []string{"netctl", "drops", "-f", "-o", "json"}})
	if err != nil {
		t.Fatal(err)
	}
	record := ""
	netlab.Until(t, patience, "a record of a drop", func() string {
		_ = answered(t, web, db4, "tcp", 7005, 100*time.Millisecond)
		for _, line := range strings.Split(p.Output(), "\n") {
			if strings.Contains(line, `"port":7005`) && strings.HasSuffix(line, "}") {
				record = line
				return ""
			}
		}
		return "shown: " + p.Output()
	})
	if err := p.Stop(); err != nil {
		t.Errorf("drops -f: %v\n%s", err, p.Output())
	}
	apply := func(args []string, stdin string) string {
		t.Helper()
		out, err := n1.Exec(t.Context(), netlab.Cmd{Args: args, Stdin: stdin})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	manifest := apply([]string{"netctl", "policy", "suggest", "-"}, record+"\n")
	if !strings.Contains(manifest, "allow tcp from tag web to ports 7005") || !strings.Contains(manifest, "staged: true") || !strings.Contains(manifest, "store == 'yes'") {
		t.Fatalf("suggested of %s:\n%s", record, manifest)
	}
	apply([]string{"netctl", "apply", "-f", "-"}, manifest)
	agrees(t, n2, web, db4, false, "with the staged policies in force: allowed by tier default, staged policy suggested-yes, ingress rule 1", web.ID, db4.String(), "tcp", "7005")
	netlab.Must(t, n1, "netctl", "policy", "promote", "suggested-yes")
	agrees(t, n1, web, db4, true, "policy suggested-yes", web.ID, db4.String(), "tcp", "7005")
	netlab.Must(t, n1, "netctl", "policy", "remove", "suggested-yes")
}

// TestExplain: what explain says of profiles is what becomes of packets.
func TestExplain(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, IPv6: true})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.0.0.0/16", "fd80:24e2:f998:72d6::/64")
	netlab.Must(t, n1, "netctl", "network", "create", "web", "--ipv6")
	netlab.Must(t, n1, "netctl", "network", "create", "db", "--ipv6")
	for _, rule := range []string{"allow tcp from tag web to ports 5432,6000:6002", "deny udp to ports 53", "allow udp from tag web", "allow tcp from cidr " + n1.Addr.Addr().String() + " to ports 22"} {
		netlab.Must(t, n1, append([]string{"netctl", "profile", "db", "rule", "add", "inbound"}, strings.Fields(rule)...)...)
	}
	netlab.Must(t, n1, "netctl", "profile", "web", "rule", "add", "outbound", "--at=1", "deny", "tcp", "to", "ports", "6001")
	web, web4, _ := attach(t, n1, "w", "web")
	db, db4, db6 := attach(t, n2, "d", "db")
	_, near4, _ := attach(t, n1, "n", "db")

	type flow struct {
		on       *netlab.Host
		from     netlab.Place
		src, dst string
		to       netip.Addr
		protocol string
		port     int
		allowed  bool
		says     string
	}
	check := func(flows ...flow) {
		t.Helper()
		for _, c := range flows {
			agrees(t, c.on, c.from, c.to, c.allowed, c.says, c.src, c.dst, c.protocol, fmt.Sprint(c.port))
		}
	}
	check([]flow{
		{n1, web, web.ID, db.ID, db4, "tcp", 5432, true, "by profile db, inbound rule 2: allow tcp from tag web to ports 5432,6000:6002"},
		{n2, web, web.ID, db.ID, db4, "tcp", 5433, false, "no inbound rule allows it"},
		{n1, web, web.ID, db.ID, db4, "tcp", 6001, false, "denied by profile web, outbound rule 1: deny tcp to ports 6001"},
		{n2, web, web4.String(), db4.String(), db4, "udp", 53, false, "denied by profile db, inbound rule 3: deny udp to ports 53"},
		{n1, web, web.ID, db4.String(), db4, "udp", 54, true, "inbound rule 4: allow udp from tag web"},
		{n1, web, web.ID, db6.String(), db6, "tcp", 6000, true, "from fd80"},
		{n1, web, web.ID, near4.String(), near4, "tcp", 5432, true, "node1"},
		{n1, n1, "node1", db.ID, db4, "tcp", 22, true, "inbound rule 5: allow tcp from cidr"},
		{n1, n1, "node1", db.ID, db4, "tcp", 23, false, "no inbound rule allows it"},
		{n2, n2, "node2", db.ID, db4, "tcp", 23, true, "a node reaches its own endpoints"},
		{n1, web, web.ID, "node1", n1.Addr.Addr(), "tcp", 22, false, "a workload may not open this on its own host"},
		{n1, web, web.ID, "node2", n2.Addr.Addr(), "tcp", 22, true, "outbound rule 2: allow"},
	}...)

	for _, c := range []struct {
		on    *netlab.Host
		words string
		code  int
		says  []string
	}{
		{n1, "W D", 1, []string{"Depends on protocol and port", "tcp port 5432: allowed", "tcp port 6001: denied", "tcp port 6003-65535: denied", "udp port 54-65535: allowed", "other protocols: denied"}},
		{n1, "W D icmp", 3, []string{"Denied: icmp from", "type 8"}},
		{n1, "world W tcp 80 -v", 3, []string{"passed profile web, inbound rule 1: allow from tag web (does not match)"}},
		{n1, "W world", 1, []string{"tcp port 1-6000: allowed", "tcp port 6001: denied\n", "Leaves: "}},
		{n1, "W D tcp 5432 --live", 0, []string{"outbound of node1/cni/W/eth0 (as its agent has it): allowed by profile web, outbound rule 2: allow"}},
		{n1, "D W tcp 5432", 3, []string{"Way:\n0 node2/cni/D/eth0: eth0 of cni/D, to interface nc", "1 node2: 10.0", "via 192.168.99.102 (node1)", "Arrives: endpoint node1/cni/W/eth0"}},
		{n1, "W 10.0.77.7 tcp 80", 3, []string{"Allowed, but does not arrive"}},
		{n1, "world node1", 1, []string{"neither world nor node1 is an endpoint"}},
		{n1, "world nobody", 1, []string{`there is no endpoint or node "nobody"`}},
		{n1, "W D tpc", 2, []string{`"tpc" is not a protocol`}},
		{n1, "W D tcp http", 2, []string{`"http" is neither a port from 1 to 65535 nor a named tcp port of`}},
		{n2, "W node1 tcp 22 --live", 1, []string{"is an endpoint of this node (node2)"}},
		{n2, "W D tcp 5432 -o json", 0, []string{`"verdict": "allowed"`, `"position": 2`, `"rule": "allow tcp from tag web to ports 5432,6000:6002"`}},
	} {
		words := strings.Fields(strings.NewReplacer("W", web.ID, "D", db.ID).Replace(c.words))
		out, code := exitOf(t, c.on, append([]string{"netctl", "explain"}, words...)...)
		if code != c.code {
			t.Errorf("explain %s: exit %d, want %d\n%s", c.words, code, c.code, out)
		}
		for _, says := range c.says {
			if says = strings.NewReplacer("/W/", "/"+web.ID+"/", "/D/", "/"+db.ID+"/", "/D,", "/"+db.ID+",").Replace(says); !strings.Contains(out, says) {
				t.Errorf("explain %s: no %q in\n%s", c.words, says, out)
			}
		}
	}
	// Policies come before profiles, on every node.
	netlab.Must(t, n1, "netctl", "profile", "db", "tag", "add", "store") // nobody's rule
	netlab.Must(t, n2, "netctl", "tier", "create", "security", "--order", "10")
	netlab.Must(t, n2, "netctl", "networkset", "create", "hosts", n1.Addr.Addr().String(), "--label", "kind=host")
	netlab.Must(t, n1, "netctl", "policy", "create", "closed", "--tier", "security", "--selector", "has(store)", "--ingress", "deny tcp from set hosts", "--ingress", "pass")
	netlab.Must(t, n1, "netctl", "policy", "create", "open", "--order", "1", "--selector", "has(store)", "--ingress", "allow tcp to ports 7000", "--ingress", `reject tcp to ports 7001`)
	for _, h := range l.Hosts {
		netlab.Until(t, patience, "policies to concern nobody", func() string {
			out, code := exitOf(t, h, "netctl", "explain", web.ID, db.ID, "tcp", "5432")
			if code != 0 {
				return out
			}
			return ""
		})
	}
	profile := strings.Replace(netlab.Must(t, n1, "netctl", "get", "profile", "db", "-o", "json"), `"tags":`, `"labels": {"store": "yes"}, "tags":`, 1)
	if _, err := n1.Exec(t.Context(), netlab.Cmd{Args: []string{"netctl", "apply", "-f", "-"}, Stdin: profile}); err != nil {
		t.Fatal(err)
	}
	check([]flow{
		{n1, web, web.ID, db.ID, db4, "tcp", 7000, true, "by tier default, policy open, ingress rule 1: allow tcp to ports 7000"},
		{n2, web, web.ID, db.ID, db4, "tcp", 5432, false, "no ingress rule of tier default allows it"},
		{n1, web, web.ID, near4.String(), near4, "tcp", 7000, true, "policy open"},
		{n1, n1, "node1", db.ID, db4, "tcp", 22, false, "denied by tier security, policy closed, ingress rule 1: deny tcp from set hosts"},
	}...)
	// What is dropped is told, with names and the rule, of both nodes.
	for h, want := range map[*netlab.Host]func() (string, bool){
		n2: func() (string, bool) {
			return "tier default allows it", answered(t, web, db4, "tcp", 5999, 100*time.Millisecond)
		},
		n1: func() (string, bool) {
			return "profile web, outbound rule 1: deny tcp to ports 6001", answered(t, web, db4, "tcp", 6001, 100*time.Millisecond)
		},
	} {
		p, err := h.Start("drops", netlab.Cmd{Args: []string{"netctl", "drops", "-f"}})
		if err != nil {
			t.Fatal(err)
		}
		netlab.Until(t, patience, "drops of "+h.Name, func() string {
			says, passed := want()
			out := p.Output()
			for _, line := range strings.Split(out, "\n") {
				if strings.Contains(line, says) && strings.Contains(line, "denied tcp "+web4.String()+":") && strings.Contains(line, "/"+web.ID+"/eth0) to "+db4.String()+":") && !passed {
					return ""
				}
			}
			return "shown: " + out
		})
		if out, code := exitOf(t, h, "netctl", "drops", "--for", "1s"); code != 1 || !strings.Contains(out, "another program reads it") {
			t.Errorf("a second reader: exit %d\n%s", code, out)
		}
		if err := p.Stop(); err != nil {
			t.Errorf("drops -f: %v\n%s", err, p.Output())
		}
	}
	if out, code := exitOf(t, n1, "netctl", "drops", "--for", "10ms"); code != 0 || !strings.Contains(out, "Nothing was dropped in 10ms") {
		t.Errorf("drops: exit %d\n%s", code, out)
	}
	// What was refused is counted by its rule, which keeps its ID and count behind a new one.
	counters := func(args ...string) (out control.Counters) {
		text := netlab.Must(t, n1, append([]string{"netctl", "policy", "counters", "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(text), &out); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		return out
	}
	denied := func() (found control.RuleCounter) {
		for _, r := range counters("web").Rules {
			if r.Rule == "deny tcp to ports 6001" {
				found = r
			}
		}
		return found
	}
	before := denied()
	if before.Packets == 0 || before.Bytes < 40*before.Packets || before.Position != 1 || before.Name != "web" {
		t.Errorf("counters: %+v", before)
	}
	for _, port := range []string{"6010", "6011", "6012"} {
		netlab.Must(t, n1, "netctl", "profile", "web", "rule", "add", "outbound", "--at=1", "deny", "tcp", "to", "ports", port)
	}
	netlab.Until(t, patience, "the rules to be counted", func() string {
		if now := denied(); now.ID != before.ID || now.Packets < before.Packets || now.Position != 4 {
			return fmt.Sprintf("%+v, before %+v", now, before)
		}
		return ""
	})
	if all := counters().Rules; len(all) < 5 || all[0].Kind != "Policy" || all[0].Tier != "security" || all[len(all)-1].Kind != "Profile" {
		t.Errorf("counters of all: %+v", all)
	}
	if out, code := exitOf(t, n1, "netctl", "policy", "counters", "nobody"); code != 1 || !strings.Contains(out, "policy or profile nobody: not found") {
		t.Errorf("counters of nobody: exit %d\n%s", code, out)
	}
	staged(t, n1, n2, web, db4)
	// Rejected is denied, and answered at once.
	if out, code := exitOf(t, n1, "netctl", "explain", web.ID, db.ID, "tcp", "7001"); code != 3 || !strings.Contains(out, "ingress rule 2: reject tcp to ports 7001") {
		t.Errorf("rejected: exit %d\n%s", code, out)
	}
	if !answered(t, web, db4, "tcp", 7001, patience) {
		t.Error("who is rejected is not told")
	}
	netlab.Must(t, n1, "netctl", "policy", "open", "rule", "add", "ingress", "allow", "tcp", "from", "selector", "kind == 'host' || has(none)", "to", "ports", "22")
	netlab.Must(t, n1, "netctl", "policy", "closed", "rule", "remove", "ingress", "--at=1")
	check(flow{n2, n1, "node1", db.ID, db4, "tcp", 22, true, "policy open, ingress rule 3"})
	if out, code := exitOf(t, n2, "netctl", "explain", web.ID, db.ID, "tcp", "7000", "--live", "-v"); code != 0 || !strings.Contains(out, "passed tier security, policy closed, ingress rule 1: pass (matches, and goes on)") {
		t.Errorf("live: exit %d\n%s", code, out)
	}
	netlab.Must(t, n1, "netctl", "networkset", "remove", "hosts", "--force")
	const nobody = `policy open, ingress rule 3: allow tcp from selector "kind == 'host' || has(none)" to ports 22 names selector "kind == 'host' || has(none)", which picks nobody`
	netlab.Until(t, patience, "status to say what picks nobody", func() string {
		if out, code := exitOf(t, n1, "netctl", "status"); code != 0 || !strings.Contains(out, "Named, and taken for empty:\n") || !strings.Contains(out, nobody) {
			return fmt.Sprintf("exit %d\n%s", code, out)
		}
		return ""
	})
	if out, _ := exitOf(t, n1, "netctl", "explain", "node1", db.ID, "tcp", "22"); !strings.Contains(out, "Note: tier default, "+nobody) {
		t.Errorf("explain does not say it:\n%s", out)
	}
	hostEndpoints(t, n1, n2, web, db, db4)
	netlab.Must(t, n1, "netctl", "policy", "remove", "open", "closed")
	netlab.Must(t, n1, "netctl", "profile", "remove", "web", "--force")
	if out, code := exitOf(t, n1, "netctl", "explain", web.ID, db.ID, "tcp", "5432"); code != 3 || !strings.Contains(out, "names profile web, which does not exist") {
		t.Errorf("without its profile: exit %d\n%s", code, out)
	}
}
