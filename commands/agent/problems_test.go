package agent

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"netctl/datastore"
)

// said is a log that is read while it is written.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

// problems are the lines of problems that came and went, each said as often.
func (s *said) problems() (came, over []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.text.String()) {
		_, what, _ := strings.Cut(strings.TrimSpace(line), " what=")
		switch {
		case strings.Contains(line, " msg=problem "):
			came = append(came, what)
		case strings.Contains(line, ` msg="problem is over" `):
			over = append(over, what)
		}
	}
	return came, over
}

// TestProblemsComeAndGo: whatever is among the problems is told when it comes and when it
// goes, once.
func TestProblemsComeAndGo(t *testing.T) {
	w := newWorld(t)
	log := &said{}
	w.log = slog.New(slog.NewTextHandler(log, nil))
	w.pool("10.0.0.0/24")
	w.start()
	a := w.mustAttach("c1", "web", 101, "10.0.0.7")
	key := datastore.KindPrefix(datastore.KindEndpoint) + "n1/a/b/c"
	put := func(value []byte) {
		t.Helper()
		if _, err := w.store.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: key, Value: value}}}); err != nil {
			t.Fatal(err)
		}
		w.settled()
	}
	overlapped := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.MustParsePrefix("192.168.99.64/26"), Affinity: "n2"}}
	overlapped.SetDefaults()
	put([]byte("{}"))
	w.create(overlapped)
	w.settled()
	for range 2 {
		if p := w.status().Problems; len(p) != 2 {
			t.Fatalf("problems: %q", p)
		}
	}
	came, over := log.problems()
	if len(came) != 2 || len(over) != 0 || !strings.Contains(strings.Join(came, ""), key+" cause=") || !strings.Contains(strings.Join(came, ""), "block 192.168.99.64/26 of node n2") {
		t.Errorf("came: %q, over: %q", came, over)
	}
	put(nil)
	if err := datastore.Delete(t.Context(), w.store, overlapped); err != nil {
		t.Fatal(err)
	}
	w.settled()
	if p := w.status().Problems; len(p) != 0 {
		t.Fatalf("problems of %s: %q", a.Endpoint, p)
	}
	came, over = log.problems()
	if len(came) != 2 || len(over) != 2 || !strings.Contains(strings.Join(over, ""), key+" was=") || !strings.Contains(strings.Join(over, ""), "block 192.168.99.64/26 of node n2") {
		t.Errorf("came: %q, over: %q", came, over)
	}
}
