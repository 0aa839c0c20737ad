package cni

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
)

func (f *fake) ports(_ context.Context, r control.PortRequest) (struct{}, error) {
	f.asked["ports"] = r
	return struct{}{}, f.taken
}

// publishing is a configuration into which the runtime has put ports.
func publishing(mappings string) string {
	return strings.TrimSuffix(plain, "}") + `,"capabilities":{"portMappings":true},"runtimeConfig":{"portMappings":` + mappings + `}}`
}

func TestPortsRefused(t *testing.T) {
	f := newFake(t)
	for mappings, want := range map[string]struct {
		code int
		says string
	}{
		`[{"hostPort":0,"containerPort":80,"protocol":"tcp"}]`:                                                                             {7, "runtimeConfig.portMappings: published port 0 to 80/tcp: the host's port must be from 1 to 65535"},
		`[{"hostPort":-1,"containerPort":80,"protocol":"tcp"}]`:                                                                            {7, "the host's port must be"},
		`[{"hostPort":70000,"containerPort":80,"protocol":"tcp"}]`:                                                                         {7, "the host's port must be"},
		`[{"hostPort":80,"protocol":"tcp"}]`:                                                                                               {7, "to 0/tcp: the container's port must be"},
		`[{"hostPort":80,"containerPort":80,"protocol":"icmp"}]`:                                                                           {7, `protocol "icmp": must be tcp, udp or sctp`},
		`[{"hostPort":80,"containerPort":80}]`:                                                                                             {7, `protocol: must be tcp, udp or sctp`},
		`[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]`:                                                       {7, "127.0.0.1 cannot lead to a container of netctl"},
		`[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"host"}]`:                                                            {7, `"host" is no address`},
		`[{"hostPort":80,"containerPort":80,"protocol":"tcp"},{"hostPort":80,"containerPort":8080,"protocol":"TCP","hostIP":"192.0.2.1"}]`: {7, "published port 80 to 8080/TCP: the same port of the host is to lead to 80 as well"},
		`[{"hostPort":"80","containerPort":80,"protocol":"tcp"}]`:                                                                          {6, "runtimeConfig.portMappings.hostPort: is of the wrong type (string)"},
		`{"hostPort":80}`: {6, "runtimeConfig.portMappings: is of the wrong type (object)"},
	} {
		code, stdout, _ := f.run(addEnv("ADD"), publishing(mappings))
		refused(t, mappings, code, stdout, want.code, want.says)
	}
	if len(f.asked) > 0 {
		t.Errorf("the agent was asked %v", f.asked)
	}
	// What is wrong with them does not keep anybody from cleaning up.
	if code, stdout, _ := f.run(addEnv("DEL"), publishing(`{"hostPort":80}`)); code != 0 || f.asked["detach"] == nil {
		t.Errorf("DEL: exit %d, %s, asked %v", code, stdout, f.asked)
	}
}

// TestPortsTwice: a port that is said once for each family of addresses is one; none is
// none, also in a configuration with the capability.
func TestPortsTwice(t *testing.T) {
	f := newFake(t)
	for _, none := range []string{"null", "[]"} {
		if code, stdout, stderr := f.run(addEnv("ADD"), publishing(none)); code != 0 || stderr != "" || f.asked["ports"] != nil {
			t.Errorf("%s: exit %d, %s%s, asked %v", none, code, stdout, stderr, f.asked)
		}
	}
	both := `[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"0.0.0.0"},{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"::"}]`
	code, stdout, _ := f.run(addEnv("ADD"), publishing(both))
	if r, _ := f.asked["ports"].(control.PortRequest); code != 0 || len(r.Ports) != 1 || r.Ports[0].HostIP.IsValid() {
		t.Errorf("exit %d, %s, asked %v", code, stdout, f.asked)
	}
}

// TestNothingHalfDone: an ADD that cannot publish leaves nothing attached.
func TestNothingHalfDone(t *testing.T) {
	one := publishing(`[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]`)
	want := control.DetachRequest{Target: control.Target{Orchestrator: "cni", Workload: "c1", Interface: "eth0"}, Network: "net1"}
	f := newFake(t)
	f.taken = fmt.Errorf("port 80/tcp of this node: %w: node1/cni/c2/eth0 publishes it", datastore.ErrInUse)
	code, stdout, _ := f.run(addEnv("ADD"), one)
	refused(t, "taken", code, stdout, codeTaken, "port 80/tcp of this node: in use: node1/cni/c2/eth0 publishes it")
	if f.asked["detach"] != want {
		t.Errorf("asked %+v", f.asked)
	}
	f = newFake(t)
	code, stdout, _ = f.run(addEnv("ADD"), strings.Replace(one, `"tcp"`, `"tcp","hostIP":"2001:db8::1"`, 1))
	refused(t, "family", code, stdout, codeConfig, "published port [2001:db8::1]:80 to 80/tcp")
	if f.asked["detach"] != want || f.asked["ports"] != nil {
		t.Errorf("asked %+v", f.asked)
	}
}
