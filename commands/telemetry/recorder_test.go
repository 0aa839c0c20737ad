package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"netctl/datastore"
)

// rig is a recorder with a logger that writes into out.
type rig struct {
	*recorder
	log *slog.Logger
	out bytes.Buffer
	dir string
}

func newRig(dir string, level slog.Level) *rig {
	g := &rig{dir: dir}
	inner := slog.New(slog.NewTextHandler(&g.out, &slog.HandlerOptions{Level: level})).With("role", "agent")
	g.recorder = newRecorder(dir, "n1", "agent", inner)
	g.log = g.logger(inner)
	return g
}

func (g *rig) events(t *testing.T) []datastore.Event {
	t.Helper()
	g.flush()
	list, err := Events(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestEventsAreLogRecords(t *testing.T) {
	g := newRig(t.TempDir(), slog.LevelInfo)
	g.log.Info("routes put back", "routes", 3, datastore.Drift(datastore.DriftRoute))
	g.log.With("peer", "192.0.2.1").Warn("session is not up", "reason", errors.New("a\nb"), "hold", 90*time.Second, datastore.EventSession.Mark())
	g.log.Info("agent listens", "socket", "x")
	g.log.Debug("left out", datastore.EventRole.Mark())
	want := "level=INFO msg=\"routes put back\" role=agent routes=3\n"
	if text := g.out.String(); !strings.Contains(text, want) || strings.Contains(text, "drift") || strings.Contains(text, "session=") || !strings.Contains(text, "agent listens") {
		t.Errorf("log:\n%s", text)
	}
	list := g.events(t)
	if len(list) != 2 {
		t.Fatalf("events: %+v", list)
	}
	if e := list[0]; e.Kind != datastore.EventDrift || e.Node != "n1" || e.Role != "agent" || e.Level != "info" || e.Number != 1 || e.Words() != "routes put back (routes 3)" {
		t.Errorf("%+v", e)
	}
	if e := list[1]; e.Object != "192.0.2.1" || e.Level != "warn" || e.Words() != "session is not up: a b (hold 1m30s)" {
		t.Errorf("%+v", e)
	}
	p := NewPage()
	p.Counts("netctl_repairs_total", &g.repairs)
	p.Counts("netctl_events_total", &g.counts)
	text, err := p.Text()
	for _, want := range []string{`netctl_repairs_total{what="route"} 1`, `netctl_repairs_total{what="link"} 0`, `netctl_events_total{kind="session"} 1`, `netctl_events_total{kind="leak"} 0`} {
		if err != nil || !strings.Contains(string(text), want+"\n") {
			t.Errorf("no %s: %v\n%s", want, err, text)
		}
	}
}

// TestEventsWhateverIsLogged: with the log at errors alone events are kept all the same.
func TestEventsWhateverIsLogged(t *testing.T) {
	g := newRig(t.TempDir(), slog.LevelError)
	g.log.Info("endpoint attached", "endpoint", "n1/cni/a/eth0", datastore.EventEndpoint.Mark())
	if list := g.events(t); len(list) != 1 || g.out.Len() > 0 {
		t.Errorf("%+v, log %q", list, g.out.String())
	}
}

// TestEventsAreBounded: their number, the file, and each text, also of many at once.
func TestEventsAreBounded(t *testing.T) {
	g := newRig(t.TempDir(), slog.LevelError)
	long := strings.Repeat("ü", 500)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range mostLines {
				g.log.Info("endpoint attached", "endpoint", fmt.Sprint(i, "/", j), "cause", long, "detail", long, datastore.EventEndpoint.Mark())
				if j%200 == 0 {
					g.flush()
				}
			}
		})
	}
	all.Wait()
	list := g.events(t)
	if n := len(list); n < keptEvents || n > mostLines {
		t.Errorf("%d events", n)
	}
	for i, e := range list {
		if i > 0 && e.Number != list[i-1].Number+1 {
			t.Fatalf("event %d after %d", e.Number, list[i-1].Number)
		}
		if len(e.Cause) > mostText+3 || len(e.Details) > mostText+3 {
			t.Fatalf("%d, %d bytes", len(e.Cause), len(e.Details))
		}
	}
	if last := list[len(list)-1].Number; last != 4*mostLines {
		t.Errorf("the last is %d", last)
	}
	if st, err := os.Stat(g.path); err != nil || st.Mode() != 0o600 || st.Size() > mostLines*(2*mostText+500) {
		t.Errorf("%v, %v", st, err)
	}
}

// TestEventsOutliveTheRole: the next run goes on with them, also after half a line, and when
// somebody removes the file under it.
func TestEventsOutliveTheRole(t *testing.T) {
	dir := t.TempDir()
	g := newRig(dir, slog.LevelInfo)
	g.log.Info("agent started", datastore.EventRole.Mark())
	g.flush()
	f, err := os.OpenFile(g.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = f.WriteString(`{"number":2,"ki`)
	f.Close()
	g = newRig(dir, slog.LevelInfo)
	g.log.Info("agent started", datastore.EventRole.Mark())
	g.log.Info("endpoint attached", datastore.EventEndpoint.Mark())
	if list := g.events(t); len(list) < 2 || list[len(list)-1].Number != 3 || list[0].Number != 1 {
		t.Errorf("%+v", list)
	}
	if err := os.RemoveAll(EventsDir(dir)); err != nil {
		t.Fatal(err)
	}
	g.log.Info("endpoint detached", datastore.EventEndpoint.Mark())
	if list := g.events(t); len(list) < 3 || list[len(list)-1].Text != "endpoint detached" {
		t.Errorf("after the folder went: %+v", list)
	}
}

// TestEventsThatCannotBeKept: they are kept once they can be; the log says it once.
func TestEventsThatCannotBeKept(t *testing.T) {
	dir := t.TempDir()
	g := newRig(dir, slog.LevelInfo)
	if err := os.WriteFile(EventsDir(dir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		g.log.Info("endpoint attached", datastore.EventEndpoint.Mark())
		g.flush()
	}
	if n := strings.Count(g.out.String(), "events not kept"); n != 1 {
		t.Errorf("said %d times:\n%s", n, g.out.String())
	}
	if err := os.Remove(EventsDir(dir)); err != nil {
		t.Fatal(err)
	}
	g.log.Info("endpoint detached", datastore.EventEndpoint.Mark())
	if list := g.events(t); len(list) != 4 {
		t.Errorf("%+v", list)
	}
}

func TestNoEvents(t *testing.T) {
	if _, err := Events(t.TempDir()); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if err := Follow(t.Context(), t.TempDir(), nil); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestFollow(t *testing.T) {
	dir := t.TempDir()
	g := newRig(dir, slog.LevelInfo)
	other := newRecorder(dir, "n1", "speaker", g.recorder.log)
	say := func(r *recorder, text string) {
		r.logger(g.recorder.log).Info(text, datastore.EventRole.Mark())
		r.flush()
	}
	for range keptEvents {
		g.log.Info("first", datastore.EventRole.Mark())
	}
	g.flush()
	ctx, stop := context.WithCancel(t.Context())
	heard, ended := make(chan datastore.Event, mostLines), make(chan error, 1)
	go func() {
		ended <- Follow(ctx, dir, func(list []datastore.Event) error {
			for _, e := range list {
				heard <- e
			}
			return nil
		})
	}()
	next := func(want string) {
		t.Helper()
		if e := <-heard; e.Text != want {
			t.Fatalf("heard %q, want %q", e.Text, want)
		}
	}
	for range keptEvents {
		next("first")
	}
	say(g.recorder, "second")
	next("second")
	say(other, "of another role")
	next("of another role")
	g.lines = mostLines - 10
	for i := range 20 { // the file is written anew meanwhile
		say(g.recorder, fmt.Sprint(i))
		next(fmt.Sprint(i))
	}
	if err := os.Remove(filepath.Join(EventsDir(dir), "speaker.jsonl")); err != nil {
		t.Fatal(err)
	}
	again := newRecorder(dir, "n1", "speaker", g.recorder.log)
	say(again, "from the beginning")
	next("from the beginning")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestHangs: a role that does not answer is said to hang, however many ask, and nobody
// waits for long.
func TestHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := &Role{cfg: Config{Role: "agent"}, log: slog.New(slog.DiscardHandler), asking: make(chan struct{}, 1), events: &recorder{}}
		var calls atomic.Int32
		r.Alive = func(context.Context) error { calls.Add(1); <-hang; return nil }
		r.Collect = func(context.Context, *Page) error { t.Error("asked all the same"); return nil }
		for range 3 {
			began := time.Now()
			if err := r.healthy(t.Context()); err == nil || !strings.Contains(err.Error(), "agent hangs") || time.Since(began) > answerTime {
				t.Errorf("%v after %v", err, time.Since(began))
			}
		}
		if text := string(r.metrics(t.Context())); !strings.Contains(text, "netctl_healthy 0\n") || !strings.Contains(text, "netctl_ready 0\n") {
			t.Errorf("%s", text)
		}
		if calls.Load() != 1 {
			t.Errorf("asked %d times", calls.Load())
		}
		close(hang)
		synctest.Wait()
		if err := r.healthy(t.Context()); err != nil {
			t.Errorf("works again, and is said not to: %v", err)
		}
	})
}

// TestProblemsAreEvents: that each came and went, once, and of very many the first.
func TestProblemsAreEvents(t *testing.T) {
	g := newRig(t.TempDir(), slog.LevelError)
	s := &Shown{Log: g.log}
	for _, now := range []map[string]Problem{
		{"a": {"tunnel", "no end"}},
		{"a": {"tunnel", "no end of 2"}, "b": {"routes", "gone"}},
		{"b": {"routes", "gone"}},
		{},
	} {
		s.Set(now)
	}
	var words []string
	for _, e := range g.events(t) {
		words = append(words, e.Object+" "+e.Words())
		if e.Kind != datastore.EventProblem {
			t.Errorf("%+v", e)
		}
	}
	want := []string{"tunnel problem: no end", "routes problem: gone", "tunnel problem is over (was no end of 2)", "routes problem is over (was gone)"}
	if !slices.Equal(words, want) {
		t.Errorf("%q", words)
	}
	many := map[string]Problem{}
	for i := range 10 * mostShown {
		many[fmt.Sprint(i)] = Problem{"routes", "gone"}
	}
	s.Set(many)
	if n := len(g.events(t)); n != len(want)+mostShown {
		t.Errorf("%d events", n)
	}
}

// TestTail: of a file that was read, what was added is read, each line once.
func TestTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.jsonl")
	line := func(n int) string { return fmt.Sprintf(`{"number":%d,"kind":"drift"}`, n) + "\n" }
	write := func(path, text string, flags int) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o600)
		if err == nil {
			_, err = f.WriteString(text)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var of tail
	reads := func(want ...uint64) {
		t.Helper()
		list, err := of.read(path)
		var got []uint64
		for _, e := range list {
			got = append(got, e.Number)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("read %d, %v, want %d", got, err, want)
		}
	}
	write(path, line(1)+line(2), 0)
	reads(1, 2)
	reads()
	write(path, line(3)+line(4)[:8], os.O_APPEND)
	reads(3)
	write(path, line(4)[8:], os.O_APPEND)
	reads(4)
	write(path+".new", line(3)+line(4)+line(5)+line(6)+line(7), 0)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	reads(3, 4, 5, 6, 7)
	write(path, line(8), os.O_TRUNC)
	reads(8)
}
