package datastore

import (
	"strings"
	"testing"
	"time"
)

// TestEventsAreBounded: the cluster keeps the last ones of a node, in so many bytes, and of
// a node what is said to be its own.
func TestEventsAreBounded(t *testing.T) {
	of := func(n int, node, text string) (list []Event) {
		for i := range n {
			list = append(list, Event{Number: uint64(i + 1), Time: time.Unix(int64(i), 0).UTC(), Node: node, Role: "agent", Kind: EventSession, Text: text})
		}
		return list
	}
	for name, c := range map[string]struct {
		events []Event
		want   int
	}{
		"none":     {nil, 0},
		"few":      {of(3, "n1", "up"), 3},
		"many":     {of(1000, "n1", "up"), SharedEvents},
		"large":    {of(50, "n1", strings.Repeat("x", 2000)), 15},
		"others'":  {of(3, "n2", "up"), 0},
		"too much": {of(1, "n1", strings.Repeat("x", sharedBytes)), 0},
	} {
		op, err := EventsOp("n1", c.events)
		if err != nil || len(op.Value) > sharedBytes+100 {
			t.Errorf("%s: %d bytes, %v", name, len(op.Value), err)
		}
		got := DecodeEvents(Entry{Key: op.Key, Value: op.Value})
		if len(got) != c.want || len(got) > 0 && got[len(got)-1].Number != uint64(len(c.events)) {
			t.Errorf("%s: %d events, want the last %d", name, len(got), c.want)
		}
	}
	for _, e := range []Entry{{}, {Key: EventsPrefix + "n1/last"}, {Key: EventsPrefix + "n1/other", Value: []byte(`{"events":[{"node":"n1"}]}`)}, {Key: EventsPrefix + "n1/last", Value: []byte("[")}} {
		if got := DecodeEvents(e); len(got) != 0 {
			t.Errorf("%v: %v", e, got)
		}
	}
	if _, err := EventsOp("a/b", nil); err == nil {
		t.Error("a node a/b")
	}
}
