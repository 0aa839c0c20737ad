package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// TestMeasure is `netctl bench` between endpoints of one node, of two nodes, and between
// nodes; what rules keep from it is said.
func TestMeasure(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, Subnets: 1})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", pool4)
	ends := map[string]string{}
	for _, e := range []struct {
		h             *netlab.Host
		name, network string
	}{{n1, "a", "web"}, {n1, "b", "web"}, {n2, "c", "web"}, {n2, "d", "db"}} {
		c, err := e.h.Container(e.name)
		if err != nil {
			t.Fatal(err)
		}
		ends[e.name] = strings.Fields(netlab.Must(t, e.h, "netctl", "endpoint", "add", "--workload", e.name, "--netns", c.Path(), "--network", e.network))[0]
		ends[e.name+" file"] = c.Path()
	}
	// Each starts a receiver as ssh would on the other node.
	script := filepath.Join(t.TempDir(), "ssh")
	text := fmt.Sprintf("#!/bin/sh\nPATH=/run/netctl-lab:$PATH exec nsenter --net=%s --mount=/proc/%d/ns/mnt --uts=/proc/%[2]d/ns/uts sh -c \"$2\"\n", n2.NetnsPath(), n2.PID)
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	quick := []string{"--time", "50ms", "--sizes", "1,1K", "--tests", "tcp_bw,tcp_lat,udp_bw,udp_lat"}
	for _, c := range []struct {
		name string
		args []string
		ways string
	}{
		{"one node", []string{ends["a"], ends["b"]}, ends["b"]},
		{"files", []string{ends["a file"], ends["b file"]}, ends["b file"]},
		{"two nodes", []string{ends["a"], ends["c"], "--ssh", script}, "nodes " + ends["c"]},
		{"a node", []string{n2.Name, "--ssh", script}, n2.Name},
	} {
		out := netlab.Must(t, n1, append(append([]string{"netctl", "bench"}, c.args...), quick...)...)
		heads := 0
		for line := range strings.Lines(out) {
			if strings.Join(strings.Fields(line), " ") == "bytes "+c.ways {
				heads++
			}
		}
		if heads != 4 || strings.Contains(out, " -") {
			t.Errorf("%s:\n%s", c.name, out)
		}
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"denied", []string{ends["a"], ends["d"], "--ssh", script}, "do the rules of both ends let TCP and UDP to port 19765 through?"},
		{"nobody", []string{n2.Name}, "run `netctl bench serve` there"},
		{"from elsewhere", []string{ends["c"], ends["a"]}, ends["c"] + " is not on this node"},
		{"none", []string{"node1/manual/none/eth0"}, "there is no node or endpoint node1/manual/none/eth0 "},
		{"no namespace", []string{"/etc/passwd"}, "network namespace /etc/passwd: not a namespace"},
		{"ssh", []string{ends["a"], ends["c"], "--ssh", "false"}, "it does not serve"},
	} {
		out, err := n1.Exec(t.Context(), netlab.Cmd{Args: append(append([]string{"netctl", "bench"}, c.args...), quick...)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %s %v, want %s", c.name, out, err, c.want)
		}
	}
}

// TestMeasureWays is `netctl bench --lab`: every way that this kernel has carries something,
// the picture is drawn, and nothing is left behind.
func TestMeasureWays(t *testing.T) {
	chart := filepath.Join(t.TempDir(), "bench.html")
	cmd := exec.CommandContext(t.Context(), netlab.Binary(t), "bench", "--lab", "--time", "50ms", "--sizes", "1,1K", "--chart", chart, "-o", "json")
	var said strings.Builder
	cmd.Stderr = &said
	tmp := t.TempDir()
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, said.String())
	}
	var all []struct {
		Way     string
		Results []struct{ Bandwidth, Latency float64 }
	}
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(chart)
	if err != nil {
		t.Fatal(err)
	}
	var ways []string
	for _, s := range all {
		ways = append(ways, s.Way)
		if len(s.Results) != 4 || !strings.Contains(string(page), ">"+s.Way+"</text>") {
			t.Errorf("%+v", s)
		}
	}
	for _, want := range []string{"host", "routed", "vxlan", "bridge", "macvlan", "overlay"} {
		if !slices.Contains(ways, want) {
			t.Errorf("%v without %s: %s", ways, want, said.String())
		}
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
