package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/netdev/netlab"
)

// opened takes the packet filter away in every way and state of the agent while one
// container floods another that it may not reach, and a third one does that may. What
// is denied is denied again and the flow that began is cut; what is allowed goes on.
func opened(t *testing.T, s *site, allowed, denied *netlab.Container, to netip.Addr) {
	bad, err := netlab.StartFlood(denied, to, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer bad.Stop()
	good, err := netlab.StartFlood(allowed, to, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	progress := func() {
		t.Helper()
		answered := good.Answered()
		s.until("allowed echoes", func() string {
			if n := good.Answered() - answered; n < 50 {
				return fmt.Sprint(n, " of 50")
			}
			return ""
		})
	}
	progress()
	if bad.Answered() > 0 {
		t.Fatal("it is open")
	}
	flush := func() { netlab.Must(t, s.node, "nft", "flush", "ruleset") }
	kill := func() {
		_ = s.agent.Signal(unix.SIGKILL)
		<-s.agent.Done()
		if log := s.agent.Output(); strings.Contains(log, "still being cut") {
			t.Errorf("it was shut for as long as it may be:\n%s", log)
		}
	}
	leak := func() {
		t.Helper()
		answered := bad.Answered()
		s.until("the flow begins", func() string {
			if bad.Answered() == answered {
				return "no answer"
			}
			return ""
		})
	}
	start := func() { s.agent = s.startAgent(s.node, s.cfg) }
	blind := func() { // its datastore's files are not there
		cfg := s.cfg
		cfg.Store = etcd.Options{Endpoints: []string{"https://127.0.0.1:1"}, CA: "/none/ca.crt", Cert: "/none/n1.crt", Key: "/none/n1.key"}
		s.agent = s.startAgent(s.node, cfg)
	}
	saysWhy := func() {
		t.Helper()
		s.until("the file is named", func() string { return lacks(s.status().Store, "/none/ca.crt: no such file") })
		for what, do := range map[string]func() error{
			"an attach": func() error { _, err := s.tryAttach(s.container("blind"), "nowhere", nil); return err },
			"a detach":  func() error { return s.detach(s.container("blind-too")) },
		} {
			if err := do(); err == nil || !errors.Is(err, datastore.ErrUnavailable) || !strings.Contains(err.Error(), "/none/ca.crt: no such file") || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if st := s.status(); st.Endpoints != 3 {
			t.Errorf("%d endpoints", st.Endpoints)
		}
		kill()
		start()
		s.synced()
	}
	away := func() {
		s.stopStore()
		s.until("missed", func() string {
			if s.status().Store == "" {
				return "not missed"
			}
			return ""
		})
	}
	for _, c := range []struct {
		what  string
		fault func()
		after func()
	}{
		{"flushed", flush, nil},
		{"flushed twice", func() { flush(); flush() }, nil},
		{"edited", func() { netlab.Must(t, s.node, "nft", "insert", "rule", "inet", "netctl", "fwd_to", "accept") }, nil},
		{"opened deep inside", func() { netlab.Must(t, s.node, "nft", "insert", "rule", "inet", "netctl", "deny_in", "accept") }, nil},
		{"killed and flushed", func() { kill(); flush(); leak(); start() }, s.synced},
		{"killed and flushed, then without the datastore's certificate", func() { kill(); flush(); leak(); blind() }, nil},
		{"flushed, without the datastore's certificate", flush, saysWhy},
		{"flushed, the datastore away", func() { away(); flush() }, nil},
		{"killed and flushed, the datastore away", func() { kill(); flush(); leak(); start() }, nil},
		{"flushed while it starts, the datastore away", flush, func() { s.startStore(); s.synced() }},
	} {
		before, from := bad.Answered(), good.Sent()
		c.fault()
		s.until(c.what+": denied again", func() string {
			answered := bad.Answered()
			progress()
			if n := bad.Answered() - answered; n > 0 {
				return fmt.Sprint(n, " denied echoes answered")
			}
			return ""
		})
		if left := netlab.Must(t, s.node, "conntrack", "-L", "-p", "icmp"); left == "" {
			t.Errorf("%s: the allowed flow is not tracked any more", c.what)
		}
		answered := bad.Answered() - before
		t.Logf("%s: %d denied echoes of one a millisecond were answered, from number %d of the allowed ones", c.what, answered, from)
		if answered > 1000 && !strings.Contains(c.what, "killed") { // some 20; a second is the longest wait there is
			t.Errorf("%s: it was open for a second", c.what)
		}
		if c.after != nil {
			c.after()
		}
	}
	// With the last table the kernel's tracking ends; a packet that is between its
	// hooks when it begins again is of no connection, and dropped.
	r := good.Stop()
	t.Logf("allowed echoes: %s", r)
	if len(r.Lost) > r.Sent/20 {
		t.Error("more of them lost than one of twenty")
	}
	kill()
	flush()
	leak()
	cfg := s.cfg
	cfg.Socket = "/proc/none/agent.sock"
	<-s.startAgent(s.node, cfg).Done() // it cannot serve
	if rules := netlab.Must(t, s.node, "nft", "list", "ruleset"); strings.Count(rules, "shut for a moment") < 3 {
		t.Errorf("an agent that ends at once leaves open what it found open:\n%s", rules)
	}
	start()
	s.synced()
}
