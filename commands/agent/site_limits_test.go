package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// limits sets limits of a profile and of an endpoint: each acts at once and is told of by name,
// no packet within it is lost while it changes, and nothing is left of it in the end. A
// bandwidth that comes or goes costs what is in the kernel's queue just then.
func limits(t *testing.T, s *site, from, to *netlab.Container, endpoint, link string, addr netip.Addr) {
	before := s.settled()
	queues := func() string {
		return netlab.Must(t, s.node, "sh", "-c", "tc qdisc show | grep tbf || :; ip -br link show type ifb")
	}
	profile := func(q datastore.QoSControls) {
		change(t, s, "dataman", func(p *datastore.Profile) { p.Spec.QoSControls = q })
	}
	own := func(q datastore.QoSControls) {
		t.Helper()
		if _, err := datastore.Modify(t.Context(), s.store, endpoint, func(e *datastore.Endpoint) error { e.Spec.QoSControls = q; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	held := func(rates ...string) {
		t.Helper()
		s.until(fmt.Sprint("rates of ", rates), func() string {
			text := queues()
			for _, r := range rates {
				if !strings.Contains(text, "dev "+link+" root") || !strings.Contains(text, "rate "+r) {
					return text
				}
			}
			if len(rates) == 0 {
				return text
			}
			return ""
		})
	}
	profile(datastore.QoSControls{IngressBandwidth: 400e6, EgressBandwidth: 300e6})
	held("400Mbit", "300Mbit")
	s.across("rates change, limits come, change and go", from, to, addr, func() {
		own(datastore.QoSControls{IngressBandwidth: 200e6})
		held("400Mbit", "200Mbit", "300Mbit")
		own(datastore.QoSControls{IngressBandwidth: 500e6, IngressPacketRate: 1e6, EgressMaxConnections: 1000})
		s.has("limits", "limit rate 1000000/second", "ct count 1000")
		profile(datastore.QoSControls{IngressBandwidth: 300e6, EgressBandwidth: 300e6, EgressPacketRate: 2e6})
		held("300Mbit")
		own(datastore.QoSControls{IngressBandwidth: 500e6, EgressMaxConnections: 900})
		s.has("limits", "limit rate 2000000/second", "ct count 900")
		own(datastore.QoSControls{})
	})
	profile(datastore.QoSControls{})
	held()
	own(datastore.QoSControls{IngressPacketRate: 20})
	flood, err := netlab.StartFlood(from, addr, time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	s.until("the limit is named", func() string {
		for _, l := range s.status().Limited {
			if l.Endpoint == endpoint && l.Limit == "ingressPacketRate" && l.Value == 20 && l.Packets > 0 {
				return ""
			}
		}
		return fmt.Sprint(s.status().Limited)
	})
	flood.Stop()
	own(datastore.QoSControls{})
	s.until("as before", func() string { return differ(before, s.kernel()) })
	if got := s.status().Limited; len(got) > 0 {
		t.Errorf("still told: %v", got)
	}
}
