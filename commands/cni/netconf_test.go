package cni

import (
	"strings"
	"testing"
)

// TestWrongTypes: what does not decode is told by its key, in the version of the
// request, and not in Go's words.
func TestWrongTypes(t *testing.T) {
	env := []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=c1", "CNI_NETNS=/proc/self/ns/net", "CNI_IFNAME=eth0"}
	for _, c := range []struct{ conf, want string }{
		{`{"cniVersion":"1.0.0","name":"web","mtu":"x"}`, `{"cniVersion":"1.0.0","code":6,"msg":"network configuration: mtu: is of the wrong type (string)"}`},
		{`{"cniVersion":"0.4.0","name":"web","runtimeConfig":{"ips":3}}`, `{"cniVersion":"0.4.0","code":6,"msg":"network configuration: runtimeConfig.ips: is of the wrong type (number)"}`},
		{`[]`, `{"cniVersion":"1.1.0","code":6,"msg":"network configuration: must be an object (it is of the type array)"}`},
		{`{"cniVersion":"1.0.0","name":"web","pools":["x"]}`, `{"cniVersion":"1.0.0","code":7,"msg":"pools: \"x\" is no CIDR, like 10.0.0.0/26"}`},
	} {
		var out, diag strings.Builder
		if code := Run(t.Context(), "1.2.3", env, strings.NewReader(c.conf), &out, &diag); code != 1 || strings.TrimSpace(out.String()) != c.want {
			t.Errorf("%s: exit code %d, %s", c.conf, code, out.String())
		}
	}
}
