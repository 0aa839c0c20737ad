package nft

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"netctl/acl"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestLimits sends real packets over each limit: what is within passes, what is over is dropped
// and counted, and nobody else is held up, of both families. Other limits and none are set
// while an established flow goes on.
func TestLimits(t *testing.T) { onEach(t, testLimits) }

func testLimits(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	limit := func(q datastore.QoSControls) {
		t.Helper()
		e := endpoint("n1", "n1/cni/b/eth0", "ncb", []string{"web"}, "10.0.0.2", "fd00::2")
		e.New.(*datastore.Endpoint).Spec.QoSControls = q
		x.Apply(e)
		l.apply(x.Flush())
		if wrote, err := l.filter.Sync(t.Context(), l.rules); wrote || err != nil {
			t.Fatalf("what is read back is not what was written: %v, %v", wrote, err)
		}
	}
	dropped := func(name string) (n uint64) {
		t.Helper()
		for _, limit := range x.Limits() {
			if limit.Name == name {
				var err error
				if n, err = l.filter.Dropped(t.Context(), limit.Chain); err != nil {
					t.Fatal(err)
				}
			}
		}
		return n
	}
	type ends [2]string
	in, out := []ends{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}}, []ends{{"10.0.0.2", "192.0.2.9"}, {"fd00::2", "2001:db8::9"}}
	over := func(name string, least, most uint64) {
		t.Helper()
		netlab.Until(t, 10*time.Second, name, func() string {
			if n := dropped(name); n < least || n > most {
				return fmt.Sprintf("%d packets were over it", n)
			}
			return ""
		})
	}
	begin := func(want bool, from string, e ends) acl.Packet {
		t.Helper()
		p := l.uniquePort(udp(e[0], e[1], 7))
		l.expect(want, from, p)
		return p
	}
	for _, c := range []struct {
		name, from string
		ends       []ends
		set        func(q *datastore.QoSControls, to uint32)
	}{
		{"ingressMaxConnections", "a", in, func(q *datastore.QoSControls, n uint32) { q.IngressMaxConnections = n }},
		{"egressMaxConnections", "b", out, func(q *datastore.QoSControls, n uint32) { q.EgressMaxConnections = n }},
	} {
		limit(datastore.QoSControls{})
		old := begin(true, c.from, c.ends[0])
		var q datastore.QoSControls
		if c.set(&q, 2); l.on != onNFT { // iptables counts each family for itself
			c.set(&q, 1)
		}
		limit(q)
		first := begin(true, c.from, c.ends[0])
		begin(true, c.from, c.ends[1])
		for i := range 2 {
			l.transmit(l.hosts[c.from], l.uniquePort(udp(c.ends[i][0], c.ends[i][1], 7)), 0)
			over(c.name, uint64(i+1), uint64(i+1))
		}
		for _, p := range []acl.Packet{old, first} { // go on
			p.State = acl.Established
			l.expect(true, c.from, p)
		}
		begin(true, "a", ends{"10.0.0.1", "192.0.2.9"})
		c.set(&q, 100)
		limit(q)
		begin(true, c.from, c.ends[0])
	}
	for _, c := range []struct {
		name, from string
		ends       []ends
		q          datastore.QoSControls
	}{
		{"ingressNewConnections", "a", in, datastore.QoSControls{IngressNewConnections: 1}},
		{"egressNewConnections", "b", out, datastore.QoSControls{EgressNewConnections: 1}},
		{"ingressPacketRate", "a", in, datastore.QoSControls{IngressPacketRate: 1, IngressPacketBurst: 5}},
		{"egressPacketRate", "b", out, datastore.QoSControls{EgressPacketRate: 1, EgressPacketBurst: 5}},
	} {
		limit(datastore.QoSControls{})
		limit(c.q)
		const sent = 60
		for i := range sent {
			p := udp(c.ends[i%2][0], c.ends[i%2][1], 7)
			p.SrcPort = uint16(40000 + i)
			l.transmit(l.hosts[c.from], p, 0)
		}
		over(c.name, 1, sent-5)
		begin(true, "a", ends{"10.0.0.1", "192.0.2.9"})
	}
	l.list()
	limit(datastore.QoSControls{})
	if text := l.listed(); strings.Contains(text, "limit_") || strings.Contains(text, "limits_") {
		t.Errorf("limits that are gone left\n%s", text)
	}
}
