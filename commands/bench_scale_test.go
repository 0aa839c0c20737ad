//go:build bench

package commands_test

import (
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

// TestBenchScale measures what grows with the cluster: labs of 10, 60 and 100 nodes,
// a new block in 60, and an ADD with the datastore elsewhere and with 600 endpoints
// on the node.
func TestBenchScale(t *testing.T) {
	var rows []row
	took := map[int]float64{}
	for _, n := range []int{10, 60, 100} {
		t.Run(fmt.Sprint("lab of ", n), func(t *testing.T) {
			began := time.Now()
			l := labOf(t, n)
			took[n] = time.Since(began).Seconds()
			if n == 60 {
				rows = append(rows, newBlockRows(t, l)...)
			}
		})
	}
	rows = append([]row{
		{"lab up --nodes 10 until healthy", took[10], 3, "s", "limit", 1},
		{"lab up --nodes 60 until healthy", took[60], 12, "s", "limit", 1},
		{"lab up --nodes 100 until healthy", took[100], 30, "s", "limit", 1},
	}, rows...)
	t.Run("attach", func(t *testing.T) {
		l := upLab(t, 2)
		h := l.Hosts[1] // the datastore is on the first, behind TLS
		add := func(name string) (r row) {
			t.Run(name, func(t *testing.T) { r = attachRows(t, h)[0] })
			return r
		}
		far, few := add("far"), add("few")
		far.what, far.bound = "CNI ADD, datastore on another node", 1.3
		for i := range 600 {
			netlab.Attached(t, h, fmt.Sprint("many", i), "bench", "")
		}
		many := add("many")
		rows = append(rows, far, row{"CNI ADD with 600 endpoints on the node", many.measured, few.measured, "ms", "with none", 1.1})
	})
	report(t, rows)
}

func labOf(t *testing.T, nodes int) *netlab.Lab {
	t.Helper()
	l, err := lab.Up(t.Context(), lab.Config{
		Dir: filepath.Join(t.TempDir(), "lab"), Nodes: nodes, Subnets: 1, Binary: netlab.Binary(t), OneProcess: true,
	}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Remove(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// newBlockRows has one node claim a block, and measures what that costs all roles of
// all nodes and when it is in every kernel.
func newBlockRows(t *testing.T, l *netlab.Lab) []row {
	netlab.Must(t, l.Hosts[0], "netctl", "pool", "add", "10.65.0.0/16")
	pause(t.Context(), 10*time.Second) // the first reports are written
	var pids []int
	for _, h := range l.Hosts {
		pids = append(pids, processesIn(t, h)...)
	}
	arrivals := watchBlock(t, l.Hosts[1:])
	_, before := usage(t, pids)
	netlab.Attached(t, l.Hosts[0], "one", "bench", "")
	first, last := arrivals()
	pause(t.Context(), 2*time.Second) // what follows from it
	_, after := usage(t, pids)
	return []row{
		{"one new block in 60 nodes: CPU of all roles", float64((after - before).Milliseconds()), 600, "ms", "limit", 1},
		{"  in the last kernel after the first", float64(last.Sub(first).Microseconds()) / 1000, 100, "ms", "limit", 1},
	}
}

// watchBlock returns a function that waits until every host's kernel has a route of
// the speaker's, and says when the first and the last had it.
func watchBlock(t *testing.T, hosts []*netlab.Host) func() (first, last time.Time) {
	t.Helper()
	var mu sync.Mutex
	at := map[string]time.Time{}
	all := make(chan struct{})
	pool := netip.MustParsePrefix("10.65.0.0/16")
	for _, h := range hosts {
		ns, err := netns.GetFromPath(h.NetnsPath())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ns.Close() })
		updates, done := make(chan netlink.RouteUpdate, 100), make(chan struct{})
		t.Cleanup(func() { close(done) })
		if err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{Namespace: &ns}); err != nil {
			t.Fatal(err)
		}
		go func() {
			for u := range updates {
				if u.Dst == nil {
					continue
				}
				if a, ok := netip.AddrFromSlice(u.Dst.IP); !ok || !pool.Contains(a.Unmap()) {
					continue
				}
				mu.Lock()
				if _, had := at[h.Name]; !had {
					if at[h.Name] = time.Now(); len(at) == len(hosts) {
						close(all)
					}
				}
				mu.Unlock()
			}
		}()
	}
	return func() (first, last time.Time) {
		select {
		case <-all:
		case <-time.After(time.Minute):
			t.Fatal("the block is not everywhere")
		}
		for _, when := range at {
			if first.IsZero() || when.Before(first) {
				first = when
			}
			if when.After(last) {
				last = when
			}
		}
		return first, last
	}
}
