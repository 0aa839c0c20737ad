//go:build bench

package commands_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"netctl/acl"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/netdev/netlab"
)

const (
	largeProfiles = 1000 // of ten rules each, and an endpoint for each
	wanted        = "limit"
)

// largeProfile alternates between protocols, so that no two rules can become one.
func largeProfile(t *testing.T, name string, port, rules int) *datastore.Profile {
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
	p.Spec.Tags = []string{name}
	for j := range rules {
		r, err := datastore.ParseRule(fmt.Sprintf("allow %s from tag p%d to ports %d", []string{"tcp", "udp"}[j%2], j, port))
		if err != nil {
			t.Fatal(err)
		}
		p.Spec.Inbound = append(p.Spec.Inbound, r)
	}
	return p
}

func largeModel(t *testing.T) *acl.Index {
	x := acl.NewIndex(policyNode, policyOptions())
	for i := range largeProfiles {
		name := fmt.Sprint("p", i)
		put(x, largeProfile(t, name, 1000+i, 10))
		put(x, policyEndpoint(policyNode, policyEndpointName(i), policyLink("nc", i), name, policyAddress(i)))
	}
	for x.Work() {
	}
	x.Flush()
	return x
}

// change is one kind of change, and how it is taken back.
type change struct {
	what     string
	may      float64 // ms, of nftables; 0: only printed
	bound    float64
	do, undo func(x *acl.Index, n int)
}

func changesOf(t *testing.T) []change {
	gone := func(x *acl.Index, kind datastore.Kind, name string) {
		x.Apply(datastore.Change{Kind: kind, Name: name})
	}
	own, other := policyEndpointName(9000), datastore.EndpointName("n2", "cni", "w", "eth0")
	at := netip.MustParseAddr("10.66.0.1")
	return []change{
		// The kernel walks all rules that a map leads to: 1.5 ms where nobody else uses its caches.
		{"an endpoint of a profile that is there", 2, 1.5, func(x *acl.Index, n int) {
			put(x, policyEndpoint(policyNode, own, policyLink("nc", 9000), fmt.Sprint("p", n), at))
		}, func(x *acl.Index, n int) { gone(x, datastore.KindEndpoint, own) }},
		{"an endpoint with a profile of its own", 0, 0, func(x *acl.Index, n int) {
			put(x, largeProfile(t, "own", 7, 10))
			put(x, policyEndpoint(policyNode, own, policyLink("nc", 9000), "own", at))
		}, func(x *acl.Index, n int) {
			gone(x, datastore.KindEndpoint, own)
			gone(x, datastore.KindProfile, "own")
		}},
		{"a rule of a profile", 3, 1, func(x *acl.Index, n int) { put(x, largeProfile(t, fmt.Sprint("p", n), 1000+n, 9)) },
			func(x *acl.Index, n int) { put(x, largeProfile(t, fmt.Sprint("p", n), 1000+n, 10)) }},
		{"all ten rules of a profile", 0, 0, func(x *acl.Index, n int) { put(x, largeProfile(t, fmt.Sprint("p", n), 5000+n, 10)) },
			func(x *acl.Index, n int) { put(x, largeProfile(t, fmt.Sprint("p", n), 1000+n, 10)) }},
		{"a member of a set", 0.2, 1, func(x *acl.Index, n int) { put(x, policyEndpoint("n2", other, "ncother", "p3", at)) },
			func(x *acl.Index, n int) { gone(x, datastore.KindEndpoint, other) }},
	}
}

// changeRows changes a packet filter with 10,000 rules: from what the store says to the
// kernel's answer. What others do on the machine can only add to it: the shortest counts.
func changeRows(t *testing.T) (rows []row) {
	took := map[string]map[string]float64{}
	filters := []string{"nftables", "iptables-nft", "iptables-legacy"}
	for _, name := range filters {
		took[name] = map[string]float64{}
		rounds := 50
		if name != "nftables" {
			rounds = 3
		}
		x, n := largeModel(t), netlab.NetnsForTest(t)
		filter, rules := filterIn(t, n, name), x.Ruleset()
		began := time.Now()
		if _, err := filter.Sync(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		took[name]["cold"] = ms(time.Since(began))
		apply := func(fn func(*acl.Index, int), round int) time.Duration {
			began := time.Now()
			fn(x, 100+round)
			for x.Work() {
			}
			if err := filter.Apply(t.Context(), x.Flush()); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		for _, c := range changesOf(t) {
			var all []time.Duration
			for i := range rounds {
				all = append(all, apply(c.do, i))
				apply(c.undo, i)
			}
			slices.Sort(all)
			took[name][c.what] = ms(all[0])
			t.Logf("%s: %s: shortest %.2f ms, median %.2f, longest %.2f", name, c.what, ms(all[0]), ms(all[len(all)/2]), ms(all[len(all)-1]))
		}
	}
	ours, theirs := coldStarts(t)
	took["nftables"]["cold"] = ours
	// On a machine that others use too, what nft needs there.
	rows = append(rows, row{"10,000 rules into an empty nftables", ours, max(500, 1.1*theirs), "ms", wanted, 1},
		row{"  the same", ours, theirs, "ms", "nft -f", 0})
	for _, name := range filters[1:] {
		rows = append(rows, row{"  into " + name, took[name]["cold"], ours, "ms", "nftables", 0})
	}
	for _, c := range changesOf(t) {
		nft := took["nftables"][c.what]
		if c.may > 0 {
			rows = append(rows, row{c.what, nft, c.may, "ms", wanted, c.bound})
		} else {
			rows = append(rows, row{c.what, nft, took["nftables"]["cold"], "ms", "all rules anew", 0})
		}
		for _, name := range filters[1:] {
			rows = append(rows, row{"  in " + name, took[name][c.what], nft, "ms", "nftables", 0})
		}
	}
	return rows
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// coldStarts are the shortest of seven, in turn with nft reading the same text.
func coldStarts(t *testing.T) (ours, theirs float64) {
	rules := largeModel(t).Ruleset()
	text := rules.String()
	var us, them []time.Duration
	for range 7 {
		filter, other := filterIn(t, netlab.NetnsForTest(t), "nftables"), netlab.NetnsForTest(t)
		began := time.Now()
		if _, err := filter.Sync(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		us = append(us, time.Since(began))
		began = time.Now()
		load(t, other, text, "nft", "-f", "-")
		them = append(them, time.Since(began))
	}
	return ms(slices.Min(us)), ms(slices.Min(them))
}

// effectiveRows opens and closes a port on one node, and measures from before the write
// until packets pass, or do not, to an endpoint of another.
func effectiveRows(t *testing.T) []row {
	l := upLab(t, 2)
	from, to := netlab.Attached(t, l.Hosts[0], "sender", "one", ""), netlab.Attached(t, l.Hosts[1], "receiver", "two", "IP=10.65.210.1")
	s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + l.Hosts[0].Path("/run/netctl-node/etcd.sock")}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	p := startProbes(t, from, to, netip.MustParseAddrPort("10.65.210.1:7777"))
	rule := "allow udp to ports 7777"
	set := func(open bool) time.Time {
		now := time.Now()
		profile, err := datastore.Get[*datastore.Profile](t.Context(), s, "two")
		if err != nil {
			t.Fatal(err)
		}
		rules := slices.DeleteFunc(profile.Spec.Inbound, func(r datastore.Rule) bool { return r.String() == rule })
		if open {
			r, err := datastore.ParseRule(rule)
			if err != nil {
				t.Fatal(err)
			}
			rules = append(rules, r)
		}
		profile.Spec.Inbound = rules
		if err := datastore.Update(t.Context(), s, profile); err != nil {
			t.Fatal(err)
		}
		return now
	}
	var opened, closed, byCommand []time.Duration
	for range 40 {
		at := set(true)
		opened = append(opened, p.first(t, at).Sub(at))
		at = set(false)
		closed = append(closed, p.last(t).Sub(at))
	}
	for range 20 {
		at := time.Now()
		netlab.Must(t, l.Hosts[0], "netctl", "profile", "two", "rule", "add", "inbound", "allow", "udp", "to", "ports", "7777")
		byCommand = append(byCommand, p.first(t, at).Sub(at))
		set(false)
		p.last(t)
	}
	t.Logf("of %d: shortest %v, longest %v; closed: longest %v", len(opened), slices.Min(opened), slices.Max(opened), slices.Max(closed))
	return []row{
		{"a rule added, until it acts on another node", median(opened), 10, "ms", wanted, 1},
		{"a rule removed, until nothing passes there", median(closed), 10, "ms", wanted, 1},
		{"  by `netctl profile … rule add`, from its start", median(byCommand), 10, "ms", wanted, 0},
	}
}

// probes are datagrams from one place to another, a few in each millisecond.
type probes struct {
	mu      sync.Mutex
	arrived []time.Time // when each that has arrived was sent
}

func startProbes(t *testing.T, from, at netlab.Place, to netip.AddrPort) *probes {
	p := &probes{}
	var in, out net.Conn
	listen := func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
		return err
	}
	dial := func() (err error) {
		out, err = net.Dial("udp", to.String())
		return err
	}
	if err := errors.Join(at.Do(listen), from.Do(dial)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		b := make([]byte, 8)
		for {
			if _, err := in.Read(b); err != nil {
				return
			}
			p.mu.Lock()
			p.arrived = append(p.arrived, time.UnixMicro(int64(binary.BigEndian.Uint64(b))))
			p.mu.Unlock()
		}
	})
	both.Go(func() {
		for tick := time.NewTicker(300 * time.Microsecond); ; <-tick.C {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = out.Write(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMicro()))) // refused: nobody listens any more
		}
	})
	t.Cleanup(func() {
		close(stop)
		_, _ = in.Close(), out.Close()
		both.Wait()
	})
	return p
}

// first is when the first one was sent, since then, that has arrived.
func (p *probes) first(t *testing.T, since time.Time) (at time.Time) {
	netlab.Until(t, 20*time.Second, "the first packet", func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, a := range p.arrived {
			if a.After(since) {
				at = a
				return ""
			}
		}
		return "none"
	})
	return at
}

// last is when the last one was sent that has arrived, once for a while none has.
func (p *probes) last(t *testing.T) (at time.Time) {
	const pause = 100 * time.Millisecond
	netlab.Until(t, 20*time.Second, "the last packet", func() string {
		p.mu.Lock()
		defer p.mu.Unlock()
		if n := len(p.arrived); n > 0 {
			at = p.arrived[n-1]
		}
		if time.Since(at) < pause {
			return "they go on"
		}
		p.arrived = nil
		return ""
	})
	return at
}
