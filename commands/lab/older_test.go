package lab

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/netdev/netlab"
)

// TestOlder: nodes of the netctl of the last tag and of this one are in one cluster, whoever
// has the datastore, and each goes over to this one. What the older one cannot understand it
// goes on without. No packet is lost.
func TestOlder(t *testing.T) {
	older := netlab.Older(t)
	l := bareHosts(t, 2)
	n1, n2 := l.Hosts[0], l.Hosts[1]
	for _, h := range l.Hosts {
		if err := h.Becomes(older); err != nil {
			t.Fatal(err)
		}
	}
	token := found(t, n1)
	starts(t, n1)
	netlab.Must(t, n2, "netctl", "join", token)
	starts(t, n2)
	sound(t, n1, n2)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	a, a4, _ := attach(t, n1, "a", "web")
	b, b4, _ := attach(t, n2, "b", "web")
	var floods []*netlab.Flood
	for _, way := range []struct {
		from *netlab.Container
		to   netip.Addr
	}{{a, b4}, {b, a4}} {
		pings(t, way.from, way.to)
		f, err := netlab.StartFlood(way.from, way.to, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		floods = append(floods, f)
	}
	for i, h := range []*netlab.Host{n2, n1} {
		ends(t, h)
		if err := h.Becomes(netlab.Binary(t)); err != nil {
			t.Fatal(err)
		}
		starts(t, h)
		sound(t, n1, n2)
		for j, on := range l.Hosts {
			c, _, _ := attach(t, on, fmt.Sprintf("c%d%d", i, j), "web")
			pings(t, c, a4)
			pings(t, c, b4)
		}
		if h == n2 {
			newerObject(t, n1, n2, func() {
				pings(t, a, b4)
				pings(t, b, a4)
			})
		}
	}
	for i, f := range floods {
		if r := f.Stop(); len(r.Lost) > 0 {
			t.Errorf("flood %d: %s", i, r)
		} else {
			t.Logf("flood %d: %s", i, r)
		}
	}
}

// newerObject writes the profile of what runs as a version to come would: nobody here
// understands it, all say so and go on with what they understood last.
func newerObject(t *testing.T, n1, n2 *netlab.Host, passes func()) {
	t.Helper()
	at, err := datastore.Key(datastore.KindProfile, "web")
	if err != nil {
		t.Fatal(err)
	}
	s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"unix://" + n1.Path("/run/netctl-node/etcd.sock")}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	was, err := s.Get(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	put := func(value []byte) {
		t.Helper()
		if _, err := s.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: at, Value: value}}}); err != nil {
			t.Fatal(err)
		}
	}
	put([]byte(`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"web","needs":999},"spec":{"inbound":["deny by horoscope"]}}`))
	for _, h := range []*netlab.Host{n1, n2} {
		netlab.Until(t, patience, h.Name+" says what it does not understand", func() string {
			out, failed := netlab.Try(t, h, "netctl", "status")
			if failed == nil || !strings.Contains(out, "profile web") && !strings.Contains(out, "profiles/web") {
				return out
			}
			return ""
		})
	}
	passes()
	put(was.Value)
	sound(t, n1, n2)
}
