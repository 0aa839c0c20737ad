package datastore

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// world is the plain content of a store, to compare a View with.
type world struct {
	entries  map[string]Entry
	revision int64
}

func (w *world) put(key string, value []byte) Entry {
	w.revision++
	e := Entry{Key: key, Value: value, Revision: w.revision}
	if value == nil {
		delete(w.entries, key)
	} else {
		w.entries[key] = e
	}
	return e
}

func (w *world) snapshot() Snapshot {
	s := Snapshot{Revision: w.revision}
	for _, e := range w.entries {
		s.Entries = append(s.Entries, e)
	}
	return s
}

// step makes one random change: an object written, changed, deleted, or broken.
func (w *world) step(t *testing.T, r *rand.Rand) Entry {
	var o Object
	n := r.IntN(4)
	switch r.IntN(4) {
	case 0:
		node, workload := fmt.Sprintf("n%d", r.IntN(3)), fmt.Sprintf("w%d", n)
		o = &Endpoint{Spec: EndpointSpec{Node: node, Orchestrator: "cni", Workload: workload, Interface: "eth0",
			Link: LinkName("nc", EndpointName(node, "cni", workload, "eth0")), Profiles: []string{"p", "q", "r"}[:r.IntN(4)]}}
	case 1:
		o = &Block{Spec: BlockSpec{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n), 0}), 26), Affinity: fmt.Sprintf("n%d", r.IntN(3))}}
	case 2:
		o = &Pool{Spec: PoolSpec{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(10 + n), 0, 0, 0}), 16), Disabled: r.IntN(2) == 0}}
	default:
		o = &Profile{Metadata: Metadata{Name: fmt.Sprintf("p%d", n)}}
	}
	_, op, err := OpPut(o)
	if err != nil {
		t.Fatal(err)
	}
	switch r.IntN(6) {
	case 0, 1:
		return w.put(op.Key, nil)
	case 2:
		if w.entries[op.Key].Value == nil {
			return w.put(op.Key, []byte(`{"broken":`))
		}
	}
	return w.put(op.Key, op.Value)
}

// content is everything the View can be asked for, as text.
func content(t *testing.T, v *View) string {
	sum := map[string]any{
		"nodes": v.Nodes(), "pools": v.Pools(), "blocks": v.Blocks(), "endpoints": v.Endpoints(),
		"profiles": v.Profiles(), "networks": v.Networks(), "reservations": v.Reservations(),
		"bgp": v.BGP(), "config": v.Config(), "problems": v.Problems(), "revision": v.Revision(),
	}
	for _, n := range []string{"n0", "n1", "n2", "n3"} {
		sum["blocks of "+n] = v.BlocksOf(n)
		sum["endpoints of "+n] = v.EndpointsOf(n)
	}
	for _, p := range []string{"p", "q", "r"} {
		sum["endpoints with "+p] = v.EndpointsWithProfile(p)
	}
	b, err := json.MarshalIndent(sum, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestViewHistories applies random histories event by event and compares with a
// View made from the final listing.
func TestViewHistories(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := &world{entries: map[string]Entry{}}
		v := NewView()
		for range 200 {
			_, _ = v.Apply(w.step(t, r))
		}
		// A broken value keeps the old object, so an oracle has none of those.
		for key, e := range w.entries {
			if strings.HasPrefix(string(e.Value), `{"broken`) {
				_, _ = v.Apply(w.put(key, nil))
			}
		}
		fresh := NewView()
		if _, err := fresh.Replace(w.snapshot()); err != nil {
			t.Fatal(err)
		}
		if got, want := content(t, v), content(t, fresh); got != want {
			t.Fatalf("seed %d: event by event:\n%s\nfrom the listing:\n%s", seed, got, want)
		}
	}
}

// TestViewReplaceIsTheDifference replaces one random state with another and
// checks that the changes alone lead from the first to the second.
func TestViewReplaceIsTheDifference(t *testing.T) {
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 2))
		w := &world{entries: map[string]Entry{}}
		v := NewView()
		model := map[string]Object{}
		for range 5 {
			for range 20 {
				w.step(t, r)
			}
			changes, _ := v.Replace(w.snapshot())
			for _, c := range changes {
				key := KindPrefix(c.Kind) + c.Name
				if !reflect.DeepEqual(model[key], c.Old) {
					t.Fatalf("seed %d: %s: old is %+v, was %+v", seed, key, c.Old, model[key])
				}
				if reflect.DeepEqual(c.Old, c.New) {
					t.Fatalf("seed %d: %s did not change", seed, key)
				}
				model[key] = c.New
				if c.New == nil {
					delete(model, key)
				}
			}
			held := 0
			for k, objects := range v.objects {
				for name, o := range objects {
					held++
					if !reflect.DeepEqual(model[KindPrefix(k)+name], o.Object) {
						t.Fatalf("seed %d: %s %s: changes and view differ", seed, k, name)
					}
				}
			}
			if held != len(model) {
				t.Fatalf("seed %d: the changes lead to %d objects, the view holds %d", seed, len(model), held)
			}
			again, _ := v.Replace(w.snapshot())
			if len(again) != 0 {
				t.Fatalf("seed %d: the same listing changes %+v", seed, again)
			}
		}
	}
}

func TestViewKeepsTheOldObjectWhenAValueIsBroken(t *testing.T) {
	w := &world{entries: map[string]Entry{}}
	v := NewView()
	_, op, err := OpPut(&Profile{Metadata: Metadata{Name: "p"}})
	if err != nil {
		t.Fatal(err)
	}
	apply := func(value []byte) (Change, error) { return v.Apply(w.put(op.Key, value)) }
	if c, err := apply(op.Value); err != nil || c.Old != nil || c.New == nil || c.Kind != KindProfile || c.Name != "p" {
		t.Fatalf("got %+v, %v", c, err)
	}
	c, err := apply([]byte(`{}`))
	if err == nil || c != (Change{}) || v.Profile("p") == nil || len(v.Problems()) != 1 {
		t.Fatalf("got %+v, %v, %v", c, err, v.Problems())
	}
	if want := `/netctl/v1/profiles/p: apiVersion: must be netctl/v1; what this node last understood of it stays in force; ` + "`netctl delete profile p --force` removes it"; v.Problems()[0] != want {
		t.Errorf("got %s, want %s", v.Problems()[0], want)
	}
	if _, err := apply(op.Value); err != nil || len(v.Problems()) != 0 {
		t.Fatalf("got %v, %v", err, v.Problems())
	}
	if _, err := v.Apply(Entry{Key: "/netctl/v1/nonsense", Value: []byte("x"), Revision: 9}); err == nil || len(v.Problems()) != 1 {
		t.Errorf("got %v, %v", err, v.Problems())
	}
	if c, err := v.Apply(Entry{Key: ClusterKey, Value: []byte("x"), Revision: 10}); err != nil || c != (Change{}) || v.Revision() != 10 {
		t.Errorf("got %+v, %v at %d", c, err, v.Revision())
	}
	if c, err := apply(nil); err != nil || c.New != nil || c.Old == nil || v.Profile("p") != nil {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestViewDefaults(t *testing.T) {
	v := NewView()
	if v.BGP().Spec.DefaultAS != 64511 || !*v.BGP().Spec.Mesh || v.Config().Spec.MTU != 0 || v.Node("x") != nil {
		t.Errorf("got %+v, %+v", v.BGP(), v.Config())
	}
}

// TestViewSeesAnotherStoreWithTheSameRevision: a restored store may give other
// values the revisions that the view knows.
func TestViewSeesAnotherStoreWithTheSameRevision(t *testing.T) {
	v := NewView()
	for _, tag := range []string{"a", "b"} {
		_, op, err := OpPut(&Profile{Metadata: Metadata{Name: "p"}, Spec: ProfileSpec{Tags: []string{tag}}})
		if err != nil {
			t.Fatal(err)
		}
		changes, err := v.Replace(Snapshot{Revision: 7, Entries: []Entry{{Key: op.Key, Value: op.Value, Revision: 7}}})
		if err != nil || len(changes) != 1 || v.Profile("p").Spec.Tags[0] != tag {
			t.Errorf("tag %s: %+v, %v", tag, changes, err)
		}
	}
}

// TestApplyCostsWhatChanges: an endpoint that comes, changes its block and goes takes
// as many allocations in a large cluster as in a small one.
func TestApplyCostsWhatChanges(t *testing.T) {
	cost := func(nodes int) float64 {
		s := cluster(t, nodes, 10)
		v := NewView()
		if _, err := v.Replace(s); err != nil {
			t.Fatal(err)
		}
		last := s.Entries[len(s.Entries)-1]
		i := slices.IndexFunc(s.Entries, func(e Entry) bool { return strings.HasPrefix(e.Key, blockPrefix) })
		return testing.AllocsPerRun(200, func() {
			for _, e := range []Entry{{Key: last.Key, Revision: last.Revision}, s.Entries[i], last} {
				if c, err := v.Apply(e); err != nil || c.Kind == "" {
					t.Fatal(c, err)
				}
			}
		})
	}
	if few, many := cost(10), cost(1000); few != many {
		t.Errorf("%v allocations at 10 nodes, %v at 1,000", few, many)
	}
}

// TestLinkOfAnother: an endpoint that names the link of another is not used, however it
// came into the store.
func TestLinkOfAnother(t *testing.T) {
	w := &world{entries: map[string]Entry{}}
	v := NewView()
	put := func(workload, linkOf string) (Change, error) {
		_, op, err := OpPut(&Endpoint{Spec: EndpointSpec{Node: "n", Orchestrator: "cni", Workload: workload, Interface: "eth0", Link: LinkName("cali", linkOf)}})
		if err != nil {
			t.Fatal(err)
		}
		return v.Apply(w.put(op.Key, op.Value))
	}
	if c, err := put("w", "n/cni/w/eth0"); err != nil || c.New == nil {
		t.Fatalf("its own: %+v, %v", c, err)
	}
	c, err := put("copy", "n/cni/w/eth0")
	if !errors.Is(err, ErrInvalid) || c != (Change{}) || v.Endpoint("n/cni/copy/eth0") != nil || len(v.EndpointsOf("n")) != 1 {
		t.Errorf("another's: %+v, %v", c, err)
	}
	if want := "/netctl/v1/endpoints/n/cni/copy/eth0: spec.link \"calif4d00df0362\": is another endpoint's: that of this name ends in f070fbe7c66" +
		"; `netctl delete endpoint n/cni/copy/eth0 --force` removes it"; !slices.Equal(v.Problems(), []string{want}) {
		t.Errorf("problems: %q", v.Problems())
	}
	// The endpoint that it overwrites stays what it was.
	if _, err := put("w", "n/cni/copy/eth0"); err == nil || v.Endpoint("n/cni/w/eth0").Spec.Link != "calif4d00df0362" {
		t.Errorf("overwritten: %v, %+v", err, v.Endpoint("n/cni/w/eth0"))
	}
}

// TestProblemsOf: what cannot be read is the problem of the node that it belongs to, and
// says how to be rid of it.
func TestProblemsOf(t *testing.T) {
	v := NewView()
	_, block, err := OpPut(blockOf("10.0.0.0/26", "n2"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Apply(Entry{Key: block.Key, Value: block.Value, Revision: 1}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"endpoints/n2/a/b/c", "endpoints/n2/x", "nodes/n2", "blocks/10.0.0.0-26", "blocks/10.0.0.64-26", "profiles/web", "endpoints/n22/a b"} {
		if _, err := v.Apply(Entry{Key: Prefix + key, Value: []byte("{}"), Revision: 2}); err == nil {
			t.Errorf("%s is read", key)
		}
	}
	for node, want := range map[string]string{"n1": "profile web", "n2": "block 10.0.0.0-26,endpoint n2/a/b/c,endpoint n2/x,node n2,profile web", "n22": ",profile web"} {
		own, others := v.ProblemsOf(node)
		if len(own)+len(others) != 7 || !slices.Equal(slices.Sorted(slices.Values(slices.Concat(own, others))), v.Problems()) {
			t.Errorf("of %s %q, of others %q", node, own, others)
		}
		for i, p := range own {
			_, remedy, _ := strings.Cut(p, "; `netctl delete ")
			own[i], _, _ = strings.Cut(remedy, " --force` removes it")
		}
		if is := strings.Join(own, ","); is != want {
			t.Errorf("of %s %s, want %s", node, is, want)
		}
	}
}
