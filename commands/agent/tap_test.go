package agent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

func (w *world) attachTap(change func(*control.AttachRequest)) (control.Attachment, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	r := control.AttachRequest{
		Target: control.Target{Orchestrator: "manual", Workload: "vm_1", Interface: "eth0"}, Network: "web", MTU: 1400,
		Tap: datastore.Tap{Name: "vm1", MTU: 1400, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Search: []string{"example.org"}},
	}
	if change != nil {
		change(&r)
	}
	return w.api.attach(ctx, r)
}

// isTold waits until the machine of an attach is told what it was attached as.
func (w *world) isTold(at control.Attachment) {
	w.t.Helper()
	w.until(func() string {
		g, ok := w.machines.told(at.Link)
		switch {
		case !ok:
			return "the machine is told nothing"
		case !slices.Equal(g.Addresses, at.Addresses) || g.MAC.String() != at.MAC || g.MTU != 1400 || g.Name != "vm-1" || g.Gateway != at.Gateways[0] || g.DNS[0].String() != "192.0.2.53" || g.Index == 0:
			w.t.Fatalf("told %+v, of %+v", g, at)
		}
		if !strings.Contains(w.links.String(), at.Link) || w.status().Taps != 1 {
			return "no link"
		}
		return ""
	})
}

// TestTapStays: neither the agent's end, nor the device's, nor the host's boot takes a TAP's
// address, and each is made again; its detach takes all.
func TestTapStays(t *testing.T) {
	w := newWorld(t)
	w.cfg.LostAfter = time.Nanosecond
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	at, err := w.attachTap(nil)
	if err != nil {
		t.Fatal(err)
	}
	w.isTold(at)
	w.contains("packet filter", w.nft.String(), at.Link)
	same := func(what string) {
		t.Helper()
		again, err := w.attachTap(nil)
		if err != nil || !slices.Equal(again.Addresses, at.Addresses) || again.MAC != at.MAC || again.MTU != 1400 {
			t.Errorf("%s: %+v, %v", what, again, err)
		}
		w.isTold(at)
	}
	same("attached again")
	w.links.Cut(0)
	w.isTold(at)
	same("device gone")

	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.machines.Serve(nil)
	w.start()
	w.isTold(at)
	same("agent started again")

	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.machines.Serve(nil)
	w.links.Cut(0)
	if err := os.RemoveAll(w.cfg.RunDir); err != nil {
		t.Fatal(err)
	}
	w.boot = "boot-2"
	w.start()
	w.ready()
	w.isTold(at)
	same("booted")
	if s := w.status(); len(s.Lost) > 0 || len(s.Problems) > 0 || len(s.Closed) != 1 {
		t.Errorf("status %+v", s)
	}
	if _, err := w.api.detach(t.Context(), control.DetachRequest{Target: control.Target{Orchestrator: "manual", Workload: "vm_1"}}); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		if _, told := w.machines.told(at.Link); told || len(w.holders()) > 0 || len(w.endpoints()) > 0 || strings.Contains(w.links.String(), at.Link) || len(w.records()) > 0 {
			return "something is left"
		}
		return ""
	})
}

// TestTapThatCannotBeMade: it is said, tried again, and nothing of the attach is left.
func TestTapThatCannotBeMade(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	refuse := func(op, _ string) error {
		if op == "create" {
			return errors.New("no module tun")
		}
		return nil
	}
	w.links.Fail = refuse
	if _, err := w.attachTap(nil); err == nil || !strings.Contains(err.Error(), "no module tun") {
		t.Errorf("attach: %v", err)
	}
	if len(w.holders()) > 0 || len(w.endpoints()) > 0 {
		t.Errorf("left: %v, %v", w.holders(), w.endpoints())
	}
	w.links.Fail = nil
	at, err := w.attachTap(nil)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*control.AttachRequest){
		"another TAP":     func(r *control.AttachRequest) { r.Tap.Owner = 7 },
		"another address": func(r *control.AttachRequest) { r.Addresses = []netip.Addr{netip.MustParseAddr("10.0.0.99")} },
	} {
		if _, err := w.attachTap(change); !errors.Is(err, datastore.ErrExists) {
			t.Errorf("%s: %v", what, err)
		}
	}
	w.isTold(at)
	w.links.Fail = refuse
	w.links.Cut(0)
	w.until(func() string {
		for _, p := range w.status().Problems {
			if strings.Contains(p, "its TAP is gone and cannot be made again") && strings.Contains(p, at.Endpoint) {
				return ""
			}
		}
		return "no problem"
	})
	w.links.Fail = nil
	w.isTold(at)
	w.until(func() string { return strings.Join(w.status().Problems, "; ") })
}

// TestResolvers: name servers that only the host itself reaches are told nobody.
func TestResolvers(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"stub": "nameserver 127.0.0.53\n", "real": "# x\nsearch a\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver 2001:db8::1\nnameserver\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	have := resolvers(filepath.Join(dir, "none"), filepath.Join(dir, "stub"), filepath.Join(dir, "real"))
	if len(have) != 2 || have[0].String() != "192.0.2.1" || have[1].String() != "2001:db8::1" {
		t.Errorf("%v", have)
	}
}
