package telemetry

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"netctl/datastore"
)

// How many events of a role are kept, and how many its file may have before it is written
// anew with those.
const (
	keptEvents = 500
	mostLines  = 2 * keptEvents
)

// mostText bounds each text of an event, in bytes.
const mostText = 400

// EventsDir is where, in the state folder, each role keeps its events: ROLE.jsonl, the
// oldest first, one JSON value a line.
func EventsDir(stateDir string) string { return filepath.Join(stateDir, "events") }

// recorder keeps the events of a role: log records with a mark (datastore.EventMark). Safe
// for concurrent use.
type recorder struct {
	node, role, path string
	log              *slog.Logger
	counts, repairs  Counter
	changed          chan struct{} // holds one

	mu     sync.Mutex
	kept   []datastore.Event
	number uint64 // of the last
	saved  uint64 // the last that is in the file

	writing sync.Mutex // guards what follows
	lines   int        // of the file; mostLines: it is written anew
	failed  bool       // the last write did
}

// newRecorder goes on with the events that the file has.
func newRecorder(stateDir, node, role string, log *slog.Logger) *recorder {
	r := &recorder{node: node, role: role, path: filepath.Join(EventsDir(stateDir), role+".jsonl"), log: log, changed: make(chan struct{}, 1)}
	for _, k := range datastore.EventKinds() {
		r.counts.Add(string(k), 0)
	}
	for _, what := range datastore.Drifts() {
		r.repairs.Add(what, 0)
	}
	list, err := readEvents(r.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("earlier events not read", "file", r.path, "error", err)
	}
	if r.lines = len(list); r.lines > 0 {
		r.kept = slices.Clone(list[max(0, r.lines-keptEvents):])
		r.number = list[r.lines-1].Number
		r.saved = r.number
	}
	return r
}

// logger is a logger like log whose marked records are kept.
func (r *recorder) logger(log *slog.Logger) *slog.Logger {
	return slog.New(&recording{recorder: r, inner: log.Handler()})
}

// recording is a slog.Handler that hands on everything.
type recording struct {
	recorder *recorder
	inner    slog.Handler
	attrs    []slog.Attr
}

// Enabled implements slog.Handler: an event is one whatever is logged.
func (h *recording) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelInfo || h.inner.Enabled(ctx, l)
}

// WithAttrs implements slog.Handler.
func (h *recording) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &recording{h.recorder, h.inner.WithAttrs(attrs), slices.Concat(h.attrs, attrs)}
}

// WithGroup implements slog.Handler.
func (h *recording) WithGroup(name string) slog.Handler {
	return &recording{h.recorder, h.inner.WithGroup(name), h.attrs}
}

// Handle implements slog.Handler.
func (h *recording) Handle(ctx context.Context, rec slog.Record) error {
	var mark *datastore.EventMark
	rec.Attrs(func(a slog.Attr) bool {
		if m, ok := a.Value.Any().(datastore.EventMark); ok {
			mark = &m
		}
		return mark == nil
	})
	if mark != nil {
		h.recorder.add(*mark, rec, h.attrs)
	}
	if !h.inner.Enabled(ctx, rec.Level) {
		return nil
	}
	return h.inner.Handle(ctx, rec)
}

// objects are the keys that name what an event is about, the first that is there.
func objects() []string {
	return []string{"endpoint", "peer", "workload", "child", "file", "setting", "what", "link", "network", "cluster", "reflector"}
}

func (r *recorder) add(mark datastore.EventMark, rec slog.Record, with []slog.Attr) {
	e := datastore.Event{Time: rec.Time.UTC(), Node: r.node, Role: r.role, Kind: mark.Kind, Level: strings.ToLower(rec.Level.String()), Text: rec.Message}
	texts := map[string]string{}
	var keys []string
	note := func(a slog.Attr) bool {
		if a.Key != "" && a.Key != "role" {
			if texts[a.Key] == "" {
				keys = append(keys, a.Key)
			}
			texts[a.Key] = clip(a.Value.Resolve().String())
		}
		return true
	}
	for _, a := range with {
		note(a)
	}
	rec.Attrs(note)
	use := func(from ...string) string {
		for _, k := range from {
			if text := texts[k]; text != "" {
				delete(texts, k)
				return text
			}
		}
		return ""
	}
	e.Object, e.Cause = use(objects()...), use("error", "cause", "reason", "differed")
	var rest []string
	for _, k := range keys {
		if text := texts[k]; text != "" {
			rest = append(rest, k+" "+text)
		}
	}
	e.Details = clip(strings.Join(rest, ", "))
	r.counts.Add(string(mark.Kind), 1)
	if mark.What != "" {
		r.repairs.Add(mark.What, 1)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.number++
	e.Number = r.number
	if n := len(r.kept); n > 0 && e.Time.Before(r.kept[n-1].Time) {
		e.Time = r.kept[n-1].Time // of two at once, or after the clock was set
	}
	r.kept = append(r.kept, e)
	if len(r.kept) > mostLines {
		r.kept = slices.Clone(r.kept[len(r.kept)-keptEvents:])
	}
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// clip is text in one line of at most mostText bytes.
func clip(text string) string {
	text = strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "\uFFFD"), func(c rune) bool { return c < ' ' || c == 0x7f }), " ")
	if len(text) <= mostText {
		return text
	}
	at := mostText
	for !utf8.RuneStart(text[at]) {
		at--
	}
	return text[:at] + "…"
}

// run writes events to the file until ctx ends.
func (r *recorder) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.changed:
			r.flush()
		}
	}
}

// flush writes what is not in the file yet. What fails is said once, and tried with the
// next event: nothing waits for the events of a role.
func (r *recorder) flush() {
	r.writing.Lock()
	defer r.writing.Unlock()
	r.mu.Lock()
	kept := slices.Clone(r.kept)
	r.mu.Unlock()
	fresh := kept
	if i, has := slices.BinarySearchFunc(kept, r.saved, func(e datastore.Event, n uint64) int { return cmp.Compare(e.Number, n) }); has {
		fresh = kept[i+1:]
	}
	if len(fresh) == 0 {
		return
	}
	err := r.append(fresh)
	if r.lines >= mostLines || errors.Is(err, fs.ErrNotExist) {
		kept = kept[max(0, len(kept)-keptEvents):]
		r.lines = len(kept)
		err = datastore.WriteFile(r.path, lines(kept), datastore.FileOptions{})
	}
	switch {
	case err == nil:
		r.saved, r.failed = fresh[len(fresh)-1].Number, false
	case !r.failed:
		r.failed, r.lines = true, mostLines
		r.log.Warn("events not kept", "file", r.path, "error", err)
	}
}

// append adds to the file, if there is one: else the folder may be missing too.
func (r *recorder) append(list []datastore.Event) error {
	if r.lines += len(list); r.lines >= mostLines {
		return nil
	}
	f, err := os.OpenFile(r.path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(lines(list))
	return errors.Join(err, f.Close())
}

func lines(list []datastore.Event) []byte {
	var b bytes.Buffer
	for _, e := range list {
		line, err := json.Marshal(e)
		if err != nil {
			continue // it is text and numbers
		}
		b.Write(append(line, '\n'))
	}
	return b.Bytes()
}
