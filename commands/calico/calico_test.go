package calico

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"netctl/datastore"
)

// convert translates documents of a JSON list.
func convert(t testing.TB, text string) ([]datastore.Object, []Remark) {
	t.Helper()
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var documents []any
	if err := dec.Decode(&documents); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return Convert(documents)
}

// packet is what the rules of the test tell apart.
type packet struct {
	protocol uint8
	src      netip.Addr
	port     uint16
	http     bool // whether what netctl does not look at is as a rule asks
}

// said is a rule as Calico has it.
type said struct {
	Action      string         `json:"action"`
	Protocol    any            `json:"protocol,omitempty"`
	NotProtocol any            `json:"notProtocol,omitempty"`
	IPVersion   int            `json:"ipVersion,omitempty"`
	HTTP        map[string]any `json:"http,omitempty"`
	Source      entity         `json:"source"`
	Destination entity         `json:"destination"`
}

type entity struct {
	Nets     []string `json:"nets,omitempty"`
	NotNets  []string `json:"notNets,omitempty"`
	Ports    []any    `json:"ports,omitempty"`
	NotPorts []any    `json:"notPorts,omitempty"`
}

func within(nets []string, a netip.Addr) bool {
	return slices.ContainsFunc(nets, func(s string) bool { return netip.MustParsePrefix(s).Contains(a) })
}

func among(ports []any, p uint16) bool {
	return slices.ContainsFunc(ports, func(v any) bool {
		low, high, ok := strings.Cut(fmt.Sprint(v), ":")
		if !ok {
			high = low
		}
		l, _ := strconv.Atoi(low)
		h, _ := strconv.Atoi(high)
		return int(p) >= l && int(p) <= h
	})
}

// matches is Calico's documentation of a rule's fields, one condition a line.
func (r said) matches(p packet) bool {
	protocols := map[any]uint8{"TCP": 6, "UDP": 17}
	return (r.Protocol == nil || protocols[r.Protocol] == p.protocol) &&
		(r.NotProtocol == nil || protocols[r.NotProtocol] != p.protocol) &&
		(r.IPVersion == 0 || (r.IPVersion == 4) == p.src.Is4()) &&
		(r.HTTP == nil || p.http) &&
		(r.Source.Nets == nil || within(r.Source.Nets, p.src)) && !within(r.Source.NotNets, p.src) &&
		(r.Destination.Ports == nil || among(r.Destination.Ports, p.port)) && !among(r.Destination.NotPorts, p.port)
}

// random is a rule; now and then one with something that netctl cannot say.
func random(rnd *rand.Rand) (r said) {
	some := func(n int) bool { return rnd.IntN(n) == 0 }
	nets := func() (list []string) {
		for range rnd.IntN(3) {
			list = append(list, []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "192.168.0.0/16", "fd00::/8", "fd00:1::/32"}[rnd.IntN(6)])
		}
		return list
	}
	r.Action = []string{"Allow", "Allow", "Deny", "Pass", "Log"}[rnd.IntN(5)]
	switch rnd.IntN(4) {
	case 0:
		r.NotProtocol = "TCP"
	case 1, 2:
		r.Protocol = []any{"TCP", "UDP"}[rnd.IntN(2)]
	}
	if some(5) {
		r.IPVersion = 4 + 2*rnd.IntN(2)
	}
	if some(6) {
		r.HTTP = map[string]any{"methods": []string{"GET"}}
	}
	r.Source = entity{Nets: nets(), NotNets: nets()}
	if r.Protocol != nil && some(2) {
		r.Destination.Ports = []any{22, "80:90"}[:1+rnd.IntN(2)]
	}
	if r.Protocol != nil && some(4) {
		r.Destination.NotPorts = []any{"85:100"}
	}
	return r
}

// decides is the action of the first rule that matches; deny if none does.
func decides[T any](rules []T, matches func(T) bool, action func(T) string) string {
	for _, r := range rules {
		if a := action(r); a != "log" && matches(r) {
			return a
		}
	}
	return "deny"
}

// matchesRule is whether a rule of netctl's matches.
func matchesRule(r datastore.Rule, sets map[string][]netip.Prefix, p packet) bool {
	holds := func(nets []netip.Prefix) bool {
		return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return n.Contains(p.src) })
	}
	in := slices.ContainsFunc(r.To.Ports, func(q datastore.PortRange) bool { return p.port >= q.First && p.port <= q.Last })
	return (!r.Protocol.Set || (r.Protocol.Number == p.protocol) != r.Protocol.Not) &&
		(len(r.From.CIDRs) == 0 || holds(r.From.CIDRs) != r.From.NotCIDRs) &&
		(r.From.Set.Value == "" || holds(sets[r.From.Set.Value]) != r.From.Set.Not) &&
		(len(r.To.Ports) == 0 || in != r.To.NotPorts)
}

// TestNeverMoreOpen holds policies of random rules against what Calico's rules say: where
// all of it can be said it is the same, elsewhere nothing passes that Calico would stop.
func TestNeverMoreOpen(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	exact, closed := 0, 0
	for range 3000 {
		var list []said
		for range 1 + rnd.IntN(5) {
			list = append(list, random(rnd))
		}
		text, err := json.Marshal([]any{map[string]any{"apiVersion": "projectcalico.org/v3", "kind": "GlobalNetworkPolicy",
			"metadata": map[string]any{"name": "p"}, "spec": map[string]any{"selector": "all()", "types": []string{"Ingress"}, "ingress": list}}})
		if err != nil {
			t.Fatal(err)
		}
		objects, remarks := convert(t, string(text))
		sets := map[string][]netip.Prefix{}
		var rules []datastore.Rule
		for _, o := range objects {
			switch o := o.(type) {
			case *datastore.NetworkSet:
				sets[o.Metadata.Name] = o.Spec.CIDRs
			case *datastore.Policy:
				rules = o.Spec.Ingress
			}
		}
		for range 40 {
			p := packet{protocol: []uint8{6, 17, 1}[rnd.IntN(3)], port: []uint16{22, 80, 86, 95, 9}[rnd.IntN(5)], http: rnd.IntN(2) == 0,
				src: netip.MustParseAddr([]string{"10.1.2.3", "10.1.3.3", "10.2.2.2", "192.168.1.1", "8.8.8.8", "fd00:1::1", "fd01::1", "2001:db8::1"}[rnd.IntN(8)])}
			want := decides(list, func(r said) bool { return r.matches(p) }, func(r said) string { return strings.ToLower(r.Action) })
			got := decides(rules, func(r datastore.Rule) bool { return matchesRule(r, sets, p) }, func(r datastore.Rule) string { return string(r.Action) })
			// What passes to the next tier may be allowed there.
			open := map[string]int{"deny": 0, "pass": 1, "allow": 2}
			if len(remarks) == 0 && got != want || open[got] > open[want] {
				t.Fatalf("%+v: Calico %s, netctl %s\n%s\n%v\n%v", p, want, got, text, rules, remarks)
			}
			if got == want {
				exact++
			} else {
				closed++
			}
		}
	}
	if exact < 10*closed {
		t.Errorf("of the packets %d fare as in Calico and %d are stopped: hardly anything can be said", exact, closed)
	}
}

// FuzzConvert gives any resources: whatever comes out can be written and read.
func FuzzConvert(f *testing.F) {
	f.Add(`[{"apiVersion":"v1","kind":"ipPool","metadata":{"cidr":"10.0.0.0/8"},"spec":{"ipip":{"enabled":true}}}]`)
	f.Add(`[{"apiVersion":"projectcalico.org/v3","kind":"BGPPeer","metadata":{"name":"a"},"spec":{"peerIP":"[fd00::1]:80","asNumber":"1.1","filters":["x"]}}]`)
	f.Add(`[{"apiVersion":"projectcalico.org/v3","kind":"NetworkPolicy","metadata":{"name":"a","namespace":"b"},"spec":{"order":1.25,"ingress":[{"action":"Pass","icmp":{"type":1}}]}}]`)
	f.Add(`[{"apiVersion":"projectcalico.org/v3","kind":"BGPFilter","metadata":{"name":"a"},"spec":{"importV4":[{"action":"Accept","cidr":"1.0.0.0/8","matchOperator":"In","prefixLength":{"max":3}}]}}]`)
	f.Add(`[{"apiVersion":"projectcalico.org/v3","kind":"Node","metadata":7,"spec":[]},3,null,[]]`)
	f.Fuzz(func(t *testing.T, text string) {
		dec := json.NewDecoder(strings.NewReader(text))
		dec.UseNumber()
		var documents []any
		if dec.Decode(&documents) != nil {
			return
		}
		objects, remarks := Convert(documents)
		for _, o := range objects {
			b, err := datastore.EncodeManifest(o)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := datastore.DecodeManifest(b); err != nil {
				t.Errorf("%s: %v", b, err)
			}
		}
		if len(objects) == 0 && len(remarks) < len(documents) {
			t.Errorf("nothing comes out, and nothing is said of it: %s", text)
		}
		for _, r := range remarks {
			if bytes.ContainsAny([]byte(r.Text), "\n") {
				t.Errorf("more than a line: %q", r.Text)
			}
		}
	})
}

// TestMalformed: a value that a field cannot have is named, and not taken for one that netctl
// lacks; of two encapsulations one is.
func TestMalformed(t *testing.T) {
	objects, remarks := convert(t, `[
	 {"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"a"},"spec":{"cidr":"10.0.0.0/16","ipipMode":"Sometimes","natOutgoing":"yes","blockSize":"big"}},
	 {"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"b"},"spec":{"cidr":"10.1.0.0/16","ipipMode":"Always","vxlanMode":"CrossSubnet"}}]`)
	if len(objects) != 2 || objects[1].(*datastore.Pool).Spec.Encap != datastore.EncapVXLANCrossSubnet {
		t.Errorf("got %v", objects)
	}
	var said []string
	for _, r := range remarks {
		said = append(said, r.String())
	}
	for _, want := range []string{
		`IPPool a: spec.ipipMode: left out: "Sometimes" is none of Always, CrossSubnet and Never`,
		`IPPool a: spec.natOutgoing: left out: "yes" is no value that it can have`,
		`IPPool a: spec.blockSize: left out: "big" is no value that it can have`,
		`IPPool b: spec.ipipMode: left out: a pool has one encapsulation, and vxlanMode is set, too`,
	} {
		if !slices.Contains(said, want) {
			t.Errorf("%s\nis not among\n%s", want, strings.Join(said, "\n"))
		}
	}
	if len(said) != 4 {
		t.Errorf("%d remarks: %s", len(said), strings.Join(said, "\n"))
	}
}

// TestNoResource: what is no resource of Calico's at all is said in words.
func TestNoResource(t *testing.T) {
	_, remarks := convert(t, `[{"node": "n1", "roles": ["agent"]}]`)
	if len(remarks) != 1 || !strings.HasPrefix(remarks[0].String(), "a resource without a kind: apiVersion: left out") {
		t.Errorf("%v", remarks)
	}
}
