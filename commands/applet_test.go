package commands

import "testing"

func TestApplet(t *testing.T) {
	for _, c := range []struct {
		arg0 string
		args []string
		cni  string
		want pick
		role string
	}{
		{"netctl", nil, "", appletNothing, ""},
		{"/opt/cni/bin/netctl", nil, "ADD", appletCNI, ""},
		{"/opt/cni/bin/anything", nil, "VERSION", appletCNI, ""},
		{"netctl", []string{"status"}, "ADD", appletCLI, ""},
		{"netctl", []string{"status"}, "", appletCLI, ""},
		{"/usr/local/bin/netctl-agent", nil, "", appletRole, "agent"},
		{"netctl-agent", nil, "ADD", appletRole, "agent"},
		{"netctl-speaker", []string{"--log-level", "debug"}, "", appletRole, "speaker"},
		{"netctl-datastore", nil, "", appletRole, "datastore"},
		{"netctl-node", nil, "", appletRole, "node"},
		{"netctl-nothing", nil, "", appletUnknown, "nothing"},
		{"netctl-1.2", []string{"status"}, "DEL", appletCLI, ""},
		{"netctl-cni", nil, "DEL", appletCNI, ""},
		{"", nil, "", appletNothing, ""},
		{"/usr/lib/netavark/netctl", []string{"setup", "/run/netns/x"}, "", appletNetavark, ""},
		{"/usr/lib/netavark/netctl-routed", []string{"teardown", "/run/netns/x"}, "", appletNetavark, ""},
		{"anything", []string{"create"}, "ADD", appletNetavark, ""},
		{"netctl", []string{"info"}, "", appletNetavark, ""},
		{"netctl-agent", []string{"info"}, "", appletRole, "agent"},
		{"netctl", []string{"create", "-f", "x.yaml"}, "", appletCLI, ""},
		{"netctl", []string{"setup"}, "", appletCLI, ""},
		{"netctl", []string{"setup", "--help"}, "", appletCLI, ""},
		{"netctl", []string{"teardown", "a", "b"}, "", appletCLI, ""},
		{"netctl", []string{"info", "x"}, "", appletCLI, ""},
	} {
		if got, role := applet(c.arg0, c.args, c.cni); got != c.want || role != c.role && c.want != appletUnknown {
			t.Errorf("applet(%q, %q, CNI_COMMAND=%q) = %v %q, want %v %q", c.arg0, c.args, c.cni, got, role, c.want, c.role)
		}
	}
}
