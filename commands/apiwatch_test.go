package commands

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers/legacy"

	"netctl/commands/api"
	"netctl/datastore"
)

// errSeen ends a watch of a test.
var errSeen = errors.New("seen")

// watched are the events of a stream, as "put NAME", until last.
func watched(t *testing.T, c *http.Client, url, last string) (events []string, id int64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	err = api.ReadEvents(resp.Body, func(e api.Event) error {
		if events = append(events, eventText(t, e)); e.ID != 0 {
			id = e.ID
		}
		if events[len(events)-1] == last {
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) {
		t.Errorf("%s: the stream ended after %q: %v", url, events, err)
	}
	return events, id
}

func eventText(t *testing.T, e api.Event) string {
	t.Helper()
	var data struct {
		Name     string `json:"name"`
		Metadata struct{ Name string }
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		t.Fatalf("%s: %v", e.Data, err)
	}
	return strings.TrimSpace(e.Type + " " + data.Name + data.Metadata.Name)
}

func TestAPIWatch(t *testing.T) {
	r := startRig(t, 0)
	c, base := r.local(), "http://netctl/v1/"
	put := func(name, rack string) {
		t.Helper()
		m := fmt.Sprintf(`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":%q,"labels":{"rack":%q}},"spec":{}}`, name, rack)
		if status, text := ask(t, c, http.MethodPut, base+"nodes/"+name, m); status/100 != 2 {
			t.Fatal(status, text)
		}
	}
	equal := func(what string, got []string, want ...string) {
		t.Helper()
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	put("n1", "A1")
	put("n2", "B1")
	events, id := watched(t, c, base+"nodes?watch", "synced")
	equal("what there is", events, "put n1", "put n2", "synced")
	put("n3", "A1")
	put("n1", "B1")
	if status, text := ask(t, c, http.MethodDelete, base+"nodes/n2", ""); status != http.StatusNoContent {
		t.Fatal(status, text)
	}
	events, _ = watched(t, c, fmt.Sprintf("%snodes?watch&after=%d", base, id), "delete n2")
	equal("resumed", events, "put n3", "put n1", "delete n2")
	events, _ = watched(t, c, fmt.Sprintf("%snodes?watch&selector=rack%%3D%%3D'A1'&after=%d", base, id), "delete n2")
	equal("with a selector", events, "put n3", "delete n1", "delete n2")
	events, _ = watched(t, c, base+"watch?kind=nodes&kind=pools&metadata.labels.rack=B1", "synced")
	equal("by a field", events, "put n1", "synced")

	// What is forgotten is told anew.
	r.store.Compact(1 << 40)
	r.store.Break()
	put("n4", "A1")
	events, _ = watched(t, c, base+"nodes?watch&after=1", "synced")
	equal("too long ago", events, "reset", "put n1", "put n3", "put n4", "synced")

	// The Go client's.
	client, err := api.NewClient(api.Server{URL: "unix://" + r.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	n := 0
	err = client.Watch(t.Context(), []datastore.Kind{datastore.KindNode}, 0, func(e api.Event) error {
		if n++; e.Type == "synced" {
			return errSeen
		}
		return nil
	})
	if !errors.Is(err, errSeen) || n != 4 {
		t.Errorf("%d events, %v", n, err)
	}
}

// TestAPIWatchersShareOneFollow: a thousand watch, and the store is followed once.
func TestAPIWatchersShareOneFollow(t *testing.T) {
	const watchers = 1000
	r := startRig(t, 0)
	var synced, done sync.WaitGroup
	synced.Add(watchers)
	for range watchers {
		done.Go(func() {
			client, err := api.NewClient(api.Server{URL: "unix://" + r.socket})
			if err != nil {
				t.Error(err)
				synced.Done()
				return
			}
			defer client.Close()
			err = client.Watch(t.Context(), []datastore.Kind{datastore.KindProfile}, 0, func(e api.Event) error {
				switch e.Type {
				case "synced":
					synced.Done()
				case "put":
					return errSeen
				}
				return nil
			})
			if !errors.Is(err, errSeen) {
				t.Error(err)
			}
		})
	}
	synced.Wait()
	if status, text := ask(t, r.local(), http.MethodPost, "http://netctl/v1/profiles", profileManifest("web")); status != http.StatusCreated {
		t.Fatal(status, text)
	}
	done.Wait()
	if n := r.store.watches.Load(); n != 1 {
		t.Errorf("%d watchers watch the store %d times", watchers, n)
	}
}

// TestAPISlowWatcher: who does not read is told to watch again and let go, and holds up
// nobody.
func TestAPISlowWatcher(t *testing.T) {
	r := startRig(t, 0)
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /v1/profiles?watch HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 1)
	for seen := ""; !strings.Contains(seen, "synced"); seen += string(text) {
		if _, err := conn.Read(text); err != nil {
			t.Fatal(err)
		}
	}
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: "web", Labels: map[string]string{}}}
	p.SetDefaults()
	for i := range 100 {
		p.Metadata.Labels[fmt.Sprint("label", i)] = strings.Repeat("x", 60)
	}
	if err := datastore.Create(t.Context(), r.store, p); err != nil {
		t.Fatal(err)
	}
	// Somebody who reads says how far the watchers were told.
	told := make(chan string, 1)
	go func() {
		client, err := api.NewClient(api.Server{URL: "unix://" + r.socket})
		if err == nil {
			defer client.Close()
			err = client.Watch(t.Context(), []datastore.Kind{datastore.KindProfile}, 0, func(e api.Event) error {
				if _, n, ok := strings.Cut(string(e.Data), `"n":"`); ok || e.Type == "synced" {
					told <- strings.Split(n, `"`)[0]
				}
				return nil
			})
		}
		told <- err.Error()
	}()
	if first := <-told; first != "" {
		t.Fatal(first)
	}
	for i := range 2500 { // more than are kept for it, in its hands and waiting, and than the sockets hold
		p.Metadata.Labels["n"] = fmt.Sprint(i)
		if err := datastore.Update(t.Context(), r.store, p); err != nil {
			t.Fatal(err)
		}
		if n := <-told; n != p.Metadata.Labels["n"] {
			t.Fatal(n)
		}
	}
	events, _ := watched(t, r.local(), "http://netctl/v1/profiles?watch", "synced")
	if len(events) != 2 {
		t.Errorf("another watcher: %q", events)
	}
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	rest, err := io.ReadAll(conn)
	if err != nil || !bytes.Contains(rest[max(0, len(rest)-300):], []byte("event: resync\ndata: {\"error\":\"changes were missed")) {
		t.Errorf("%v, the stream ends in %q", err, rest[max(0, len(rest)-300):])
	}
}

// TestAPIWatcherReadsLate: who reads late, but in time, misses nothing and has it in order, with
// TLS and without.
func TestAPIWatcherReadsLate(t *testing.T) {
	r := startRig(t, 0)
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: "web", Labels: map[string]string{}}}
	p.SetDefaults()
	for i := range 200 {
		p.Metadata.Labels[fmt.Sprint("label", i)] = strings.Repeat("x", 60)
	}
	if err := datastore.Create(t.Context(), r.store, p); err != nil {
		t.Fatal(err)
	}
	const changes = 200 // of 15 kB: more than the sockets hold, less than may wait
	type reader struct {
		io.ReadCloser
		lines *bufio.Reader
	}
	var readers []reader
	open := func(c *http.Client, url string) {
		resp, err := c.Get(url + "/v1/profiles?watch")
		if err != nil {
			t.Fatal(err)
		}
		one := reader{resp.Body, bufio.NewReader(resp.Body)}
		for line := ""; !strings.HasPrefix(line, "event: synced"); {
			if line, err = one.lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		readers = append(readers, one)
	}
	open(r.local(), "http://netctl")
	open(r.user(t, "alice", datastore.APIRead), r.url)
	for i := range changes {
		p.Metadata.Labels["n"] = fmt.Sprint(i)
		if err := datastore.Update(t.Context(), r.store, p); err != nil {
			t.Fatal(err)
		}
	}
	for _, one := range readers {
		for want := 0; want < changes; {
			line, err := one.lines.ReadString('\n')
			if err != nil {
				t.Fatal(want, err)
			}
			if _, n, ok := strings.Cut(line, `"n":"`); ok {
				if n = strings.Split(n, `"`)[0]; n != fmt.Sprint(want) {
					t.Fatalf("change %s, want %d", n, want)
				}
				want++
			}
		}
		one.Close()
	}
}

// TestAPIDescription checks the description with another implementation of OpenAPI, and
// requests and answers of the API by it.
func TestAPIDescription(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "docs", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, a := range actions() {
		if doc.Paths.Find("/v1/actions/"+a.Path) == nil {
			t.Errorf("the action %s is not described", a.Path)
		}
	}
	doc.Servers = openapi3.Servers{{URL: "http://netctl"}}
	router, err := legacy.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	r := startRig(t, 0)
	for _, o := range populatedObjects(t) {
		if err := datastore.Create(t.Context(), r.store, o); err != nil {
			t.Fatal(err)
		}
	}
	c := r.local()
	check := func(method, path, body string) {
		t.Helper()
		request := func() *http.Request {
			q, err := http.NewRequestWithContext(context.Background(), method, "http://netctl"+path, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			q.Header.Set("Content-Type", "application/json")
			return q
		}
		route, params, err := router.FindRoute(request())
		if err != nil {
			t.Errorf("%s %s: %v", method, path, err)
			return
		}
		in := &openapi3filter.RequestValidationInput{Request: request(), PathParams: params, Route: route,
			Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}}
		if err := openapi3filter.ValidateRequest(t.Context(), in); err != nil {
			t.Errorf("%s %s: %v", method, path, err)
		}
		resp, err := c.Do(request())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer, _ := io.ReadAll(resp.Body)
		err = openapi3filter.ValidateResponse(t.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: in, Status: resp.StatusCode, Header: resp.Header, Body: io.NopCloser(bytes.NewReader(answer)), Options: in.Options})
		if err != nil {
			t.Errorf("%s %s: %d %s: %v", method, path, resp.StatusCode, answer, err)
		}
	}
	check(http.MethodGet, "/v1", "")
	check(http.MethodGet, "/v1/openapi.json", "")
	for _, k := range datastore.Kinds() {
		check(http.MethodGet, "/v1/"+api.Plural(k), "")
	}
	check(http.MethodGet, "/v1/pools/10.0.0.0-8", "")
	check(http.MethodGet, "/v1/profiles/none", "")
	check(http.MethodPost, "/v1/profiles", profileManifest("web"))
	check(http.MethodPut, "/v1/profiles/web", profileManifest("web"))
	check(http.MethodPost, "/v1/profiles", profileManifest("web"))
	check(http.MethodDelete, "/v1/profiles/web", "")
	check(http.MethodPost, "/v1/actions/profile/show", `{}`)
	check(http.MethodPost, "/v1/actions/profile/rule/add", `{"name":"p0","args":["inbound","deny"],"flags":{"at":1}}`)
	check(http.MethodPost, "/v1/actions/apply", fmt.Sprintf(`{"flags":{"filename":["-"]},"stdin":%q}`, profileManifest("db")))
	check(http.MethodPost, "/v1/actions/ipam/check", `{}`)
	check(http.MethodPost, "/v1/actions/pool/add", `{"args":["10.1.0.0/16"]}`) // overlaps
	check(http.MethodPost, "/v1/actions/pool/add", `{"args":["192.168.0.0/16"],"flags":{"block-size":27}}`)
}

// populatedObjects are some of each kind.
func populatedObjects(t *testing.T) (list []datastore.Object) {
	t.Helper()
	s := populated(t, 2)
	for _, k := range datastore.Kinds() {
		snap, err := s.List(t.Context(), datastore.KindPrefix(k))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range snap.Entries {
			o, err := datastore.Decode(e.Key, e.Value)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, o)
		}
	}
	return list
}
