//go:build bench

package docker

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"netctl/commands/lab"
	"netctl/netdev/netlab"
)

// TestBenchDocker times `docker run --rm` on a network of netctl's beside one of Docker's own
// bridges: one after the other in turn, and 20 at once. What was asked is 1.1 and 1.0; what
// is more than a tenth over that is an error.
func TestBenchDocker(t *testing.T) {
	s := newSite(t, lab.Config{Nodes: 1})
	h := s.lab.Hosts[0]
	netlab.Must(t, h, "netctl", "pool", "add", "10.65.0.0/16")
	s.docker(h, "network", "create", "-d", "netctl", "--ipam-driver", "netctl", "ours")
	s.docker(h, "network", "create", "theirs")
	run := func(network string) time.Duration {
		began := time.Now()
		if out, failed := s.tryDocker(h, "run", "--rm", "--network", network, "bb:1", "true"); failed != nil {
			t.Error(out, failed)
		}
		return time.Since(began)
	}
	const rounds, together, bursts = 20, 20, 5
	one, many := map[string][]time.Duration{}, map[string][]time.Duration{}
	networks := []string{"ours", "theirs"}
	for range rounds {
		for _, network := range networks {
			one[network] = append(one[network], run(network))
		}
	}
	for range bursts {
		for _, network := range networks {
			began := time.Now()
			var all sync.WaitGroup
			for range together {
				all.Go(func() { run(network) })
			}
			all.Wait()
			many[network] = append(many[network], time.Since(began))
		}
	}
	for _, r := range []struct {
		what  string
		took  map[string][]time.Duration
		bound float64
	}{{fmt.Sprintf("docker run --rm, median of %d", rounds), one, 1.1}, {fmt.Sprintf("%d at once, median of %d", together, bursts), many, 1}} {
		for _, list := range r.took {
			slices.Sort(list)
		}
		ours, theirs := r.took["ours"][len(r.took["ours"])/2], r.took["theirs"][len(r.took["theirs"])/2]
		ratio := ours.Seconds() / theirs.Seconds()
		t.Logf("%-32s %7.1f ms, Docker's bridge %7.1f ms: %.2f (asked: %.2f)", r.what, 1000*ours.Seconds(), 1000*theirs.Seconds(), ratio, r.bound)
		if ratio > 1.1*r.bound {
			t.Errorf("%s: %.2f is over %.2f", r.what, ratio, r.bound)
		}
	}
}
