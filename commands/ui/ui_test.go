package ui

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"netctl/datastore"
)

const testToken = "SECRET"

// fakeAPI answers what passes, and counts it.
type fakeAPI struct {
	asked   []string
	body    func() io.ReadCloser
	err     error
	objects []datastore.Object
}

func (f *fakeAPI) get(_ context.Context, path string) (*http.Response, error) {
	f.asked = append(f.asked, path)
	if f.err != nil {
		return nil, f.err
	}
	body := io.NopCloser(strings.NewReader(`{"revision": 1, "items": []}`))
	if f.body != nil {
		body = f.body()
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: body}, nil
}

func (f *fakeAPI) list(_ context.Context, k datastore.Kind, _ url.Values) (list []datastore.Object, revision int64, err error) {
	for _, o := range f.objects {
		if o.Kind() == k {
			list = append(list, o)
		}
	}
	return list, 7, f.err
}

func (f *fakeAPI) config() Config {
	return Config{Token: testToken, Version: "1", Server: "unix:///x", Get: f.get, List: f.list}
}

// TestWhoMayLook asks as browsers, other sites and other programs would.
func TestWhoMayLook(t *testing.T) {
	type header = map[string]string
	good := "Bearer " + testToken
	for _, c := range []struct {
		what, method, path, host string
		header                   header
		status                   int
		passes                   bool
	}{
		{"the page without a token", "GET", "/", "127.0.0.1:7444", nil, 200, false},
		{"a link to the page on another site", "GET", "/", "127.0.0.1:7444", header{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200, false},
		{"its script", "GET", "/ui.js", "localhost:7444", nil, 200, false},
		{"a list", "GET", "/v1/nodes?x=1", "127.0.0.1:7444", header{"Authorization": good}, 200, true},
		{"a list by IPv6", "GET", "/v1/nodes", "[::1]:7444", header{"Authorization": good}, 200, true},
		{"a list through a tunnel of another port", "GET", "/v1/nodes", "localhost:9000", header{"Authorization": good, "Origin": "http://localhost:9000"}, 200, true},
		{"what is shown", "GET", "/ui/run", "127.0.0.1", header{"Authorization": good}, 200, false},
		{"no token", "GET", "/v1/nodes", "127.0.0.1:7444", nil, 401, false},
		{"half a token", "GET", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": good[:len(good)-1]}, 401, false},
		{"an empty token", "GET", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": "Bearer "}, 401, false},
		{"a token in the address", "GET", "/v1/nodes?token=" + testToken, "127.0.0.1:7444", nil, 401, false},
		{"the matrix without a token", "GET", "/ui/matrix", "127.0.0.1:7444", nil, 401, false},
		{"a name that was made to lead here", "GET", "/v1/nodes", "evil.example:7444", header{"Authorization": good}, 421, false},
		{"the page by such a name", "GET", "/", "evil.example", nil, 421, false},
		{"a name that begins well", "GET", "/", "127.0.0.1.evil.example", nil, 421, false},
		{"an address of the network", "GET", "/", "192.168.99.102:7444", nil, 421, false},
		{"no host", "GET", "/", "", nil, 421, false},
		{"another site's script", "GET", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": good, "Origin": "http://evil.example"}, 403, false},
		{"another port's script", "GET", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": good, "Origin": "http://127.0.0.1:8080"}, 403, false},
		{"an opaque origin", "GET", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": good, "Origin": "null"}, 403, false},
		{"another site's picture", "GET", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": good, "Sec-Fetch-Site": "cross-site"}, 403, false},
		{"a write", "POST", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": good}, 405, false},
		{"a deletion", "DELETE", "/v1/nodes/n1", "127.0.0.1:7444", header{"Authorization": good}, 405, false},
		{"a change", "PUT", "/v1/nodes/n1", "127.0.0.1:7444", header{"Authorization": good}, 405, false},
		{"a preflight", "OPTIONS", "/v1/nodes", "127.0.0.1:7444", header{"Authorization": good}, 405, false},
		{"an action", "GET", "/v1/actions/backup", "127.0.0.1:7444", header{"Authorization": good}, 404, false},
		{"an action on a detour", "GET", "/v1/nodes/../actions/backup", "127.0.0.1:7444", header{"Authorization": good}, 404, false},
		{"an action in code", "GET", "/v1/%61ctions/backup", "127.0.0.1:7444", header{"Authorization": good}, 404, false},
		{"an action behind slashes", "GET", "/v1//actions/backup", "127.0.0.1:7444", header{"Authorization": good}, 404, false},
		{"elsewhere", "GET", "/etc/passwd", "127.0.0.1:7444", header{"Authorization": good}, 404, false},
	} {
		api := &fakeAPI{}
		r := httptest.NewRequest(c.method, "http://x"+c.path, nil)
		r.Host = c.host
		for k, v := range c.header {
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		New(api.config()).ServeHTTP(w, r)
		if w.Code != c.status || (len(api.asked) > 0) != c.passes {
			t.Errorf("%s: %d %s, the API was asked %q", c.what, w.Code, w.Body, api.asked)
		}
		if c.passes && api.asked[0] != c.path {
			t.Errorf("%s: the API was asked %q", c.what, api.asked)
		}
		if csp := w.Header().Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", c.what, csp)
		}
		if c.status >= 400 {
			var f struct{ Error, Code string }
			if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil || f.Error == "" || f.Code == "" {
				t.Errorf("%s: answer %s", c.what, w.Body)
			}
		}
	}
}

// TestPageIsWhole looks for what the policy would refuse, and files that nobody serves.
func TestPageIsWhole(t *testing.T) {
	files, err := page.ReadDir("page")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		path := "/" + strings.TrimSuffix(f.Name(), "index.html")
		if name, _ := asset(path); name != f.Name() {
			t.Errorf("%s is served as %q", f.Name(), name)
		}
		text, err := page.ReadFile("page/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		bad := regexp.MustCompile(`https?://[^w]|//cdn|innerHTML|eval\(| style=| on[a-z]+="|@import|url\(`)
		if found := bad.Find(text); found != nil {
			t.Errorf("%s has %q", f.Name(), found)
		}
		for _, m := range regexp.MustCompile(`(?:from "|src="|href=")\.?/?([^"#]+)"`).FindAllSubmatch(text, -1) {
			if name, _ := asset("/" + string(m[1])); name == "" {
				t.Errorf("%s wants %s", f.Name(), m[1])
			}
		}
	}
}

// TestListen refuses all but loopback.
func TestListen(t *testing.T) {
	for address, good := range map[string]bool{"127.0.0.1:7444": true, "[::1]:0": true, "127.8.9.1:1": true, "0.0.0.0:7444": false, ":7444": false, "[::]:1": false,
		"192.168.1.1:7444": false, "localhost:7444": false, "127.0.0.1": false, "": false, "127.0.0.1:7443x": false, "127.0.0.1:65536": false, "127.0.0.1:": false} {
		if err := CheckListen(address); (err == nil) != good || err != nil && !errors.Is(err, datastore.ErrInvalid) {
			t.Errorf("%q: %v", address, err)
		}
	}
	if a, b := NewToken(), NewToken(); a == b || len(a) < 26 {
		t.Errorf("tokens %q and %q", a, b)
	}
}

// TestPass hands a stream on piece by piece, says that it was cut off, and why there is none.
func TestPass(t *testing.T) {
	in, out := io.Pipe()
	api := &fakeAPI{body: func() io.ReadCloser { return in }}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, api.config()) }()
	ask := func() *http.Response {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/v1/watch?kind=nodes", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+testToken)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	go func() { _, _ = io.WriteString(out, "event: one\n") }()
	resp := ask()
	lines := bufio.NewReader(resp.Body)
	for _, want := range []string{"event: one\n", "event: two\n"} { // the second is written once the first is here
		if line, err := lines.ReadString('\n'); line != want {
			t.Fatalf("%q, %v", line, err)
		}
		go func() { _, _ = io.WriteString(out, "event: two\n") }()
	}
	in.CloseWithError(errors.New("the API was killed"))
	if _, err := lines.ReadString('!'); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the end of what was cut off: %v", err)
	}
	api.err = fmt.Errorf("api at unix:///x: nobody listens there: %w", datastore.ErrUnavailable)
	resp = ask()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(text), "nobody listens there") {
		t.Errorf("%s: %s", resp.Status, text)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func profile(t *testing.T, name string, inbound ...string) *datastore.Profile {
	t.Helper()
	p := &datastore.Profile{Metadata: datastore.Metadata{Name: name}}
	for _, text := range inbound {
		r, err := datastore.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Spec.Inbound = append(p.Spec.Inbound, r)
	}
	p.SetDefaults()
	return p
}

func endpoint(node, workload string, labels map[string]string, profiles []string, addresses ...string) *datastore.Endpoint {
	e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: datastore.EndpointName(node, "cni", workload, "eth0"), Labels: labels}}
	e.Spec = datastore.EndpointSpec{Node: node, Orchestrator: "cni", Workload: workload, Interface: "eth0", Network: "net", Link: "nc0", Profiles: profiles}
	for _, a := range addresses {
		e.Spec.Addresses = append(e.Spec.Addresses, netip.MustParseAddr(a))
	}
	return e
}

// TestMatrix judges a cluster with what rules can ask for: tags, selectors, CIDRs, ports,
// both families.
func TestMatrix(t *testing.T) {
	api := &fakeAPI{objects: []datastore.Object{
		profile(t, "web", "deny tcp to ports 8000:8010", "allow tcp to ports 80,443,8000:9000", "allow icmp type 8"),
		profile(t, "db", "allow tcp from tag web to ports 5432", "allow from selector \"env == 'prod'\"", "allow udp from cidr 10.0.0.9/32"),
		profile(t, "named", "allow tcp to ports http"),
		endpoint("n1", "w1", nil, []string{"web"}, "10.0.0.1"),
		endpoint("n2", "w2", nil, []string{"web"}, "10.0.0.2"),
		endpoint("n2", "w3", map[string]string{"env": "prod"}, []string{"web"}, "10.0.0.3"),
		endpoint("n1", "d1", nil, []string{"db"}, "10.0.1.1", "fd00::1"),
		endpoint("n1", "x", nil, nil, "10.0.0.9"),
		endpoint("n1", "six", nil, []string{"web"}, "fd00::6"),
		func() datastore.Object {
			e := endpoint("n1", "n", nil, []string{"named"}, "10.0.2.1")
			e.Spec.Ports = []datastore.Port{{Name: "http", Protocol: "tcp", Port: 8080}}
			return e
		}(),
	}}
	j := judge{list: api.list}
	m, err := j.matrix(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	cells := map[string]string{}
	for i, row := range m.Cells {
		for k, c := range row {
			cells[m.Groups[i].Example+" "+m.Groups[k].Example] = strings.TrimSpace(string(c.Verdict) + " " + c.Open)
		}
	}
	if len(m.Groups) != 6 || m.Left != 0 || m.Revision != 7 {
		t.Fatalf("%+v", m)
	}
	name := func(w string) string {
		return map[string]string{"w1": "n1", "w3": "n2", "d1": "n1", "x": "n1", "six": "n1", "n": "n1"}[w] + "/cni/" + w + "/eth0"
	}
	for pair, want := range map[string]string{
		"w1 w1":  "some icmp echo; tcp 80,443,8011:9000", // another of the group
		"w3 w3":  "alone",
		"w1 d1":  "some tcp 5432",
		"w3 d1":  "all",
		"six d1": "some tcp 5432",
		"w1 six": "apart",
		"d1 six": "some tcp 80,443,8011:9000",
		"x d1":   "none", // without a profile nothing leaves
		"d1 x":   "none",
		"d1 n":   "some tcp 8080",
	} {
		from, to, _ := strings.Cut(pair, " ")
		if got := cells[name(from)+" "+name(to)]; got != want {
			t.Errorf("%s: %q, want %q", pair, got, want)
		}
	}
	p, err := j.pair(t.Context(), name("w1"), "n2/cni/w2/eth0")
	if err != nil || p.Verdict != Some {
		t.Fatalf("%+v, %v", p, err)
	}
	found := map[string]string{}
	for _, q := range p.Judged {
		found[q.Traffic] = q.Outbound.Rule + " | " + q.Inbound.Rule
	}
	for traffic, want := range map[string]string{
		"tcp 8000:8010":        "profile web outbound: allow | profile web inbound: deny tcp to ports 8000:8010",
		"tcp 80,443,8011:9000": "profile web outbound: allow | profile web inbound: allow tcp to ports 80,443,8000:9000",
		"udp 1:65535":          "profile web outbound: allow | no inbound rule allows it",
		"icmp echo":            "profile web outbound: allow | profile web inbound: allow icmp type 8",
	} {
		if found[traffic] != want {
			t.Errorf("%s: %q, want %q (of %q)", traffic, found[traffic], want, found)
		}
	}
	if p, err := j.pair(t.Context(), name("x"), name("d1")); err != nil || p.Judged[0].Outbound.Rule != "no outbound rule allows it" {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := j.pair(t.Context(), "nobody", name("d1")); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("%v", err)
	}
	by, err := j.matrix(t.Context(), true)
	if err != nil || len(by.Groups) != 6 || by.Groups[0].Name != "net" {
		t.Errorf("by network: %+v, %v", by, err)
	}
}

// TestMatrixOfPolicies has a policy with a selector and a network set decide before profiles.
func TestMatrixOfPolicies(t *testing.T) {
	rule, err := datastore.ParseRule("deny tcp from set bad to ports 22")
	if err != nil {
		t.Fatal(err)
	}
	pass, err := datastore.ParseRule("pass")
	if err != nil {
		t.Fatal(err)
	}
	policy := &datastore.Policy{Metadata: datastore.Metadata{Name: "guard"}, Spec: datastore.PolicySpec{Selector: "role == 'host'", Ingress: []datastore.Rule{rule, pass}}}
	policy.SetDefaults()
	set := &datastore.NetworkSet{Metadata: datastore.Metadata{Name: "bad"}, Spec: datastore.NetworkSetSpec{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}}
	api := &fakeAPI{objects: []datastore.Object{profile(t, "open", "allow"), policy, set,
		endpoint("n1", "bad", nil, []string{"open"}, "10.0.0.1"),
		endpoint("n1", "good", nil, []string{"open"}, "10.0.0.2"),
		endpoint("n2", "host", map[string]string{"role": "host"}, []string{"open"}, "10.0.0.3"),
	}}
	j := judge{list: api.list}
	m, err := j.matrix(t.Context(), false)
	if err != nil || len(m.Groups) != 3 {
		t.Fatalf("%+v, %v", m, err)
	}
	p, err := j.pair(t.Context(), "n1/cni/bad/eth0", "n2/cni/host/eth0")
	if err != nil || p.Verdict != Some {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, q := range p.Judged {
		if q.Allowed == (q.Traffic == "tcp 22") || !q.Allowed && !strings.Contains(q.Inbound.Rule, "policy guard") {
			t.Errorf("%+v", q)
		}
	}
	if p, err := j.pair(t.Context(), "n1/cni/good/eth0", "n2/cni/host/eth0"); err != nil || p.Verdict != All {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestMatrixOfMany has more groups than a page can show.
func TestMatrixOfMany(t *testing.T) {
	api := &fakeAPI{}
	for i := range maxGroups + 40 {
		name := fmt.Sprint("p", i)
		api.objects = append(api.objects, profile(t, name))
		for k := range 2 + i%3 {
			api.objects = append(api.objects, endpoint("n1", fmt.Sprintf("w%d-%d", i, k), nil, []string{name}, fmt.Sprintf("10.0.%d.%d", i, k)))
		}
	}
	m, err := (&judge{list: api.list}).matrix(t.Context(), false)
	if err != nil || len(m.Groups) != maxGroups || m.Left != 40 || len(m.Cells) != maxGroups {
		t.Fatalf("%d groups, %d left, %v", len(m.Groups), m.Left, err)
	}
	for i, row := range m.Cells {
		for k, c := range row {
			if want := map[bool]Verdict{true: All, false: None}[i == k]; c.Verdict != want && c.Verdict != Unjudged {
				t.Errorf("%s to %s: %s, want %s", m.Groups[i].Name, m.Groups[k].Name, c.Verdict, want)
			}
		}
	}
}
