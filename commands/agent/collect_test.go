package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// TestCollect: of what a runtime lists no more what is dead is released, and nothing that
// lives, is listed, of another network, of another runtime, or of nobody knows which.
func TestCollect(t *testing.T) {
	w := newWorld(t)
	w.cfg.LostAfter = time.Hour
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	for i, of := range []struct{ workload, network, runtime string }{
		{"alive", "web", "crio"}, {"listed", "web", "crio"}, {"dead", "web", "crio"}, {"theirs", "web", "podman"},
		{"other", "db", "crio"}, {"nobodys", "web", ""}, {"cut", "web", "crio"}, {"hidden", "web", "crio"},
	} {
		r := control.AttachRequest{
			Target:  control.Target{Orchestrator: "cni", Workload: of.workload, Interface: "eth0"},
			Network: of.network, Runtime: of.runtime, NetnsFD: 101 + i, NetnsPath: "/run/netns/" + of.workload,
		}
		if _, err := w.api.attach(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for ns := 102; ns <= 106; ns++ {
		w.links.Drop(ns)
	}
	w.links.Cut(107)  // its link alone
	w.links.Hide(108) // its path alone
	w.until(func() string {
		if n := len(w.status().Lost); n != 6 {
			return fmt.Sprintf("%d are lost", n)
		}
		return ""
	})
	collect := func(runtime string, valid ...control.Target) []string {
		done, err := w.api.collect(t.Context(), control.CollectRequest{Orchestrator: "cni", Network: "web", Runtime: runtime, Valid: valid})
		if err != nil {
			t.Fatal(err)
		}
		return done.Released
	}
	// The records outlive the agent.
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.start()
	w.ready()
	listed := control.Target{Workload: "listed", Interface: "eth0"}
	for range 2 {
		if got := collect("crun", listed); len(got) != 0 {
			t.Errorf("of a runtime that attached nothing: %v", got)
		}
	}
	if got := collect("crio", listed); !slices.Equal(got, []string{"n1/cni/dead/eth0"}) {
		t.Errorf("released %v", got)
	}
	if got := collect("crio", listed); len(got) != 0 {
		t.Errorf("released again: %v", got)
	}
	if got, want := len(w.endpoints()), 7; got != want || len(w.holders()) != want {
		t.Errorf("left are %v, holding %v", w.endpoints(), w.holders())
	}
	if _, err := w.api.collect(t.Context(), control.CollectRequest{Orchestrator: "cni", Network: "web"}); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("without a runtime: %v", err)
	}
}

// TestOtherRates: an endpoint's rates hold as soon as somebody writes them, and after the
// agent's restart.
func TestOtherRates(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("c1", "web", 101)
	write := func(b datastore.Bandwidth) {
		ep, err := datastore.Get[*datastore.Endpoint](t.Context(), w.store, "n1/cni/c1/eth0")
		if err == nil {
			ep.Spec.Bandwidth = b
			err = datastore.Update(t.Context(), w.store, ep)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	has := func(want string, n int) {
		t.Helper()
		w.until(func() string {
			if text := w.links.String(); strings.Count(text, "tbf") != n || !strings.Contains(text, want) {
				return text
			}
			return ""
		})
	}
	has("", 0)
	write(datastore.Bandwidth{Egress: datastore.Rate{Bits: 1e6}})
	has("rate 1000000bit", 1)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	write(datastore.Bandwidth{Ingress: datastore.Rate{Bits: 2e6}, Egress: datastore.Rate{Bits: 3e6}})
	w.start()
	w.ready()
	has("rate 2000000bit", 2)
	w.mustAttach("c1", "web", 101) // again, as it is
	write(datastore.Bandwidth{})
	has("", 0)
	profile := func(q datastore.QoSControls) {
		t.Helper()
		if _, err := datastore.Modify(t.Context(), w.store, "web", func(p *datastore.Profile) error { p.Spec.QoSControls = q; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	profile(datastore.QoSControls{IngressBandwidth: 5e6})
	has("rate 5000000bit", 1)
	w.mustAttach("c2", "web", 102)
	has("rate 5000000bit", 2)
	write(datastore.Bandwidth{Ingress: datastore.Rate{Bits: 4e6}})
	has("rate 4000000bit", 2)
	profile(datastore.QoSControls{})
	has("rate 4000000bit", 1)
}

// TestAReleaseThatComesTooLate: an endpoint of an earlier boot is to be released, and its
// workload, which starts again, is attached first: it stays attached.
func TestAReleaseThatComesTooLate(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	w.ready()
	a := w.mustAttach("c1", "web", 101)
	before := w.links.String() + w.fib.String()
	if err := w.a.loop.release(t.Context(), a.Endpoint); err != nil {
		t.Fatal(err)
	}
	if after := w.links.String() + w.fib.String(); after != before || len(w.endpoints()) != 1 || len(w.records()) != 1 {
		t.Errorf("endpoints %v, records %v, before:\n%s\nafter:\n%s", w.endpoints(), w.records(), before, after)
	}
}
