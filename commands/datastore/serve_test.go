//go:build !bundled

package datastore_test

import (
	"os"
	"path/filepath"
	"testing"
)

// TestNameInProcessLists: whatever the file was called that this was started from, all of
// the server's threads are netctl.
func TestNameInProcessLists(t *testing.T) {
	defer run(t, config(t))()
	threads, err := filepath.Glob("/proc/self/task/*/comm")
	if err != nil || len(threads) < 2 {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, file := range threads {
		if is, err := os.ReadFile(file); err == nil && string(is) != "netctl\n" {
			t.Errorf("%s: %s", file, is)
		}
	}
}
