package commands

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// TestPageInBrowser shows clusters in Chromium, by the real command and an API: what changes is
// seen within a second, a session that dies and an API that goes too, 300 nodes and 10,000
// endpoints are drawn in time, keys go where they should, and nothing is asked of elsewhere.
// It writes the picture in docs/ if NETCTL_WRITE_DOCS is set.
func TestPageInBrowser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if os.Getenv("NETCTL_GUEST") == "" || err != nil {
		t.Skip("needs chromium and takes half a minute: `make test-all` has it, or set NETCTL_GUEST")
	}
	b := openBrowser(t, chromium)
	t.Run("small", func(t *testing.T) { smallPage(t, b) })
	t.Run("large", func(t *testing.T) { largePage(t, b) })
	t.Run("lab", func(t *testing.T) { labPage(t, b) })
	var said []string
	b.do(t, map[string]any{"log": true}, &said)
	if len(said) > 0 {
		t.Errorf("the page complained, or asked elsewhere: %q", said)
	}
}

// smallPage is a cluster of six nodes, that things happen in.
func smallPage(t *testing.T, b *browser) {
	r := startRig(t, 0)
	small := newPageCluster(t, r, 6, 42)
	b.open(t, pageURL(t, r.socket))
	b.until(t, "the page is complete", `live && cells("nodes").length === 6 && document.querySelectorAll("#matrix tbody tr").length === 2`)
	b.is(t, "what it knows", `[text("summary").includes("42 of 384"), cells("pools").length, cells("blocks").length, cells("endpoint-table").length, document.querySelectorAll("#map-nodes .node").length]`, `[true,1,6,42,6]`)
	b.is(t, "sessions are up", `[$("map-up").getAttribute("d").match(/M/g).length, $("map-down").getAttribute("d")]`, `[15,""]`)

	// A change is seen within a second, by the page's own clock.
	b.eval(t, `watchFor("endpoint-table", "fresh")`, nil)
	wrote := time.Now()
	small.endpoint(t, 0, "fresh", "db")
	var seen float64
	b.eval(t, `seenAt`, &seen)
	if late := time.UnixMilli(int64(seen)).Sub(wrote); late > time.Second {
		t.Errorf("an endpoint was seen after %s", late)
	} else {
		t.Logf("an endpoint was seen after %s", late)
	}
	b.until(t, "an event says so", `text("log").includes("endpoint n0/cni/fresh/eth0 is there: 10.65.0.")`)

	// A session dies.
	small.report(t, 1, "Active", "hold timer expired")
	b.until(t, "the dead session", `$("map-down").getAttribute("d") !== "" && text("sessions").includes("hold timer expired") && cells("nodes")[0].startsWith("n1✕ 5 sessions down") && text("log").includes("session n1 to n0 is not up: Active, hold timer expired")`)

	// Who may talk, with the keyboard: from db, the first row, to web, the second.
	b.eval(t, `document.querySelector("#matrix [data-at='0 0']").focus()`, nil)
	b.do(t, map[string]any{"key": "ArrowRight"}, nil)
	b.do(t, map[string]any{"key": "Enter"}, nil)
	b.until(t, "the deciding rules", `document.activeElement.id === "pair-title" && text("judged").includes("profile web inbound: allow tcp to ports 80,443") && text("judged").includes("no inbound rule allows it")`)
	b.is(t, "a cell in words", `document.querySelector("#matrix [data-at='0 1']").getAttribute("aria-label")`, `"db to web: tcp 80,443"`)
	small.put(t, &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: rules(t, "allow udp to ports 53")}})
	b.until(t, "the matrix follows", `document.querySelector("#matrix [data-at='0 1']").title === "db to web: udp 53" && text("judged").includes("allow udp to ports 53")`)
	small.put(t, &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: rules(t, "allow tcp to ports 80,443", "allow icmp")}})
	b.until(t, "the matrix follows again", `document.querySelector("#matrix [data-at='0 1']").title.startsWith("db to web: icmp echo; tcp 80,443")`)

	// Names of elements, and where Tab goes.
	b.is(t, "the first stop of Tab", `(() => { const all = [...document.querySelectorAll("a,button,input,[tabindex]")].filter(e => e.tabIndex >= 0 && e.offsetParent !== null || e.className === "skip"); return all.filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.getAttribute("aria-labelledby"))).map(e => e.outerHTML) })()`, `[]`)
	b.is(t, "elements of one id", `(() => { const ids = [...document.querySelectorAll("[id]")].map(e => e.id); return ids.filter((x, i) => ids.indexOf(x) !== i) })()`, `[]`)

	small.report(t, 2, "Established", "")
	picture := filepath.Join(t.TempDir(), "ui.png")
	if os.Getenv("NETCTL_WRITE_DOCS") != "" {
		picture = filepath.Join("..", "docs", "ui.png")
	}
	b.shoot(t, picture)
	if st, err := os.Stat(picture); err != nil || st.Size() < 20_000 {
		t.Errorf("the picture: %v, %v", st, err)
	}

	// The API goes, and comes back with what happened meanwhile.
	r.stop()
	b.until(t, "the API is away", `$("link").dataset.state === "away" && $("link").textContent.includes("What is shown is of") && cells("nodes").length === 6`)
	small.endpoint(t, 2, "meanwhile", "web")
	fresh, err := datastore.Get[*datastore.Endpoint](t.Context(), r.store, "n0/cni/fresh/eth0")
	if err == nil {
		err = datastore.Delete(t.Context(), r.store, fresh)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.start(t)
	b.until(t, "the API is back", `live && text("endpoint-table").includes("meanwhile") && !text("endpoint-table").includes("fresh")`)
}

// labPage is a cluster of three real nodes, of which one loses its roles, and has them again.
func labPage(t *testing.T, b *browser) {
	dir, err := os.MkdirTemp("", "ui") // a socket's name has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	lab := func(args ...string) *exec.Cmd {
		return exec.Command(netlab.Binary(t), append([]string{"lab", "--dir", filepath.Join(dir, "lab")}, args...)...)
	}
	if out, err := lab("up", "--nodes", "3").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := lab("down").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	on := func(node, role string) {
		c := lab("exec", node, "--", netlab.Binary(t), role, "--config", "/etc/netctl.yaml")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Process.Signal(os.Interrupt); _ = c.Wait() })
	}
	on("node1", "api")
	socket := filepath.Join(dir, "lab", "node1", "run", "netctl-node", "api.sock")
	netlab.Until(t, time.Minute, "the API", func() string {
		if _, err := os.Stat(socket); err != nil {
			return err.Error()
		}
		return ""
	})
	b.open(t, pageURL(t, socket))
	b.until(t, "sessions are up", `live && cells("nodes").length === 3 && $("map-up").getAttribute("d").match(/M/g)?.length === 3 && $("map-down").getAttribute("d") === ""`)

	pid, err := os.ReadFile(filepath.Join(dir, "lab", "node3", "var/lib/netctl-node/node.lock"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		t.Fatal(err)
	}
	// A report comes at once, but not soon after another one.
	netlab.Until(t, time.Minute, "calm reports", func() string {
		out, err := lab("exec", "node1", "--", netlab.Binary(t), "get", "reports", "-o", "json").Output()
		for _, m := range regexp.MustCompile(`"seen": "([^"]*)"`).FindAllStringSubmatch(string(out), -1) {
			if at, e := time.Parse(time.RFC3339, m[1]); e != nil || time.Since(at) < 7*time.Second {
				return m[0]
			}
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
	b.eval(t, `watchFor("nodes", "✕ 1 session down")`, nil)
	ended := time.Now()
	if err := syscall.Kill(n, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var seen float64
	b.eval(t, `seenAt`, &seen)
	t.Logf("the dead session was seen %s after its node was told to end", time.UnixMilli(int64(seen)).Sub(ended))
	b.until(t, "the dead sessions", `text("sessions").includes("node3") && cells("nodes").filter(x => /^node[12]✕ 1 session down/.test(x)).length === 2 && $("map-down").getAttribute("d").match(/M/g)?.length === 2`)
	on("node3", "node")
	b.until(t, "sessions are up again", `$("map-up").getAttribute("d").match(/M/g)?.length === 3 && $("map-down").getAttribute("d") === ""`)
}

// largePage is a cluster of 300 nodes and 10,000 endpoints.
func largePage(t *testing.T, b *browser) {
	r := startRig(t, 0)
	large := newPageCluster(t, r, 300, 10_000)
	b.open(t, pageURL(t, r.socket))
	b.until(t, "the page is complete", `live && cells("nodes").length === 300 && text("endpoints-note").startsWith("10,000 endpoints") && performance.getEntriesByName("redraw-all").length > 0`)
	// Everything is drawn anew some times, and then one change after the other.
	for i := range 6 {
		var had int
		b.eval(t, `performance.getEntriesByName("redraw-all").length`, &had)
		b.do(t, map[string]any{"size": []int{1280 + 160*(i%2), 1000}}, nil)
		b.until(t, "the map in another width", fmt.Sprintf(`performance.getEntriesByName("redraw-all").length > %d`, had))
	}
	for i := range 10 {
		large.endpoint(t, i*7, fmt.Sprint("late", i), "web")
		large.report(t, i*11, "Active", "hold timer expired")
		b.until(t, "a change", fmt.Sprintf(`cells("nodes").filter(x => x.includes("down")).length === %d`, i+1))
	}
	var took struct{ All, One []float64 }
	b.eval(t, `({all: performance.getEntriesByName("redraw-all").map(x => x.duration), one: performance.getEntriesByName("redraw").map(x => x.duration)})`, &took)
	t.Logf("of 300 nodes and 10,000 endpoints a whole redraw took %.0f ms, one of a change %.0f ms", took.All, took.One)
	// What other work on the machine adds is not the page's.
	for what, list := range map[string][]float64{"a whole redraw": took.All, "a change": took.One} {
		if least := slices.Min(list); least > 100 {
			t.Errorf("%s takes %.0f ms, more than 100", what, least)
		}
	}
	if dir := os.Getenv("NETCTL_UI_PICTURES"); dir != "" {
		b.shoot(t, filepath.Join(dir, "large.png"))
		b.do(t, map[string]any{"dark": true}, nil)
		b.shoot(t, filepath.Join(dir, "dark.png"))
		b.do(t, map[string]any{"dark": false}, nil)
	}
}

// pageURL starts netctl ui on an API and returns what it prints.
func pageURL(t *testing.T, socket string) string {
	t.Helper()
	in, out := io.Pipe()
	a := &app{in: strings.NewReader(""), out: out, err: io.Discard}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- a.run(ctx, []string{"ui", "--listen", "127.0.0.1:0", "--server", "unix://" + socket})
		_ = out.Close()
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// browser is Chromium: see ui/testdata/browser.
type browser struct {
	in  io.Writer
	out *json.Decoder
}

func openBrowser(t *testing.T, chromium string) *browser {
	t.Helper()
	tool := filepath.Join(t.TempDir(), "browser")
	build := exec.Command("go", "build", "-o", tool, ".")
	build.Dir = "ui/testdata/browser"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("browser: %v\n%s", err, out)
	}
	cmd := exec.Command(tool, chromium)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
			t.Error(err)
		}
	})
	return &browser{in, json.NewDecoder(out)}
}

// do has an order done, and decodes what comes of it.
func (b *browser) do(t *testing.T, order map[string]any, into any) {
	t.Helper()
	text, err := json.Marshal(order)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.in.Write(append(text, '\n')); err != nil {
		t.Fatal(err)
	}
	var r struct {
		Value json.RawMessage
		Error string
	}
	if err := b.out.Decode(&r); err != nil || r.Error != "" {
		t.Fatalf("%s: %v %s", text, err, r.Error)
	}
	if into != nil {
		if err := json.Unmarshal(r.Value, into); err != nil {
			t.Fatalf("%s: %s: %v", text, r.Value, err)
		}
	}
}

// pageWords are short names for what the test looks at.
const pageWords = `var $ = id => document.getElementById(id), text = id => $(id).textContent, cells = id => [...$(id).tBodies[0].rows].map(r => r.textContent),
	watchFor = (id, what) => { window.seenAt = new Promise(done => { const look = () => text(id).includes(what) && (o.disconnect(), done(Date.now())); const o = new MutationObserver(look); o.observe($(id), {subtree: true, childList: true, characterData: true}); }); };
	Object.defineProperty(window, "live", {configurable: true, get: () => $("link").dataset.state === "live"}); 0`

func (b *browser) open(t *testing.T, url string) {
	t.Helper()
	b.do(t, map[string]any{"size": []int{1440, 1000}}, nil)
	b.do(t, map[string]any{"go": url}, nil)
	b.eval(t, pageWords, nil)
}

func (b *browser) eval(t *testing.T, js string, into any) {
	t.Helper()
	b.do(t, map[string]any{"eval": js}, into)
}

// shoot makes a picture of the whole page.
func (b *browser) shoot(t *testing.T, file string) {
	t.Helper()
	b.eval(t, `document.activeElement.blur(); scrollTo(0, 0)`, nil)
	b.do(t, map[string]any{"size": []int{1440, 4000}}, nil)
	b.eval(t, `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))`, nil)
	var height int
	b.eval(t, `Math.ceil(document.querySelector("footer").getBoundingClientRect().bottom)`, &height)
	b.do(t, map[string]any{"size": []int{1440, height}}, nil)
	b.eval(t, `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))`, nil)
	b.do(t, map[string]any{"shot": file}, nil)
	b.do(t, map[string]any{"size": []int{1440, 1000}}, nil)
}

func (b *browser) until(t *testing.T, what, js string) {
	t.Helper()
	netlab.Until(t, 30*time.Second, what, func() string {
		var is bool
		if b.eval(t, "!!("+js+")", &is); is {
			return ""
		}
		var text string
		b.eval(t, `document.body.innerText`, &text)
		return text
	})
}

func (b *browser) is(t *testing.T, what, js, want string) {
	t.Helper()
	var got json.RawMessage
	if b.eval(t, js, &got); string(got) != want {
		t.Errorf("%s: %s, want %s", what, got, want)
	}
}

// pageCluster is a cluster that a page shows.
type pageCluster struct {
	store datastore.Store
	nodes int
	next  []int // ordinals
}

func newPageCluster(t *testing.T, r *apiRig, nodes, endpoints int) *pageCluster {
	t.Helper()
	c := &pageCluster{store: r.store, nodes: nodes, next: make([]int, nodes)}
	c.put(t, &datastore.Pool{Spec: datastore.PoolSpec{CIDR: netip.MustParsePrefix("10.65.0.0/16")}})
	c.put(t, &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}, Spec: datastore.ProfileSpec{Inbound: rules(t, "allow tcp to ports 80,443")}})
	c.put(t, &datastore.Profile{Metadata: datastore.Metadata{Name: "db"}, Spec: datastore.ProfileSpec{Inbound: rules(t, "allow tcp from tag web to ports 5432")}})
	for i := range nodes {
		n := &datastore.Node{Metadata: datastore.Metadata{Name: fmt.Sprint("n", i), Labels: map[string]string{"rack": fmt.Sprint("A", 1+i/max(3, nodes/15))}}}
		n.Spec.Addresses = []netip.Prefix{netip.PrefixFrom(c.address(i), 16)}
		c.put(t, n)
		c.put(t, &datastore.Report{Metadata: datastore.Metadata{Name: datastore.ReportName(n.Metadata.Name, datastore.ReportAgent)}, Status: datastore.ReportStatus{Seen: time.Now(), Started: time.Now()}})
		c.report(t, i, "Established", "")
		b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: c.block(i), Affinity: n.Metadata.Name}}
		for j := range (endpoints - i + nodes - 1) / nodes {
			b.Spec.Allocations = append(b.Spec.Allocations, datastore.Allocation{Ordinal: j, Handle: fmt.Sprintf("n%d/cni/w%d/eth0", i, j), Node: n.Metadata.Name, Time: time.Now()})
		}
		c.put(t, b)
	}
	for i := range endpoints {
		c.endpoint(t, i%nodes, fmt.Sprint("w", i/nodes), []string{"web", "db"}[i%2])
	}
	return c
}

func (c *pageCluster) address(node int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 16, byte(node >> 8), byte(node) + 1})
}

func (c *pageCluster) block(node int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 65, byte(node >> 2), byte(node << 6)}), 26)
}

func (c *pageCluster) put(t *testing.T, o datastore.Object) {
	t.Helper()
	o.SetDefaults()
	key, err := datastore.KeyOf(o)
	if err != nil {
		t.Fatal(err)
	}
	write := datastore.Create
	if e, err := c.store.Get(t.Context(), key); err == nil {
		o.Meta().Revision, write = e.Revision, datastore.Update
	}
	if err := write(t.Context(), c.store, o); err != nil {
		t.Fatal(err)
	}
}

// endpoint adds one to a node.
func (c *pageCluster) endpoint(t *testing.T, node int, workload, profile string) {
	t.Helper()
	name := fmt.Sprint("n", node)
	at := c.block(node).Addr()
	for range c.next[node] {
		at = at.Next()
	}
	c.next[node]++
	c.put(t, &datastore.Endpoint{Spec: datastore.EndpointSpec{Node: name, Orchestrator: "cni", Workload: workload, Interface: "eth0",
		Link:      datastore.LinkName("nc", datastore.EndpointName(name, "cni", workload, "eth0")),
		Addresses: []netip.Addr{at}, Profiles: []string{profile}, Network: "net"}})
}

// report has a node's speaker say that its sessions, to others of a mesh or of many nodes to
// two reflectors, are so.
func (c *pageCluster) report(t *testing.T, node int, state, reason string) {
	t.Helper()
	r := &datastore.Report{Metadata: datastore.Metadata{Name: datastore.ReportName(fmt.Sprint("n", node), datastore.ReportSpeaker)}, Status: datastore.ReportStatus{Seen: time.Now()}}
	for peer := range c.nodes {
		if peer == node || c.nodes > 50 && peer > 1 && node > 1 {
			continue
		}
		r.Status.Sessions = append(r.Status.Sessions, datastore.SessionStatus{Peer: c.address(peer), Type: "node-to-node mesh", State: state, Reason: reason, Since: time.Now()})
	}
	c.put(t, r)
}

func rules(t *testing.T, texts ...string) (list []datastore.Rule) {
	t.Helper()
	for _, text := range texts {
		r, err := datastore.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}
