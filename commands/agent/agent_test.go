package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev"
)

func TestAttachAndDetach(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101, "10.0.0.48")
	if want := netdev.LinkName("nc", "n1/cni/c1/eth0"); a.Link != want || a.LinkMAC != netdev.HostMAC || a.Addresses[0].String() != "10.0.0.48" ||
		a.Gateways[0] != netdev.Gateway4() || a.MAC == "" {
		t.Errorf("attachment = %+v", a)
	}
	w.contains("kernel", w.links.String(), a.Link+": mtu", "state UP", "inet 10.0.0.48/32", "default via 169.254.1.1")
	w.contains("routes", w.fib.String(), "169.254.1.1 dev lo", "blackhole 10.0.0.0/26", "10.0.0.48 dev "+a.Link)
	w.contains("packet filter", w.nft.String(), `"`+a.Link+`" . 10.0.0.48`)
	if _, err := datastore.Get[*datastore.Profile](t.Context(), w.store, "web"); err != nil {
		t.Error(err)
	}
	if _, err := datastore.Get[*datastore.Network](t.Context(), w.store, "web"); err != nil {
		t.Error(err)
	}
	if n := len(w.records()); n != 1 {
		t.Errorf("%d records", n)
	}
	for range 2 { // releasing twice is no error
		if err := w.detach("c1"); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.endpoints(); len(got) != 0 || len(w.holders()) != 0 {
		t.Errorf("left: %v, %v", got, w.holders())
	}
	if len(w.forgot) != 1 || w.forgot[0].String() != "10.0.0.48" {
		t.Errorf("forgotten connections: %v", w.forgot)
	}
	w.until(func() string {
		if strings.Contains(w.fib.String(), "10.0.0.48 ") || strings.Contains(w.nft.String(), "10.0.0.48") {
			return w.fib.String() + w.nft.String()
		}
		return ""
	})
	w.contains("routes", w.fib.String(), "blackhole 10.0.0.0/26")
	if len(w.records()) != 0 || strings.Contains(w.links.String(), a.Link) {
		t.Errorf("left: %v, %s", w.records(), w.links)
	}
}

func TestAttachAgain(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	first := w.mustAttach("c1", "web", 101)
	again := w.mustAttach("c1", "web", 101)
	if first.MAC != again.MAC || first.Addresses[0] != again.Addresses[0] {
		t.Errorf("first %+v, again %+v", first, again)
	}
	_, err := w.attach("c1", "web", 102)
	if !errors.Is(err, datastore.ErrExists) || !strings.Contains(err.Error(), "another network namespace") {
		t.Errorf("attach to another namespace: %v", err)
	}
	if _, err := w.attach("c1", "web", 101, "10.0.0.9"); !errors.Is(err, datastore.ErrExists) {
		t.Errorf("attach with another address: %v", err)
	}
	w.links.Drop(101)
	w.until(func() string {
		if len(w.status().Lost) == 0 {
			return "not lost"
		}
		return ""
	})
	moved := w.mustAttach("c1", "web", 102)
	if moved.Link != first.Link {
		t.Errorf("moved to link %s", moved.Link)
	}
	if got := w.holders(); len(got) != 1 {
		t.Errorf("holders = %v", got)
	}
	if lost := w.status().Lost; len(lost) != 0 {
		t.Errorf("lost = %v", lost)
	}
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	for _, at := range []string{"create", "up"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			w.pool("10.0.0.0/24")
			w.links.Fail = func(op, _ string) error {
				if op == at {
					return errors.New("no luck")
				}
				return nil
			}
			w.start()
			if at == "up" { // is tried again, so it is the caller who gives up
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				_, err := w.api.attach(ctx, control.AttachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}, NetnsFD: 7})
				if err == nil {
					t.Fatal("attached")
				}
			} else if _, err := w.attach("c1", "web", 101); err == nil || !strings.Contains(err.Error(), "no luck") {
				t.Fatalf("attach: %v", err)
			}
			if len(w.endpoints())+len(w.holders())+len(w.records()) != 0 || strings.Contains(w.links.String(), "nc") {
				t.Errorf("left: %v %v %v %s", w.endpoints(), w.holders(), w.records(), w.links)
			}
		})
	}
}

func TestPacketFilterBeforeLink(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	broken := false
	w.nft.Fail = func() error {
		if broken {
			return errors.New("nfnetlink broken")
		}
		return nil
	}
	w.start()
	w.mustAttach("c1", "web", 101)
	w.a.loop.post(func() { broken = true })
	w.links.Fail = func(op, link string) error {
		if op == "up" {
			t.Errorf("%s set up without ACLs", link)
		}
		return nil
	}
	if _, err := w.attach("c2", "web", 102); err == nil || !strings.Contains(err.Error(), "nfnetlink broken") {
		t.Errorf("attach: %v", err)
	}
	if len(w.endpoints()) != 1 {
		t.Errorf("left: %v", w.endpoints())
	}
}

// TestRefusedChain: what the kernel refuses keeps those endpoints from going up
// that need it; others go on, what is up stays, and the status names it.
func TestRefusedChain(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	var refuse atomic.Pointer[string]
	w.nft.Refuse = func(chain string) error {
		if r := refuse.Load(); r != nil && *r == chain {
			return unix.EOPNOTSUPP
		}
		return nil
	}
	w.start()
	w.mustAttach("c1", "web", 101)
	before := w.nft.Rules().Chains
	bad := w.mustAttach("c2", "bad", 102)
	for name := range w.nft.Rules().Chains {
		if before[name] == nil && strings.HasPrefix(name, "in_") {
			refuse.Store(&name)
		}
	}
	if _, err := datastore.Modify(t.Context(), w.store, "bad", func(p *datastore.Profile) error {
		p.Spec.Inbound = append(p.Spec.Inbound, datastore.Rule{Action: datastore.Deny})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		text := strings.Join(w.status().Problems, "\n")
		if !strings.Contains(text, *refuse.Load()+" (profile bad)") {
			return "problems: " + text
		}
		return ""
	})
	if _, err := w.attach("c3", "bad", 103); err == nil || !strings.Contains(err.Error(), *refuse.Load()) {
		t.Errorf("attach: %v", err)
	}
	w.mustAttach("c4", "web", 104)
	if len(w.endpoints()) != 3 || !strings.Contains(w.fib.String(), bad.Link) {
		t.Errorf("endpoints = %v, routes:\n%s", w.endpoints(), w.fib)
	}
	if w.status().InSync {
		t.Error("in sync")
	}
	refuse.Store(nil)
	w.until(func() string {
		if s := w.status(); !s.InSync || len(s.Problems) != 0 {
			return "problems: " + strings.Join(s.Problems, "\n")
		}
		return ""
	})
	w.mustAttach("c3", "bad", 103)
}

func TestRestartChangesNothing(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	w.mustAttach("c2", "web", 102)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	before := w.links.String() + w.fib.String() + w.nft.String()
	writes := w.nft.Writes()
	w.links.Fail = func(op, link string) error {
		if op == "up" || op == "detach" {
			t.Errorf("%s %s at a restart", op, link)
		}
		return nil
	}
	w.start()
	w.ready()
	_ = w.status()
	if after := w.links.String() + w.fib.String() + w.nft.String(); after != before || w.nft.Writes() != writes {
		t.Errorf("before:\n%s\nafter (%d writes more):\n%s", before, w.nft.Writes()-writes, after)
	}
}

func TestLostAndGone(t *testing.T) {
	w := newWorld(t)
	w.cfg.LostAfter = 100 * time.Millisecond
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	w.mustAttach("c2", "web", 102)
	w.links.Drop(101)
	w.until(func() string {
		if got := w.endpoints(); len(got) != 1 || got[0] != "n1/cni/c2/eth0" {
			return strings.Join(got, " ")
		}
		return ""
	})
	if got := w.holders(); len(got) != 1 {
		t.Errorf("holders = %v", got)
	}
}

func TestRebootReleases(t *testing.T) {
	for _, wiped := range []bool{false, true} {
		w := newWorld(t)
		w.pool("10.0.0.0/24")
		w.start()
		w.mustAttach("c1", "web", 101)
		w.until(func() string {
			if readBoots(w.a.state, "").last == "" {
				return "boot not noted"
			}
			return ""
		})
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		w.links.Drop(101)
		w.boot = "boot-2"
		if wiped {
			w.cfg.RunDir = t.TempDir() // a tmpfs
		}
		w.start()
		w.until(func() string { return strings.Join(w.endpoints(), " ") })
	}
}

func TestLinksAreRepaired(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101)
	if err := w.links.SetDown(a.Link); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if s := w.links.String(); !strings.Contains(s, "state UP") {
			return s
		}
		return ""
	})
}

func TestNameTaken(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.ready()
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.cfg.StateDir = t.TempDir() // another machine
	w.nft, w.fib = nil, nil
	w = &world{t: t, cfg: w.cfg, boot: "b", links: w.links, fib: newWorld(t).fib, nft: newWorld(t).nft, store: w.store}
	w.start()
	w.until(func() string {
		select {
		case <-w.a.loop.ended:
			return ""
		default:
			return "the agent runs on"
		}
	})
	if err := w.stop(); !errors.Is(err, errTaken) || !strings.Contains(err.Error(), "192.168.99.102") || strings.Contains(err.Error(), "\n") {
		t.Errorf("second host of that name: %v", err)
	}
	if w.nft.Writes() != 0 || strings.Contains(w.fib.String(), "169.254") {
		t.Errorf("it touched the kernel: %s %s", w.nft, w.fib)
	}
}

func TestStoreAway(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101)
	w.store.Away("no route to etcd")
	w.until(func() string {
		if w.status().Store == "" {
			return "store not missed"
		}
		return ""
	})
	_, err := w.attach("c2", "db", 102) // what is known is TestAttachAway's
	if e := control.ErrorOf(err); e.Code != control.CodeUnavailable || !strings.Contains(e.Message, "no route to etcd") {
		t.Errorf("attach: %v", err)
	}
	err = w.detach("c1")
	if e := control.ErrorOf(err); e.Code != control.CodeUnavailable {
		t.Errorf("detach: %v", err)
	}
	if strings.Contains(w.links.String(), a.Link) {
		t.Error("the link is still in service")
	}
	w.store.Back()
	w.ready()
	if err := w.detach("c1"); err != nil {
		t.Error(err)
	}
	w.mustAttach("c2", "web", 102)
}

// TestRecordsOfDeletedEndpoints: an endpoint that the store does not have, under
// the identity it was written with, was deleted while the agent was down.
func TestRecordsOfDeletedEndpoints(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if err := datastore.Delete(t.Context(), w.store, &datastore.Endpoint{Metadata: datastore.Metadata{Name: "n1/cni/c1/eth0"}}); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.until(func() string {
		if strings.Contains(w.links.String(), "nc") || len(w.records()) > 0 {
			return w.links.String()
		}
		return ""
	})
}

func TestSuspiciousBatchIsReadAgain(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.mustAttach("c1", "web", 101)
	w.mustAttach("c2", "web", 102)
	doubt := func(names ...string) (yes bool) {
		b := datastore.Batch{Revision: 1 << 40}
		for _, n := range names {
			b.Events = append(b.Events, datastore.Entry{Key: n, Revision: 1 << 40})
		}
		_ = w.a.loop.do(t.Context(), func() { yes = w.a.loop.suspicious(b) })
		return yes
	}
	endpoints := datastore.KindPrefix(datastore.KindEndpoint)
	if !doubt(endpoints+"n1/cni/c1/eth0", endpoints+"n1/cni/c2/eth0") {
		t.Error("all endpoints at once are believed")
	}
	if doubt(endpoints + "n1/cni/c1/eth0") {
		t.Error("half of the endpoints are not believed")
	}
	if !doubt(datastore.KindPrefix(datastore.KindNode) + "n1") {
		t.Error("every node at once is believed")
	}
	if err := w.detach("c2"); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if n := w.status().Endpoints; n != 1 {
			return fmt.Sprint(n, " endpoints")
		}
		return ""
	})
	if doubt(endpoints + "n1/cni/c1/eth0") {
		t.Error("that somebody removed the only endpoint is not believed")
	}
}

func TestConcurrentAttaches(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	errs := make(chan error)
	const n = 40
	for i := range n {
		go func() {
			_, err := w.attach(fmt.Sprint("c", i), "web", 100+i)
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := w.holders(); len(got) != n {
		t.Errorf("%d addresses", len(got))
	}
}
