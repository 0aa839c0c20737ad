package agent

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"netctl/acl"
	"netctl/acl/dns"
	"netctl/acl/nflog"
	"netctl/datastore"
)

// learning is what a node knows whose one endpoint has a rule that names the set "names".
type learning struct {
	*domains
	t     *testing.T
	clock time.Duration
}

func newLearning(t *testing.T, dir string, names ...string) *learning {
	x := acl.NewIndex("node1", acl.Options{LinkPrefix: "nc", Group: 77})
	r, err := datastore.ParseRule("allow to set names")
	if err != nil {
		t.Fatal(err)
	}
	l := &learning{t: t, clock: time.Hour}
	l.domains = newDomains(dir, x, slog.New(slog.DiscardHandler), func(func()) {})
	l.now = func() time.Duration { return l.clock }
	for _, o := range []datastore.Object{
		&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Outbound: []datastore.Rule{r}}},
		&datastore.Endpoint{Metadata: datastore.Metadata{Name: "node1/cni/a/eth0"}, Spec: datastore.EndpointSpec{
			Node: "node1", Link: "nc1", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, Profiles: []string{"web"}}},
	} {
		x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
	}
	l.named(names...)
	return l
}

// named gives the set other domains.
func (l *learning) named(names ...string) {
	o := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: "names"}, Spec: datastore.NetworkSetSpec{Domains: names}}
	l.index.Apply(datastore.Change{Kind: o.Kind(), Name: "names", New: o})
}

func (l *learning) hear(link, name string, ttl time.Duration, addrs ...string) {
	h := heard{answer: dns.Answer{Name: name}, at: l.clock}
	for _, a := range addrs {
		h.answer.Addresses = append(h.answer.Addresses, dns.Address{Addr: netip.MustParseAddr(a), TTL: ttl})
	}
	l.learn(link, h)
}

// holds compares what the kernel is to have.
func (l *learning) holds(what, want string) {
	l.t.Helper()
	l.index.Flush()
	var got []string
	for _, s := range l.index.Ruleset().Sets {
		if s.Comment == "set names" {
			for e := range s.Elements {
				got = append(got, e.Prefix.Addr().String())
			}
		}
	}
	slices.Sort(got)
	if text := strings.Join(got, " "); text != want {
		l.t.Errorf("%s: %q, want %q", what, text, want)
	}
}

func TestDomainsComeAndGo(t *testing.T) {
	l := newLearning(t, t.TempDir(), "example.com", "*.example.org")
	link := func(int) string { return "nc1" }
	l.index.Flush()
	l.relearn(link)
	l.hear("nc1", "example.com", time.Minute, "192.0.2.1", "192.0.2.2")
	l.hear("nc1", "a.example.org", 10*time.Second, "192.0.2.2")
	l.hear("nc1", "other.example", time.Minute, "192.0.2.3")
	l.hear("nc2", "example.com", time.Minute, "192.0.2.4") // of nobody's
	l.hear("nc1", "b.example.org", 0, "192.0.2.5")
	l.hear("nc1", "c.example.org", 1000*time.Hour, "192.0.2.6")
	l.holds("learned", "192.0.2.1 192.0.2.2 192.0.2.5 192.0.2.6")
	l.clock += leastLearned - time.Second
	l.expire()
	l.holds("no answer is over at once", "192.0.2.1 192.0.2.2 192.0.2.5 192.0.2.6")
	l.clock += time.Second
	l.expire()
	l.holds("the least", "192.0.2.1 192.0.2.2 192.0.2.6")
	l.clock += 10 * time.Second
	l.hear("nc1", "example.com", 2*time.Minute, "192.0.2.1")
	l.expire()
	l.holds("another name has the address still", "192.0.2.1 192.0.2.2 192.0.2.6")
	l.clock += 50 * time.Second
	l.expire()
	l.holds("told again", "192.0.2.1 192.0.2.6")
	l.clock += mostLearned
	l.expire()
	l.holds("the most", "")
	l.hear("nc1", "example.com", time.Minute, "192.0.2.1")
	l.hear("nc1", "a.example.org", time.Minute, "192.0.2.2")
	l.named("example.com")
	l.index.Flush()
	if !l.relearn(link) {
		t.Error("nothing is told of a name less")
	}
	l.holds("a domain less", "192.0.2.1")
	l.named()
	l.index.Flush()
	l.relearn(link)
	if l.holds("no domain", ""); len(l.sets) > 0 || len(*l.learning.Load()) > 0 {
		t.Errorf("left: %v, %v", l.sets, *l.learning.Load())
	}
}

// TestDomainsAreBounded: what is more than a set's most is not learned, and said, until there is
// room again.
func TestDomainsAreBounded(t *testing.T) {
	l := newLearning(t, t.TempDir(), "*.example.org")
	l.index.Flush()
	l.relearn(func(int) string { return "" })
	for i := range learnedOfSet + 10 {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0b000000+uint32(i))
		ttl := time.Hour
		if i == 0 {
			ttl = time.Minute
		}
		l.hear("nc1", fmt.Sprintf("n%d.example.org", i), ttl, netip.AddrFrom4(a).String())
	}
	if n := len(l.known("names")); n != learnedOfSet || len(l.fullSets()) != 1 || !strings.HasPrefix(l.fullSets()[0], "network set names: 4096 addresses") {
		t.Errorf("%d are known, %v", n, l.fullSets())
	}
	l.clock += time.Minute
	if l.expire(); len(l.fullSets()) > 0 {
		t.Error(l.fullSets())
	}
}

// TestDomainsAreRecalled by the next agent of the same boot, as far as their time is not over.
func TestDomainsAreRecalled(t *testing.T) {
	dir := t.TempDir()
	l := newLearning(t, dir, "example.com")
	l.recall("boot")
	l.index.Flush()
	l.relearn(func(int) string { return "" })
	l.hear("nc1", "example.com", time.Minute, "192.0.2.1")
	l.hear("nc1", "example.com", time.Hour, "192.0.2.2", "2001:db8::2")
	l.write()
	for what, c := range map[string]struct {
		boot  string
		names []string
		after time.Duration
		want  string
	}{
		"at once":      {"boot", []string{"example.com"}, 0, "192.0.2.1 192.0.2.2"},
		"later":        {"boot", []string{"example.com"}, time.Minute, "192.0.2.2"},
		"another boot": {"other", []string{"example.com"}, 0, ""},
		"other names":  {"boot", []string{"example.org"}, 0, ""},
	} {
		next := newLearning(t, dir, c.names...)
		next.clock += c.after
		next.recall(c.boot)
		if len(c.names) > 0 && c.boot == "boot" && !next.wanted("example.com") {
			t.Errorf("%s: who reads answers does not look for what was learned", what)
		}
		next.index.Flush()
		next.relearn(func(int) string { return "" })
		next.holds(what, c.want)
	}
	for _, text := range []string{"", "{", `{"boot":"boot","sets":{"names":[{"name":"example.com","address":"","until":9000000000000}]}}`} {
		if err := os.WriteFile(l.file.Path(domainsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		next := newLearning(t, dir, "example.com")
		next.recall("boot")
		next.holds("damaged "+text, "")
	}
}

// TestAnswersAreHeard by the role on fakes, those of before its view too, and no others.
func TestAnswersAreHeard(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/26")
	w.create(&datastore.NetworkSet{Metadata: datastore.Metadata{Name: "names"}, Spec: datastore.NetworkSetSpec{Domains: []string{"example.com"}}})
	r, _ := datastore.ParseRule("allow to set names")
	w.create(&datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Outbound: []datastore.Rule{r}}})
	w.start()
	w.ready()
	at := w.mustAttach("a", "web", 7)
	var index int
	w.until(func() string {
		text := "no link"
		_ = w.a.loop.do(t.Context(), func() {
			for i, name := range w.a.loop.links.names {
				if name == at.Link {
					index, text = i, ""
				}
			}
		})
		return text
	})
	answer := func(name string, a byte) nflog.Datagram {
		b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: true})
		n := dnsmessage.MustNewName(name)
		_, _, _ = b.StartQuestions(), b.Question(dnsmessage.Question{Name: n, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}), b.StartAnswers()
		_ = b.AResource(dnsmessage.ResourceHeader{Name: n, Class: dnsmessage.ClassINET, TTL: 600}, dnsmessage.AResource{A: [4]byte{192, 0, 2, a}})
		text, _ := b.Finish()
		return nflog.Datagram{OutIndex: index, Payload: text}
	}
	in := func(want string) {
		t.Helper()
		w.until(func() string {
			var got []string
			_ = w.a.loop.do(t.Context(), func() {
				for _, k := range w.a.loop.domains.known("") {
					got = append(got, k.Name+" "+k.Address.String())
				}
			})
			if text := strings.Join(got, ", "); text != want || !strings.Contains(w.nft.String(), "{ 192.0.2.1") {
				return "learned: " + text
			}
			return ""
		})
	}
	w.answers <- answer("other.example.", 9)
	w.answers <- nflog.Datagram{OutIndex: index, Payload: []byte("x")}
	w.answers <- answer("Example.com.", 1)
	in("example.com 192.0.2.1")
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.answers <- answer("example.com.", 2) // before the next agent knows anything but what was learned
	w.start()
	w.ready()
	in("example.com 192.0.2.1, example.com 192.0.2.2")
}
