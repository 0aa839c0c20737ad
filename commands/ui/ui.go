// Package ui serves one page that shows a cluster in a browser, to the person who started
// it on the same machine.
//
// It owns the page, which is embedded, and who may read by it. It never writes anything: only
// GET passes, to lists and watches of an API that somebody else runs, and keeps nothing
// but the last matrix that it judged.
//
// Invariants: it listens on loopback alone; whatever tells of the cluster wants the token of
// this run; a request that another site could have made is refused; the page loads nothing
// from elsewhere.
package ui

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

//go:embed page
var page embed.FS

// Config is what a run has.
type Config struct {
	// Token is what a browser has to know.
	Token string
	// Version is this netctl's, Server says whose API is shown.
	Version, Server string
	// Get asks the API for a path with its query; the answer's body is the caller's to close.
	Get func(ctx context.Context, path string) (*http.Response, error)
	// List returns the API's objects of a kind, and the store's revision.
	List func(ctx context.Context, k datastore.Kind, query url.Values) ([]datastore.Object, int64, error)
}

// Bounds of a client: it sends a head, and takes each piece of the answer, in this time.
const (
	headTime  = 10 * time.Second
	writeTime = 30 * time.Second
)

// Serve answers on l, which it closes, until ctx ends (nil).
func Serve(ctx context.Context, l net.Listener, c Config) error {
	s := &http.Server{
		Handler: New(c), ReadHeaderTimeout: headTime, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // of connections that browsers drop
	}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// server answers a browser.
type server struct {
	Config
	judge judge
}

// New is what Serve serves.
func New(c Config) http.Handler {
	s := &server{Config: c, judge: judge{list: c.List}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		if status, why := foreign(r); status != 0 {
			refuse(w, status, "denied", why)
			return
		}
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			refuse(w, http.StatusMethodNotAllowed, "invalid", r.Method+" does not pass here: this page only looks")
			return
		}
		s.route(w, r)
	})
}

// route answers a GET of the page's own.
func (s *server) route(w http.ResponseWriter, r *http.Request) {
	if name, kind := asset(r.URL.Path); name != "" {
		text, err := page.ReadFile("page/" + name)
		if err != nil {
			refuse(w, http.StatusInternalServerError, "internal", err.Error())
			return
		}
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write(text)
		return
	}
	if !s.knows(r) {
		refuse(w, http.StatusUnauthorized, "denied", "the address of this page has another token: open the one that netctl ui has printed")
		return
	}
	switch p := r.URL.Path; {
	case p == "/ui/run":
		answer(w, map[string]any{"version": s.Version, "server": s.Server, "silence": control.Silence.Seconds(), "now": time.Now()})
	case p == "/ui/matrix":
		m, err := s.judge.matrix(r.Context(), r.URL.Query().Get("by") == "network")
		reply(w, m, err)
	case p == "/ui/pair":
		pair, err := s.judge.pair(r.Context(), r.URL.Query().Get("from"), r.URL.Query().Get("to"))
		reply(w, pair, err)
	case shown(p):
		s.pass(w, r)
	default:
		refuse(w, http.StatusNotFound, "not-found", p+" is not here")
	}
}

// asset is the file of the page at a path, and its type; "": none.
func asset(path string) (name, kind string) {
	switch path {
	case "/":
		return "index.html", "text/html; charset=utf-8"
	case "/ui.css":
		return "ui.css", "text/css; charset=utf-8"
	case "/ui.js", "/model.js", "/map.js":
		return path[1:], "text/javascript; charset=utf-8"
	}
	return "", ""
}

// shown says whether a path of the API is a watch, a list or an object: no action, nor a
// detour to one.
func shown(p string) bool {
	rest, ok := strings.CutPrefix(p, "/v1/")
	first, _, _ := strings.Cut(rest, "/")
	return ok && path.Clean(p) == p && (rest == "watch" || slices.ContainsFunc(datastore.Kinds(), func(k datastore.Kind) bool {
		return first == datastore.Plural(k)
	}))
}

// pass has the API answer, piece by piece as it does.
func (s *server) pass(w http.ResponseWriter, r *http.Request) {
	resp, err := s.Get(r.Context(), r.URL.RequestURI())
	if err != nil {
		reply(w, nil, err)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	control := http.NewResponseController(w)
	piece := make([]byte, 64<<10)
	for {
		n, err := resp.Body.Read(piece)
		if n > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(writeTime))
			if _, err := w.Write(piece[:n]); err != nil || control.Flush() != nil {
				return
			}
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // the browser is to see that it was cut off
		}
	}
}

// reply answers with out, or with what went wrong.
func reply(w http.ResponseWriter, out any, err error) {
	switch {
	case err == nil:
		answer(w, out)
	case errors.Is(err, datastore.ErrUnavailable):
		refuse(w, http.StatusServiceUnavailable, "unavailable", err.Error())
	case errors.Is(err, datastore.ErrNotFound):
		refuse(w, http.StatusNotFound, "not-found", err.Error())
	case errors.Is(err, datastore.ErrDenied):
		refuse(w, http.StatusForbidden, "denied", err.Error())
	default:
		refuse(w, http.StatusInternalServerError, "internal", err.Error())
	}
}

func answer(w http.ResponseWriter, out any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func refuse(w http.ResponseWriter, status int, code, why string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": why, "code": code})
}
