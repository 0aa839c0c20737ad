package install_test

import (
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// TestUpgradeOlder: the netctl of the last tag goes over to this one by `netctl upgrade`,
// under a real systemd: no packet is lost, and what was there is there.
func TestUpgradeOlder(t *testing.T) {
	older := netlab.Older(t)
	m := machine(t, "n1", "192.168.99.101/24", nil)
	copyFile(t, older, filepath.Join(m.Dir, "var/older"), "")
	t.Log(m.Must(t, "/var/older", "install", "--now"))
	m.Must(t, "netctl", "pool", "add", "10.65.0.0/16")
	addr := wired(t, m, "c1")
	healthy(t, m)
	before := m.Must(t, "netctl", "endpoint", "show", "-o", "json")
	unhurt(t, m, addr, "upgrade of the last tag", func() { t.Log(m.Must(t, "/var/netctl", "upgrade", "/var/netctl")) })
	if sum := strings.Fields(m.Must(t, "sha256sum", "/usr/local/bin/netctl", "/var/netctl")); sum[0] != sum[2] {
		t.Errorf("another file is installed: %q", sum)
	}
	healthy(t, m)
	if after := m.Must(t, "netctl", "endpoint", "show", "-o", "json"); after != before {
		t.Errorf("endpoints were\n%s\nand are\n%s", before, after)
	}
	if another := wired(t, m, "c2"); another == addr {
		t.Errorf("%s was given away", addr)
	}
}
