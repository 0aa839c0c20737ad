package commands

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/datastore/memory"
)

// readStore tells what a command reads.
type readStore struct {
	datastore.Store
	users                 // none
	kinds map[string]bool // read as a whole, or of which single objects were
	bytes int
}

func (s *readStore) Health(context.Context) []etcd.EndpointHealth { return nil }
func (s *readStore) Close() error                                 { return nil }

func (s *readStore) Members(context.Context) ([]etcd.Member, error)  { return nil, nil }
func (s *readStore) RemoveMember(context.Context, etcd.Member) error { return nil }

func (s *readStore) saw(prefix string, whole bool, entries ...datastore.Entry) {
	for _, e := range entries {
		s.bytes += len(e.Value)
	}
	for _, k := range datastore.Kinds() {
		kind := strings.ToLower(string(k))
		switch p := datastore.KindPrefix(k); {
		case whole && (prefix == p || prefix == datastore.Prefix && k != datastore.KindReport):
			s.kinds[datastore.Plural(k)] = true
		case strings.HasPrefix(prefix, p) && prefix != p:
			s.kinds[kind] = true
		}
	}
}

func (s *readStore) Get(ctx context.Context, key string) (datastore.Entry, error) {
	e, err := s.Store.Get(ctx, key)
	s.saw(key, false, e)
	return e, err
}

func (s *readStore) List(ctx context.Context, prefixes ...string) (datastore.Snapshot, error) {
	snap, err := s.Store.List(ctx, prefixes...)
	for _, p := range prefixes {
		var under []datastore.Entry
		for _, e := range snap.Entries {
			if strings.HasPrefix(e.Key, p) {
				under = append(under, e)
			}
		}
		s.saw(p, true, under...)
	}
	return snap, err
}

// populated is a store with so many nodes, each with a block, ten endpoints, a
// profile and reports.
func populated(t *testing.T, nodes int) *memory.Store {
	t.Helper()
	s := memory.New()
	put := func(o datastore.Object) {
		o.SetDefaults()
		if err := datastore.Create(t.Context(), s, o); err != nil {
			t.Fatal(err)
		}
	}
	put(&datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.0.0.0/8")}})
	put(&datastore.Network{Metadata: datastore.Metadata{Name: "net"}, Spec: datastore.NetworkSpec{Profile: "p0"}})
	put(&datastore.Profile{Metadata: datastore.Metadata{Name: "unused"}})
	put(&datastore.Reservation{Metadata: datastore.Metadata{Name: "kept"}, Spec: datastore.ReservationSpec{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.255.0.0/24")}}})
	for i := range nodes {
		name := fmt.Sprint("n", i)
		put(&datastore.Node{Metadata: datastore.Metadata{Name: name}, Spec: datastore.NodeSpec{Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)}), 16)}}})
		put(&datastore.Profile{Metadata: datastore.Metadata{Name: fmt.Sprint("p", i)}})
		for _, role := range []string{datastore.ReportAgent, datastore.ReportSpeaker} {
			put(&datastore.Report{Metadata: datastore.Metadata{Name: datastore.ReportName(name, role)}, Status: datastore.ReportStatus{Seen: time.Unix(1, 0)}})
		}
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 10), byte(i >> 2), byte(i << 6)}), 26)
		b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: block, Affinity: name}}
		at := block.Addr()
		for j := range 10 {
			e := &datastore.Endpoint{Spec: datastore.EndpointSpec{Node: name, Orchestrator: "cni", Workload: fmt.Sprint("w", j), Interface: "eth0",
				Link:      datastore.LinkName("nc", datastore.EndpointName(name, "cni", fmt.Sprint("w", j), "eth0")),
				Addresses: []netip.Addr{at}, Profiles: []string{fmt.Sprint("p", i)}, Network: "net"}}
			put(e)
			b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: j, Handle: e.Metadata.Name, Node: name, Time: time.Unix(1, 0)})
			at = at.Next()
		}
		put(b)
	}
	return s
}

// TestCommandsReadWhatTheyPrint runs the commands on a small and a large cluster: each
// reads the kinds that it prints or checks by ("nodes" all of them, "node" single
// ones), and those whose output does not grow read as many bytes in both.
func TestCommandsReadWhatTheyPrint(t *testing.T) {
	t.Setenv("NETCTL_NODE", "n0")
	cases := []struct {
		command string
		kinds   string
		grows   bool
	}{
		{"get nodes", "bgpconfigs endpoints nodes reports", true},
		{"get node n0 -o yaml", "node", false},
		{"get profile p0 -o yaml", "profile", false},
		{"get blocks", "blocks", true},
		{"get networks", "networks", false},
		{"get reservations", "reservations", false},
		{"node show -o yaml", "nodes", true},
		{"node add new --ip 172.17.0.9/16", "node", false},
		{"node n0 set as 64512", "node", false},
		{"node n0 set labels a=b", "node", false},
		{"node n0 set ip 172.16.0.77/16", "node", false},
		{"pool show", "pools", false},
		{"pool show -o wide", "blocks nodes pools reservations", true},
		{"pool add 192.168.0.0/16", "blocks endpoints nodes pools", true},
		{"profile show", "profiles", true},
		{"profile show --detailed", "endpoints nodes profiles reports", true},
		{"profile add fresh", "profile", false},
		{"profile remove unused", "endpoints hostendpoints networks profile", true},
		{"profile p0 tag show", "profile", false},
		{"profile p0 tag add x", "profile", false},
		{"profile p0 rule show", "profile", false},
		{"profile p0 rate show", "profile", false},
		{"profile p0 rate set ingressBandwidth=1G", "profile", false},
		{"profile p0 rate remove", "profile", false},
		{"endpoint n0/cni/w0/eth0 rate show", "endpoint profile", false},
		{"endpoint n0/cni/w0/eth0 rate set egressPacketRate=1M", "endpoint", false},
		{"endpoint n0/cni/w0/eth0 rate remove egressPacketRate", "endpoint", false},
		{"profile p0 rule add inbound allow tcp to ports 80", "profile", false},
		{"network show", "networks", false},
		{"network create other", "network profile", false},
		{"explain n1/cni/w0/eth0 n2/cni/w1/eth0 tcp 80", "bgpconfigs blocks endpoints hostendpoints networksets nodes peers policies pools profiles report tiers", true},
		{"policy show", "policies tiers", false},
		{"policy create q --ingress allow", "hostendpoints nodes policy tier", true},
		{"policy remove q", "policy", false},
		{"tenant show", "endpoints networks policies profiles", true},
		{"tenant add q", "hostendpoints nodes policy tier", true},
		{"tenant remove q", "policy profiles", true},
		{"tier show", "policies tiers", false},
		{"tier create q", "hostendpoints nodes tier", true},
		{"tier remove q", "policies tier", false},
		{"hostendpoint show", "hostendpoints", false},
		{"hostendpoint create q --node n1 --interface eth0", "hostendpoints networksets nodes policies profiles tiers", true},
		{"hostendpoint remove q", "hostendpoint", false},
		{"networkset show", "networksets", false},
		{"networkset create q 192.0.2.0/24", "networkset nodes", true},
		{"networkset remove q", "networkset policies profiles", true},
		{"endpoint show", "endpoints", true},
		{"endpoint n0/cni/w0/eth0 profile show", "endpoint", false},
		{"endpoint n0/cni/w0/eth0 profile append p1", "endpoint profile", false},
		{"bgp node-mesh", "bgpconfig", false},
		{"bgp default-node-as", "bgpconfig", false},
		{"bgp topology", "bgpconfig", false},
		{"bgp topology show", "bgpconfigs nodes", true},
		{"bgp topology mesh --dry-run", "bgpconfigs nodes", true},
		{"node n0 set reflector never", "node", false},
		{"bgp peer show", "peers", false},
		{"bgp peer add 192.0.2.1 as 64500", "peers", false},
		{"bgp peer remove 192.0.2.1", "peer peers", false},
		{"bgp filter add f --import reject", "bgpfilter pools", false},
		{"bgp filter show", "bgpconfigs bgpfilters peers", false},
		{"bgp filter show f", "bgpfilter", false},
		{"bgp filter remove f", "bgpconfigs bgpfilter peers", false},
		{"node undrain n1", "node", false},
		{"status", "bgpconfigs node", false},
		{"status --node n1", "bgpconfigs node report", false},
		{"status --all", "bgpconfigs nodes reports", true},
		{"ipam check", "blocks endpoints nodes pools reservations", true},
		{"ipam show", "blocks nodes pools reservations", true},
		{"__complete profile p0 tag remove ", "profiles", true},
		{"__complete endpoint n0/cni/w0/eth0 profile append ", "profiles", true},
		{"__complete node remove ", "nodes", true},
	}
	run := func(s *memory.Store, command string) *readStore {
		r := &readStore{Store: s, kinds: map[string]bool{}}
		var out, errs bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &errs, opened: r}
		if err := a.run(t.Context(), strings.Split(command, " ")); err != nil && a.exitCode(err) != exitNo {
			t.Errorf("%s: %v %s", command, err, errs.String())
		}
		return r
	}
	small, large := populated(t, 10), populated(t, 300)
	for _, c := range cases {
		few, many := run(small, c.command), run(large, c.command)
		if got := strings.Join(slices.Sorted(maps.Keys(many.kinds)), " "); got != c.kinds {
			t.Errorf("%s reads %s, want %s", c.command, got, c.kinds)
		}
		if !c.grows && few.bytes != many.bytes {
			t.Errorf("%s reads %d bytes of 10 nodes and %d of 300", c.command, few.bytes, many.bytes)
		}
	}
	// Every command that reads the datastore has its line, or is named here with why.
	without := map[string]string{
		"api list": "users of the API alone, which are few", "api grant": "as api list", "api revoke": "as api list",
		"bench": "one endpoint and one node by name", "bench serve": "as bench", "agent": "a role", "api": "a role", "speaker": "a role", "reflector": "a role", "datastore": "a role", "node": "a role", "docker": "a role",
		"backup": "all there is, once", "restore": "as backup", "install": "no datastore", "upgrade": "as status --all", "import calico": "no datastore", "init": "no datastore", "join": "no datastore", "datastore member": "asks etcd itself", "datastore ca": "nodes and who joined, once", "datastore user": "asks etcd itself",
		"token create": "tokens alone, which are few", "token list": "as token create", "token revoke": "as token create", "uninstall": "no datastore", "cleanup": "no datastore", "events": "files of this node", "diags": "what a report of a fault needs", "doctor": "nodes, pools and reports, as status --all", "datastore adopt": "identity only", "undo": "the history, and what its objects are checked by: all there is", "history": "the history, and the kinds that it is of", "datastore rebuild": "as restore", "ui": "asks the API", "apply": "what the manifest needs: neededToPut",
		"create": "as apply", "replace": "as apply", "edit": "as get", "delete": "as remove", "config": "no datastore", "version": "no datastore",
		"completion": "no datastore", "lab up": "no datastore", "lab down": "no datastore", "lab exec": "no datastore", "lab status": "no datastore",
		"endpoint add": "asks the agent", "hook": "asks the agent", "endpoint remove": "asks the agent", "route show": "the kernel, or blocks and endpoints of --node",
		"route trace": "the kernel, and who may have the address: nodes, pools, blocks, endpoints and peers",
		"policy test": "as explain", "trace": "as explain, and asks agents", "confirm": "changes that wait, which are few", "policy counters": "asks the agent", "policy promote": "policies by name, and what `policy create` reads", "policy stage": "as policy promote", "policy suggest": "as explain", "drops": "as explain, each second at most",
		"ipam info": "as pool show -o wide", "ipam release": "as pool show -o wide",
		"node drain": "refuses a node with endpoints", "node rotate-key": "refuses a node without a key", "bgp routes": "asks the speaker", "bgp session": "asks the speaker",
		"node remove": "changes what others need here", "pool remove": "as node remove", "network remove": "as profile remove", "pool range": "as pool add", "help": "",
	}
	var walk func(c *cobra.Command, path []string)
	walk = func(c *cobra.Command, path []string) {
		if c.HasSubCommands() && c.Annotations[nameHolder] == "" && len(path) < 2 || c.HasSubCommands() && c.Annotations[nameHolder] != "" {
			for _, sub := range c.Commands() {
				walk(sub, append(slices.Clone(path), sub.Name()))
			}
			return
		}
		name := strings.Join(path, " ")
		if _, ok := without[name]; ok || strings.Contains(name, "NAME") || strings.Contains(name, " ID") {
			return
		}
		if !slices.ContainsFunc(cases, func(o struct {
			command string
			kinds   string
			grows   bool
		}) bool {
			return strings.HasPrefix(o.command+" ", name+" ")
		}) {
			t.Errorf("command %q has no line here", name)
		}
	}
	walk(newRootCommand(&app{}), nil)
}
