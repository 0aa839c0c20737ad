package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestRenamedHost: a host that runs endpoints as one node, and is started under
// another name, changes nothing and says what to do; it goes on when its name is
// right again, and when nothing is left of the other node.
func TestRenamedHost(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101)
	rename := func(name string) {
		t.Helper()
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		w.cfg.Node = name
		w.start()
	}
	kept := func() string {
		state, err := os.ReadFile(w.cfg.hostIDFile())
		if err != nil {
			t.Fatal(err)
		}
		return w.links.String() + w.fib.String() + w.nft.String() + string(state) + fmt.Sprint(w.records(), w.endpoints(), w.holders())
	}
	before := kept()
	line := "this host is registered as node n1, not n9: set `node: n1` again, or end its workloads and run `netctl node remove n1 --force`; if this machine is a copy of that one, remove " +
		w.cfg.hostIDFile() + " and restart netctl"
	frozen := func(name string) {
		t.Helper()
		w.until(func() string {
			s := w.status()
			if want := strings.ReplaceAll(line, "n9", name); !slices.Equal(s.Problems, []string{want}) || s.InSync {
				return fmt.Sprint("in sync ", s.InSync, ", problems ", s.Problems)
			}
			return ""
		})
	}
	rename("n9")
	frozen("n9")
	if _, err := w.attach("c2", "web", 102); control.ErrorOf(err).Code != control.CodeDetached || !strings.Contains(err.Error(), line) {
		t.Errorf("attach: %v", err)
	}
	if err := w.detach("c1"); control.ErrorOf(err).Code != control.CodeDetached {
		t.Errorf("detach: %v", err)
	}
	if _, err := datastore.Get[*datastore.Node](t.Context(), w.store, "n9"); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("node n9: %v", err)
	}
	// Every way back to the store comes past it.
	_ = w.a.loop.do(t.Context(), func() { w.a.loop.standing.part(datastore.ErrUnavailable); w.a.loop.back(t.Context()) })
	frozen("n9")
	if now := kept(); now != before {
		t.Errorf("before:\n%s\nnow:\n%s", before, now)
	}

	rename("n1")
	w.ready()
	if now := kept(); now != before || len(w.status().Problems) > 0 {
		t.Errorf("before:\n%s\nnow:\n%s\nproblems: %q", before, now, w.status().Problems)
	}

	// Both names are registered, as by a version that did not look.
	other := &datastore.Node{Metadata: datastore.Metadata{Name: "n8"}, Status: datastore.NodeStatus{Host: w.a.host}}
	w.create(other)
	w.until(func() string {
		if got := w.status().Problems; len(got) != 1 || !strings.HasPrefix(got[0], "node n8: is registered by this host too") {
			return fmt.Sprint(got)
		}
		return ""
	})
	rename("n8")
	frozen("n8")
	// The endpoints go, then the blocks.
	for _, name := range w.endpoints() {
		if err := datastore.Delete(t.Context(), w.store, &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	frozen("n8")
	blocks, err := datastore.List[*datastore.Block](t.Context(), w.store)
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	if err := datastore.Delete(t.Context(), w.store, blocks[0]); err != nil {
		t.Fatal(err)
	}
	w.ready()
	// What runs on under the other name is left alone all the same.
	w.until(func() string {
		text := strings.Join(w.status().Problems, "\n")
		for _, want := range []string{a.Link, "node n1, and this host is n8 now", "node n1: is registered by this host too"} {
			if !strings.Contains(text, want) {
				return text
			}
		}
		return ""
	})
	w.contains("kernel", w.links.String(), a.Link)
}

// TestNameOfAnother: a host that is renamed to another host's node is still the
// node that it was.
func TestNameOfAnother(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	w.create(&datastore.Node{Metadata: datastore.Metadata{Name: "n2"}, Status: datastore.NodeStatus{Host: "00000000000000ff"}})
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.cfg.Node = "n2"
	w.start()
	w.until(func() string {
		if got := w.status().Problems; len(got) != 1 || !strings.HasPrefix(got[0], "this host is registered as node n1, not n2") {
			return fmt.Sprint(got)
		}
		return ""
	})
}

// TestCopiedHost: a copy of a machine under a name of its own does not stop the
// machine whose endpoints are there.
func TestCopiedHost(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	w.create(&datastore.Node{Metadata: datastore.Metadata{Name: "n2"}, Status: datastore.NodeStatus{Host: w.a.host}})
	w.create(&datastore.Block{Metadata: datastore.Metadata{Name: "10.0.0.64-26"}, Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("10.0.0.64/26"), Affinity: "n2"}})
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	w.contains("problems", strings.Join(w.status().Problems, "\n"), "node n2: is registered by this host too")
}

// startedRenamed starts the agent of a host that has endpoints under another name, and under
// its own again: no packet is lost and nothing changes.
func startedRenamed(t *testing.T, s *site, c1, c2 *netlab.Container, to netip.Addr) {
	before, own := s.settled(), s.cfg.Node
	start := func(name string) {
		t.Helper()
		if err := s.agent.Stop(); err != nil {
			t.Fatal(err)
		}
		s.cfg.Node = name
		s.agent = s.startAgent(s.node, s.cfg)
	}
	s.across("renamed", c1, c2, to, func() {
		start("node3.example.com")
		s.until("it is said", func() string {
			if got := s.status().Problems; len(got) != 1 || !strings.HasPrefix(got[0], "this host is registered as node node1, not node3.example.com: set `node: node1` again") {
				return fmt.Sprint(got)
			}
			return ""
		})
		if nodes, err := datastore.List[*datastore.Node](t.Context(), s.store); err != nil || len(nodes) != 1 {
			t.Errorf("%d nodes, %v", len(nodes), err)
		}
	})
	s.across("named again", c1, c2, to, func() { start(own); s.synced() })
	s.until("the kernel is as before", func() string { return differ(before, s.kernel()) })
}
