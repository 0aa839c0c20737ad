package agent

import (
	"fmt"
	"testing"

	"netctl/datastore"
)

// TestDrained: a drained node takes no new endpoints, what it has may come again, and
// undrained it takes them.
func TestDrained(t *testing.T) {
	w := newWorld(t)
	w.pool("10.0.0.0/24")
	w.start()
	had := w.mustAttach("c1", "web", 101)
	set := func(d *datastore.Drain) {
		t.Helper()
		if _, err := datastore.Modify(t.Context(), w.store, "n1", func(n *datastore.Node) error { n.Spec.Drain = d; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	set(&datastore.Drain{Reason: "new disks"})
	tries := 0
	next := func() (string, error) {
		tries++ // what was taken before the agent knew may come again
		name := fmt.Sprintf("new%d", tries)
		_, err := w.attach(name, "web", 200+tries)
		return name, err
	}
	w.until(func() string {
		name, err := next()
		if want := "attach " + name + ": node n1 takes no new endpoints, it is drained: new disks; `netctl node undrain n1` ends that"; err == nil || err.Error() != want {
			return fmt.Sprint(err)
		}
		return ""
	})
	if again := w.mustAttach("c1", "web", 101); again.Link != had.Link {
		t.Errorf("attached again: %+v", again)
	}
	set(nil)
	w.until(func() string {
		if _, err := next(); err != nil {
			return err.Error()
		}
		return ""
	})
}
