package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"

	"netctl/datastore"
)

// Bounds of watching.
const (
	maxWatchers = 4096
	// historyMost and historyBytes bound the changes that are kept for who comes again.
	historyMost  = 4096
	historyBytes = 4 << 20
	// pendingMost and pendingBytes are how many changes wait for one watcher before it is let
	// go. All watchers wait for the same ones, so this is about what all of them hold.
	pendingMost  = 1024
	pendingBytes = historyBytes
	// lingerTime is how long the store is followed when nobody watches any more.
	lingerTime = time.Minute
	// startTime is how long a watcher waits for the store.
	startTime = 10 * time.Second
)

// errResync tells a watcher that changes passed it by: it watches again.
var errResync = errors.New("changes were missed, as they were not read fast enough or the datastore was read anew: watch again")

const codeResync = "resync"

// event is one change, made once for all watchers.
type event struct {
	kind     datastore.Kind
	name     string
	revision int64
	complete int64            // every change up to here was told with it or before
	object   datastore.Object // nil: it was deleted
	tree     func() any       // of the manifest
	frame    []byte           // as it is sent
	// gone is what a watcher is told of an object that was deleted, or that its filter does
	// not keep any more.
	gone func() []byte
}

// Gone is the data of an event delete.
type Gone struct {
	Kind     string `json:"kind"`
	Name     string `json:"name"`
	Revision int64  `json:"revision"`
}

// frame is a server-sent event (HTML, 9.2); data has one line.
func frame(name string, revision int64, data []byte) []byte {
	b := make([]byte, 0, len(data)+64)
	if revision > 0 {
		b = fmt.Appendf(b, "id: %d\n", revision)
	}
	return fmt.Appendf(b, "event: %s\ndata: %s\n\n", name, data)
}

// hub follows the store once for all watchers, from the first one on.
type hub struct {
	store  datastore.Store
	log    *slog.Logger
	wake   chan struct{} // somebody watches
	encode func(datastore.Object) ([]byte, error)
	news   chan struct{} // something is in queue

	telling sync.Mutex // who tells watchers; before mu

	mu       sync.Mutex
	watchers []*watcher
	queue    []*event      // that watchers are to be told of; in history too
	ready    chan struct{} // closed while the store is followed
	is       bool          // ready is closed
	follows  int           // how often the store was followed from its beginning
	base     int64         // every change after it is in history
	history  []*event
	bytes    int // of history
	idle     *time.Timer
	stop     context.CancelFunc // of the follow; nil: none runs
}

func newHub(store datastore.Store, log *slog.Logger) *hub {
	return &hub{store: store, log: log, wake: make(chan struct{}, 1), news: make(chan struct{}, 1), encode: datastore.EncodeManifest, ready: make(chan struct{})}
}

// run follows the store whenever somebody watches, until ctx ends.
func (h *hub) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		}
		inner, stop := context.WithCancel(ctx)
		h.mu.Lock()
		h.stop = stop
		h.follows++
		h.mu.Unlock()
		// Without a guard: the API shows whatever store there is, and writes by its revisions.
		err := datastore.Follow(inner, h.store, datastore.Kinds(), nil, h)
		stop()
		h.end()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
}

// end forgets everything after a follow; who came while it ended starts the next.
func (h *hub) end() {
	h.telling.Lock()
	defer h.telling.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stop = nil
	h.forget(0)
	h.unready()
	if len(h.watchers) > 0 {
		h.poke()
	}
}

func (h *hub) unready() {
	if h.is {
		h.ready, h.is = make(chan struct{}), false
	}
}

func (h *hub) poke() { poke(h.wake) }

// poke puts one into a channel that holds one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forget drops the history, and every watcher that began before.
func (h *hub) forget(revision int64) {
	h.base, h.history, h.bytes, h.queue = revision, nil, 0, nil
	for _, w := range h.watchers {
		w.lose()
	}
}

// Replace implements datastore.Follower: what happened since the last change is not known
// one by one.
func (h *hub) Replace(s datastore.Snapshot) error {
	h.telling.Lock()
	defer h.telling.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forget(s.Revision)
	if !h.is {
		close(h.ready)
		h.is = true
	}
	return nil
}

// Apply implements datastore.Follower.
func (h *hub) Apply(b datastore.Batch) error {
	events := make([]*event, 0, len(b.Events))
	for _, e := range b.Events {
		if one := h.eventOf(e, b.Revision); one != nil {
			events = append(events, one)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		h.remember(e)
	}
	h.queue = append(h.queue, events...)
	poke(h.news)
	return nil
}

// tell tells watchers of changes until ctx ends: all those at once that came meanwhile.
func (h *hub) tell(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.news:
			h.deliver()
		}
	}
}

// deliver gives all watchers what is in queue, on every CPU; no client is waited for.
func (h *hub) deliver() {
	h.telling.Lock()
	defer h.telling.Unlock()
	h.mu.Lock()
	events, watchers := h.queue, slices.Clone(h.watchers)
	h.queue = nil
	h.mu.Unlock()
	if len(events) == 0 || len(watchers) == 0 {
		return
	}
	cpus := runtime.GOMAXPROCS(0)
	var all sync.WaitGroup
	for part := range slices.Chunk(watchers, (len(watchers)+cpus-1)/cpus) {
		all.Go(func() {
			for _, w := range part {
				w.offer(events)
			}
		})
	}
	all.Wait()
}

// eventOf is a change as watchers are told; nil: it is of no object. What this netctl
// cannot read it cannot show either.
func (h *hub) eventOf(e datastore.Entry, complete int64) *event {
	kind, name, err := datastore.ParseKey(e.Key)
	if err != nil {
		return nil
	}
	out := &event{kind: kind, name: name, revision: e.Revision, complete: min(e.Revision, complete)}
	out.gone = sync.OnceValue(func() []byte {
		data, _ := json.Marshal(Gone{Kind: string(kind), Name: name, Revision: e.Revision})
		return frame("delete", out.complete, data)
	})
	if e.Value == nil {
		out.frame = out.gone()
		return out
	}
	o, err := datastore.Decode(e.Key, e.Value)
	if err != nil {
		return nil
	}
	o.Meta().Revision = e.Revision
	manifest, err := h.encode(o)
	if err != nil {
		return nil
	}
	out.object, out.tree, out.frame = o, treeOf(manifest), frame("put", e.Revision, manifest)
	return out
}

func (h *hub) remember(e *event) {
	h.history = append(h.history, e)
	h.bytes += len(e.frame)
	drop := 0
	for h.bytes > historyBytes || len(h.history)-drop > historyMost {
		h.base = max(h.base, h.history[drop].revision)
		h.bytes -= len(h.history[drop].frame)
		drop++
	}
	if drop > 0 {
		h.history = slices.Delete(h.history, 0, drop)
	}
}

// Lost implements datastore.Follower: watchers wait with us.
func (h *hub) Lost(err error) { h.log.Warn("datastore lost, watchers wait", "cause", err) }

// Back implements datastore.Follower.
func (h *hub) Back() { h.log.Info("datastore back") }

// watcher is one client that watches. As long as it takes everything at once, whoever
// has news writes them to it; else they wait for its own goroutine.
type watcher struct {
	kinds map[datastore.Kind]bool
	told  chan struct{}
	// push writes what the client is told of events without waiting for it; false: it takes
	// no more now, and the rest is to wait.
	push func([]*event) (rest []*event, all bool)

	mu      sync.Mutex
	began   bool  // from here on nothing may be missed
	knows   int64 // what it was given when it began: to that revision
	prompt  bool  // nothing waits, and nobody else writes: push
	pending []*event
	bytes   int      // of pending
	taken   []*event // the watcher's
	lost    bool
}

// offer gives a watcher events.
func (w *watcher) offer(events []*event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(events) > 0 && events[0].revision <= w.knows {
		events = events[1:]
	}
	switch {
	case !w.began || w.lost || len(events) == 0:
		return
	case w.prompt:
		if events, w.prompt = w.push(events); w.prompt {
			return
		}
	}
	w.keep(events)
	w.notify()
}

// keep has events wait, as many as may.
func (w *watcher) keep(events []*event) {
	for _, e := range events {
		if w.kinds[e.kind] {
			w.pending, w.bytes = append(w.pending, e), w.bytes+len(e.frame)
		}
	}
	if len(w.pending) > pendingMost || w.bytes > pendingBytes && len(w.pending) > 1 {
		w.lost, w.pending, w.bytes = true, nil, 0
	}
}

func (w *watcher) notify() { poke(w.told) }

// lose lets a watcher go that has begun: it is to list again.
func (w *watcher) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began {
		w.lost, w.prompt, w.pending, w.bytes = true, false, nil, 0
		w.notify()
	}
}

// hold keeps others from writing until the watcher takes.
func (w *watcher) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.prompt = false
	w.notify()
}

// take is what waits for the watcher, until it takes again; false: it missed something.
// Once nothing waits, others may write.
func (w *watcher) take() ([]*event, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.taken)
	w.taken, w.pending, w.bytes = w.pending, w.taken[:0], 0
	w.prompt = w.push != nil && len(w.taken) == 0 && !w.lost
	return w.taken, !w.lost
}

// join makes a watcher of changes after a revision, as far as those are known (whole); 0:
// of those from now on. It waits until the store is followed.
func (h *hub) join(ctx context.Context, kinds []datastore.Kind, after int64) (w *watcher, whole bool, err error) {
	w = &watcher{kinds: map[datastore.Kind]bool{}, told: make(chan struct{}, 1)}
	for _, k := range kinds {
		w.kinds[k] = true
	}
	h.mu.Lock()
	if len(h.watchers) >= maxWatchers {
		h.mu.Unlock()
		return nil, false, datastore.As(datastore.ErrUnavailable, "%d clients watch already", maxWatchers)
	}
	h.watchers = append(h.watchers, w)
	if h.idle != nil {
		h.idle.Stop()
		h.idle = nil
	}
	if h.stop == nil {
		h.poke()
	}
	h.mu.Unlock()
	if whole, err = h.begin(ctx, w, after); err != nil {
		h.leave(w)
		return nil, false, err
	}
	return w, whole, nil
}

// begin waits for the store, and gives the watcher what it missed.
func (h *hub) begin(ctx context.Context, w *watcher, after int64) (whole bool, err error) {
	late := time.NewTimer(startTime)
	defer late.Stop()
	for {
		h.mu.Lock()
		if h.is {
			break
		}
		ready := h.ready
		h.mu.Unlock()
		select {
		case <-ready:
		case <-ctx.Done():
			return false, ctx.Err()
		case <-late.C:
			return false, fmt.Errorf("watch: the datastore does not answer: %w", datastore.ErrUnavailable)
		}
	}
	defer h.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began, w.pending, w.bytes, w.lost, w.knows = true, nil, 0, false, h.base
	if n := len(h.history); n > 0 {
		w.knows = h.history[n-1].revision
	}
	if whole = after != 0 && after >= h.base; !whole {
		return false, nil
	}
	for _, e := range h.history {
		if e.revision > after && w.kinds[e.kind] {
			w.pending = append(w.pending, e)
		}
	}
	return true, nil
}

// leave ends a watcher. With the last one the store is not followed for much longer.
func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.watchers, w); i >= 0 {
		h.watchers = slices.Delete(h.watchers, i, i+1)
	}
	if len(h.watchers) > 0 || h.idle != nil {
		return
	}
	h.idle = time.AfterFunc(lingerTime, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.watchers) == 0 && h.stop != nil {
			h.stop()
		}
	})
}
