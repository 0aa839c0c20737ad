package datastore

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestLine: what others wrote is one line and moves no cursor; JSON that is made visible
// says what it said.
func TestLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"up, Zürich – 東京 🙂":            "up, Zürich – 東京 🙂",
		"a\nnetctl: all is well":       "a; netctl: all is well",
		"a \r\n\n\tb":                  "a; b",
		"\x1b[2J\x1b]0;x\a":            `\u001b[2J\u001b]0;x\u0007`,
		"\u009b2J\x7f\x00\u202ekcatta": `\u009b2J\u007f\u0000\u202ekcatta`,
		"\xff\x9b":                     "\ufffd\ufffd",
	} {
		if got := Line(text); got != want {
			t.Errorf("%.40q: %.80q, want %.80q", text, got, want)
		}
	}
	said := map[string]string{"a": "\x1b[2J\u009b\x7f\u202e\n\t"}
	raw, err := json.MarshalIndent(said, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	var heard map[string]string
	if err := json.Unmarshal([]byte(Visible(string(raw))), &heard); err != nil || heard["a"] != said["a"] {
		t.Errorf("%q, %v", heard, err)
	}
}

// TestOthersTexts: events, reports and history that another node wrote forge no line and
// do nothing to the terminal that they are printed on, however they are stored.
func TestOthersTexts(t *testing.T) {
	const evil, tame = "a\nb\x1b[2J", `a; b\u001b[2J`
	op, err := EventsOp("n1", []Event{{Node: "n1", Role: evil, Kind: evil, Level: evil, Object: evil, Text: evil, Cause: evil, Details: evil}})
	if err != nil {
		t.Fatal(err)
	}
	got := DecodeEvents(Entry{Key: op.Key, Value: op.Value})
	if want := (Event{Node: "n1", Role: tame, Kind: tame, Level: tame, Object: tame, Text: tame, Cause: tame, Details: tame}); len(got) != 1 || got[0] != want {
		t.Errorf("%+v", got)
	}
	many := make([]Event, 3*SharedEvents)
	for i := range many {
		many[i].Node = "n1"
	}
	for text, want := range map[string]int{"": SharedEvents, strings.Repeat("x", 2*sharedBytes): 0} {
		many[0].Text = text
		value, err := json.Marshal(NodeEvents{many})
		if err != nil {
			t.Fatal(err)
		}
		if got := DecodeEvents(Entry{Key: op.Key, Value: value}); len(got) != want {
			t.Errorf("%d bytes: %d events, want %d", len(value), len(got), want)
		}
	}

	report := &Report{Metadata: Metadata{Name: ReportName("n1", ReportAgent)}, Status: ReportStatus{
		Seen: time.Unix(1, 0), Problems: []string{evil}, Refusing: []string{evil}, Sessions: []SessionStatus{{Type: evil, State: evil, Reason: evil, BFD: evil, Interface: evil}},
		Runtimes: []RuntimeStatus{{Runtime: evil, Error: evil, Wrong: []NetworkState{{Network: evil, State: evil, Reason: evil}}}},
	}}
	value, err := Encode(report)
	if err != nil {
		t.Fatal(err)
	}
	o, err := Decode(KindPrefix(KindReport)+report.Metadata.Name, value)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil || strings.Contains(string(text), `\u001b`) && !strings.Contains(string(text), `\\u001b`) || strings.Contains(string(text), `\n`) || strings.Count(string(text), "a; b") != 12 {
		t.Errorf("%s, %v", text, err)
	}

	value = []byte(`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"n1"},"spec":{},"status":{"version":"a\nb\u001b[2J"}}`)
	if o, err = Decode(KindPrefix(KindNode)+"n1", value); err != nil || o.(*Node).Status.Version != tame {
		t.Errorf("%+v, %v", o, err)
	}

	long := strings.Repeat("é", maxLine)
	if lines(&long); long != strings.Repeat("é", maxLine/2)+"…" {
		t.Errorf("%d bytes", len(long))
	}

	value, err = encodeHistory(HistoryRecord{User: evil, Host: evil, Node: evil, Command: evil, Changes: []HistoryChange{{Key: evil}}})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := DecodeHistory(Entry{Key: HistoryPrefix + "1", Value: value})
	if err != nil || rec.User != tame || rec.Host != tame || rec.Node != tame || rec.Command != tame {
		t.Errorf("%+v, %v", rec, err)
	}
}
