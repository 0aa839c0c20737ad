package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"netctl/datastore"
)

// heartbeat is how often a client hears something, and how often it is asked whether its
// certificate is still good.
const heartbeat = 15 * time.Second

// mostPush is about how much is written to a client at a time, in bytes: as much may be
// kept of it when it does not read, beside one change.
const mostPush = 64 << 10

// wantsStream says whether a list is to go on.
func wantsStream(r *http.Request) bool {
	if r.URL.Query().Has("watch") {
		on, err := flagIn(r.URL.Query(), "watch")
		return on && err == nil
	}
	for part := range strings.SplitSeq(r.Header.Get("Accept"), ",") {
		if kind, _, _ := mime.ParseMediaType(part); kind == "text/event-stream" {
			return true
		}
	}
	return false
}

// watchAll is GET /v1/watch: several kinds in one stream.
func (s *server) watchAll(w http.ResponseWriter, r *http.Request, who Caller) error {
	var kinds []datastore.Kind
	for _, word := range r.URL.Query()["kind"] {
		kind, err := kindAt(word)
		if err != nil {
			return err
		}
		kinds = append(kinds, kind)
	}
	if len(kinds) == 0 {
		kinds = datastore.Kinds()
	}
	return s.stream(w, r, who, kinds)
}

// stream tells what there is, and then every change, as server-sent events. After a
// revision (after, or Last-Event-ID as a browser sends it) it begins with the changes
// since then if those are still known, else with reset and what there is.
func (s *server) stream(w http.ResponseWriter, r *http.Request, who Caller, kinds []datastore.Kind) error {
	q, err := query(r, "selector", "metadata.", "spec.", "status.", "watch", "after", "kind")
	if err != nil {
		return err
	}
	keep, err := parseFilter(q)
	if err != nil {
		return err
	}
	after, err := revisionIn(q, r.Header.Get("Last-Event-ID"))
	if err != nil {
		return err
	}
	me, whole, err := s.watch.join(r.Context(), kinds, after)
	if err != nil {
		return err
	}
	defer s.watch.leave(me)
	if m, ok := w.(*metered); ok {
		m.watches = true
	}
	c := &client{to: w, control: http.NewResponseController(w), keep: keep, kinds: me.kinds, resumed: whole, has: map[string]bool{}}
	if c.after, err = s.begin(w, r, kinds, c, after); err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		return nil
	}
	if outer, inner := connOf(r.Context()); inner != nil {
		if inner.becomePrompt() != nil {
			return http.ErrAbortHandler
		}
		c.to, c.conn, me.push = outer, inner, c.push
	}
	s.follow(r, who, me, c)
	return nil
}

// begin sends what comes before the changes after a revision: nothing, if the client goes
// on there, else what there is, in its turn. From the revision that it returns on changes
// are told.
func (s *server) begin(w http.ResponseWriter, r *http.Request, kinds []datastore.Kind, c *client, after int64) (int64, error) {
	var first [][]byte
	if !c.resumed {
		leave, err := s.turn(r.Context())
		if err != nil {
			return 0, err
		}
		defer leave()
		if after != 0 {
			first = append(first, frame("reset", 0, []byte("{}")))
		}
		present, at, err := s.present(r, kinds, c)
		if err != nil {
			return 0, err
		}
		first, after = append(first, present...), at
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Transfer-Encoding", "identity") // to the end of the connection: events are the same bytes for all
	w.WriteHeader(http.StatusOK)
	_ = c.control.SetReadDeadline(time.Time{})
	if c.send(first...) != nil {
		return 0, http.ErrAbortHandler // nobody is there to tell
	}
	return after, nil
}

// revisionIn is the revision after which a client watches; 0: from the beginning.
func revisionIn(q url.Values, last string) (int64, error) {
	text := q.Get("after")
	if last != "" {
		text = last
	}
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return 0, &datastore.FieldError{Field: "query after", Value: text, Reason: "must be a revision, as lists and events have it"}
	}
	return n, nil
}

// present is what there is, as events, with the revision that it is complete at.
func (s *server) present(r *http.Request, kinds []datastore.Kind, c *client) (frames [][]byte, revision int64, err error) {
	for i, k := range kinds {
		objects, at, err := s.Backend.List(r.Context(), k)
		if err != nil {
			return nil, 0, err
		}
		// Changes between two listings come again: a client has the later one then.
		if i == 0 || at < revision {
			revision = at
		}
		for _, o := range objects {
			m, err := manifestOf(o)
			if err != nil {
				return nil, 0, err
			}
			if c.keep.matches(o, treeOf(m)) {
				c.note(k, o.Meta().Name)
				frames = append(frames, frame("put", 0, m))
			}
		}
	}
	data, _ := json.Marshal(map[string]int64{"revision": revision})
	return append(frames, frame("synced", revision, data)), revision, nil
}

// follow sends changes until the client goes, is too slow, or may not any more.
func (s *server) follow(r *http.Request, who Caller, me *watcher, c *client) {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	me.notify() // of what came since it joined
	for {
		select {
		case <-r.Context().Done():
			return
		case <-tick.C:
			me.hold()
			if _, err := s.caller(r); errors.Is(err, datastore.ErrDenied) {
				_ = c.fail(err)
				return
			}
			if err := c.send([]byte(": \n\n")); err != nil {
				s.late(who, err)
				return
			}
		case <-me.told:
			if err := c.send(); err != nil { // what a push began
				s.late(who, err)
				return
			}
			list, whole := me.take()
			if !whole {
				s.dropped(who, "too slow, or the datastore was read anew")
				_ = c.fail(errResync)
				return
			}
			if len(list) == 0 {
				continue // others write now
			}
			me.notify() // to take again
			for len(list) > 0 {
				var text []byte
				text, list = c.piece(list)
				if err := c.send(text); err != nil {
					s.late(who, err)
					return
				}
			}
		}
	}
}

// late says that a client is let go that does not read at all, if that is why a write to it
// failed; it cannot be told.
func (s *server) late(who Caller, err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.dropped(who, "it does not read")
	}
}

func (s *server) dropped(who Caller, cause string) {
	s.meters.dropped.Add(1)
	s.Log.Info("watcher let go", "by", who.Name, "cause", cause)
}

// client is who gets a stream. One at a time uses it: its own goroutine, or while its
// watcher is prompt whoever pushes.
type client struct {
	to      io.Writer
	control *http.ResponseController
	conn    *conn // under to; nil: to is written through the control
	keep    filter
	kinds   map[datastore.Kind]bool
	after   int64           // the revision up to which it was told
	resumed bool            // what it has is not known
	has     map[string]bool // with a filter: what it was told of
	until   time.Time       // the deadline of writes
}

func (c *client) note(k datastore.Kind, name string) {
	if !c.keep.all() {
		c.has[string(k)+" "+name] = true
	}
}

// frameOf is what the client is told of a change; nil: nothing.
func (c *client) frameOf(e *event) []byte {
	if !c.kinds[e.kind] || e.revision <= c.after {
		return nil
	}
	if c.keep.all() {
		return e.frame
	}
	at := string(e.kind) + " " + e.name
	switch {
	case e.object != nil && c.keep.matches(e.object, e.tree):
		c.has[at] = true
		return e.frame
	case c.has[at] || c.resumed:
		delete(c.has, at)
		return e.gone()
	}
	return nil
}

// push writes what the client is told of changes, in few writes that wait for nobody. Once
// it does not take them at once the rest is returned; send does what was begun.
func (c *client) push(events []*event) (rest []*event, all bool) {
	for len(events) > 0 {
		var text []byte
		if text, events = c.piece(events); len(text) == 0 {
			continue
		}
		if _, err := c.to.Write(text); err != nil || c.conn.waits() {
			return events, false
		}
	}
	return nil, true
}

// piece is what the client is told of the first of some changes, in about mostPush bytes,
// and the changes after those.
func (c *client) piece(events []*event) (text []byte, rest []*event) {
	one := true // text is a frame, which others have too
	for len(events) > 0 && len(text) < mostPush {
		f := c.frameOf(events[0])
		events = events[1:]
		switch {
		case len(text) == 0:
			text = f
		case len(f) > 0 && one:
			text, one = slices.Concat(text, f), false
		default:
			text = append(text, f...)
		}
	}
	return text, events
}

// send writes frames, and what a push left; each piece within writeTime.
func (c *client) send(frames ...[]byte) error {
	if c.conn != nil {
		return c.sendOver(frames)
	}
	for _, f := range frames {
		// Not for each: there may be many, and timers cost as much as the writing.
		if now := time.Now(); c.until.Sub(now) < writeTime {
			c.until = now.Add(writeTime * 5 / 4)
			if err := c.control.SetWriteDeadline(c.until); err != nil {
				return err
			}
		}
		if _, err := c.to.Write(f); err != nil {
			return err
		}
	}
	return c.control.Flush()
}

func (c *client) sendOver(frames [][]byte) error {
	if err := c.conn.drain(); err != nil {
		return err
	}
	for _, f := range frames {
		for piece := range slices.Chunk(f, maxPiece) {
			if _, err := c.to.Write(piece); err != nil {
				return err
			}
			if err := c.conn.drain(); err != nil {
				return err
			}
		}
	}
	return nil
}

// fail tells why the stream ends.
func (c *client) fail(err error) error {
	f, _ := failureOf(err)
	data, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("failure: %w", err)
	}
	return c.send(frame(codeOr(f.Code), 0, data))
}

// codeOr is the name of the event that ends a stream.
func codeOr(code string) string {
	if code == codeResync {
		return codeResync
	}
	return "error"
}
