//go:build bench

package commands_test

import (
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"netctl/commands/control"
	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

// TestBenchScale measures what grows with the cluster: labs of 10, 60 and 100 nodes,
// a new block in 60 behind two reflectors and in two, and an ADD with the datastore
// elsewhere.
func TestBenchScale(t *testing.T) {
	var rows []row
	took := map[int]float64{}
	for _, n := range []int{10, 60, 100} {
		t.Run(fmt.Sprint("lab of ", n), func(t *testing.T) {
			began := time.Now()
			l := labOf(t, n)
			took[n] = time.Since(began).Seconds()
			if n == 60 {
				rows = append(rows, sessionsRow(t, l))
				rows = append(rows, newBlockRows(t, l)...)
			}
		})
	}
	rows = append([]row{
		{"lab up --nodes 10 until healthy", took[10], 3, "s", "limit", 1},
		{"lab up --nodes 60 until healthy", took[60], 12, "s", "limit", 1},
		{"lab up --nodes 100 until healthy", took[100], 30, "s", "limit", 1},
	}, rows...)
	t.Run("new blocks of 2", func(t *testing.T) { rows = append(rows, newBlocksRow(t, upLab(t, 2))) })
	t.Run("attach", func(t *testing.T) {
		l := upLab(t, 2)
		h := l.Hosts[1] // the datastore is on the first, behind TLS
		far := attachRows(t, h)[0]
		far.what, far.bound = "CNI ADD, datastore on another node", 1.3
		rows = append(rows, far)
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
	arrivals := watchBlocks(t, l.Hosts)
	_, before := usage(t, pids)
	netlab.Attached(t, l.Hosts[0], "one", "bench", "")
	took := arrivals(1)[0]
	pause(t.Context(), 2*time.Second) // what follows from it
	_, after := usage(t, pids)
	return []row{
		{"one new block in 60 nodes: CPU of all roles", float64((after - before).Milliseconds()), 600, "ms", "limit", 1},
		{"  from its node's kernel to the last one's", float64(took.Microseconds()) / 1000, 150, "ms", "limit", 1},
	}
}

// newBlocksRow has one of two nodes claim block after block.
func newBlocksRow(t *testing.T, l *netlab.Lab) row {
	const blocks = 200
	arrivals := watchBlocks(t, l.Hosts)
	for i := range blocks {
		netlab.Attached(t, l.Hosts[0], fmt.Sprint("b", i), "bench", fmt.Sprintf("IP=10.65.%d.1", i))
	}
	took := arrivals(blocks)
	slices.Sort(took)
	t.Logf("new blocks: p50 %v, p90 %v, p95 %v, p99 %v, longest %v", took[blocks/2-1], took[blocks*90/100-1], took[blocks*95/100-1], took[blocks*99/100-1], took[blocks-1])
	return row{"new block, from its node's kernel to another's, p99", float64(took[blocks*99/100-1].Microseconds()) / 1000, 10, "ms", "limit", 1}
}

// sessionsRow is the largest number of sessions of a node that is no reflector.
func sessionsRow(t *testing.T, l *netlab.Lab) row {
	most, reflectors := 0, 0
	for _, h := range l.Hosts {
		s, err := control.NewSpeakerClient(h.Path("/run/netctl-node/speaker.sock")).Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(s.Sessions, func(s control.Session) bool { return s.Type == "client" }) {
			reflectors++
		} else {
			most = max(most, len(s.Sessions))
		}
	}
	if reflectors != 2 {
		t.Errorf("%d reflectors", reflectors)
	}
	return row{fmt.Sprintf("sessions of a node of %d", len(l.Hosts)), float64(most), 2, "", "limit", 1}
}

// watchBlocks returns a function that waits until so many prefixes of the pool are in
// the kernels of all hosts, and says how long each took from the first host's, whose
// blocks they are, to the last one's.
func watchBlocks(t *testing.T, hosts []*netlab.Host) func(blocks int) []time.Duration {
	t.Helper()
	type arrival struct {
		block netip.Prefix
		host  *netlab.Host
		at    time.Time
	}
	arrivals := make(chan arrival, 1000)
	pool := netip.MustParsePrefix("10.65.0.0/16")
	for _, h := range hosts {
		ns, err := netns.GetFromPath(h.NetnsPath())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ns.Close() })
		updates, done := make(chan netlink.RouteUpdate, 1000), make(chan struct{})
		t.Cleanup(func() { close(done) })
		if err := netlink.RouteSubscribeWithOptions(updates, done, netlink.RouteSubscribeOptions{Namespace: &ns}); err != nil {
			t.Fatal(err)
		}
		go func() {
			for u := range updates {
				now := time.Now()
				if u.Dst == nil || u.Type != unix.RTM_NEWROUTE {
					continue
				}
				bits, _ := u.Dst.Mask.Size()
				if a, ok := netip.AddrFromSlice(u.Dst.IP); ok && pool.Contains(a.Unmap()) && bits == 26 {
					arrivals <- arrival{netip.PrefixFrom(a.Unmap(), bits), h, now}
				}
			}
		}()
	}
	return func(blocks int) (took []time.Duration) {
		own, last, seen := map[netip.Prefix]time.Time{}, map[netip.Prefix]time.Time{}, map[netip.Prefix]map[*netlab.Host]bool{}
		late := time.After(time.Minute)
		for len(took) < blocks {
			select {
			case a := <-arrivals:
				if seen[a.block] == nil {
					seen[a.block] = map[*netlab.Host]bool{}
				}
				if seen[a.block][a.host] {
					continue // written again
				}
				seen[a.block][a.host] = true
				if a.host == hosts[0] {
					own[a.block] = a.at
				}
				if a.at.After(last[a.block]) {
					last[a.block] = a.at
				}
				if len(seen[a.block]) == len(hosts) {
					took = append(took, last[a.block].Sub(own[a.block]))
				}
			case <-late:
				t.Fatalf("%d of %d blocks are everywhere", len(took), blocks)
			}
		}
		return took
	}
}
