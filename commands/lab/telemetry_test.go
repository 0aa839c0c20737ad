package lab

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/netdev/netlab"
)

// scrape is a role's page, by TCP from its host as Prometheus reads it.
func scrape(t *testing.T, h *netlab.Host, role string) map[string]*dto.MetricFamily {
	t.Helper()
	var text string
	netlab.Until(t, patience, "metrics of the "+role, func() string { // it may just start
		out, err := netlab.Try(t, h, "busybox", "wget", "-qO-", fmt.Sprintf("http://127.0.0.1:%d/metrics", 9587+telemetry.Port(role)))
		if text = out; err != nil {
			return err.Error()
		}
		return ""
	})
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("metrics of %s: %v", role, err)
	}
	return families
}

// value is that of a metric with these values of labels; -1: there is none.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	for _, m := range families[name].GetMetric() {
		var have []string
		for _, l := range m.Label {
			have = append(have, l.GetValue())
		}
		if slices.Equal(have, labels) {
			switch {
			case m.Counter != nil:
				return m.Counter.GetValue()
			case m.Histogram != nil:
				return float64(m.Histogram.GetSampleCount())
			}
			return m.Gauge.GetValue()
		}
	}
	return -1
}

// untilValue waits until a metric is what it should be.
func untilValue(t *testing.T, h *netlab.Host, role string, ok func(float64) bool, name string, labels ...string) {
	t.Helper()
	netlab.Until(t, patience, fmt.Sprintf("%s%q of the %s of %s", name, labels, role, h.Name), func() string {
		if v := value(scrape(t, h, role), name, labels...); !ok(v) {
			return fmt.Sprint("is ", v)
		}
		return ""
	})
}

func is(want float64) func(float64) bool { return func(v float64) bool { return v == want } }
func above(least float64) func(float64) bool {
	return func(v float64) bool { return v > least }
}

// eventsOf are what netctl events prints of a host.
func eventsOf(t *testing.T, h *netlab.Host, args ...string) string {
	t.Helper()
	return netlab.Must(t, h, append([]string{"netctl", "events"}, args...)...)
}

// wantMetrics finds every metric of a role, but for those that wait for something to happen.
func wantMetrics(t *testing.T, h *netlab.Host, role string) {
	t.Helper()
	rare := []string{"netctl_bfd_", "_errors_total", "netctl_problems", "netctl_conntrack_"}
	got := scrape(t, h, role)
	for _, m := range telemetry.Metrics() {
		has := strings.Contains(m.Roles, role) || m.Roles == "all"
		if has && got[m.Name] == nil && !slices.ContainsFunc(rare, func(r string) bool { return strings.Contains(m.Name, r) }) {
			t.Errorf("the %s of %s has no %s", role, h.Name, m.Name)
		}
	}
	if role == "datastore" {
		for _, name := range []string{"etcd_server_has_leader", "etcd_mvcc_db_total_size_in_use_in_bytes", "etcd_server_quota_backend_bytes", "etcd_disk_wal_fsync_duration_seconds"} {
			if got[name] == nil {
				t.Errorf("the datastore of %s has no %s", h.Name, name)
			}
		}
	}
	for _, path := range []string{"healthz", "readyz"} {
		if text := netlab.Must(t, h, "busybox", "wget", "-qO-", fmt.Sprintf("http://127.0.0.1:%d/%s", 9587+telemetry.Port(role), path)); text != "ok\n" {
			t.Errorf("%s of the %s: %q", path, role, text)
		}
	}
}

// TestTelemetry: what roles show of themselves while they work, are killed, and lose each
// other and the datastore; and the archive that a node writes when all of that is gone.
func TestTelemetry(t *testing.T) {
	l := forTest(t, Config{Nodes: 2, Settings: "metrics:\n    listen: 127.0.0.1\n"})
	n1, n2 := l.Hosts[0], l.Hosts[1]
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	follow, err := n1.Start("events", netlab.Cmd{Args: []string{"netctl", "events", "-f", "-o", "json"}})
	if err != nil {
		t.Fatal(err)
	}
	_, a1, _ := attach(t, n1, "web", "front")
	d, _, _ := attach(t, n2, "other", "back")
	for _, role := range []string{"agent", "speaker", "datastore"} {
		wantMetrics(t, n1, role)
	}
	m := scrape(t, n1, "agent")
	for _, c := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{1, "netctl_endpoints", []string{"programmed"}}, {0, "netctl_endpoints", []string{"lost"}},
		{1, "netctl_block_addresses_used", []string{"10.65.0.0/16"}}, {64, "netctl_block_addresses", []string{"10.65.0.0/16"}}, {65536, "netctl_pool_addresses", []string{"10.65.0.0/16"}},
		{1, "netctl_attach_seconds", nil}, {1, "netctl_ready", nil}, {1, "netctl_datastore_up", nil}, {0, "netctl_datastore_away_seconds", nil},
		{0, "netctl_repairs_total", []string{"packet filter"}},
	} {
		if got := value(m, c.name, c.labels...); got != c.want {
			t.Errorf("%s%q is %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	untilValue(t, n2, "speaker", is(1), "netctl_bgp_session_up", n1.Addr.Addr().String(), "node-to-node mesh")

	// Somebody is denied, and somebody takes the packet filter away.
	if out, err := netlab.Try(t, d, "ping", "-c", "2", "-i", "0.2", "-W", "1", a1.String()); err == nil {
		t.Errorf("not denied: %s", out)
	}
	untilValue(t, n1, "agent", above(1), "netctl_packets_denied_total", "inbound")
	netlab.Must(t, n1, "nft", "flush", "ruleset")
	untilValue(t, n1, "agent", is(1), "netctl_repairs_total", "packet filter")
	netlab.Must(t, n1, "nft", "list", "table", "inet", "netctl")

	// A killed agent goes on with its events.
	before := pid(t, n1, "agent", 0)
	if err := unix.Kill(before, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	pid(t, n1, "agent", before)
	untilValue(t, n1, "agent", is(1), "netctl_endpoints", "programmed")
	text := eventsOf(t, n1)
	for _, want := range []string{"in sync with the datastore", "endpoint attached", "packet filter differs", "role ended, starting it again: signal: killed", "session is established"} {
		if !strings.Contains(text, want) {
			t.Errorf("events of %s have no %q:\n%s", n1.Name, want, text)
		}
	}
	if n := strings.Count(text, "agent started"); n != 2 {
		t.Errorf("%d starts of the agent:\n%s", n, text)
	}
	if only := eventsOf(t, n1, "--kind", "drift", "--since", "10m"); strings.Count(only, "\n") != 1 || !strings.Contains(only, "drift") {
		t.Errorf("drift alone: %q", only)
	}
	if none := eventsOf(t, n1, "--since", "2100-01-01"); none != "" {
		t.Errorf("events to come: %q", none)
	}

	// From the other node, too.
	netlab.Until(t, patience, "events of all nodes", func() string {
		all := eventsOf(t, n2, "--all", "--kind", "endpoint,drift")
		for _, want := range []string{"  " + n1.Name + "  endpoint ", "  " + n2.Name + "  endpoint ", "  " + n1.Name + "  drift "} {
			if !strings.Contains(all, want) {
				return fmt.Sprintf("no %q in\n%s", want, all)
			}
		}
		return ""
	})

	// The other node goes, and is missed.
	endRoles(t, n2, unix.SIGTERM)
	untilValue(t, n1, "speaker", is(0), "netctl_bgp_session_up", n2.Addr.Addr().String(), "node-to-node mesh")
	netlab.Until(t, patience, "events that are followed", func() string {
		out, err := os.ReadFile(follow.Log)
		for _, want := range []string{`"text":"endpoint attached"`, `"kind":"drift"`, `"kind":"session","level":"info","object":"` + n2.Addr.Addr().String() + `","text":"session is not up"`} {
			if err != nil || !strings.Contains(string(out), want) {
				return fmt.Sprintf("no %s: %v\n%s", want, err, out)
			}
		}
		return ""
	})
	if err := follow.Stop(); err != nil {
		t.Errorf("events -f: %v", err)
	}
	if _, err := StartNode(n2); err != nil {
		t.Fatal(err)
	}
	waitHealthy(t, l)
	testLosses(t, n1, n2)
}

// testLosses ends the datastore, and then everything.
func testLosses(t *testing.T, n1, n2 *netlab.Host) {
	endRoles(t, n1, unix.SIGKILL)
	untilValue(t, n2, "agent", above(0), "netctl_datastore_away_seconds")
	if v := value(scrape(t, n2, "agent"), "netctl_ready"); v != 0 {
		t.Errorf("ready without the datastore: %v", v)
	}
	said, err := telemetry.Ask(t.Context(), n2.Path("/run/netctl-node"), "agent", "readyz")
	if err == nil || !strings.Contains(string(said), "datastore") {
		t.Errorf("readyz: %q, %v", said, err)
	}
	if said, err := telemetry.Ask(t.Context(), n2.Path("/run/netctl-node"), "agent", "healthz"); err != nil {
		t.Errorf("healthz: %q, %v", said, err)
	}
	if text := eventsOf(t, n2, "--kind", "datastore"); !strings.Contains(text, "datastore away") {
		t.Errorf("events: %s", text)
	}
	endRoles(t, n2, unix.SIGKILL)

	secrets := plantSecrets(t, n2)
	began := time.Now()
	out := netlab.Must(t, n2, "netctl", "diags", "--output", "/var/lib/netctl-node/d.tar.gz")
	t.Logf("%.1f s: %s", time.Since(began).Seconds(), out)
	for _, want := range []string{"Wrote /var/lib/netctl-node/d.tar.gz, ", "not whole: ", "agent.json", " roles/agent.*", "datastore.txt"} {
		if !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
			t.Errorf("diags said %q, want one line with %q", out, want)
		}
	}
	text := untar(t, n2.Path("/var/lib/netctl-node/d.tar.gz"))
	for _, want := range []string{"agent.json ", "nobody listens", "node: \"node2\"", "table inet netctl", "datastore away", "net/ipv4/ip_forward = 1", "routerID", "[removed]"} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("the archive has no %q", want)
		}
	}
	for what, secret := range secrets {
		if secret == "" || bytes.Contains(text, []byte(secret)) {
			t.Errorf("the archive has %s: %q", what, secret)
		}
	}
	if out, err := netlab.Try(t, n2, "netctl", "diags", "--output", "/var/lib/netctl-node/d.tar.gz"); err == nil || err.Code != 1 || !strings.Contains(err.Stderr, "exists") {
		t.Errorf("a second one in its place: %q %v", out, err)
	}
	left, _ := filepath.Glob(n2.Path("/var/lib/netctl-node/") + "/.d.tar.gz-*")
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	starts(t, n1, n2) // the containers are detached
}

// endRoles ends all roles of a host by a signal to netctl node.
func endRoles(t *testing.T, h *netlab.Host, signal unix.Signal) {
	t.Helper()
	top, err := h.Find("netctl")
	if err != nil || len(top) != 1 {
		t.Fatal(top, err)
	}
	if err := unix.Kill(top[0], signal); err != nil {
		t.Fatal(err)
	}
	wantNoRoles(t, h)
}

// plantSecrets has secrets of each kind on a host, each where it belongs and once more where
// it does not; it returns them by what they are.
func plantSecrets(t *testing.T, h *netlab.Host) map[string]string {
	t.Helper()
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(h.Path(path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(h.Path(path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key, err := os.ReadFile(h.Path(tlsFolder + "/" + h.Name + ".key"))
	if err != nil {
		t.Fatal(err)
	}
	const md5, wireguard = "tcp-md5-of-a-peer", "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
	token := datastore.NewToken([32]byte{1}, false, time.Now(), []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:2378")}).String()
	write("/var/lib/netctl-node/wireguard.key", wireguard+"\n")
	write("/var/lib/netctl-node/tls/md5", md5+"\n")
	kept, err := os.ReadFile(h.Path("/var/lib/netctl-node/speaker.json"))
	if err != nil {
		t.Fatal(err)
	}
	// As if a peer had it: what a person set cannot be, with the datastore away.
	write("/var/lib/netctl-node/speaker.json", strings.Replace(string(kept), `"plan": {`, `"plan": { "password": {"file": "/var/lib/netctl-node/tls/md5"},`, 1))
	secrets := map[string]string{"TCP MD5": md5, "WireGuard's key": wireguard, "a token": token, "a key's first line": strings.Split(string(key), "\n")[1], "a password": "hunter2hunter2"}
	said := strings.Join([]string{md5, wireguard, token, strings.ReplaceAll(string(key), "\n", " "), "password=hunter2hunter2"}, " ")
	write("/var/lib/netctl-node/events/x.jsonl", fmt.Sprintf(`{"number":1,"time":"2026-01-01T00:00:00Z","kind":"problem","text":%q}`+"\n", said))
	netlab.Must(t, h, "ip", "link", "set", "eth1", "alias", md5+" "+wireguard)
	return secrets
}

// untar is all that is in an archive.
func untar(t *testing.T, file string) []byte {
	t.Helper()
	out, err := exec.Command("tar", "-xzOf", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
