package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// runtime is the reference runtime on one host.
type runtime struct {
	t    *testing.T
	host *netlab.Host
	tool string
}

func newRuntime(t *testing.T, h *netlab.Host) *runtime {
	t.Helper()
	r := &runtime{t: t, host: h, tool: filepath.Join(t.TempDir(), "cnitool")}
	build := exec.Command("go", "build", "-o", r.tool, "github.com/containernetworking/cni/cnitool")
	build.Dir = "../cni/testdata/cnitool"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cnitool: %v\n%s", err, out)
	}
	return r
}

// network writes the configuration of a network; more is plugins after ours.
func (r *runtime) network(name, version, own string, more ...string) {
	r.t.Helper()
	plugins := append([]string{`{"type":"netctl"` + own + `}`}, more...)
	text := fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[%s]}`, version, name, strings.Join(plugins, ","))
	if err := os.WriteFile(r.host.Path("/etc/cni/net.d/"+name+".conflist"), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// do runs cnitool; a failure's message is the plugin's.
func (r *runtime) do(verb, network, netns string, env ...string) (string, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	return r.host.Exec(ctx, netlab.Cmd{Args: []string{r.tool, verb, network, netns},
		Env: append([]string{"CNI_PATH=/opt/cni/bin:/usr/lib/cni", "NETCONFPATH=/etc/cni/net.d"}, env...)})
}

func (r *runtime) must(verb, network, netns string, env ...string) string {
	r.t.Helper()
	out, err := r.do(verb, network, netns, env...)
	if err != nil {
		r.t.Fatalf("%s %s: %v", verb, network, err)
	}
	return out
}

func (r *runtime) fails(says, verb, network, netns string, env ...string) {
	r.t.Helper()
	out, err := r.do(verb, network, netns, env...)
	if err == nil || !strings.Contains(err.Error(), says) {
		r.t.Errorf("%s %s: %s%v; want %q", verb, network, out, err, says)
	}
}

// endpoints is how many endpoints the host's agent has, and how many addresses
// are held.
func (r *runtime) held() (endpoints, addresses int) {
	r.t.Helper()
	var s struct {
		Endpoints int `json:"endpoints"`
		Addresses int `json:"addresses"`
	}
	text := netlab.Must(r.t, r.host, "netctl", "ipam", "check", "-o", "json")
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		r.t.Fatalf("%s: %v", text, err)
	}
	return s.Endpoints, s.Addresses
}

// TestCNITool drives the plugin with the reference runtime, in every version of
// the specification that it answers.
func TestCNITool(t *testing.T) {
	l := forTest(t, Config{Nodes: 1})
	h := l.Hosts[0]
	netlab.Must(t, h, "netctl", "pool", "add", "10.0.0.0/24", "10.1.0.0/32")
	r := newRuntime(t, h)
	for i, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			r := &runtime{t: t, host: r.host, tool: r.tool}
			c, err := h.Container(fmt.Sprintf("c%d", i))
			if err != nil {
				t.Fatal(err)
			}
			name := fmt.Sprintf("net%d", i)
			r.network(name, version, `,"labels":{"tier":"web"}`)
			wish := fmt.Sprintf("10.0.0.%d", 10+i)
			out := r.must("add", name, c.Path(), "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web;IP="+wish)
			if v4, _ := addresses(t, out); v4.String() != wish || !strings.Contains(out, `"`+version+`"`) {
				t.Errorf("result %s", out)
			}
			if inside := netlab.Must(t, c, "ip", "-4", "addr", "show", "dev", "eth0"); !strings.Contains(inside, wish+"/32") {
				t.Errorf("inside: %s", inside)
			}
			if version != "0.3.1" {
				r.must("check", name, c.Path())
				netlab.Must(t, c, "ip", "addr", "del", wish+"/32", "dev", "eth0")
				r.fails(wish, "check", name, c.Path())
			}
			if version == "1.1.0" {
				r.must("status", name, c.Path())
			}
			r.must("del", name, c.Path())
			r.must("del", name, c.Path())
			if netlab.Must(t, c, "ip", "-br", "link") == "" || strings.Contains(netlab.Must(t, c, "ip", "-br", "link"), "eth0") {
				t.Error("eth0 is left")
			}
		})
	}
	t.Run("chain", func(t *testing.T) { chain(t, &runtime{t: t, host: r.host, tool: r.tool}) })
	t.Run("refused", func(t *testing.T) { refusals(t, &runtime{t: t, host: r.host, tool: r.tool}) })
	if endpoints, addresses := r.held(); endpoints != 0 || addresses != 0 {
		t.Errorf("%d endpoints and %d addresses are left", endpoints, addresses)
	}
}

// chain puts a plugin of Debian's behind ours.
func chain(t *testing.T, r *runtime) {
	c, err := r.host.Container("chained")
	if err != nil {
		t.Fatal(err)
	}
	r.network("chain", "1.0.0", "", `{"type":"tuning","mac":"02:00:00:00:00:77"}`)
	out := r.must("add", "chain", c.Path())
	if !strings.Contains(out, "02:00:00:00:00:77") {
		t.Errorf("result %s", out)
	}
	r.must("check", "chain", c.Path())
	again := r.must("add", "chain", c.Path()) // as Nomad tries again, without DEL
	if a, _ := addresses(t, out); a.IsValid() {
		if b, _ := addresses(t, again); a != b {
			t.Errorf("address %s became %s", a, b)
		}
	}
	r.must("del", "chain", c.Path())
}

// refusals are what an operator gets wrong; each leaves nothing behind.
func refusals(t *testing.T, r *runtime) {
	c, err := r.host.Container("c")
	if err != nil {
		t.Fatal(err)
	}
	d, err := r.host.Container("d")
	if err != nil {
		t.Fatal(err)
	}
	r.network("plain", "1.0.0", "")
	r.network("tiny", "1.0.0", `,"pools":["10.1.0.0/32"]`)
	r.fails("in none of the pools 10.0.0.0/24", "add", "plain", c.Path(), "CNI_ARGS=IP=192.0.2.1")
	r.fails("FOO", "add", "plain", c.Path(), "CNI_ARGS=FOO=1")
	r.fails("the host's own", "add", "plain", "/proc/self/ns/net")
	r.fails("not a namespace", "add", "plain", "/etc/hostname")
	netlab.Must(t, c, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other")
	r.fails("eth0", "add", "plain", c.Path())
	r.must("del", "plain", c.Path())
	netlab.Must(t, c, "ip", "link", "del", "eth0")

	r.must("add", "tiny", c.Path())
	r.fails("no address left in pools 10.1.0.0/32", "add", "tiny", d.Path())
	r.fails("held by", "add", "plain", d.Path(), "CNI_ARGS=IP=10.1.0.0")
	r.must("del", "tiny", d.Path())
	r.must("del", "tiny", c.Path())
}
