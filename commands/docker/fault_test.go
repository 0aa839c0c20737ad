package docker

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
)

// faultSeeds are those that once found a fault, or that are looked at each time.
func faultSeeds() []uint64 { return []uint64{1, 7, 20101, 424242} }

// TestFaults makes 500 calls for each seed as a Docker that dies, repeats itself and
// loses answers does, to a plugin that is killed and an agent that comes and goes: no
// two interfaces of a sandbox ever have one gateway, and when Docker has released
// everything nothing is remembered.
func TestFaults(t *testing.T) {
	for _, seed := range faultSeeds() {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { faults(t, rand.New(rand.NewPCG(seed, 1))) })
	}
}

func faults(t *testing.T, rng *rand.Rand) {
	r := newRig(t)
	networks := []string{"6a2b7979b2de", "23e7aa6f4a97"}
	for i, id := range networks {
		r.call("/NetworkDriver.CreateNetwork", fmt.Sprintf(`{"NetworkID":%q,"IPv4Data":[{"AddressSpace":"netctl-local","Gateway":"0.1.2.%d/0","Pool":"0.0.0.0/0"}]}`, id, i+1))
	}
	r.until(`network {"name":"web"`, `network {"name":"net2"`)
	endpoints := []string{"e0", "e1", "e2", "e3", "e4", "e5"}
	for range 500 {
		n, e := rng.IntN(len(endpoints)), networks[rng.IntN(2)]
		id := fmt.Sprintf(`"NetworkID":%q,"EndpointID":%q`, e, endpoints[n])
		call := []func(){
			func() {
				r.call("/NetworkDriver.CreateEndpoint", fmt.Sprintf(`{%s,"Interface":{"Address":"10.0.0.%d/32"}}`, id, n+1))
			},
			func() {
				r.call("/NetworkDriver.Join", fmt.Sprintf(`{%s,"SandboxKey":"/run/docker/netns/%d"}`, id, rng.IntN(3)))
			},
			func() { r.call("/NetworkDriver.Leave", "{"+id+"}") },
			func() {
				r.call("/NetworkDriver.ProgramExternalConnectivity", fmt.Sprintf(`{%s,"Options":{"com.docker.network.portmap":[{"Proto":132,"Port":80,"HostPort":%d}]}}`, id, 1000+n))
			},
			func() { r.call("/NetworkDriver.RevokeExternalConnectivity", "{"+id+"}") },
			func() { r.call("/NetworkDriver.DeleteEndpoint", "{"+id+"}") },
		}[rng.IntN(6)]
		call()
		switch rng.IntN(12) {
		case 0:
			call() // its answer was lost
		case 1:
			r.start() // it was killed
		case 2:
			r.mu.Lock()
			r.away = []string{"", "away"}[rng.IntN(2)]
			r.mu.Unlock()
		}
		seen := map[string]string{}
		for _, e := range r.plugin.state.allEndpoints(func(e endpoint) bool { return e.Sandbox != "" }) {
			key := e.Sandbox + " " + e.Gateway.String()
			if other := seen[key]; other != "" {
				t.Fatalf("%s and %s have the gateway %s", e.ID, other, key)
			}
			seen[key] = e.ID
		}
	}
	for _, id := range endpoints {
		if got := r.call("/NetworkDriver.DeleteEndpoint", fmt.Sprintf(`{"EndpointID":%q}`, id)); got != "{}" {
			t.Errorf("%s: %s", id, got)
		}
	}
	for _, id := range networks {
		r.call("/NetworkDriver.DeleteNetwork", fmt.Sprintf(`{"NetworkID":%q}`, id))
	}
	r.stop()
	r.stop = func() {}
	for _, dir := range []string{r.cfg.StateDir, r.cfg.RunDir} {
		if left, _ := filepath.Glob(filepath.Join(dir, "docker", "*.json")); len(left) > 0 {
			t.Errorf("left over: %s", strings.Join(left, " "))
		}
	}
}
