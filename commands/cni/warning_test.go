package cni

import (
	"encoding/json"
	"strings"
	"testing"

	"netctl/commands/control"
)

// TestWarningOfAnAttach goes to the runtime's log and not into the result.
func TestWarningOfAnAttach(t *testing.T) {
	f := newFake(t)
	f.warning = "too large"
	code, stdout, stderr := f.run(addEnv("ADD"), plain)
	if code != 0 || strings.Contains(stdout, f.warning) || strings.TrimSpace(stderr) != "netctl 1.2.3: too large" {
		t.Errorf("exit %d, %q, %q", code, stdout, stderr)
	}
}

// TestDelOfWrongConfiguration: what has become wrong since the ADD does not keep a
// runtime from cleaning up.
func TestDelOfWrongConfiguration(t *testing.T) {
	for what, stdin := range map[string]string{
		"mtu 3":            `{"cniVersion":"1.0.0","name":"net1","mtu":3}`,
		"mtu: is of the":   `{"cniVersion":"1.0.0","name":"net1","mtu":"big"}`,
		"host-local":       `{"cniVersion":"1.0.0","name":"net1","ipam":{"type":"host-local"}}`,
		"ipam: is of the":  `{"cniVersion":"1.0.0","name":"net1","ipam":[]}`,
		`cniVersion ""`:    `{"name":"net1"}`,
		`cniVersion "9.0"`: `{"cniVersion":"9.0","name":"net1"}`,
		"cniVersion: is":   `{"cniVersion":1,"name":"net1"}`,
		"agentWait":        `{"cniVersion":"1.0.0","NAME":"net1","agentWait":"soon"}`,
		"agentSocket: is":  `{"cniVersion":"1.0.0","name":"net1","agentSocket":1}`,
		// Without a network of use, container and interface name the endpoint.
		"unexpected end of JSON": `{"cniVersion":"1.0.0","name":"net1"`,
		"network configuration":  ``,
		"after top-level":        `{"cniVersion":"1.0.0","name":"net1"}}`,
		"an object (it is of":    `[]`,
		`""`:                     `null`,
		"more than 1048576":      `{"cniVersion":"1.0.0","name":"net1"}` + strings.Repeat(" ", maxConfig),
		`network name ""`:        `{"cniVersion":"1.0.0","mtu":3}`,
		`network name "../x"`:    `{"cniVersion":"1.0.0","name":"../x"}`,
	} {
		f := newFake(t)
		code, stdout, stderr := f.run(addEnv("DEL", "CNI_NETNS=", "CNI_ARGS=nonsense"), stdin)
		if code != 0 || stdout != "" || !strings.Contains(stderr, what) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, %q, %q", stdin, code, stdout, stderr)
		}
		want := control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}, Network: "net1"}
		if unread := !json.Valid([]byte(stdin)) || len(stdin) > maxConfig || stdin[0] != '{'; unread || strings.HasPrefix(what, "network name") {
			want.Network = ""
		}
		if f.asked["detach"] != want {
			t.Errorf("%s: asked %+v", stdin, f.asked["detach"])
		}
		// Others need a configuration that is right.
		if code, _, _ := f.run(addEnv("ADD"), stdin); code == 0 {
			t.Errorf("%s: ADD succeeds", stdin)
		}
	}
}
