package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// TestMTUAboveTheUplinks: an endpoint whose packets may be larger than what leads to the
// other nodes is said at the attach and as long as it is there, with both numbers.
func TestMTUAboveTheUplinks(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	uplink := kernel.Address{Prefix: netip.MustParsePrefix("192.168.99.102/24"), Subnet: netip.MustParsePrefix("192.168.99.0/24"), Link: "eth1", Index: 2, MTU: 1500}
	w.links.SetAddresses(uplink)
	w.start()
	w.ready()
	attach := func(workload string, ns, mtu int) string {
		a, err := w.api.attach(t.Context(), control.AttachRequest{
			Target: control.Target{Orchestrator: "cni", Workload: workload, Interface: "eth0"}, Network: "web", NetnsFD: ns, MTU: mtu,
		})
		if err != nil {
			t.Fatal(err)
		}
		return a.Warning
	}
	const has = "has an MTU of 9000, and eth1, which leads to the other nodes, one of 1500: what is larger is lost or cut up; lower the one or raise the other"
	problems := func(want ...string) {
		t.Helper()
		w.until(func() string {
			if got := w.status().Problems; !slices.Equal(got, want) {
				return fmt.Sprintf("problems %q, want %q", got, want)
			}
			return ""
		})
	}
	if got := attach("fits", 101, 1500); got != "" {
		t.Errorf("of one that fits: %s", got)
	}
	problems()
	if got, want := attach("large", 102, 9000), "endpoint n1/cni/large/eth0 "+has; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	problems("mtu: an endpoint " + has)
	attach("larger", 103, 9000)
	problems("mtu: 2 endpoints " + strings.Replace(has, "has an MTU of", "have MTUs of up to", 1))
	for _, c := range []string{"large", "larger"} {
		if err := w.detach(c); err != nil {
			t.Fatal(err)
		}
	}
	problems()
}

// TestMTUFollows: endpoints that asked for no MTU get what the way has room for whenever
// that changes, those that did keep theirs and are clamped, and others are told of a
// tunnel only then.
func TestMTUFollows(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapNone)
	w.start()
	w.ready()
	auto := w.mustAttach("auto", "web", 100).Link
	fixed, err := w.api.attach(t.Context(), control.AttachRequest{
		Target: control.Target{Orchestrator: "cni", Workload: "fixed", Interface: "eth0"}, Network: "web", NetnsFD: 101, MTU: 1500,
	})
	if err != nil {
		t.Fatal(err)
	}
	is := func(wantAuto, wantFixed int, clamped, problems string) {
		t.Helper()
		w.until(func() string {
			state, rules := w.links.String(), w.nft.String()
			for link, want := range map[string]int{auto: wantAuto, fixed.Link: wantFixed} {
				if text := fmt.Sprintf("%s: mtu %d ", link, want); !strings.Contains(state, text) {
					return lacks(state, text)
				}
				clamp := strings.Contains(rules, fmt.Sprintf("iifname %q tcp option maxseg size set ", link))
				if want := strings.Contains(clamped, link); clamp != want {
					return fmt.Sprintf("%s clamped: %v, want %v", link, clamp, want)
				}
			}
			if routes := w.fib.String(); strings.Contains(routes, " mtu ") {
				return routes
			}
			if got := strings.Join(w.status().Problems, "\n"); (got == "") != (problems == "") || !strings.Contains(got, problems) {
				return fmt.Sprintf("problems %q, want %q", got, problems)
			}
			return ""
		})
	}
	is(1500, 1500, "", "")
	var early, wide atomic.Bool
	w.links.Fail = func(op, object string) error {
		if op == "resize" && !strings.Contains(w.fib.String(), " dev "+object+" proto netctl scope link mtu 1450") {
			wide.Store(true)
		}
		if n, err := datastore.Get[*datastore.Node](context.Background(), w.db(), "n1"); op == "resize" && (err != nil || len(n.Status.Tunnels) > 0) {
			early.Store(true)
		}
		return nil
	}
	w.encap("10.0.0.0/16", datastore.EncapVXLAN)
	w.tunnelled(datastore.TunnelVXLAN)
	is(1450, 1500, fixed.Link, "mtu: an endpoint has an MTU of 1500, and vxlan.netctl")
	if wide.Load() {
		t.Error("the host could still send larger packets when the workload's side became smaller")
	}
	if early.Load() {
		t.Error("others were told of the tunnel before endpoints had its MTU")
	}
	// It is the endpoint's from now on, whoever asks and whatever starts anew.
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.links.Fail = nil
	w.start()
	w.ready()
	is(1450, 1500, fixed.Link, "mtu: an endpoint has an MTU of 1500, and vxlan.netctl")
	if a := w.mustAttach("auto", "web", 100); a.MTU != 1450 {
		t.Errorf("attached again: MTU %d", a.MTU)
	}
	w.encap("10.0.0.0/16", datastore.EncapNone)
	is(1500, 1500, "", "") // once the tunnel has rested
	if err := w.detach("fixed"); err != nil {
		t.Fatal(err)
	}
}

// TestMTUOfTheUplink: the interface to the other nodes, and the cluster's setting, change
// the MTU of running endpoints too.
func TestMTUOfTheUplink(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapNone)
	w.start()
	w.ready()
	link := w.mustAttach("w", "web", 100).Link
	is := func(mtu int) {
		t.Helper()
		w.until(func() string { return lacks(w.links.String(), fmt.Sprintf("%s: mtu %d ", link, mtu)) })
	}
	is(1500)
	w.links.SetAddresses(kernel.Address{Prefix: netip.MustParsePrefix("192.168.99.102/24"), Subnet: netip.MustParsePrefix("192.168.99.0/24"), Link: "eth1", Index: 2, MTU: 9000})
	is(9000)
	cfg := &datastore.Config{}
	cfg.SetDefaults()
	cfg.Spec.MTU = 1400
	w.create(cfg)
	is(1400)
}

// TestMTUThatCannotFollow: an endpoint whose workload's side is out of reach keeps its
// MTU on both sides, its connections are told to use less, and status says so.
func TestMTUThatCannotFollow(t *testing.T) {
	w := newTunnelWorld(t)
	w.encap("10.0.0.0/16", datastore.EncapNone)
	w.start()
	w.ready()
	link := w.mustAttach("w", "web", 100).Link
	w.links.Fail = func(op, _ string) error {
		if op == "resize" {
			return errors.New("the namespace is out of reach")
		}
		return nil
	}
	w.encap("10.0.0.0/16", datastore.EncapIPIP)
	w.tunnelled(datastore.TunnelIPIP)
	w.until(func() string {
		return cmp.Or(lacks(w.links.String(), link+": mtu 1500 "), lacks(w.nft.String(), fmt.Sprintf("iifname %q tcp option maxseg size set 1440", link)),
			lacks(strings.Join(w.status().Problems, "\n"), "mtu: an endpoint has an MTU of 1500, and tunl0"))
	})
	// Attached anew it fits.
	if err := w.detach("w"); err != nil {
		t.Fatal(err)
	}
	if a := w.mustAttach("w", "web", 100); a.MTU != 1480 {
		t.Errorf("MTU %d", a.MTU)
	}
	w.until(func() string { return strings.Join(w.status().Problems, "\n") })
	w.until(func() string {
		if rules := w.nft.String(); strings.Contains(rules, "maxseg") {
			return rules
		}
		return ""
	})
}
