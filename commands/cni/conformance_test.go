package cni

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"

	"netctl/commands/control"
	"netctl/datastore"
)

// verbs are those of the specification, with the version that each came with.
func verbs() map[string]string {
	return map[string]string{"ADD": "0.3.1", "DEL": "0.3.1", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
}

// conformConf is a configuration that every verb takes: what CHECK and GC need is there.
// more is further keys.
func conformConf(version, more string) string {
	prev := `{"cniVersion":"` + version + `","interfaces":[{"name":"eth0","sandbox":"$NETNS"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.1/32"}]}`
	return `{"cniVersion":"` + version + `","name":"net1","type":"netctl","agentWait":"0s","cni.dev/valid-attachments":[],"prevResult":` + prev + more + `}`
}

// verdict is what came of a call, held against the protocol: one JSON document or none,
// the exit code that goes with it, an error of one line in the version asked for.
func verdict(t *testing.T, name, asked string, code int, stdout string) (refused *types.Error) {
	t.Helper()
	if strings.TrimSpace(stdout) == "" {
		if code != 0 {
			t.Errorf("%s: exit %d and nothing said", name, code)
		}
		return nil
	}
	d := json.NewDecoder(strings.NewReader(stdout))
	d.DisallowUnknownFields()
	var e struct {
		types.Error
		CNIVersion string `json:"cniVersion"`
	}
	if code == 0 {
		return nil
	}
	if err := d.Decode(&e); err != nil || d.More() {
		t.Errorf("%s: stdout %q: %v", name, stdout, err)
		return nil
	}
	want := asked
	if !slices.Contains(versions(), asked) {
		want = "1.1.0"
	}
	if code != 1 || e.Code == 0 || e.Msg == "" || strings.ContainsAny(e.Msg, "\n\r") || e.CNIVersion != want {
		t.Errorf("%s: exit %d, %s", name, code, stdout)
	}
	return &e.Error
}

// TestVerbsAndVersions: every verb in every version, the results held against the
// reference's types of that version and of all that it converts to.
func TestVerbsAndVersions(t *testing.T) {
	f := newFake(t)
	for _, v := range versions() {
		for verb, since := range verbs() {
			for _, more := range []string{"", `,"ipv6":true`} {
				name := v + " " + verb + more
				code, stdout, stderr := f.run(addEnv(verb), conformConf(v, more))
				refused := verdict(t, name, v, code, stdout)
				old, err := version.GreaterThanOrEqualTo(v, since)
				switch {
				case err != nil:
					t.Fatal(err)
				case !old && (refused == nil || refused.Code != types.ErrIncompatibleCNIVersion):
					t.Errorf("%s: came with %s, and is answered: %s", name, since, stdout)
				case !old:
				case refused != nil || stderr != "" || (stdout != "") != (verb == "ADD"):
					t.Errorf("%s: exit %d, %s%s", name, code, stdout, stderr)
				case verb == "ADD":
					resultOf(t, name, v, stdout)
				}
			}
		}
	}
}

// resultOf reads a result by the reference's types of that version, strictly.
func resultOf(t *testing.T, name, v, stdout string) {
	t.Helper()
	r, err := create.Create(v, []byte(stdout))
	if err != nil || r.Version() != v {
		t.Errorf("%s: %v: %s", name, err, stdout)
		return
	}
	// The type that reads it knows every key.
	d := json.NewDecoder(strings.NewReader(stdout))
	d.DisallowUnknownFields()
	strict := reflect.New(reflect.TypeOf(r).Elem())
	if err := d.Decode(strict.Interface()); err != nil && !strings.Contains(err.Error(), "not supported") {
		t.Errorf("%s: %v", name, err)
	}
	for _, to := range versions() {
		if _, err := r.GetAsVersion(to); err != nil {
			t.Errorf("%s: as %s: %v", name, to, err)
		}
	}
	likeReference(t, stdout)
}

// TestBadInput: what is wrong is answered in the protocol's form by every verb in every
// version, and nobody is asked for anything.
func TestBadInput(t *testing.T) {
	type input struct {
		env   []string
		stdin func(v string) string
		verbs []string // of which it is wrong
	}
	with := func(more string) func(string) string {
		return func(v string) string { return conformConf(v, more) }
	}
	text := func(s string) func(string) string { return func(string) string { return s } }
	all := []string{"ADD", "CHECK", "GC", "STATUS"} // DEL needs no configuration
	attaching := []string{"ADD", "CHECK", "DEL"}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	bad := map[string]input{
		"nothing":           {nil, text(""), all},
		"no JSON":           {nil, text("{"), all},
		"half a request":    {nil, func(v string) string { return conformConf(v, "")[:40] }, all},
		"two requests":      {nil, func(v string) string { return conformConf(v, "") + conformConf(v, "") }, all},
		"not UTF-8":         {nil, text("\xff\xfe"), all},
		"a list":            {nil, text("[]"), all},
		"null name":         {nil, text(`{"cniVersion":"1.1.0","name":null}`), all},
		"name of a path":    {nil, text(`{"cniVersion":"1.1.0","name":"../../etc"}`), all},
		"ten megabytes":     {nil, func(v string) string { return conformConf(v, `,"x":"`+strings.Repeat("x", 10<<20)+`"`) }, all},
		"deep":              {nil, text(strings.Repeat(`{"a":`, 20000)), all},
		"version of 2030":   {nil, with(""), all},
		"no container":      {[]string{"CNI_CONTAINERID="}, with(""), attaching},
		"container of path": {[]string{"CNI_CONTAINERID=../x"}, with(""), attaching},
		"no interface":      {[]string{"CNI_IFNAME="}, with(""), attaching},
		"long interface":    {[]string{"CNI_IFNAME=abcdefghijklmnop"}, with(""), attaching},
		"interface blank":   {[]string{"CNI_IFNAME=eth 0"}, with(""), attaching},
		"no namespace":      {[]string{"CNI_NETNS="}, with(""), []string{"ADD", "CHECK"}},
		"namespace gone":    {[]string{"CNI_NETNS=/proc/0/ns/net"}, with(""), []string{"ADD", "CHECK"}},
		"namespace own":     {[]string{"CNI_NETNS=/proc/self/ns/net"}, with(""), []string{"ADD", "CHECK"}},
		"namespace folder":  {[]string{"CNI_NETNS=/proc/self/ns"}, with(""), []string{"ADD", "CHECK"}},
		"namespace FIFO":    {[]string{"CNI_NETNS=" + fifo}, with(""), []string{"ADD", "CHECK"}}, // nobody writes into it
		"types":             {nil, with(`,"mtu":"1500"`), all},
		"runtimeConfig":     {nil, with(`,"runtimeConfig":{"ips":"10.0.0.1"}`), all},
		"unknown argument":  {[]string{"CNI_ARGS=FOO=1"}, with(""), []string{"ADD"}},
		"ipam of a path":    {nil, with(`,"ipam":{"type":"/bin/sh"}`), all},
	}
	f := newFake(t)
	for what, in := range bad {
		for verb, since := range verbs() {
			if !slices.Contains(in.verbs, verb) {
				continue
			}
			for _, v := range versions() {
				if v < since {
					continue
				}
				asked := v
				if what == "version of 2030" {
					asked = "9.0.0"
				}
				clear(f.asked)
				name := what + ": " + v + " " + verb
				stdin := in.stdin(asked)
				if !strings.Contains(stdin, `"`+asked+`"`) || json.Unmarshal([]byte(f.fill(stdin)), new(any)) != nil || len(stdin) > maxConfig {
					asked = "" // it cannot be known
				}
				code, stdout, _ := f.run(append(addEnv(verb), in.env...), stdin)
				if refused := verdict(t, name, asked, code, stdout); refused == nil {
					t.Errorf("%s: exit %d, %q", name, code, stdout)
				}
				if len(f.asked) > 0 {
					t.Errorf("%s: the agent was asked %v", name, f.asked)
				}
			}
		}
	}
	if kept, err := os.ReadDir(f.pending()); err == nil && len(kept) > 0 {
		t.Errorf("left: %v", kept)
	}
}

// TestAgentCrashes: the agent ends at every point of a call: a DEL is kept, everything else
// says that it may be tried again. What it answers may be nonsense, too.
func TestAgentCrashes(t *testing.T) {
	const whole = "HTTP/1.1 200 OK\r\nContent-Length: "
	ends := map[string]func(net.Conn){
		"before it reads": func(net.Conn) {},
		"while it reads":  func(c net.Conn) { _, _ = c.Read(make([]byte, 10)) },
		"having read":     func(c net.Conn) { answer(c, "") },
		"in a line":       func(c net.Conn) { answer(c, "HTTP/1.1 2") },
		"in its header":   func(c net.Conn) { answer(c, "HTTP/1.1 200 OK\r\nContent-Le") },
		"in its answer":   func(c net.Conn) { answer(c, whole+"100\r\n\r\n{\"end") },
		"of another kind": func(c net.Conn) { answer(c, "hello\r\n\r\n") },
	}
	for point, at := range ends {
		f := crashing(t, at)
		for verb := range verbs() {
			name := point + ": " + verb
			code, stdout, stderr := f.run(addEnv(verb), conformConf("1.1.0", ""))
			refused := verdict(t, name, "1.1.0", code, stdout)
			kept, err := control.ReadPending(f.pending())
			switch again := map[string]uint{"STATUS": 50}[verb]; {
			case verb == "DEL" && (code != 0 || stdout != "" || len(kept) != 1 || err != nil || stderr == ""):
				t.Errorf("%s: exit %d, kept %v, %v, %s", name, code, kept, err, stderr)
			case verb != "DEL" && (refused == nil || refused.Code != max(again, 11) || len(kept) > 0):
				t.Errorf("%s: exit %d, %s, kept %v", name, code, stdout, kept)
			}
			_ = os.RemoveAll(f.pending())
		}
	}
	for what, text := range map[string]string{
		"no JSON": whole + "2\r\n\r\n[}", "an error without words": "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
	} {
		f := crashing(t, func(c net.Conn) { answer(c, text) })
		for _, verb := range []string{"ADD", "GC", "STATUS"} {
			code, stdout, _ := f.run(addEnv(verb), conformConf("1.1.0", ""))
			if verdict(t, what+": "+verb, "1.1.0", code, stdout) == nil {
				t.Errorf("%s: %s: exit %d, %s", what, verb, code, stdout)
			}
		}
	}
}

// crashing is an agent of which at is all that it does of a call.
func crashing(t *testing.T, at func(net.Conn)) *fake {
	t.Helper()
	f := &fake{t: t, socket: filepath.Join(t.TempDir(), "agent.sock")}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			at(c)
			c.Close()
		}
	}()
	return f
}

func answer(c net.Conn, text string) {
	_, _ = http.ReadRequest(bufio.NewReader(c))
	_, _ = c.Write([]byte(text))
}

// ipamPlugin is a plugin that notes its commands and answers by a shell script.
func ipamPlugin(t *testing.T, script string) (dir string, commands func() string) {
	t.Helper()
	dir = t.TempDir()
	text := "#!/bin/sh\necho $CNI_COMMAND >> " + dir + "/log\ncat >/dev/null\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, func() string {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		_ = os.Remove(filepath.Join(dir, "log"))
		return strings.Join(strings.Fields(string(log)), " ")
	}
}

// TestDelegation: the plugin that the network names assigns addresses; whatever becomes of
// that, it is asked to take back what nobody uses.
func TestDelegation(t *testing.T) {
	gives := func(list ...string) string {
		var ips []string
		for _, a := range list {
			ips = append(ips, `{"version":"4","address":"`+a+`","gateway":"10.0.0.1"}`)
		}
		return `[ $CNI_COMMAND != ADD ] || echo '{"cniVersion":"1.1.0","ips":[` + strings.Join(ips, ",") + `],"routes":[{"dst":"0.0.0.0/0"}],"dns":{"nameservers":["10.0.0.53"]}}'`
	}
	conf := conformConf("1.1.0", `,"ipam":{"type":"other","subnet":"10.0.0.0/24"}`)
	taken := &control.Error{Code: control.CodeConflict, Message: "address 10.0.0.9: in use: held by node2/cni/c/eth0"}
	for name, tt := range map[string]struct {
		script   string
		err      error
		code     int // of ADD
		says     string
		commands string
	}{
		"an address":       {gives("10.0.0.9/24"), nil, 0, `"address":"10.0.0.9/32"`, "ADD"},
		"both families":    {gives("10.0.0.9/24", "fd00::9/64"), nil, 0, `"address":"fd00::9/128"`, "ADD"},
		"its DNS":          {gives("10.0.0.9/24"), nil, 0, `"nameservers":["10.0.0.53"]`, "ADD"},
		"none":             {gives(), nil, 7, "gave no address", "ADD DEL"},
		"two":              {gives("10.0.0.9/24", "10.0.0.8/24"), nil, 7, "only one address of a family", "ADD DEL"},
		"no address":       {gives("10.0.0"), nil, 6, "is no address with prefix length", "ADD DEL"},
		"no JSON":          {"echo '{'", nil, 6, "ipam plugin other", "ADD DEL"},
		"silence":          {"", nil, 7, "gave no address", "ADD DEL"},
		"an error":         {`echo '{"code":11,"msg":"no range","details":"at all"}'; exit 1`, nil, 11, "ipam plugin other: no range; at all", "ADD"},
		"a crash":          {"kill -9 $$", nil, 100, "ADD: signal: killed", "ADD"},
		"taken":            {gives("10.0.0.9/24"), taken, 102, "held by node2", "ADD DEL ADD DEL"},
		"no agent":         {gives("10.0.0.9/24"), datastore.ErrUnavailable, 11, "", "ADD DEL"},
		"of another place": {gives("10.0.0.9/24"), datastore.ErrExists, 101, "", "ADD"},
	} {
		f := newFake(t)
		f.err = tt.err
		dir, commands := ipamPlugin(t, tt.script)
		code, stdout, _ := f.run(append(addEnv("ADD"), "CNI_PATH=/nowhere:"+dir), conf)
		refused := verdict(t, name, "1.1.0", code, stdout)
		switch {
		case tt.code == 0 && (refused != nil || !strings.Contains(stdout, tt.says)):
			t.Errorf("%s: exit %d, %s", name, code, stdout)
		case tt.code != 0 && (refused == nil || int(refused.Code) != tt.code || !strings.Contains(refused.Msg, tt.says)):
			t.Errorf("%s: exit %d, %s, want %d %s", name, code, stdout, tt.code, tt.says)
		}
		if got := commands(); got != tt.commands {
			t.Errorf("%s: it was asked to %s, want %s", name, got, tt.commands)
		}
		if r, is := f.asked["attach"].(control.AttachRequest); is && (!r.Held || len(r.Addresses) == 0) {
			t.Errorf("%s: asked %+v", name, r)
		}
		f.err = nil
		for _, verb := range slices.Sorted(maps.Keys(verbs())) {
			if verb == "ADD" || tt.code != 0 {
				continue
			}
			if code, stdout, _ := f.run(append(addEnv(verb), "CNI_PATH="+dir), conf); code != 0 || commands() != verb {
				t.Errorf("%s: %s: exit %d, %s", name, verb, code, stdout)
			}
		}
	}
	// Nothing is left when publishing fails, nor where the configuration has become wrong.
	f := newFake(t)
	dir, commands := ipamPlugin(t, gives("10.0.0.9/24"))
	f.taken = fmt.Errorf("port: %w", datastore.ErrInUse)
	ports := strings.TrimSuffix(conf, "}") + `,"runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]}}`
	if code, _, _ := f.run(append(addEnv("ADD"), "CNI_PATH="+dir), ports); code != 1 || commands() != "ADD DEL" || f.asked["detach"] == nil {
		t.Errorf("exit %d, asked %v", code, f.asked)
	}
	if code, _, stderr := f.run(append(addEnv("DEL"), "CNI_PATH="+dir), strings.Replace(conf, `"name"`, `"mtu":"x","name"`, 1)); code != 0 || commands() != "DEL" || stderr == "" {
		t.Errorf("DEL of a wrong configuration: exit %d, %s", code, stderr)
	}
}

// TestWhoAsks: ADD and GC of one program say the same, of another plugin path something
// else, and what was released is told.
func TestWhoAsks(t *testing.T) {
	f := newFake(t)
	f.run(addEnv("ADD"), conformConf("1.1.0", ""))
	attached := f.runtime
	f.collected.Released = []string{"n1/cni/c9/eth0"}
	code, stdout, stderr := f.run(addEnv("GC"), conformConf("1.1.0", ""))
	if code != 0 || stdout != "" || !strings.Contains(stderr, "n1/cni/c9/eth0") || f.runtime != attached || attached == "" {
		t.Errorf("exit %d, %s%s: %q, %q", code, stdout, stderr, attached, f.runtime)
	}
	f.run(addEnv("GC", "CNI_PATH=/other"), conformConf("1.1.0", ""))
	if f.runtime == attached {
		t.Errorf("another runtime is %q too", attached)
	}
}

// TestSpan: the prefixes of a range are exactly its addresses.
func TestSpan(t *testing.T) {
	for in, want := range map[ipRange]string{
		{Subnet: "10.0.0.0/24"}: "[10.0.0.0/24]",
		{Subnet: "10.0.0.0/24", RangeStart: "10.0.0.1", RangeEnd: "10.0.0.6"}: "[10.0.0.1/32 10.0.0.2/31 10.0.0.4/31 10.0.0.6/32]",
		{Subnet: "10.0.0.0/24", RangeStart: "10.0.0.250"}:                     "[10.0.0.250/31 10.0.0.252/30]",
		{Subnet: "0.0.0.0/0"}:                                                      "[0.0.0.0/0]",
		{Subnet: "fd00::/64", RangeEnd: "fd00::"}:                                  "[fd00::/128]",
		{Subnet: "255.255.255.0/24", RangeStart: "255.255.255.255", RangeEnd: ""}:  "[255.255.255.255/32]",
		{Subnet: "::/0", RangeStart: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"}:    "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127]",
		{Subnet: "10.0.0.77/24", RangeStart: "10.0.0.128", RangeEnd: "10.0.0.255"}: "[10.0.0.128/25]",
	} {
		if got, err := in.prefixes(); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%+v: %v, %v; want %s", in, got, err, want)
		}
	}
}
