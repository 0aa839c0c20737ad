package datastore

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// EventKind is what an event is about.
type EventKind string

// The kinds of events.
const (
	EventEndpoint    EventKind = "endpoint"    // one came, went, or is another now
	EventSession     EventKind = "session"     // of BGP or BFD
	EventDrift       EventKind = "drift"       // the kernel was not what netctl had made it, and is again
	EventLeak        EventKind = "leak"        // something that nobody has any more, and what became of it
	EventCertificate EventKind = "certificate" // renewed, or not
	EventDrain       EventKind = "drain"       // a node is taken out of use, or used again
	EventProblem     EventKind = "problem"     // what status says is wrong, and that it is no more
	EventDatastore   EventKind = "datastore"   // away, back, another one, full
	EventRole        EventKind = "role"        // a role started or ended
)

// EventKinds are all kinds.
func EventKinds() []EventKind {
	return []EventKind{EventEndpoint, EventSession, EventDrift, EventLeak, EventCertificate, EventDrain, EventProblem, EventDatastore, EventRole}
}

// Event is something that an operator wants to know of a node.
type Event struct {
	// Number counts the events of one role of a node.
	Number uint64    `json:"number"`
	Time   time.Time `json:"time"`
	Node   string    `json:"node"`
	Role   string    `json:"role"`
	Kind   EventKind `json:"kind"`
	Level  string    `json:"level"` // info, warn or error
	// Object is what it happened to: an endpoint, a peer, a file, …
	Object string `json:"object,omitempty"`
	// Text says what happened, Cause why, Details what else is known, all in one line.
	Text    string `json:"text"`
	Cause   string `json:"cause,omitempty"`
	Details string `json:"details,omitempty"`
}

// Words is the event without time, node and object.
func (e Event) Words() string {
	text := e.Text
	if e.Cause != "" {
		text += ": " + e.Cause
	}
	if e.Details != "" {
		text += " (" + e.Details + ")"
	}
	return text
}

// EventMark is an attribute of a log record that makes an event of it, for who records
// events; the text of the record has nothing of it.
type EventMark struct {
	Kind EventKind
	// What was found changed, of an EventDrift: one of Drifts.
	What string
}

// LogValue implements slog.LogValuer: a group of nothing is left out.
func (EventMark) LogValue() slog.Value { return slog.GroupValue() }

// Mark is the attribute that makes a log record an event of this kind.
func (k EventKind) Mark() slog.Attr { return slog.Any("", EventMark{Kind: k}) }

// What can be found changed in the kernel.
const (
	DriftLink    = "link"
	DriftSide    = "workload side"
	DriftFilter  = "packet filter"
	DriftRoute   = "route"
	DriftSetting = "setting"
)

// Drifts are all that can be found changed.
func Drifts() []string {
	return []string{DriftLink, DriftSide, DriftFilter, DriftRoute, DriftSetting}
}

// Drift is Mark of a change of the kernel by others that was taken back.
func Drift(what string) slog.Attr { return slog.Any("", EventMark{EventDrift, what}) }

// EventsPrefix is the root of the NodeEvents, which no role reads.
const EventsPrefix = "/netctl/events/v1/"

// What the cluster keeps of a node's events at most: so many, and so many bytes of JSON.
const (
	SharedEvents = 50
	sharedBytes  = 32 << 10
	maxEvents    = 2 * sharedBytes // of a value that is read, from whichever version
)

// NodeEvents are the last events of a node, the oldest first. The node itself has more.
type NodeEvents struct {
	Events []Event `json:"events"`
}

// EventsKey is the key of a node's NodeEvents, below what the node alone writes.
func EventsKey(node string) (string, error) {
	if err := CheckName(node); err != nil {
		return "", err
	}
	return EventsPrefix + node + "/last", nil
}

// EventsOp writes the last of a node's events, as many as the bounds allow.
func EventsOp(node string, events []Event) (Op, error) {
	key, err := EventsKey(node)
	if err != nil {
		return Op{}, err
	}
	events = events[max(0, len(events)-SharedEvents):]
	size := 0
	for i := len(events) - 1; i >= 0; i-- {
		text, err := json.Marshal(events[i])
		if err != nil {
			return Op{}, err
		}
		if size += len(text) + 1; size > sharedBytes {
			events = events[i+1:]
			break
		}
	}
	return RecordOp(key, NodeEvents{events})
}

// DecodeEvents reads what EventsOp wrote, each text a Line. What is no such record, as of
// a later version, is larger, or says to be another node's, is left out.
func DecodeEvents(e Entry) []Event {
	node, is := strings.CutSuffix(strings.TrimPrefix(e.Key, EventsPrefix), "/last")
	var n NodeEvents
	if !is || len(e.Value) > maxEvents || decodeRecord(e, &n) != nil {
		return nil
	}
	list := slices.DeleteFunc(n.Events, func(one Event) bool { return one.Node != node })
	list = list[max(0, len(list)-SharedEvents):]
	for i := range list {
		one := &list[i]
		lines(&one.Role, (*string)(&one.Kind), &one.Level, &one.Object, &one.Text, &one.Cause, &one.Details)
	}
	return list
}

// ListEvents returns the last events of all nodes, the oldest first, and the store's
// revision.
func ListEvents(ctx context.Context, s Store) (all []Event, revision int64, err error) {
	snap, err := s.List(ctx, EventsPrefix)
	if err != nil {
		return nil, 0, err
	}
	for _, e := range snap.Entries {
		all = append(all, DecodeEvents(e)...)
	}
	slices.SortStableFunc(all, func(a, b Event) int { return a.Time.Compare(b.Time) })
	return all, snap.Revision, nil
}
