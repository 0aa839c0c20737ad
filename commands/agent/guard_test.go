package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev"
)

func TestGuarded(t *testing.T) {
	for _, c := range []struct {
		backend string
		wired   bool
		want    bool
	}{
		{backendNFT, true, true}, {backendNFT, false, false}, {"iptables-nft", true, false}, {"", true, false},
	} {
		cfg := Config{RunDir: t.TempDir()}
		if c.backend != "" {
			if err := os.WriteFile(cfg.backendFile(), []byte(c.backend), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c.wired {
			if err := os.MkdirAll(cfg.recordsDir(), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(cfg.recordsDir(), "x.json"), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := cfg.guarded(); got != c.want {
			t.Errorf("%q, endpoints %v: %v", c.backend, c.wired, got)
		}
	}
}

// TestStaticKnowsWhatIsAdopted: a packet filter that is closed is so for interfaces of others
// that are endpoints.
func TestStaticKnowsWhatIsAdopted(t *testing.T) {
	cfg := Config{RunDir: t.TempDir(), LinkPrefix: "nc", Gateway: netip.MustParseAddr("169.254.1.1"), Adopt: []netdev.Adoption{{}}}
	for link, orchestrator := range map[string]string{"vnet0": datastore.OrchestratorAdopted, "nc1": "cni"} {
		ep := &datastore.Endpoint{Metadata: datastore.Metadata{Name: "n1/" + orchestrator + "/w/eth0"}}
		ep.Spec = datastore.EndpointSpec{Node: "n1", Orchestrator: orchestrator, Workload: "w", Interface: "eth0", Network: "web", Link: link}
		ep.SetDefaults()
		rec := &workload.Record{Endpoint: ep}
		if err := workload.NewRecords(cfg.recordsDir()).Put(rec); err != nil {
			t.Fatal(err)
		}
	}
	if text := cfg.static().Shut().String(); !strings.Contains(text, `elements = { "vnet0" }`) {
		t.Errorf("closed is:\n%s", text)
	}
}
