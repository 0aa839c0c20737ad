package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"netctl/acl/nft"
	"netctl/commands/control"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing/fib"
)

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// handled is a world with one attached endpoint, whose log is kept.
func handled(t *testing.T) (w *world, log *lines, link string) {
	w, log = newWorld(t), &lines{}
	w.log = slog.New(slog.NewTextHandler(io.MultiWriter(t.Output(), log), nil))
	w.pool("10.65.0.0/24")
	w.start()
	w.ready()
	return w, log, w.mustAttach("w", "web", 7).Link
}

// whole waits until the link is what an attach makes and its route is there.
func (w *world) whole(link string) {
	w.t.Helper()
	w.until(func() string {
		if state := w.links.String(); !strings.Contains(state, "\n"+link+": ") || !strings.Contains(state, " state UP group 28259 ") {
			return state
		}
		if routes := w.fib.String(); !strings.Contains(routes, " dev "+link) {
			return routes
		}
		if w.status().Problems != nil {
			return fmt.Sprint(w.status().Problems)
		}
		return ""
	})
}

func (w *world) logged(log *lines, wants ...string) {
	w.t.Helper()
	w.until(func() string {
		for _, want := range wants {
			if !strings.Contains(log.String(), want) {
				return "the log lacks " + want
			}
		}
		return ""
	})
}

// TestHandsOnALink: whatever another program does to a link, it stays the
// endpoint's, is put back, and one line says whose it is and what differed.
func TestHandsOnALink(t *testing.T) {
	for name, hand := range map[string]func(*kernel.Fake, string){
		"name is foo, not":     func(k *kernel.Fake, link string) { k.Alter(link, "foo", 0) },
		"group is 1, not":      func(k *kernel.Fake, link string) { k.Alter(link, "", 1) },
		"proxy_arp is 0":       func(k *kernel.Fake, link string) { k.Alter(link, "", 0, "proxy_arp is 0") },
		"is down; name is foo": func(k *kernel.Fake, link string) { _ = k.SetDown(link); k.Alter(link, "foo", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			w, log, link := handled(t)
			w.whole(link)
			hand(w.links, link)
			w.logged(log, "and is put back", "endpoint=n1/cni/w/eth0", strings.Split(name, "; ")[0])
			w.whole(link)
			if strings.Contains(log.String(), "removed") || strings.Contains(log.String(), "lost its link") {
				t.Error("the link was taken for another one")
			}
		})
	}
}

// TestHandsWhileTheAgentIsAway: what was changed then is put back before the store
// has said a word, and a detach finds its link.
func TestHandsWhileTheAgentIsAway(t *testing.T) {
	w, log, link := handled(t)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.links.Alter(link, "foo", 1)
	w.links.StopForwarding(true)
	w.store.Away("no answer")
	w.start()
	w.logged(log, "name is foo, not "+link, "group is 1, not 28259")
	w.until(func() string {
		if !strings.Contains(w.links.String(), "ip_forward = 1") {
			return "forwarding is off"
		}
		return ""
	})
	w.store.Back()
	w.ready()
	w.whole(link)
	w.links.Fail = func(op, _ string) error {
		if op == "hold" {
			return errors.New("no")
		}
		return nil
	}
	w.links.Alter(link, "bar", 1)
	if err := w.detach("w"); err != nil {
		t.Fatal(err)
	}
	if left, err := w.links.Links(1, 2, 3, 4); err != nil || len(left) != 0 || len(w.records()) != 0 {
		t.Errorf("left: %+v, %v", left, err)
	}
	w.until(func() string { return strings.Join(w.status().Problems, "; ") })
}

// TestAHandThatCannotBeUndoneIsSaid, with the endpoint's name, for as long as it lasts.
func TestAHandThatCannotBeUndoneIsSaid(t *testing.T) {
	w, _, link := handled(t)
	var mu sync.Mutex
	fail := true
	w.links.Fail = func(op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "hold" && fail {
			return errors.New("the name is taken")
		}
		return nil
	}
	w.links.Alter(link, "foo", 0)
	w.until(func() string {
		if p := fmt.Sprint(w.status().Problems); !strings.Contains(p, "endpoint n1/cni/w/eth0: ") || !strings.Contains(p, "the name is taken") {
			return p
		}
		return ""
	})
	mu.Lock()
	fail = false
	mu.Unlock()
	w.whole(link)
}

// TestTussle: a program that changes a link again each time is said, and the agent
// does not run after it.
func TestTussle(t *testing.T) {
	w, log, link := handled(t)
	held := 0
	w.links.Fail = func(op, _ string) error {
		if op == "hold" {
			if held++; held <= 2*tussleMax {
				go w.links.Alter(link, "", 0, "proxy_arp is 0")
			}
		}
		return nil
	}
	w.links.Alter(link, "", 0, "proxy_arp is 0")
	w.until(func() string {
		if p := fmt.Sprint(w.status().Problems); !strings.Contains(p, "proxy_arp is 0: another program changes it again") {
			return p
		}
		return ""
	})
	if n := strings.Count(log.String(), "is put back"); n < 1 || n > tussleMax/2 {
		t.Errorf("said %d times:\n%s", n, log)
	}
}

// TestAStrangeLinkOfOurGroupIsLeft: without a record nobody knows whose a link of
// another name is; it is said and not deleted.
func TestAStrangeLinkOfOurGroupIsLeft(t *testing.T) {
	w, log, link := handled(t)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.cfg.recordsDir(), link+".json")); err != nil {
		t.Fatal(err)
	}
	w.links.Alter(link, "foo", 0)
	w.start()
	w.ready()
	w.until(func() string {
		if p := fmt.Sprint(w.status().Problems); !strings.Contains(p, "link foo: is marked as netctl's") || !strings.Contains(p, "lost its link") {
			return p
		}
		return ""
	})
	w.links.Alter(link, link, 0) // as the line says
	w.whole(link)
	if strings.Contains(log.String(), "removed") {
		t.Error("a link was removed")
	}
}

// TestForwardingIsPutBack: a setting of the host that another program changes is put
// back with a line that says who lost what; what is not the agent's to change is said.
func TestForwardingIsPutBack(t *testing.T) {
	w, log, _ := handled(t)
	uplink := kernel.Address{Prefix: netip.MustParsePrefix("192.168.99.102/24"), Subnet: netip.MustParsePrefix("192.168.99.0/24"), Link: "eth1", Index: 2}
	v6 := kernel.Address{Prefix: netip.MustParsePrefix("fd00:99::102/64"), Subnet: netip.MustParsePrefix("fd00:99::/64"), Link: "eth1", Index: 2}
	w.links.SetAddresses(uplink, v6)
	w.until(func() string {
		if n := len(w.status().Address); n != 2 {
			return fmt.Sprint(n, " addresses")
		}
		return ""
	})
	for _, family := range []string{"ipv4", "ipv6"} {
		if family == "ipv6" {
			w.pool("fd80::/64")
			w.mustAttach("w6", "web", 8, "10.65.0.9", "fd80::9")
		}
		w.until(func() string {
			return lacks(w.links.String(), map[string]string{"ipv4": "ip_forward = 1", "ipv6": "forwarding6 = 1"}[family])
		})
		w.links.StopForwarding(family == "ipv4")
		w.logged(log, `setting="`+family+` forwarding" lost="all IP`)
		w.until(func() string {
			return lacks(w.links.String(), map[string]string{"ipv4": "ip_forward = 1", "ipv6": "forwarding6 = 1"}[family])
		})
	}
	w.links.StopForwardingBy(uplink.Index)
	w.logged(log, `setting="ipv4 forwarding by eth1" lost="what other nodes send to endpoints here by eth1"`)
	var mu sync.Mutex
	refuse := true
	w.links.Fail = func(op, what string) error {
		mu.Lock()
		defer mu.Unlock()
		if op == "forward" && what == "2" && refuse {
			return errors.New("/proc/sys must be writable")
		}
		return nil
	}
	w.links.StopForwardingBy(uplink.Index)
	w.until(func() string {
		return lacks(fmt.Sprint(w.status().Problems), "ipv4 forwarding by eth1: /proc/sys must be writable")
	})
	mu.Lock()
	refuse = false
	mu.Unlock()
	w.until(func() string { return strings.Join(w.status().Problems, "; ") })
	w.until(func() string { return lacks(fmt.Sprint(w.links.Closed()), "[]") })
}

// TestAWorkloadsSideIsMended: what is ours alone in a workload's namespace is put back by
// CHECK, by an ADD of what is attached, and by the slow comparison, each with a line.
func TestAWorkloadsSideIsMended(t *testing.T) {
	w, log, link := handled(t)
	target := control.Target{Orchestrator: "cni", Workload: "w", Interface: "eth0"}
	for how, do := range map[string]func() error{
		"check": func() error {
			_, err := w.api.check(t.Context(), control.CheckRequest{Target: target, NetnsFD: 7})
			return err
		},
		"add": func() error {
			_, err := w.attach("w", "web", 7)
			return err
		},
		"compare": func() error {
			w.a.loop.post(w.a.loop.compare)
			return nil
		},
	} {
		w.links.Spoil(link, "eth0: its entry is missing: "+how)
		if err := do(); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		w.logged(log, "a workload's side was not what an attach makes of it, and is put back", "endpoint=n1/cni/w/eth0", "its entry is missing: "+how)
		if _, err := w.api.check(t.Context(), control.CheckRequest{Target: target, NetnsFD: 7}); err != nil {
			t.Errorf("after %s: %v", how, err)
		}
	}
	w.links.Fail = func(op, _ string) error {
		if op == "mend" {
			return errors.New("no memory")
		}
		return nil
	}
	w.links.Spoil(link, "eth0: its entry is missing")
	if _, err := w.api.check(t.Context(), control.CheckRequest{Target: target, NetnsFD: 7}); err == nil || !strings.Contains(err.Error(), "its entry is missing") || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("a side that cannot be mended: %v", err)
	}
}

// TestWhatLeadsToOtherNodes: the interfaces whose forwarding is kept are those with the
// node's address, and where that is on lo all that may lead to other nodes.
func TestWhatLeadsToOtherNodes(t *testing.T) {
	address := func(p, link string, index int) kernel.Address {
		return kernel.Address{Prefix: netip.MustParsePrefix(p), Link: link, Index: index, Loopback: link == "lo"}
	}
	have := []kernel.Address{address("10.9.9.9/32", "lo", 1), address("192.0.2.1/24", "eth1", 2), address("fd00::1/64", "eth2", 3), address("172.17.0.1/16", "docker0", 4)}
	for own, want := range map[string]string{"192.0.2.1": "map[2:eth1]", "fd00::1": "map[3:eth2]", "10.9.9.9": "map[2:eth1 3:eth2]", "192.0.2.9": "map[]"} {
		l := newLoop(Config{Node: "n1", LinkPrefix: "nc", Gateway: netdev.Gateway4(), StateDir: t.TempDir(), Addresses: []netip.Addr{netip.MustParseAddr(own)}}, slog.New(slog.DiscardHandler), &kernel.Fake{}, fib.NewFake().Table(87), &nft.Fake{})
		l.links.addrs = have
		if got := fmt.Sprint(l.leads()); got != want {
			t.Errorf("node of %s: %s, want %s", own, got, want)
		}
	}
}

func lacks(text, want string) string {
	if strings.Contains(text, want) {
		return ""
	}
	return fmt.Sprintf("%q lacks %q", text, want)
}
