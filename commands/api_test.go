package commands

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/api"
	"netctl/datastore"
	"netctl/datastore/memory"
	"netctl/datastore/pki"
)

// TestEveryCommandIsInTheAPI: a command is an action, or is named with why not, and an
// action's words lead back to its command.
func TestEveryCommandIsInTheAPI(t *testing.T) {
	root := newRootCommand(&app{})
	seen := map[string]bool{}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		path := commandPath(c)
		_, action := remotes()[path]
		_, local := localCommands()[path]
		if !c.HasSubCommands() || action || local {
			seen[path] = true
			if action == local {
				t.Errorf("%q is an action: %v; on the machine itself: %v", path, action, local)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, path := range append(slices.Collect(maps.Keys(remotes())), slices.Collect(maps.Keys(localCommands()))...) {
		if !seen[path] {
			t.Errorf("%q is no command", path)
		}
	}
	for _, a := range actions() {
		line := commandLine(root, strings.Split(a.Path, "/"), "x1")
		bindName(root, line)
		if c, rest, err := root.Find(line); err != nil || len(rest) > 0 || strings.ReplaceAll(commandPath(c), " ", "/") != a.Path {
			t.Errorf("%s: %v leads to %s, %v", a.Path, line, c.CommandPath(), err)
		}
		words := strings.Split(a.Path, "/")
		if look := slices.Contains([]string{"show", "get", "info", "status", "json"}, words[len(words)-1]); look != (a.Rights.Role == datastore.APIRead) && look {
			t.Errorf("%s needs the role %s", a.Path, a.Rights.Role)
		}
	}
}

const poolManifest = `{"apiVersion":"netctl/v1","kind":"Pool","metadata":{"name":"10.1.0.0-16"},"spec":{"cidr":"10.1.0.0/16"}}`

func profileManifest(name string) string {
	return fmt.Sprintf(`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":%q},"spec":{}}`, name)
}

// TestAPIRefusesAsTheCommandLine writes the same manifests by both, in one order, and
// holds the words of one against the other's.
func TestAPIRefusesAsTheCommandLine(t *testing.T) {
	r := startRig(t, 0)
	reference := &countedStore{Store: memory.New()}
	c, base := r.local(), "http://netctl"
	head := `{"apiVersion":"netctl/v1","kind":`
	for _, m := range []string{
		poolManifest,
		head + `"Pool","metadata":{"name":"10.1.2.0-24"},"spec":{"cidr":"10.1.2.0/24"}}`,
		head + `"Pool","metadata":{"name":"x"},"spec":{"cidr":"10.3.0.0/16"}}`,
		head + `"Pool","metadata":{"name":"10.3.0.0-16"},"spec":{"cidr":"10.3.0.0/16","blockSize":5}}`,
		head + `"Pool","metadata":{"name":"10.3.0.0-16"},"spec":{"cidr":"10.3.0.0/16","encaps":"ipip"}}`,
		head + `"Node","metadata":{"name":"slave","labels":{"rack":"A1"}},"spec":{"addresses":["192.168.99.102/24"]}}`,
		head + `"Node","metadata":{"name":"-"},"spec":{}}`,
		head + `"Peer","metadata":{"name":"192.168.99.1"},"spec":{"address":"192.168.99.1","as":65001}}`,
		head + `"Peer","metadata":{"name":"192.168.99.2"},"spec":{"address":"192.168.99.2","as":65001,"filters":["none"]}}`,
		head + `"BGPFilter","metadata":{"name":"f"},"spec":{"import":["reject"]}}`,
		head + `"BGPFilter","metadata":{"name":"f"},"spec":{"import":["rejct"]}}`,
		head + `"Network","metadata":{"name":"app"},"spec":{"pools":["10.9.0.0/16"]}}`,
		head + `"Network","metadata":{"name":"app"},"spec":{}}`,
		head + `"Profile","metadata":{"name":"web"},"spec":{"inbound":["allow tcp to ports 80"]}}`,
		head + `"Profile","metadata":{"name":"web"},"spec":{"inbound":["allow tpc"]}}`,
		head + `"Profile","metadata":{"name":"web","revision":1},"spec":{"inbound":["deny"]}}`,
		head + `"Endpoint","metadata":{"name":"slave/cni/w/eth0"},"spec":{"node":"slave","orchestrator":"cni","workload":"w","interface":"eth0","link":"nc1","addresses":["10.1.0.1"],"profiles":["web"]}}`,
		head + `"Reservation","metadata":{"name":"kept"},"spec":{"cidrs":["10.1.255.0/24"]}}`,
		head + `"Config","metadata":{"name":"default"},"spec":{"mtu":1400}}`,
		head + `"BGPConfig","metadata":{"name":"default"},"spec":{"holdTime":2}}`,
		head + `"BGPConfig","metadata":{"name":"other"},"spec":{}}`,
		head + `"Block","metadata":{"name":"10.1.0.0-26"},"spec":{"cidr":"10.1.0.0/26","affinity":"slave"}}`,
		head + `"Report","metadata":{"name":"slave/agent"},"status":{}}`,
		head + `"Nope","metadata":{"name":"x"}}`,
		`{`, ``,
	} {
		a, _, _ := reference.app(t)
		a.in = strings.NewReader(m)
		wrong := a.run(t.Context(), []string{"replace", "-f", "-"})
		if errors.Is(wrong, datastore.ErrNotFound) {
			a, _, _ = reference.app(t)
			a.in = strings.NewReader(m)
			wrong = a.run(t.Context(), []string{"apply", "-f", "-"})
		}
		var kind struct {
			Kind     datastore.Kind
			Metadata struct{ Name string }
		}
		_ = json.Unmarshal([]byte(m), &kind)
		path := "/v1/profiles/x"
		if slices.Contains(datastore.Kinds(), kind.Kind) {
			path = "/v1/" + api.Plural(kind.Kind) + "/" + kind.Metadata.Name
		}
		status, text := ask(t, c, http.MethodPut, base+path, m)
		if (wrong == nil) != (status/100 == 2) {
			t.Errorf("%s\nby the command line: %v\nby the API: %d %s", m, wrong, status, text)
		}
		if field := new(datastore.FieldError); wrong != nil && errors.As(wrong, &field) {
			var f api.Failure
			if err := json.Unmarshal([]byte(text), &f); err != nil || !strings.Contains(f.Error, field.Reason) || status != http.StatusBadRequest {
				t.Errorf("%s\nby the command line: %v\nby the API: %d %s", m, wrong, status, text)
			}
		}
	}
	for _, k := range datastore.Kinds() {
		if status, text := ask(t, c, http.MethodGet, base+"/v1/"+api.Plural(k), ""); status != http.StatusOK || !strings.Contains(text, `"items":[`) {
			t.Errorf("%s: %d %s", k, status, text)
		}
	}
	status, text := ask(t, c, http.MethodDelete, base+"/v1/nodes/none", "")
	if status != http.StatusNotFound || !strings.Contains(text, `"code":"not-found"`) {
		t.Errorf("delete of what is not there: %d %s", status, text)
	}
}

func TestAPIConflicts(t *testing.T) {
	r := startRig(t, 0)
	c, base := r.local(), "http://netctl/v1/profiles"
	if status, text := ask(t, c, http.MethodPost, base, profileManifest("web")); status != http.StatusCreated {
		t.Fatal(status, text)
	}
	if status, text := ask(t, c, http.MethodPost, base, profileManifest("web")); status != http.StatusConflict || !strings.Contains(text, `"code":"exists"`) {
		t.Error("created twice:", status, text)
	}
	if status, text := ask(t, c, http.MethodPut, base+"/none?replace", profileManifest("none")); status != http.StatusNotFound {
		t.Error("replaced what is not there:", status, text)
	}
	old := `{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"web","revision":1},"spec":{"inbound":["deny"]}}`
	status, text := ask(t, c, http.MethodPut, base+"/web", old)
	var f api.Failure
	if err := json.Unmarshal([]byte(text), &f); err != nil || status != http.StatusConflict || f.Code != "conflict" || f.Revision != 2 || strings.Contains(f.Error, "\n") {
		t.Error("old revision:", status, text, err)
	}
	now := strings.Replace(old, `"revision":1`, fmt.Sprintf(`"revision":%d`, f.Revision), 1)
	if status, text := ask(t, c, http.MethodPut, base+"/web", now); status != http.StatusOK || !strings.Contains(text, `"revision":3`) {
		t.Error("the revision that was told:", status, text)
	}
	if status, text := ask(t, c, http.MethodPut, base+"/other", now); status != http.StatusBadRequest || !strings.Contains(text, "URL") {
		t.Error("another name in the URL:", status, text)
	}
}

// TestAPIRoles asks for the same as each role.
func TestAPIRoles(t *testing.T) {
	r := startRig(t, 0)
	users := []*http.Client{r.user(t, "reader", datastore.APIRead), r.user(t, "operator", datastore.APIOperate), r.user(t, "boss", datastore.APIAdmin)}
	for _, c := range []struct {
		method, path, body string
		least              int // index of the first user who may
	}{
		{http.MethodGet, "/v1", "", 0},
		{http.MethodGet, "/v1/pools", "", 0},
		{http.MethodGet, "/v1/actions/profile/show", "", 0},
		{http.MethodPost, "/v1/actions/bgp/node-mesh", "", 0},
		{http.MethodPost, "/v1/actions/bgp/node-mesh", `{"args":["off"]}`, 2},
		{http.MethodPost, "/v1/actions/ipam/check", "", 0},
		{http.MethodPost, "/v1/actions/ipam/check", `{"flags":{"repair":true}}`, 1},
		{http.MethodPut, "/v1/profiles/web", profileManifest("web"), 1},
		{http.MethodPost, "/v1/actions/profile/rule/add", `{"name":"web","args":["inbound","deny"],"flags":{"at":1}}`, 1},
		{http.MethodPut, "/v1/pools/10.1.0.0-16", poolManifest, 2},
		{http.MethodPost, "/v1/actions/pool/add", `{"args":["10.7.0.0/16"]}`, 2},
		{http.MethodPost, "/v1/actions/apply", `{"flags":{"filename":"-"},"stdin":` + fmt.Sprintf("%q", profileManifest("db")) + `}`, 1},
		{http.MethodPost, "/v1/actions/apply", `{"flags":{"filename":["p.json"]},"files":{"p.json":` + fmt.Sprintf("%q", poolManifest) + `}}`, 2},
		{http.MethodPost, "/v1/actions/delete", `{"args":["profile","db"]}`, 1},
		{http.MethodPost, "/v1/actions/delete", `{"args":["pool","10.1.0.0/16"]}`, 2},
		{http.MethodPost, "/v1/actions/token/list", "", 2},
		{http.MethodPost, "/v1/actions/api/list", "", 2},
		{http.MethodDelete, "/v1/profiles/web", "", 1},
		{http.MethodDelete, "/v1/bgpconfigs/default", "", 2},
	} {
		for i, u := range users {
			status, text := ask(t, u, c.method, r.url+c.path, c.body)
			if may := status/100 == 2; may != (i >= c.least) && !(i >= c.least && status == http.StatusNotFound) {
				t.Errorf("%s %s %s as %d: %d %s", c.method, c.path, c.body, i, status, text)
			} else if i < c.least && c.least < 3 && (status != http.StatusForbidden || !strings.Contains(text, "needs the role")) {
				t.Errorf("%s %s as %d refused with %d %s", c.method, c.path, i, status, text)
			}
		}
	}
	status, text := ask(t, users[2], http.MethodGet, r.url+"/v1/actions/profile/rule/add?name=web&arg=inbound&arg=deny", "")
	if status != http.StatusBadRequest || !strings.Contains(text, "POST it") {
		t.Errorf("a change by GET: %d %s", status, text)
	}
	if status, text := ask(t, users[2], http.MethodGet, r.url+"/v1/actions/token/list", ""); status != http.StatusBadRequest || !strings.Contains(text, "token/list is not for GET") {
		t.Errorf("what only admin sees, by GET: %d %s", status, text)
	}
}

// TestAPIKnowsItsUsers shows it certificates that are not good for it.
func TestAPIKnowsItsUsers(t *testing.T) {
	r := startRig(t, 0)
	stranger, err := pki.New("stranger")
	if err != nil {
		t.Fatal(err)
	}
	read := datastore.APIRead.Organisation()
	for _, c := range []struct {
		what, says string
		client     *http.Client
	}{
		{"none", "certificate", r.with()},
		{"another authority's", "certificate", r.as(t, stranger, pki.Node{Name: "x", Role: read})},
		{"expired", "expired", r.as(t, r.ca, pki.Node{Name: "x", Role: read, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)})},
		{"a server's", "certificate", r.as(t, r.ca, pki.Node{Name: "x", Role: read, Use: pki.UseServer})},
		{"a node's", "no role for the API", r.as(t, r.ca, pki.Node{Name: "n2", Role: datastore.RoleNode})},
		{"a member's", "no role for the API", r.as(t, r.ca, pki.Node{Name: "n2", Role: datastore.RoleMember})},
		{"one by hand", "no role for the API", r.as(t, r.ca, pki.Node{Name: "n2"})},
		{"an invented role's", "a role that there is not", r.as(t, r.ca, pki.Node{Name: "n2", Role: "netctl api root"})},
	} {
		if status, text := ask(t, c.client, http.MethodGet, r.url+"/v1", ""); status != 0 && status != http.StatusForbidden || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d %s", c.what, status, text)
		}
	}
	files, err := stranger.Issue(t.TempDir(), pki.Node{Name: "x", Role: read, Use: pki.UseClient})
	if err != nil {
		t.Fatal(err)
	}
	client, err := api.NewClient(api.Server{URL: r.url, CA: r.files.CA, Cert: files.Cert, Key: files.Key})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Index(t.Context()); err == nil || !strings.Contains(err.Error(), "it does not take client.cert: it is of another authority") {
		t.Errorf("another authority's, by the client: %v", err)
	}
	// granted, replaced, revoked, granted again
	s := &settings{}
	s.API.CA = filepath.Join(r.dir, "ca.crt")
	run := func(args ...string) error {
		a, _, _ := r.store.app(t)
		a.loaded = s
		return a.run(t.Context(), args)
	}
	granted := func() *http.Client {
		dir := t.TempDir()
		if err := run("api", "grant", "alice", "--role", "read", "--dir", dir); err != nil {
			t.Fatal(err)
		}
		files := pki.In(dir, "alice")
		pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(files.Key); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("key: %v, %v", st.Mode(), err)
		}
		if err := run("api", "grant", "alice", "--role", "read", "--dir", dir); !errors.Is(err, datastore.ErrExists) {
			t.Errorf("written over: %v", err)
		}
		return r.with(pair)
	}
	good := func(c *http.Client, want bool) {
		t.Helper()
		if status, text := ask(t, c, http.MethodGet, r.url+"/v1", ""); (status == http.StatusOK) != want || !want && !strings.Contains(text, "revoked or replaced") {
			t.Errorf("%d %s, want %v", status, text, want)
		}
	}
	first := granted()
	good(first, true)
	second := granted()
	good(first, false)
	good(second, true)
	if err := run("api", "revoke", "alice"); err != nil {
		t.Fatal(err)
	}
	good(second, false)
	good(granted(), true)
}

// TestAPIBadInput sends what no client should.
func TestAPIBadInput(t *testing.T) {
	r := startRig(t, 0)
	c, base := r.local(), "http://netctl"
	for _, q := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{http.MethodPost, "/v1/pools", strings.Repeat(" ", 10<<20), http.StatusRequestEntityTooLarge, "larger than 1048576 bytes"},
		{http.MethodPost, "/v1/actions/apply", strings.Repeat(" ", 10<<20), http.StatusRequestEntityTooLarge, "larger than 8388608 bytes"},
		{http.MethodGet, "/v1/nopes", "", http.StatusNotFound, "is no kind"},
		{http.MethodGet, "/v1/actions/nope", "", http.StatusNotFound, "is no action"},
		{http.MethodGet, "/elsewhere", "", http.StatusNotFound, "below /v1"},
		{http.MethodPatch, "/v1/pools", "", http.StatusMethodNotAllowed, "openapi"},
		{http.MethodDelete, "/v1/pools", "", http.StatusMethodNotAllowed, "no such request, but GET, POST;"},
		{http.MethodPost, "/v1/pools/a", "", http.StatusMethodNotAllowed, "but GET, PUT, DELETE;"},
		{http.MethodPost, "/v1", "", http.StatusMethodNotAllowed, "but GET;"},
		{http.MethodPut, "/v1/watch", "", http.StatusMethodNotAllowed, "no such request"},
		{http.MethodPost, "/v1/watch", "", http.StatusMethodNotAllowed, "but GET;"},
		{http.MethodDelete, "/v1/actions/backup", "", http.StatusMethodNotAllowed, "but GET, POST;"},
		{http.MethodGet, "/v1/watch?%zz", "", http.StatusBadRequest, "invalid URL escape"},
		{http.MethodGet, "/v1/pools?lable=x", "", http.StatusBadRequest, "not known here"},
		{http.MethodGet, "/v1/pools?selector=((", "", http.StatusBadRequest, "selector"},
		{http.MethodGet, "/v1/pools?watch&after=x", "", http.StatusBadRequest, "must be a revision"},
		{http.MethodGet, "/v1/pools/none", "", http.StatusBadRequest, "metadata.name"},
		{http.MethodDelete, "/v1/profiles/x?force=perhaps", "", http.StatusBadRequest, "true or false"},
		{http.MethodPost, "/v1/actions/pool/add", `{"args":["10.0.0.0/8"],"flags":{"blocksize":26}}`, http.StatusBadRequest, "unknown"},
		{http.MethodPost, "/v1/actions/pool/add", `{"args":["10.0.0.0/8"],"flags":{"block-size":"x"}}`, http.StatusBadRequest, "block-size"},
		{http.MethodPost, "/v1/actions/pool/add", `{"args":["10.0.0.0/8"],"flags":{"config":"/etc/shadow"}}`, http.StatusBadRequest, "unknown"},
		{http.MethodPost, "/v1/actions/pool/add", `{"arg":["10.0.0.0/8"]}`, http.StatusBadRequest, "unknown field"},
		{http.MethodPost, "/v1/actions/pool/add", `{"args":["--help"]}`, http.StatusBadRequest, "--help"},
		{http.MethodPost, "/v1/actions/pool/add", `{}`, http.StatusBadRequest, "arguments"},
		{http.MethodPost, "/v1/actions/pool/add", `{}{}`, http.StatusBadRequest, "more than one"},
		{http.MethodPost, "/v1/actions/apply", `{"flags":{"filename":["/etc/shadow"]}}`, http.StatusBadRequest, "did not come with the request"},
		{http.MethodPost, "/v1/actions/restore", `{"args":["/etc/shadow"]}`, http.StatusBadRequest, "did not come with the request"},
		{http.MethodPost, "/v1/actions/backup", `{"args":["/tmp/x"]}`, http.StatusBadRequest, "written to -"},
		{http.MethodPost, "/v1/actions/profile/rule/add", `{"args":["inbound","deny"]}`, http.StatusBadRequest, "name"},
		{http.MethodPost, "/v1/actions/profile/rule/add", `{"name":"remove","args":["inbound","deny"]}`, http.StatusBadRequest, "name"},
		{http.MethodPost, "/v1/actions/profile/rule/add", `{"name":"--config=/x","args":["inbound","deny"]}`, http.StatusBadRequest, "name"},
		{http.MethodPost, "/v1/actions/install", `{}`, http.StatusNotFound, "is no action"},
	} {
		status, text := ask(t, c, q.method, base+q.path, q.body)
		if status != q.status || !strings.Contains(text, q.says) || strings.Count(text, "\n") != 1 || !strings.Contains(text, `"error":`) {
			t.Errorf("%s %s: %d %s", q.method, q.path, status, text)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, base+"/v1/profiles", strings.NewReader(profileManifest("foreign")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", "https://example.org")
	if resp, err := c.Do(req); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another origin: %v, %v", resp, err)
	}
	r = startRig(t, 300*time.Millisecond)
	raw := func(text string, then func(net.Conn)) string {
		conn, err := net.Dial("unix", r.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		then(conn)
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	for _, line := range []string{"GET *", "CONNECT x:1"} {
		answer := raw(line+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", func(net.Conn) {})
		if !strings.Contains(answer, "400 Bad Request") || !strings.Contains(answer, `{"error":"`+line+`: no path of this server`) {
			t.Errorf("%s: %q", line, answer)
		}
	}
	half := "POST /v1/profiles HTTP/1.1\r\nHost: n\r\nContent-Length: 1000\r\n\r\n{\"apiVersion\":"
	for what, then := range map[string]func(net.Conn){
		"half a request": func(c net.Conn) { _ = c.(*net.UnixConn).CloseWrite() },
		"a slow client":  func(net.Conn) {}, // BodyTime ends it
	} {
		if answer := raw(half, then); !strings.Contains(answer, "400 Bad Request") || !strings.Contains(answer, "ended early or came too slowly") {
			t.Errorf("%s: %q", what, answer)
		}
	}
	if list, _, err := (&backend{settings: &settings{}, store: r.store}).List(t.Context(), datastore.KindProfile); err != nil || len(list) > 0 {
		t.Errorf("%d profiles were made, %v", len(list), err)
	}
}
