package install_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"netctl/datastore"
	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// apiUnit runs the API as a unit of its own: on its socket and by TLS, with certificates of an
// authority in /etc, and with what it shows of itself, also after it was killed.
func apiUnit(t *testing.T, m *netlab.Machine) {
	t.Helper()
	dir := filepath.Join(m.Dir, "etc/netctl-pki")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []pki.Node{
		{Name: "server", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, Use: pki.UseServer},
		{Name: "reader", Use: pki.UseClient, Role: datastore.APIRead.Organisation()},
		{Name: "nobody", Use: pki.UseClient},
	} {
		if _, err := ca.Issue(dir, n); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(m.Dir, "etc/netctl.yaml")
	before, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	with := "\nmetrics: {listen: 127.0.0.1}\napi: {listen: [https://127.0.0.1:7443], ca: /etc/netctl-pki/ca.crt, cert: /etc/netctl-pki/server.crt, key: /etc/netctl-pki/server.key}\n"
	if err := os.WriteFile(config, append(before, with...), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Log(m.Must(t, "netctl", "install", "--roles", "datastore,agent,speaker,api", "--now"))
	by := func(name string, args ...string) []string {
		at := "/etc/netctl-pki/"
		return append([]string{"netctl", "--server", "https://127.0.0.1:7443", "--server-ca", at + "ca.crt", "--server-cert", at + name + ".crt", "--server-key", at + name + ".key"}, args...)
	}
	for _, again := range []bool{false, true} {
		if again {
			killed(t, m, "netctl-api.service")
		}
		for _, args := range [][]string{{"netctl", "--server", "unix:///run/netctl-node/api.sock", "pool", "show"}, by("reader", "pool", "show")} {
			if out := m.Must(t, args...); !strings.Contains(out, "10.65.0.0/16") {
				t.Errorf("%v: %s", args, out)
			}
		}
		for args, want := range map[string][]string{"needs the role admin": by("reader", "pool", "add", "10.66.0.0/16"), "says no role for the API": by("nobody", "pool", "show")} {
			if _, err := m.Run(t.Context(), want...); err == nil || !strings.Contains(err.Error(), args) {
				t.Errorf("%v: %v, want %q", want, err, args)
			}
		}
		for path, want := range map[string]string{"healthz": "ok\n", "readyz": "ok\n", "metrics": "netctl_build_info{role=\"api\","} {
			for _, from := range [][]string{{"http://127.0.0.1:9591/"}, {"--unix-socket", "/run/netctl-node/watch/api.sock", "http://api/"}} {
				from[len(from)-1] += path
				if out := m.Must(t, append([]string{"curl", "-sS"}, from...)...); !strings.Contains(out, want) {
					t.Errorf("%v: %q", from, out)
				}
			}
		}
	}
	if out := m.Must(t, "netctl", "events", "--kind", "role", "-o", "wide"); !strings.Contains(out, "api started") {
		t.Errorf("events: %s", out)
	}
	if err := os.WriteFile(config, before, 0o644); err != nil {
		t.Fatal(err)
	}
	m.Must(t, "rm", "-r", "/etc/netctl-pki")
	leftOut(t, m)
}

// leftOut has an install with fewer roles end the unit of the other one, and refuse to end
// the agent's while endpoints live.
func leftOut(t *testing.T, m *netlab.Machine) {
	t.Helper()
	if _, err := m.Run(t.Context(), "netctl", "install", "--roles", "datastore,speaker"); err == nil || !strings.Contains(err.Error(), "--roles leaves the agent out, and 1 endpoint lives") {
		t.Errorf("without the agent: %v", err)
	}
	want := "disabled netctl-api.service\nstopped netctl-api.service\n"
	if out := m.Must(t, "netctl", "install", "--roles", "datastore,agent,speaker"); !strings.Contains(out, want) {
		t.Errorf("without the API: %s", out)
	}
	if out := m.Must(t, "netctl", "install", "--roles", "datastore,agent,speaker"); strings.Contains(out, "netctl-api.service") {
		t.Errorf("again: %s", out)
	}
	if out, err := m.Run(t.Context(), "systemctl", "is-active", "netctl-api"); err == nil {
		t.Errorf("the API's unit: %s", out)
	}
	m.Must(t, "systemctl", "is-active", "netctl-agent", "netctl-speaker", "netctl-datastore")
}
