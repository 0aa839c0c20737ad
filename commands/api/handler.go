package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// Failure is how the API says what is wrong.
type Failure struct {
	Error string `json:"error"` // one line
	Code  string `json:"code"`
	// Revision is that of the object, if it was changed meanwhile.
	Revision int64 `json:"revision,omitempty"`
}

// errTooLarge is a body over its bound.
var errTooLarge = errors.New("too large")

const codeTooLarge = "too-large"

// failureOf is an error as it goes over the API, and its HTTP status.
func failureOf(err error) (Failure, int) {
	if errors.Is(err, errTooLarge) {
		return Failure{Error: err.Error(), Code: codeTooLarge}, http.StatusRequestEntityTooLarge
	}
	if errors.Is(err, errResync) {
		return Failure{Error: err.Error(), Code: codeResync}, http.StatusServiceUnavailable
	}
	e := control.ErrorOf(err)
	return Failure{Error: datastore.Said(e), Code: e.Code}, e.Status()
}

// handler answers everything. A function's error is answered as Failure.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, fn func(http.ResponseWriter, *http.Request, Caller) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			deadline := http.NewResponseController(w)
			_ = deadline.SetReadDeadline(time.Now().Add(s.BodyTime))
			_ = deadline.SetWriteDeadline(time.Now().Add(s.BodyTime + writeTime))
			m := &metered{ResponseWriter: w, began: time.Now()}
			defer s.meters.note(m)
			w = m
			who, err := s.caller(r)
			if err == nil {
				err = fn(w, r, who)
			}
			if err == nil || isUnanswerable(err) {
				return
			}
			if !readOnly(r.Method) || errors.Is(err, datastore.ErrDenied) {
				s.Log.Info("request refused", "by", who.Name, "method", r.Method, "path", r.URL.Path, "cause", err)
			}
			s.fail(w, err)
		})
	}
	handle("GET /v1/{$}", s.index)
	handle("GET /v1", s.index)
	handle("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request, _ Caller) error {
		return send(w, http.StatusOK, json.RawMessage(s.description))
	})
	handle("GET /v1/watch", s.watchAll)
	handle("GET /v1/actions/{path...}", s.act)
	handle("POST /v1/actions/{path...}", s.act)
	handle("GET /v1/{kind}", s.list)
	handle("POST /v1/{kind}", s.create)
	handle("GET /v1/{kind}/{name...}", s.read)
	handle("PUT /v1/{kind}/{name...}", s.put)
	handle("DELETE /v1/{kind}/{name...}", s.remove)
	for _, path := range []string{"/v1/openapi.json", "/v1/watch"} { // else POST would make one of that kind
		handle("POST "+path, allowing("GET"))
	}
	for _, method := range []string{"PUT", "DELETE"} {
		handle(method+" /v1/actions/{path...}", allowing("GET, POST"))
	}
	handle("/v1", allowing("GET"))
	handle("/v1/{$}", allowing("GET"))
	handle("/v1/{kind}", allowing("GET, POST"))
	handle("/v1/{kind}/{name...}", allowing("GET, PUT, DELETE"))
	handle("/", func(_ http.ResponseWriter, r *http.Request, _ Caller) error {
		return fmt.Errorf("%s: the API is below /v1: %w", r.URL.Path, datastore.ErrNotFound)
	})
	// A browser sends a user's certificate whatever page asks it to.
	guard := http.NewCrossOriginProtection()
	guard.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, fmt.Errorf("%s %s for a page of another origin: %w", r.Method, r.URL.Path, datastore.ErrDenied))
	}))
	return guard.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/") { // a proxy's, and *, which the mux answers as text
			s.fail(w, datastore.As(datastore.ErrInvalid, "%s %s: no path of this server: the API is below /v1", r.Method, r.RequestURI))
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

// allowing refuses a request whose path takes other methods.
func allowing(methods string) func(http.ResponseWriter, *http.Request, Caller) error {
	return func(w http.ResponseWriter, r *http.Request, _ Caller) error {
		w.Header().Set("Allow", methods)
		return send(w, http.StatusMethodNotAllowed, Failure{Error: fmt.Sprintf("%s %s: there is no such request, but %s; GET /v1/openapi.json says which there are", r.Method, r.URL.Path, methods), Code: control.CodeInvalid})
	}
}

func (s *server) fail(w http.ResponseWriter, err error) {
	f, status := failureOf(err)
	var c *conflict
	if errors.As(err, &c) {
		f.Revision = c.revision
	}
	if status == http.StatusRequestEntityTooLarge {
		w.Header().Set("Connection", "close") // the rest of the body is not read
	}
	_ = send(w, status, f)
}

// conflict is an error about an object that is at a revision.
type conflict struct {
	error
	revision int64
}

func (c *conflict) Unwrap() error { return c.error }

// send answers with JSON, on one line and a newline for people.
func send(w http.ResponseWriter, status int, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	deadline := http.NewResponseController(w)
	// A large answer may take longer, as long as it is taken at all.
	for text := b.Bytes(); len(text) > 0; {
		n := min(len(text), maxPiece)
		_ = deadline.SetWriteDeadline(time.Now().Add(writeTime))
		if _, err := w.Write(text[:n]); err != nil {
			return nil // nobody is there to tell
		}
		text = text[n:]
	}
	return nil
}

// mostUnwanted is how much of a body that is too large is read all the same, in bytes,
// within the time that a body may take.
const mostUnwanted = 64 << 20

// body reads a request's body of at most limit bytes, which must say that it is JSON if
// it says anything.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "multipart/form-data" {
		return nil, fmt.Errorf("the body is a form: send JSON (curl --data-binary): %w", datastore.ErrInvalid)
	}
	whole := r.Body
	text, err := io.ReadAll(http.MaxBytesReader(w, whole, limit))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		// A connection that is closed with something unread in it is reset (RFC 9112, section
		// 9.6), and who is still writing never reads the answer.
		_, _ = io.CopyN(io.Discard, whole, mostUnwanted)
		return nil, fmt.Errorf("the body is larger than %d bytes, which is the most that is taken here: %w", limit, errTooLarge)
	case err != nil:
		return nil, fmt.Errorf("the body ended early or came too slowly: %w: %w", datastore.ErrInvalid, err)
	}
	return text, nil
}

// query reads the parameters that a request may have; others are refused.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("query: %w: %w", datastore.ErrInvalid, err)
	}
	for name := range q {
		ok := false
		for _, k := range known {
			ok = ok || name == k || strings.HasSuffix(k, ".") && strings.HasPrefix(name, k)
		}
		if !ok {
			return nil, &datastore.FieldError{Field: "query", Value: name, Reason: "is not known here: " + strings.Join(known, ", ")}
		}
	}
	return q, nil
}

// flagIn reads a parameter that is there, true or false.
func flagIn(q url.Values, name string) (bool, error) {
	if !q.Has(name) {
		return false, nil
	}
	switch text := q.Get(name); text {
	case "", "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	default:
		return false, &datastore.FieldError{Field: "query " + name, Value: text, Reason: "must be true or false"}
	}
}

// Index is GET /v1.
type Index struct {
	Node    string   `json:"node"` // whose API it is
	Version string   `json:"version"`
	Name    string   `json:"name"` // who asks, and what it may do
	Role    string   `json:"role"`
	Kinds   []string `json:"kinds"`
	Actions []string `json:"actions"`
}

func (s *server) index(w http.ResponseWriter, _ *http.Request, who Caller) error {
	i := Index{Node: s.Node, Version: s.Version, Name: who.Name, Role: who.Role.String(), Kinds: plurals()}
	for _, a := range s.Actions {
		i.Actions = append(i.Actions, a.Path)
	}
	return send(w, http.StatusOK, i)
}

// manifestOf is an object as JSON. One that is wrong by itself (it was stored by another
// version) is left to its error.
func manifestOf(o datastore.Object) (json.RawMessage, error) { return datastore.EncodeManifest(o) }

// turn waits until objects may be read, written and answered with: what is read, for a
// write too, is held whole. leave ends it.
func (s *server) turn(ctx context.Context) (leave func(), err error) {
	late := time.NewTimer(turnWait)
	defer late.Stop()
	select {
	case s.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-late.C:
		return nil, datastore.As(datastore.ErrUnavailable, "%d others read and write at once: try again", maxTurns)
	}
	free := sync.OnceFunc(func() { <-s.turns })
	end := time.AfterFunc(turnTime, free)
	return func() { end.Stop(); free() }, nil
}

// List is GET /v1/KINDS.
type List struct {
	Revision int64             `json:"revision"` // of the store: watch after it
	Items    []json.RawMessage `json:"items"`
}

func (s *server) list(w http.ResponseWriter, r *http.Request, who Caller) error {
	kind, err := kindAt(r.PathValue("kind"))
	if err != nil {
		return err
	}
	if wantsStream(r) {
		return s.stream(w, r, who, []datastore.Kind{kind})
	}
	q, err := query(r, "selector", "metadata.", "spec.", "status.", "watch")
	if err != nil {
		return err
	}
	keep, err := parseFilter(q)
	if err != nil {
		return err
	}
	leave, err := s.turn(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	objects, revision, err := s.Backend.List(r.Context(), kind)
	if err != nil {
		return err
	}
	out := List{Revision: revision, Items: []json.RawMessage{}}
	for _, o := range objects {
		m, err := manifestOf(o)
		if err != nil {
			return err
		}
		if keep.matches(o, treeOf(m)) {
			out.Items = append(out.Items, m)
		}
	}
	return send(w, http.StatusOK, out)
}

// object is the kind and the name that a path has.
func (s *server) object(r *http.Request) (datastore.Kind, string, error) {
	kind, err := kindAt(r.PathValue("kind"))
	if err != nil {
		return "", "", err
	}
	name := s.Backend.Name(kind, r.PathValue("name"))
	_, err = datastore.Key(kind, name)
	return kind, name, err
}

func (s *server) read(w http.ResponseWriter, r *http.Request, _ Caller) error {
	if _, err := query(r); err != nil {
		return err
	}
	kind, name, err := s.object(r)
	if err != nil {
		return err
	}
	leave, err := s.turn(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	o, err := s.Backend.Read(r.Context(), kind, name)
	if err != nil {
		return err
	}
	return sendObject(w, http.StatusOK, o)
}

func sendObject(w http.ResponseWriter, status int, o datastore.Object) error {
	m, err := manifestOf(o)
	if err != nil {
		return err
	}
	return send(w, status, m)
}

func (s *server) create(w http.ResponseWriter, r *http.Request, who Caller) error {
	if _, err := query(r); err != nil {
		return err
	}
	kind, err := kindAt(r.PathValue("kind"))
	if err != nil {
		return err
	}
	return s.write(w, r, who, kind, "", Create)
}

func (s *server) put(w http.ResponseWriter, r *http.Request, who Caller) error {
	q, err := query(r, "replace")
	if err != nil {
		return err
	}
	mode := Apply
	if only, err := flagIn(q, "replace"); err != nil {
		return err
	} else if only {
		mode = Replace
	}
	kind, name, err := s.object(r)
	if err != nil {
		return err
	}
	return s.write(w, r, who, kind, name, mode)
}

// write writes the object that the body is: of that kind and, if there is one, name.
func (s *server) write(w http.ResponseWriter, r *http.Request, who Caller, kind datastore.Kind, name string, mode Mode) error {
	if err := who.may(datastore.KindRole(kind), "writing "+Plural(kind)); err != nil {
		return err
	}
	text, err := body(w, r, MaxObject)
	if err != nil {
		return err
	}
	o, err := datastore.DecodeManifest(text)
	if err != nil {
		return err
	}
	if o.Kind() != kind || name != "" && o.Meta().Name != name {
		return &datastore.FieldError{Field: "metadata.name", Value: string(o.Kind()) + " " + o.Meta().Name, Reason: "is not what the URL says: " + r.URL.Path}
	}
	name = o.Meta().Name
	leave, err := s.turn(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	did, err := s.Backend.Write(r.Context(), who, o, o.Meta().Revision, mode)
	if err != nil {
		if errors.Is(err, datastore.ErrConflict) {
			if now, failed := s.Backend.Read(r.Context(), kind, name); failed == nil {
				err = &conflict{err, now.Meta().Revision}
			}
		}
		return err
	}
	s.Log.Info("object written", "by", who.Name, "kind", kind, "name", name, "verb", did.Verb)
	warn(w, did.Warnings)
	w.Header().Set("Netctl-Verb", did.Verb)
	status := http.StatusOK
	if did.Verb == "created" {
		status = http.StatusCreated
	}
	return sendObject(w, status, did.Object)
}

// warn tells what a write does beside what it was asked for (RFC 7234, 5.5).
func warn(w http.ResponseWriter, warnings []string) {
	for _, text := range warnings {
		w.Header().Add("Warning", "299 netctl "+strconv.QuoteToASCII(text))
	}
}

func (s *server) remove(w http.ResponseWriter, r *http.Request, who Caller) error {
	q, err := query(r, "force")
	if err != nil {
		return err
	}
	force, err := flagIn(q, "force")
	if err != nil {
		return err
	}
	kind, name, err := s.object(r)
	if err != nil {
		return err
	}
	if err := who.may(datastore.KindRole(kind), "deleting "+Plural(kind)); err != nil {
		return err
	}
	leave, err := s.turn(r.Context())
	if err != nil {
		return err
	}
	defer leave()
	warnings, err := s.Backend.Delete(r.Context(), who, kind, name, force)
	if err != nil {
		return err
	}
	s.Log.Info("object deleted", "by", who.Name, "kind", kind, "name", name)
	warn(w, warnings)
	w.WriteHeader(http.StatusNoContent)
	return nil
}
