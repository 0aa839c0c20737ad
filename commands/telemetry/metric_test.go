package telemetry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// parsed is a page as Prometheus reads it.
func parsed(t *testing.T, p *Page) map[string]*dto.MetricFamily {
	t.Helper()
	text, err := p.Text()
	if err != nil {
		t.Error(err)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return families
}

func TestPage(t *testing.T) {
	p, h, c := NewPage(), &Histogram{}, &Counter{}
	for _, d := range []time.Duration{time.Microsecond, time.Millisecond, 30 * time.Millisecond, time.Hour} {
		h.Observe(d)
	}
	c.Add("unavailable", 2)
	c.Add("internal", 1)
	p.Put("netctl_build_info", 1, "agent", "1\\2\"3\n4\xff")
	p.Flag("netctl_ready", true)
	p.Put("netctl_pool_addresses", math.Exp2(80), "fd00::/48")
	p.Durations("netctl_attach_seconds", h)
	p.Durations("netctl_datastore_request_seconds", h, "get")
	p.Counts("netctl_attach_errors_total", c)
	got := parsed(t, p)
	if v := got["netctl_build_info"].Metric[0].Label[1].GetValue(); v != "1\\2\"3\n4\uFFFD" {
		t.Errorf("label %q", v)
	}
	if v := got["netctl_pool_addresses"].Metric[0].Gauge.GetValue(); v != math.Exp2(80) {
		t.Errorf("2^80 is %g", v)
	}
	for _, name := range []string{"netctl_attach_seconds", "netctl_datastore_request_seconds"} {
		m := got[name].Metric[0].Histogram
		if got[name].GetType() != dto.MetricType_HISTOGRAM || m.GetSampleCount() != 4 || math.Abs(m.GetSampleSum()-3600.031001) > 1e-6 {
			t.Errorf("%s: %v", name, m)
		}
		below := map[float64]uint64{}
		for _, b := range m.Bucket {
			below[b.GetUpperBound()] = b.GetCumulativeCount()
		}
		if below[.001] != 2 || below[.025] != 2 || below[.05] != 3 || below[10] != 3 || below[math.Inf(1)] != 4 {
			t.Errorf("%s: %v", name, below)
		}
	}
	if n := len(got["netctl_attach_errors_total"].Metric); n != 2 || got["netctl_attach_errors_total"].GetType() != dto.MetricType_COUNTER {
		t.Errorf("%d series", n)
	}
	p.Put("netctl_nothing", 1)
	p.Put("netctl_ready", 1, "label")
	if _, err := p.Text(); err == nil || !strings.Contains(err.Error(), "netctl_nothing") || !strings.Contains(err.Error(), "netctl_ready") {
		t.Errorf("wrong metrics: %v", err)
	}
}

// TestPageIsBounded: whatever is put, a metric has so many series.
func TestPageIsBounded(t *testing.T) {
	p := NewPage()
	for i := range 2 * mostSeries {
		p.Put("netctl_blocks", 1, fmt.Sprint(i))
	}
	if n := len(parsed(t, p)["netctl_blocks"].Metric); n != mostSeries {
		t.Errorf("%d series", n)
	}
}

// TestMetrics holds the names to Prometheus' conventions.
func TestMetrics(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Metrics() {
		standard := strings.HasPrefix(m.Name, "process_") || strings.HasPrefix(m.Name, "go_")
		switch {
		case seen[m.Name]:
			t.Errorf("%s twice", m.Name)
		case !standard && !regexp.MustCompile(`^netctl_[a-z_]+[a-z]$`).MatchString(m.Name):
			t.Errorf("%s: name", m.Name)
		case strings.HasSuffix(m.Name, "_total") != (m.Type == "counter"):
			t.Errorf("%s is a %s", m.Name, m.Type)
		case m.Type == "histogram" && !strings.HasSuffix(m.Name, "_seconds"):
			t.Errorf("%s: unit", m.Name)
		case m.Help == "" || strings.HasSuffix(m.Help, ".") || strings.ContainsAny(m.Help, "\n\\|"):
			t.Errorf("%s: help %q", m.Name, m.Help)
		}
		seen[m.Name] = true
	}
}

func TestDocumentedMetrics(t *testing.T) {
	var want strings.Builder
	for _, m := range Metrics() {
		labels := ""
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&want, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Type, labels, m.Roles, m.Help)
	}
	text, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "| metric | type | labels | role | meaning |\n|---|---|---|---|---|\n")
	got, _, _ := strings.Cut(after, "\n\n")
	if strings.TrimSpace(got) != strings.TrimSpace(want.String()) {
		t.Errorf("docs/metrics.md does not have the table of metrics:\n%s", want.String())
	}
}

// etcds are metrics of etcd that alerts and dashboard use; the test in commands/lab finds
// them with the datastore's.
func etcds() []string {
	return []string{"etcd_server_has_leader", "etcd_mvcc_db_total_size_in_use_in_bytes", "etcd_server_quota_backend_bytes", "etcd_disk_wal_fsync_duration_seconds"}
}

// unknown are the metrics of an expression that do not exist, or not with such a suffix.
func unknown(expr string) (names []string) {
	for _, name := range regexp.MustCompile(`\b(netctl|process|go|etcd)_[a-z0-9_]+`).FindAllString(expr, -1) {
		known := slices.Contains(etcds(), name) || slices.Contains(etcds(), strings.TrimSuffix(name, "_bucket"))
		for _, m := range Metrics() {
			if m.Type == "histogram" {
				known = known || name == m.Name+"_bucket" || name == m.Name+"_sum" || name == m.Name+"_count"
			} else {
				known = known || name == m.Name
			}
		}
		if !known {
			names = append(names, name)
		}
	}
	return names
}

func TestAlertsKnowTheirMetrics(t *testing.T) {
	if got := unknown(`netctl_ready + netctl_attach_seconds + netctl_attach_seconds_bucket + netctl_ready_bucket + etcd_x`); len(got) != 3 {
		t.Fatalf("unknown: %q", got)
	}
	text, err := os.ReadFile("../../docs/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "- alert: "); n < 20 || n != strings.Count(string(text), "summary: ") {
		t.Errorf("%d alerts", n)
	}
	if names := unknown(string(text)); len(names) > 0 {
		t.Errorf("docs/alerts.yaml uses %q", names)
	}
}

func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var dash struct {
		UID    string
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dash); err != nil {
		t.Fatal(err)
	}
	ids, places := map[int]bool{}, map[[2]int]string{}
	used := map[string]bool{}
	for _, p := range dash.Panels {
		if ids[p.ID] || p.Title == "" || p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %d %q", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := places[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("panel %q lies over %q, or out of the page", p.Title, other)
				}
				places[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			if names := unknown(target.Expr); len(names) > 0 {
				t.Errorf("panel %q uses %q", p.Title, names)
			}
			for _, m := range Metrics() {
				used[m.Name] = used[m.Name] || strings.Contains(target.Expr, m.Name)
			}
		}
	}
	for _, name := range []string{"netctl_ready", "netctl_endpoints", "netctl_bgp_sessions", "netctl_block_addresses_used", "netctl_datastore_away_seconds"} {
		if !used[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
}

// TestAlerts has promtool, if it is there, look at the rules and run their tests.
func TestAlerts(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool is not installed; make test-all installs it (docs/contributing.md)")
	}
	rules, err := filepath.Abs("../../docs/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"check", "rules", rules}, {"test", "rules", "testdata/alerts_test.yaml"}} {
		if out, err := exec.Command(promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	dash, err := os.ReadFile("../../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var panels struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal(dash, &panels); err != nil {
		t.Fatal(err)
	}
	// Rules of the dashboard's expressions: promtool reads them then.
	var b strings.Builder
	b.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	for i, p := range panels.Panels {
		for j, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "5m", "$job", "netctl", "$instance", ".*").Replace(target.Expr)
			fmt.Fprintf(&b, "      - {record: 'panel:%d:%d', expr: '%s'}\n", i, j, strings.ReplaceAll(expr, "'", "''"))
		}
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("the dashboard's expressions: %v\n%s", err, out)
	}
}
