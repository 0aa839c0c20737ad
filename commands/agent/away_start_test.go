package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"netctl/datastore"
)

// TestStartsAwayAfterAChange: what changed just before the agent and the datastore ended
// together holds when the agent starts without it, whatever the last copy says.
func TestStartsAwayAfterAChange(t *testing.T) {
	w, s := cutWorld(t)
	copied := func() string {
		text, err := os.ReadFile(w.cfg.copyFile())
		if _, whole, readErr := datastore.ReadCopy(w.cfg.copyFile()); err != nil || readErr != nil || !whole {
			return fmt.Sprintf("no whole copy: %v, %v", err, readErr)
		}
		return string(text)
	}
	w.until(func() string {
		if text := copied(); !strings.HasPrefix(text, "{") {
			return text
		}
		return ""
	})
	a := w.mustAttach("c2", "web", 102)
	if err := w.detach("c1"); err != nil {
		t.Fatal(err)
	}
	knows := func() string {
		var c1, c2 bool
		_ = w.a.loop.do(t.Context(), func() {
			c1, c2 = w.a.loop.view.Endpoint("n1/cni/c1/eth0") != nil, w.a.loop.view.Endpoint(a.Endpoint) != nil
		})
		if c1 || !c2 {
			return fmt.Sprintf("knows c1: %v, c2: %v", c1, c2)
		}
		return ""
	}
	w.until(knows)
	if text := copied(); strings.Contains(text, a.Endpoint) {
		t.Fatalf("the copy has it already, which proves nothing: %s", text)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	s.cut(true)
	w.start()
	w.until(func() string {
		if w.status().Store == "" {
			return "not away"
		}
		return knows()
	})
	w.contains("routes", w.fib.String(), a.Addresses[0].String())
	w.contains("filter", w.nft.String(), a.Link)
	s.cut(false)
	w.until(func() string { return w.status().Store })
}
