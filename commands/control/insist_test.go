package control

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTheCauseStays: that the caller's time ends while it asks once more does not hide
// why nobody answered.
func TestTheCauseStays(t *testing.T) {
	dir := t.TempDir()
	c := NewAgentClient(filepath.Join(dir, "agent.sock")).Waiting(time.Minute)
	if err := os.WriteFile(filepath.Join(dir, "etcd.sock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(time.Hour))
	defer cancel()
	late, end := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer end()
	asked := 0
	err := c.insist(ctx, func() error {
		if asked++; asked == 1 {
			return c.call(ctx, "GET", "/", nil, nil)
		}
		cancel()
		return c.call(late, "GET", "/", nil, nil)
	})
	if asked < 2 || err == nil || !strings.Contains(err.Error(), "agent not running") {
		t.Errorf("asked %d times: %v", asked, err)
	}
}
