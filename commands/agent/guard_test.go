package agent

import (
	"os"
	"path/filepath"
	"testing"
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
