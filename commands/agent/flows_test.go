package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"netctl/acl"
	"netctl/acl/conntrack"
	"netctl/datastore"
	"netctl/netdev"
)

func scopeOf(a ...netip.Addr) (s acl.Scope) {
	s.Addrs = map[netip.Addr]struct{}{}
	for _, a := range a {
		s.Addrs[a] = struct{}{}
	}
	return s
}

// TestChangesShareACut: whatever comes, flows are looked at for a share of the time only, and
// yet within a second after each change; what failed is tried again; who waits for a repair
// does not wait for that.
func TestChangesShareACut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const takes = 200 * time.Millisecond
		passes, version := 0, uint64(0)
		looked := map[netip.Addr]time.Time{}
		fail := error(nil)
		log := slog.New(slog.DiscardHandler)
		f := newFlows(log, newDebt("", log), func(c conntrack.Cutter) (int, error) {
			passes++
			began := time.Now()
			for a := range c.Scope.Addrs {
				looked[a] = began
			}
			time.Sleep(takes)
			if fail != nil {
				return 0, fail
			}
			_, _, err := c.Now()
			return 1, err
		})
		f.version = func() uint64 { return version }
		f.verdicts = func(context.Context) (verdicts, error) { return verdicts{version: version}, nil }
		ctx, end := context.WithCancel(t.Context())
		go func() { _ = f.Run(ctx) }()
		at, told := netip.MustParseAddr("10.0.0.0"), map[netip.Addr]time.Time{}
		for range 5000 {
			at = at.Next()
			told[at] = time.Now()
			f.tightened(scopeOf(at))
			time.Sleep(2 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		for a, when := range told {
			if waited := looked[a].Sub(when); waited < cutSettle || waited > cutRest+takes+cutSettle {
				t.Fatalf("%s: flows were looked at %v after the change", a, waited)
			}
		}
		if passes < 9 || passes > 12 {
			t.Errorf("%d passes in ten seconds of changes", passes)
		}
		fail, passes = errors.New("no memory"), 0
		f.tightened(scopeOf(at))
		time.Sleep(3 * time.Second)
		if fail = nil; passes < 2 || passes > 4 {
			t.Errorf("what fails is tried %d times in three seconds", passes)
		}
		time.Sleep(3 * time.Second)
		f.tightened(scopeOf(at))
		time.Sleep(cutSettle + takes + time.Millisecond)
		began := time.Now()
		<-f.repaired(verdicts{version: version})
		if waited := time.Since(began); waited > takes {
			t.Errorf("a repair waited %v", waited)
		}
		end()
		synctest.Wait()
	})
}

// TestACutDoesNotHoldUpARepair: what asks the loop while the loop waits for a cut gives way.
func TestACutDoesNotHoldUpARepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		cut := 0
		f := newFlows(log, newDebt("", log), func(conntrack.Cutter) (int, error) { cut++; return 0, nil })
		f.verdicts = func(ctx context.Context) (verdicts, error) {
			<-ctx.Done() // the loop is busy
			return verdicts{}, ctx.Err()
		}
		ctx, end := context.WithCancel(t.Context())
		go func() { _ = f.Run(ctx) }()
		f.tightened(acl.Scope{All: true})
		time.Sleep(2 * cutSettle)
		synctest.Wait()
		<-f.repaired(verdicts{})
		if cut != 1 {
			t.Errorf("%d cuts", cut)
		}
		end()
		synctest.Wait()
	})
}

// TestWhatIsLookedAtForAChange: changes of others cost no look at the flows unless they may
// deny some, and then at theirs.
func TestWhatIsLookedAtForAChange(t *testing.T) {
	w := newWorld(t)
	w.pool("10.65.0.0/24")
	w.start()
	w.ready()
	w.mustAttach("w", "web", 7)
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 66, byte(i >> 8), byte(i)}) }
	remote := func(i int, profiles ...string) *datastore.Endpoint {
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: fmt.Sprintf("n2/cni/r%d/eth0", i)}}
		e.Spec = datastore.EndpointSpec{Node: "n2", Orchestrator: "cni", Workload: fmt.Sprint("r", i), Interface: "eth0", Profiles: profiles, Addresses: []netip.Addr{at(i)}}
		e.Spec.Link = netdev.LinkName("nc", e.Metadata.Name)
		return e
	}
	const many = 100
	looks := func() (scopes []acl.Scope) {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, c := range w.cuts {
			scopes = append(scopes, c.Scope)
		}
		w.cuts = nil
		return scopes
	}
	// fenced is whose flows were looked at up to now: a look that follows tells that there are
	// no more.
	fences := 0
	fenced := func() (all acl.Scope) {
		t.Helper()
		fences++
		e := remote(many+fences, "web")
		w.create(e)
		w.filterHas(e.Spec.Addresses[0].String())
		e.Spec.Profiles = nil
		w.update(e)
		w.until(func() string {
			for _, s := range looks() {
				all.Add(s)
			}
			if _, ok := all.Addrs[e.Spec.Addresses[0]]; !ok && !all.All {
				return fmt.Sprint(all)
			}
			return ""
		})
		delete(all.Addrs, e.Spec.Addresses[0])
		return all
	}
	fenced() // what the start costs
	fenced()
	for i := range many {
		w.create(remote(i, "web"))
	}
	w.filterHas(at(many - 1).String())
	for i := range many {
		if err := datastore.Delete(t.Context(), w.db(), remote(i)); err != nil {
			t.Fatal(err)
		}
	}
	if got := fenced(); !got.Empty() {
		t.Errorf("endpoints that come and go: flows are looked at for %v", got)
	}
	for i := range many {
		w.create(remote(i, "web"))
	}
	w.filterHas(at(many - 1).String())
	for i := range many / 2 {
		e, err := datastore.Get[*datastore.Endpoint](t.Context(), w.db(), remote(i).Metadata.Name)
		if err != nil {
			t.Fatal(err)
		}
		e.Spec.Profiles = []string{"other"}
		w.update(e)
	}
	if got := fenced(); got.All || len(got.Addrs) != many/2 {
		t.Errorf("the flows that are looked at are not those of %d addresses: %v", many/2, got)
	}
}

func (w *world) update(o datastore.Object) {
	w.t.Helper()
	if err := datastore.Update(w.t.Context(), w.db(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) filterHas(text string) {
	w.t.Helper()
	w.until(func() string {
		if !strings.Contains(w.nft.String(), text) {
			return "the packet filter lacks " + text
		}
		return ""
	})
}
