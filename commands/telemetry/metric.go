package telemetry

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Metric is what is known of a metric before it has a value.
type Metric struct {
	Name   string
	Type   string // counter, gauge or histogram
	Labels []string
	Roles  string // who has it
	Help   string // one line, without a full stop
}

// Metrics is every metric there is. Each value of a label is one of few, or is bounded
// where it is collected.
func Metrics() []Metric {
	const all, counter, gauge, histogram = "all", "counter", "gauge", "histogram"
	return []Metric{
		{"netctl_build_info", gauge, []string{"role", "version"}, all, "1, by the version that runs"},
		{"netctl_healthy", gauge, nil, all, "1 if the role works, as /healthz says"},
		{"netctl_ready", gauge, nil, all, "1 if the role is in sync, as /readyz says"},
		{"netctl_events_total", counter, []string{"kind"}, all, "Events, as netctl events shows them"},
		{"netctl_repairs_total", counter, []string{"what"}, all, "Times that something others had changed in the kernel was put back"},
		{"netctl_certificate_expiry_timestamp_seconds", gauge, []string{"use"}, all, "When a certificate ends, in Unix time; use is client (to the datastore), server (of the datastore) or api (of the API)"},
		{"netctl_problems", gauge, []string{"kind"}, "agent, speaker", "Problems that netctl status shows"},
		{"netctl_datastore_up", gauge, nil, "agent, speaker", "1 if the datastore answers and is the right one"},
		{"netctl_datastore_away_seconds", gauge, nil, "agent, speaker", "How long the datastore has not answered, or has been another one; 0: it is there"},
		{"netctl_datastore_revision", gauge, nil, "agent, speaker", "Revision up to which the datastore is followed; those of agents can be compared"},
		{"netctl_datastore_request_seconds", histogram, []string{"operation"}, "agent, speaker", "Time of requests to the datastore: get, list or commit"},
		{"netctl_datastore_request_errors_total", counter, []string{"operation"}, "agent, speaker", "Requests to the datastore that it did not answer"},

		{"netctl_endpoints", gauge, []string{"state"}, "agent", "Endpoints of this node: programmed, pending (not yet whole in the kernel) or lost (without their link)"},
		{"netctl_attach_seconds", histogram, nil, "agent", "Time of attaches that succeeded"},
		{"netctl_attach_errors_total", counter, []string{"code"}, "agent", "Attaches that failed"},
		{"netctl_detach_seconds", histogram, nil, "agent", "Time of detaches that succeeded"},
		{"netctl_detach_errors_total", counter, []string{"code"}, "agent", "Detaches that failed"},
		{"netctl_flows_cut_total", counter, nil, "agent", "Connections cut because policy denies them"},
		{"netctl_packets_denied_total", counter, []string{"rule"}, "agent", "Packets dropped by no rule that allows them (inbound, outbound, host), or by a guard (guard, reverse path)"},
		{"netctl_packet_filter_refused", gauge, nil, "agent", "Objects of the packet filter that the kernel refused"},
		{"netctl_blocks", gauge, []string{"pool"}, "agent", "Blocks of this node"},
		{"netctl_block_addresses", gauge, []string{"pool"}, "agent", "Addresses of this node's blocks"},
		{"netctl_block_addresses_used", gauge, []string{"pool"}, "agent", "Addresses of this node's blocks that are taken"},
		{"netctl_pool_addresses", gauge, []string{"pool"}, "agent", "Addresses of a pool, the same from each node"},
		{"netctl_conntrack_entries", gauge, nil, "agent", "Connections that the kernel tracks"},
		{"netctl_conntrack_limit", gauge, nil, "agent", "Connections that the kernel tracks at most"},
		{"netctl_neighbours", gauge, []string{"table"}, "agent", "Neighbours in the kernel's table arp_cache or ndisc_cache"},
		{"netctl_neighbours_limit", gauge, []string{"table"}, "agent", "Neighbours that the kernel's table holds at most"},
		{"netctl_neighbours_refused_total", counter, []string{"table"}, "agent", "Times that the kernel's table had no room"},

		{"netctl_routes", gauge, []string{"family"}, "agent, speaker", "Routes that the role has in the kernel"},
		{"netctl_routes_missing", gauge, nil, "agent, speaker", "Routes that should be in the kernel and are not"},

		{"netctl_bgp_sessions", gauge, []string{"state"}, "speaker", "BGP sessions by state; those that are off on purpose are off"},
		{"netctl_bgp_prefixes", gauge, []string{"direction"}, "speaker", "Prefixes of all sessions: received, accepted or sent"},
		{"netctl_bgp_session_up", gauge, []string{"peer", "type"}, "speaker", "1 if the session with a peer is established; of none that is off on purpose"},
		{"netctl_bgp_session_established_total", counter, []string{"peer"}, "speaker", "Times that the session with a peer was established"},
		{"netctl_bgp_session_prefixes", gauge, []string{"peer", "direction"}, "speaker", "Prefixes of the session with a peer: received, accepted or sent"},
		{"netctl_bfd_sessions", gauge, []string{"state"}, "speaker", "BFD sessions by state"},
		{"netctl_bfd_session_up", gauge, []string{"peer"}, "speaker", "1 if the path to a peer is up"},

		{"netctl_docker_call_seconds", histogram, nil, "docker", "Time of Docker's calls"},
		{"netctl_docker_call_errors_total", counter, []string{"call"}, "docker", "Docker's calls that failed"},

		{"netctl_api_request_seconds", histogram, nil, "api", "Time of requests that were answered, watches left out"},
		{"netctl_api_requests_total", counter, []string{"status"}, "api", "Requests by HTTP status; a watch counts when it begins"},
		{"netctl_api_watchers", gauge, nil, "api", "Clients that watch"},
		{"netctl_api_watchers_dropped_total", counter, nil, "api", "Watches ended because the client was too slow, or the datastore was read anew"},

		{"process_start_time_seconds", gauge, nil, all, "When the process started, in Unix time"},
		{"process_cpu_seconds_total", counter, nil, all, "CPU time of the process"},
		{"process_resident_memory_bytes", gauge, nil, all, "Memory of the process"},
		{"process_open_fds", gauge, nil, all, "Files that the process has open"},
		{"process_max_fds", gauge, nil, all, "Files that the process may have open"},
		{"go_goroutines", gauge, nil, all, "Goroutines"},
	}
}

// mostSeries bounds what one metric has, whatever is collected.
const mostSeries = 1000

// Page collects the values of metrics for one answer. What is not in Metrics, or has
// other labels, is an error of Text.
type Page struct {
	metrics []Metric
	series  map[string][]string // lines by metric
	wrong   []string
}

// NewPage returns an empty page.
func NewPage() *Page { return &Page{metrics: Metrics(), series: map[string][]string{}} }

// Put gives a metric a value. Labels are values, in the order of the metric's labels.
func (p *Page) Put(name string, value float64, labels ...string) {
	if m := p.metric(name, labels); m != nil {
		p.line(m, "", m.Labels, labels, value)
	}
}

// Flag puts 1 for true and 0 for false.
func (p *Page) Flag(name string, is bool, labels ...string) {
	p.Put(name, map[bool]float64{true: 1}[is], labels...)
}

// Counts puts what was counted, by the values of the metric's only label.
func (p *Page) Counts(name string, c *Counter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, label := range slices.Sorted(maps.Keys(c.of)) {
		p.Put(name, float64(c.of[label]), label)
	}
}

// Durations puts a histogram.
func (p *Page) Durations(name string, h *Histogram, labels ...string) {
	m := p.metric(name, labels)
	if m == nil {
		return
	}
	names, values := append(slices.Clone(m.Labels), "le"), append(slices.Clone(labels), "")
	var sum uint64
	for i, le := range buckets() {
		sum += h.counts[i].Load()
		values[len(values)-1] = number(le)
		p.line(m, "_bucket", names, values, float64(sum))
	}
	sum += h.counts[len(buckets())].Load()
	values[len(values)-1] = "+Inf"
	p.line(m, "_bucket", names, values, float64(sum))
	p.line(m, "_sum", m.Labels, labels, time.Duration(h.sum.Load()).Seconds())
	p.line(m, "_count", m.Labels, labels, float64(sum))
}

func (p *Page) metric(name string, labels []string) *Metric {
	i := slices.IndexFunc(p.metrics, func(m Metric) bool { return m.Name == name })
	if i < 0 {
		p.wrong = append(p.wrong, name+" is no metric")
		return nil
	}
	m := &p.metrics[i]
	switch {
	case len(labels) != len(m.Labels):
		p.wrong = append(p.wrong, fmt.Sprintf("%s has the labels %v, not %v", name, m.Labels, labels))
		return nil
	case len(p.series[name]) >= mostSeries:
		return nil
	}
	return m
}

func (p *Page) line(m *Metric, suffix string, names, values []string, value float64) {
	var b strings.Builder
	b.WriteString(m.Name + suffix)
	for i, n := range names {
		b.WriteByte(map[bool]byte{true: '{', false: ','}[i == 0])
		fmt.Fprintf(&b, "%s=\"%s\"", n, escape(values[i]))
	}
	if len(names) > 0 {
		b.WriteByte('}')
	}
	p.series[m.Name] = append(p.series[m.Name], b.String()+" "+number(value))
}

// escape is a label's value as the format has it.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(s, "\uFFFD"))
}

func number(v float64) string {
	if math.IsInf(v, +1) {
		return "+Inf"
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// Text is the page in Prometheus' text format, version 0.0.4, and what is wrong with it:
// the rest is there all the same.
func (p *Page) Text() ([]byte, error) {
	var b bytes.Buffer
	for _, m := range p.metrics {
		lines := p.series[m.Name]
		if len(lines) == 0 {
			continue
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n%s\n", m.Name, m.Help, m.Name, m.Type, strings.Join(lines, "\n"))
	}
	if len(p.wrong) > 0 {
		return b.Bytes(), fmt.Errorf("metrics: %s", strings.Join(p.wrong, "; "))
	}
	return b.Bytes(), nil
}

// buckets are the upper bounds of a histogram's buckets, in seconds.
func buckets() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
}

// Histogram counts durations. The zero value is ready; it is safe for concurrent use.
type Histogram struct {
	counts [14]atomic.Uint64 // by bucket, and of what is longer than the last
	sum    atomic.Int64      // nanoseconds
}

// Observe counts a duration.
func (h *Histogram) Observe(d time.Duration) {
	i, _ := slices.BinarySearch(buckets(), d.Seconds())
	h.counts[i].Add(1)
	h.sum.Add(int64(d))
}

// Counter counts by the value of a label, of which there are few. The zero value is ready;
// it is safe for concurrent use.
type Counter struct {
	mu sync.Mutex
	of map[string]uint64
}

// Add adds n.
func (c *Counter) Add(label string, n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.of == nil {
		c.of = map[string]uint64{}
	}
	c.of[label] += n
}
