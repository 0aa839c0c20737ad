//go:build bench

package commands_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"netctl/acl"
	"netctl/acl/iptables"
	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/netlab"
)

// policyNode is the node whose endpoints are measured.
const policyNode = "n1"

// tested are the two ends of the packets that are measured: the endpoints in the middle.
type tested struct{ from, to int }

// policyModel is what a node has: endpoints, and a profile for ten of them each, of six
// inbound rules and two outbound ones. The packets that are measured meet the last ones.
type policyModel struct{ endpoints int }

func (m policyModel) profiles() int  { return max(1, m.endpoints/10) }
func (m policyModel) tested() tested { return tested{m.endpoints / 2, m.endpoints/2 + 1} }

// profileOf is the number of an endpoint's profile.
func (m policyModel) profileOf(i int) int { return i * m.profiles() / m.endpoints }

func policyAddress(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 65, byte(i >> 8), byte(i)}) }
func policyTag(i int) string         { return fmt.Sprint("t", i%500) }

func policyEndpointName(i int) string {
	return datastore.EndpointName(policyNode, "cni", fmt.Sprint("w", i), "eth0")
}

func policyLink(prefix string, i int) string { return netdev.LinkName(prefix, policyEndpointName(i)) }

// openPort is the one that the last rule opens, of UDP; closedPort is one that none does.
const openPort, closedPort = 8000, 9999

// policyRule is one rule: allow or deny of a protocol from a tag to ports; empty: any.
type policyRule struct {
	deny                 bool
	protocol, tag, ports string
}

func (r policyRule) String() string {
	words := []string{"allow"}
	if r.deny {
		words[0] = "deny"
	}
	if r.protocol != "" {
		words = append(words, r.protocol)
	}
	if r.tag != "" {
		words = append(words, "from tag "+r.tag)
	}
	if r.ports != "" {
		words = append(words, "to ports "+r.ports)
	}
	return strings.Join(words, " ")
}

func policyRules(p int) (inbound, outbound []policyRule) {
	return []policyRule{
		{true, "", policyTag(p + 1), ""}, {false, "tcp", policyTag(p + 2), "22"}, {false, "tcp", policyTag(p + 3), "80,443"},
		{false, "udp", policyTag(p + 4), "53"}, {false, "tcp", policyTag(p + 5), "5432"}, {false, "udp", policyTag(p), fmt.Sprint(openPort)},
	}, []policyRule{{true, "tcp", "", "25"}, {}}
}

func policyProfile(t testing.TB, p int) *datastore.Profile {
	out := &datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprint("p", p)}}
	out.Spec.Tags = []string{policyTag(p)}
	parse := func(list []policyRule) (rules []datastore.Rule) {
		for _, r := range list {
			rule, err := datastore.ParseRule(r.String())
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, rule)
		}
		return rules
	}
	in, from := policyRules(p)
	out.Spec.Inbound, out.Spec.Outbound = parse(in), parse(from)
	return out
}

func policyEndpoint(node, name, link, profile string, at netip.Addr) *datastore.Endpoint {
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: name}}
	e.Spec = datastore.EndpointSpec{Node: node, Link: link, Profiles: []string{profile}, Addresses: []netip.Addr{at}}
	return e
}

func put(x *acl.Index, o datastore.Object) {
	x.Apply(datastore.Change{Kind: o.Kind(), Name: o.Meta().Name, New: o})
}

// policyOptions are a node's own, with a bound of new flows that is asked and never met.
func policyOptions() acl.Options {
	return acl.Options{
		LinkPrefix: "nc", Group: netdev.Group, Gateways: netdev.Gateways(netdev.Gateway4()), ReversePath: acl.ReversePathStrict,
		FlowRate: 1_000_000, FlowBurst: 1_000_000, WorkloadToHost: []acl.HostPort{{Protocol: 17, Port: 53}, {Protocol: 6, Port: 53}},
	}
}

// index is the model as the agent has it.
func (m policyModel) index(t testing.TB) *acl.Index {
	x := acl.NewIndex(policyNode, policyOptions())
	for p := range m.profiles() {
		put(x, policyProfile(t, p))
	}
	for i := range m.endpoints {
		put(x, policyEndpoint(policyNode, policyEndpointName(i), policyLink("nc", i), fmt.Sprint("p", m.profileOf(i)), policyAddress(i)))
	}
	for x.Work() {
	}
	x.Flush()
	return x
}

// packetFilter is a back end as the agent uses it.
type packetFilter interface {
	Sync(ctx context.Context, want *acl.Ruleset) (wrote bool, err error)
	Apply(ctx context.Context, d acl.Delta) error
	Close() error
}

// filterIn opens a back end in a namespace.
func filterIn(t testing.TB, n *netlab.Netns, name string) packetFilter {
	t.Helper()
	var f packetFilter
	n.Do(func() {
		var err error
		if log := slog.New(slog.DiscardHandler); name == "nftables" {
			f, err = nft.Open(log)
		} else {
			f, err = iptables.Open(log, iptables.Mode(strings.TrimPrefix(name, "iptables-")), "nc")
		}
		if err != nil {
			t.Error(err)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// TestBenchPolicy measures what the packet filter costs a packet, and what a change of it
// takes, beside connection tracking alone and the layout that Calico writes.
func TestBenchPolicy(t *testing.T) {
	t.Run("packets", func(t *testing.T) { report(t, packetRows(t)) })
	t.Run("changes", func(t *testing.T) { report(t, changeRows(t)) })
	t.Run("another node", func(t *testing.T) { report(t, effectiveRows(t)) })
}
