package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"netctl/acl"
	"netctl/acl/nft"
	"netctl/datastore"
)

// TestAChangeIsJudgedByCopiesOfItsSets: all rules are copied once, whatever changes and however
// often somebody asks; of a change its sets are. What was handed out stays as it was.
func TestAChangeIsJudgedByCopiesOfItsSets(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	f := newFiltering("n1", acl.Options{LinkPrefix: "nc"}, &nft.Fake{}, filepath.Join(t.TempDir(), "filter"), log)
	l := &loop{filtering: f, links: newLinks(nil)}
	put := func(o datastore.Object) {
		t.Helper()
		f.apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
		for f.index.Work() {
		}
		if _, err := f.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	endpoint := func(node string, i int, tags ...string) *datastore.Endpoint {
		name := fmt.Sprintf("%s/cni/w%d/eth0", node, i)
		return &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}, Spec: datastore.EndpointSpec{
			Node: node, Link: fmt.Sprint("nc", i), Profiles: tags, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}}}
	}
	profile := func(name string, inbound ...string) *datastore.Profile {
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}, Spec: datastore.ProfileSpec{Tags: []string{name}, Outbound: []datastore.Rule{}}}
		for _, text := range inbound {
			r, err := datastore.ParseRule(text)
			if err != nil {
				t.Fatal(err)
			}
			p.Spec.Inbound = append(p.Spec.Inbound, r)
		}
		return p
	}
	put(profile("a", "allow from tag a", "allow from tag b"))
	put(profile("b"))
	put(endpoint("n1", 1, "a"))
	for i := range 20 {
		put(endpoint("n2", 100+i, []string{"a", "b"}[i%2]))
	}
	first := l.judging().rules
	text := first.String()
	if again := l.judging().rules; again != first {
		t.Error("rules that did not change are copied")
	}
	for i := range 20 {
		before := l.judging().rules
		put(endpoint("n2", 200+i, "b"))
		now := l.judging().rules
		if want := f.index.Ruleset(); now.String() != want.String() {
			t.Fatalf("judged is by\n%s\nwant\n%s", now, want)
		}
		shared := 0
		for name, s := range now.Sets {
			if s == before.Sets[name] {
				shared++
			}
		}
		if shared != len(now.Sets)-1 {
			t.Errorf("of %d sets %d are copied for one address", len(now.Sets), len(now.Sets)-shared)
		}
	}
	put(profile("a", "allow from tag a", "deny udp", "allow"))
	put(endpoint("n1", 2, "a", "b"))
	if now, want := l.judging().rules, f.index.Ruleset(); now.String() != want.String() {
		t.Errorf("judged is by\n%s\nwant\n%s", now, want)
	}
	if first.String() != text {
		t.Error("rules that were handed out changed")
	}
	if f.judged.copies != 1 {
		t.Errorf("all rules were copied %d times", f.judged.copies)
	}
	f.setStrict(true)
	if now := l.judging().rules; !now.Strict() {
		t.Error("judged is by rules that are not strict")
	}
	for i := range 3 { // nobody asks
		f.judged.lag = mostLag
		put(endpoint("n2", 300+i))
		put(endpoint("n2", 300+i, "a"))
	}
	if f.judged.rules != nil || f.judged.since != nil {
		t.Error("a copy that nobody asks for is kept")
	}
	if now, want := l.judging().rules, f.index.Ruleset(); now.String() != want.String() {
		t.Errorf("judged is by\n%s\nwant\n%s", now, want)
	}
}
