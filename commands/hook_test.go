package commands

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseState(t *testing.T) {
	for in, want := range map[string]event{
		// What runc 1.1 and crun 1.8 write.
		`{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":77,"bundle":"/b","annotations":{"app.tier":"web","netctl/network":"forged","":"x"}}`: {
			orchestrator: "oci", id: "c1", pid: 77, labels: map[string]string{"name": "c1", "app.tier": "web"}},
		`{"ociVersion":"1.0","id":"c1","pid":77,"root":"/r","bundle":"/b","status":"created"}`: {
			orchestrator: "oci", id: "c1", pid: 77, labels: map[string]string{"name": "c1"}},
		`{"ociVersion":"1.0.2-dev","id":"c1","status":"stopped","bundle":"/b"}`: {
			orchestrator: "oci", id: "c1", stopped: true, labels: map[string]string{"name": "c1"}},
	} {
		if got, err := parseState(strings.NewReader(in)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", in, got, err, want)
		}
	}
	for in, says := range map[string]string{
		"":                                "is not the state",
		"[]":                              "is not the state",
		`{"id":"c1"`:                      "is not the state",
		`{"id":1}`:                        "is not the state",
		`{"status":"creating"}`:           "has no id",
		`{"id":"c1","pid":7}`:             "has no status",
		`{"id":"c1","status":"x"}`:        "has no pid",
		strings.Repeat(" ", 1<<20) + "{}": "more than",
	} {
		if _, err := parseState(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.40q: %v, want %q", in, err, says)
		}
	}
}

func TestLXCEvent(t *testing.T) {
	if e, err := (lxcEvent{"a", "start-host", "77"}).event(); err != nil || e.pid != 77 || e.stopped || e.labels["lxc.name"] != "a" {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := (lxcEvent{"a", "post-stop", ""}).event(); err != nil || !e.stopped || e.id != "a" {
		t.Errorf("%+v, %v", e, err)
	}
	for e, says := range map[lxcEvent]string{
		{"a", "start-host", ""}: "LXC_PID", {"a", "start-host", "0"}: "LXC_PID", {"a", "mount", "7"}: `"mount"`,
	} {
		if _, err := e.event(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v", e, err)
		}
	}
}

func FuzzState(f *testing.F) {
	f.Add(`{"id":"c1","status":"creating","pid":77,"annotations":{"a":"b"}}`)
	f.Fuzz(func(t *testing.T, in string) {
		if e, err := parseState(strings.NewReader(in)); err == nil && (e.id == "" || !e.stopped && e.pid <= 0 || len(e.labels) > mostLabels) {
			t.Errorf("%+v", e)
		}
	})
}
