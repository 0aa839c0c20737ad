package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/acl/nft"
	"netctl/datastore"
)

// TestWhatIsKept: a journal that somebody removed is written again with the next change;
// one that cannot be written leaves no outdated one behind, and is tried now and then.
func TestWhatIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "filter")
	fake := &nft.Fake{}
	synctest.Test(t, func(t *testing.T) {
		f := newFiltering("n1", acl.Options{LinkPrefix: "nc"}, fake, path, slog.New(slog.DiscardHandler))
		change := func(endpoints ...string) {
			t.Helper()
			for _, w := range endpoints {
				name := "n1/cni/" + w + "/eth0"
				f.apply(datastore.Change{Kind: datastore.KindEndpoint, Name: name, New: &datastore.Endpoint{
					Metadata: datastore.Metadata{Name: name}, Spec: datastore.EndpointSpec{Node: "n1", Link: "nc" + w}}})
			}
			if _, err := f.flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		kept := func(what string) {
			t.Helper()
			if r, err := acl.NewJournal(path).Read(); err != nil || r.String() != fake.String() {
				t.Errorf("%s: kept is %v\n%v", what, err, r)
			}
		}
		change("a")
		kept("at first")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		change("b")
		kept("after it was removed")

		if err := os.Mkdir(path+".new", 0o700); err != nil {
			t.Fatal(err)
		}
		f.journal.Close()
		change("c")
		if _, err := acl.NewJournal(path).Read(); !errors.Is(err, datastore.ErrNotFound) {
			t.Errorf("an outdated one is kept: %v", err)
		}
		if err := os.Remove(path + ".new"); err != nil {
			t.Fatal(err)
		}
		change("d")
		if _, err := os.Stat(path); err == nil {
			t.Error("tried again at once")
		}
		time.Sleep(retryMax)
		change()
		kept("later")
	})
}

// TestARuleThatChangedMeanwhile: flows are judged anew where the packet filter was not
// what it should be; where a rule changed while no agent was there, as where one is.
func TestARuleThatChangedMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "filter")
	fake := &nft.Fake{}
	judged := 0
	agent := func() *filtering {
		f := newFiltering("n1", acl.Options{LinkPrefix: "nc"}, fake, path, slog.New(slog.DiscardHandler))
		f.repaired = func(*acl.Ruleset) { judged++ }
		return f
	}
	run := func(f *filtering, outbound ...datastore.Rule) {
		t.Helper()
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}
		p.Spec.Outbound = outbound
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "n1/cni/a/eth0"}, Spec: datastore.EndpointSpec{Node: "n1", Link: "nca", Profiles: []string{"web"}}}
		for _, o := range []datastore.Object{p, e} {
			f.apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
		}
		if _, err := f.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	start := func() *filtering {
		t.Helper()
		f := agent()
		if err := f.putBack(t.Context()); err != nil {
			t.Fatal(err)
		}
		return f
	}
	run(start(), datastore.Rule{Action: datastore.Allow})
	if judged != 1 {
		t.Errorf("a first start judges flows %d times, want once", judged)
	}
	f := start()
	run(f)
	if judged != 1 || !f.tightened.All {
		t.Errorf("a changed rule has flows judged %d times as after a repair, and as after a change: %v", judged-1, f.tightened.All)
	}
	f = start()
	f.establish(datastore.EstablishedKeep)
	if run(f, datastore.Rule{Action: datastore.Allow}); judged != 1 || f.tightened.All {
		t.Errorf("to be kept, flows are judged %d times, as after a change: %v", judged-1, f.tightened.All)
	}
	fake.Flush()
	run(start())
	if judged != 2 {
		t.Errorf("a flushed packet filter has flows judged %d times, want once", judged-1)
	}
	f = start()
	fake.Flush()
	f.resync = true
	run(f)
	if judged != 3 {
		t.Errorf("one flushed before the first flush has flows judged %d times, want once", judged-2)
	}
}

// TestTheDebtOutlivesTheAgent: an agent that ends between making the packet filter whole
// and cutting the flows that began before leaves that to its successor, and one that cut
// them leaves it nothing.
func TestTheDebtOutlivesTheAgent(t *testing.T) {
	dir, fake := t.TempDir(), &nft.Fake{}
	cut, failing := 0, false
	start := func() (*filtering, *flows) {
		log := slog.New(slog.DiscardHandler)
		f := newFiltering("n1", acl.Options{LinkPrefix: "nc"}, fake, filepath.Join(dir, "filter"), log)
		f.debt = newDebt(filepath.Join(dir, "flows-to-cut"), log)
		fl := newFlows(log, f.debt, func(conntrack.Cutter) (int, error) {
			if failing {
				return 0, errors.New("no memory")
			}
			cut++
			return 1, nil
		})
		f.repaired = func(r *acl.Ruleset) { fl.repaired(verdicts{rules: r}) }
		return f, fl
	}
	run := func(f *filtering) {
		t.Helper()
		if err := f.putBack(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := f.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// works has the flows cut that are to be, as Run does.
	works := func(fl *flows, want int) {
		t.Helper()
		cut = 0
		fl.work(t.Context())
		if cut != want {
			t.Errorf("flows are cut %d times, want %d", cut, want)
		}
	}
	f, fl := start()
	run(f)
	works(fl, 1)
	f, fl = start()
	run(f)
	works(fl, 0)
	fake.Flush()
	f, _ = start()
	run(f) // and is killed
	f, fl = start()
	run(f)
	failing = true
	works(fl, 0)
	failing = false
	f, fl = start()
	run(f)
	works(fl, 1)
	f, fl = start()
	run(f)
	works(fl, 0)
}

// TestARecordThatIsRemoved: in whatever stage the agent is, its record of the packet
// filter comes back by itself, and the next agent puts the filter back from it.
func TestARecordThatIsRemoved(t *testing.T) {
	w := newWorld(t)
	w.log = slog.New(slog.DiscardHandler) // of agents that ended without the datastore, a warning comes later
	w.pool("10.65.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("w", "web", 7)
	want := w.nft.String()
	gone := 0
	lose := func(stage string) {
		t.Helper()
		gone++
		for what, lose := range map[string]func() error{
			"file":   func() error { return os.Remove(w.cfg.filterFile()) },
			"text":   func() error { return os.WriteFile(w.cfg.filterFile(), nil, 0o600) }, // in place
			"folder": func() error { return os.Rename(w.cfg.StateDir, w.cfg.StateDir+".gone"+strconv.Itoa(gone)) },
		} {
			if err := lose(); err != nil {
				t.Fatal(err)
			}
			w.until(func() string {
				r, err := acl.NewJournal(w.cfg.filterFile()).Read()
				switch {
				case err != nil:
					return stage + ": " + what + ": " + err.Error()
				case r.String() != want:
					return stage + ": " + what + ": kept is\n" + r.String()
				}
				return ""
			})
		}
	}
	again := func() {
		t.Helper()
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		w.nft.Flush()
		w.start()
		w.until(func() string {
			if now := w.nft.String(); now != want {
				return "the kernel holds\n" + now
			}
			return ""
		})
	}
	lose("ready")
	again()
	w.ready()
	w.store.Away("no answer")
	w.until(func() string {
		if w.status().Store == "" {
			return "not missed"
		}
		return ""
	})
	lose("away")
	again()
	lose("starting, the datastore away")
	again()
	// Where it cannot be made, that is said until it can.
	if err := os.Mkdir(w.cfg.filterFile()+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(w.cfg.filterFile()); err != nil {
		t.Fatal(err)
	}
	w.until(func() string {
		return lacks(strings.Join(w.status().Problems, "; "), "filter: keep the packet filter: ")
	})
	if err := os.Remove(w.cfg.filterFile() + ".new"); err != nil {
		t.Fatal(err)
	}
	w.until(func() string { return strings.Join(w.status().Problems, "; ") })
	again()
}

// TestWithoutAJournal: what is there stays, and where nothing is no endpoint is let
// through until the view says who may.
func TestWithoutAJournal(t *testing.T) {
	fake := &nft.Fake{}
	o := acl.Options{LinkPrefix: "nc"}
	f := newFiltering("n1", o, fake, filepath.Join(t.TempDir(), "filter"), slog.New(slog.DiscardHandler))
	f.wired = func() bool { return true }
	other := acl.Static(acl.Options{LinkPrefix: "nx"})
	if _, err := fake.Sync(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		gone bool
		want *acl.Ruleset
	}{{false, other}, {true, acl.Static(o)}} {
		if c.gone {
			fake.Flush()
		}
		if err := f.putBack(t.Context()); err != nil || f.shut != c.gone || fake.String() != c.want.String() {
			t.Errorf("the rules gone: %v: shut %v, %v:\n%s", c.gone, f.shut, err, fake)
		}
	}
	if _, err := f.flush(t.Context()); err != nil || f.shut {
		t.Errorf("still shut: %v, %v", f.shut, err)
	}
}
