package fib

import (
	"context"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"netctl/routing"
)

func neighbourOf(gateway, remote, mac string) routing.Neighbour {
	return routing.Neighbour{Link: "vx", Gateway: netip.MustParseAddr(gateway), Remote: netip.MustParseAddr(remote), MAC: mac}
}

func bridge(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("bridge", "fdb", "show", "dev", "vx").CombinedOutput()
	if err != nil {
		t.Fatalf("bridge fdb: %v\n%s", err, out)
	}
	return string(out)
}

// entries are the permanent ones of vx: next hop and hardware address, and where that is.
func entries(t *testing.T) []string {
	t.Helper()
	var list []string
	for _, l := range strings.Split(ip(t, "-4 neigh show dev vx nud permanent")+ip(t, "-6 neigh show dev vx nud permanent"), "\n") {
		if f := strings.Fields(l); len(f) > 2 {
			list = append(list, f[0]+" "+f[2])
		}
	}
	for _, l := range strings.Split(bridge(t), "\n") {
		if f := strings.Fields(l); len(f) > 2 {
			list = append(list, f[0]+" "+f[2])
		}
	}
	slices.Sort(list)
	return list
}

// TestNeighbours: what a tunnel's device knows of other nodes is what is wanted, also
// after it went and came back; what others have on other devices is left alone.
func TestNeighbours(t *testing.T) {
	namespace(t)
	ip(t, "neigh add 10.9.0.7 lladdr 02:00:00:00:00:07 dev va nud permanent")
	add := func() { ip(t, "link add vx up type vxlan id 1 local 10.9.0.1 dstport 4789 nolearning") }
	add()
	table := open(t, 88)
	set := func(list ...routing.Neighbour) {
		t.Helper()
		if err := table.SetNeighbours(t.Context(), []string{"vx", "absent"}, list); err != nil {
			t.Fatal(err)
		}
	}
	want := func(list ...string) {
		t.Helper()
		if got := entries(t); !slices.Equal(got, list) {
			t.Fatalf("entries %q, want %q", got, list)
		}
	}
	a := neighbourOf("10.8.0.2", "10.8.0.2", "02:00:00:00:00:02")
	a6 := neighbourOf("fe80::2", "10.8.0.2", "02:00:00:00:00:02")
	b := neighbourOf("10.8.0.3", "10.8.0.3", "02:00:00:00:00:03")
	set(a, a6, b)
	all := []string{"02:00:00:00:00:02 10.8.0.2", "02:00:00:00:00:03 10.8.0.3", "10.8.0.2 02:00:00:00:00:02", "10.8.0.3 02:00:00:00:00:03", "fe80::2 02:00:00:00:00:02"}
	want(all...)
	b.Remote, b.MAC = netip.MustParseAddr("10.8.0.33"), "02:00:00:00:00:33"
	a.Remote, a6.Remote = netip.MustParseAddr("10.8.0.22"), netip.MustParseAddr("10.8.0.22")
	set(a, a6, b)
	want("02:00:00:00:00:02 10.8.0.22", "02:00:00:00:00:33 10.8.0.33", "10.8.0.2 02:00:00:00:00:02", "10.8.0.3 02:00:00:00:00:33", "fe80::2 02:00:00:00:00:02")
	set(a)
	want("02:00:00:00:00:02 10.8.0.22", "10.8.0.2 02:00:00:00:00:02")
	// A route by the tunnel comes back after what it needs, when the device does.
	hop := routing.NextHop{Addr: a.Gateway, Link: "vx", Onlink: true}
	r := routing.Route{Prefix: netip.MustParsePrefix("10.65.0.0/26"), NextHops: []routing.NextHop{hop}, Metric: 32}
	hop6 := routing.NextHop{Addr: a6.Gateway, Link: "vx", Onlink: true}
	r6 := routing.Route{Prefix: netip.MustParsePrefix("fd80::/122"), NextHops: []routing.NextHop{hop6}, Metric: 1056}
	if err := table.Apply(t.Context(), routing.Changes{Put: []routing.Route{r, r6}}); err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	ended, heard := make(chan error, 1), make(chan struct{}, 100)
	go func() { ended <- table.Watch(ctx, Ignore{}, func(Event) { heard <- struct{}{} }) }()
	<-heard
	ip(t, "link del vx")
	add()
	eventually(t, "the routes", func() bool {
		return strings.Contains(ip(t, "route show 10.65.0.0/26"), "via 10.8.0.2 dev vx") && strings.Contains(ip(t, "-6 route show fd80::/122"), "via fe80::2 dev vx")
	})
	if have, err := table.Routes(t.Context()); err != nil || len(have) != 2 || !have[0].Equal(r) || !have[1].Equal(r6) {
		t.Errorf("routes %v, %v", have, err)
	}
	want("02:00:00:00:00:02 10.8.0.22", "10.8.0.2 02:00:00:00:00:02")
	ip(t, "neigh flush dev vx nud permanent")
	if _, err := table.Compare(t.Context()); err != nil {
		t.Fatal(err)
	}
	want("02:00:00:00:00:02 10.8.0.22", "10.8.0.2 02:00:00:00:00:02")
	set()
	want()
	if other := ip(t, "neigh show dev va nud permanent"); !strings.Contains(other, "10.9.0.7") {
		t.Errorf("another device's: %q", other)
	}
	end()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

// FuzzNeighbour: whatever a message holds is read without a panic.
func FuzzNeighbour(f *testing.F) {
	k := neighbour{hop: netip.MustParseAddr("10.8.0.2")}
	f.Add(k.message(3, "\x02\x00\x00\x00\x00\x02"), uint8(2))
	f.Add(neighbour{mac: "\x02\x00\x00\x00\x00\x02"}.message(3, "\x0a\x08\x00\x02"), uint8(7))
	f.Fuzz(func(t *testing.T, b []byte, fam uint8) {
		if k, _, ok := parseNeighbour(b, fam, 3); ok && k.hop.IsValid() == (len(k.mac) > 0) {
			t.Errorf("neighbour %+v", k)
		}
	})
}
