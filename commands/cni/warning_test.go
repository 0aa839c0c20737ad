package cni

import (
	"strings"
	"testing"
)

// TestWarningOfAnAttach goes to the runtime's log and not into the result.
func TestWarningOfAnAttach(t *testing.T) {
	f := newFake(t)
	f.warning = "too large"
	code, stdout, stderr := f.run(addEnv("ADD"), plain)
	if code != 0 || strings.Contains(stdout, f.warning) || strings.TrimSpace(stderr) != "netctl 1.2.3: too large" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}
