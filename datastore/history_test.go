package datastore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// ledger is the least of a Store.
type ledger struct {
	Store
	entries  map[string]Entry
	revision int64
	denied   bool // of the history
	room     int  // for bytes of it; 0: enough
}

func (s *ledger) Get(_ context.Context, key string) (Entry, error) {
	e, ok := s.entries[key]
	if !ok {
		return e, ErrNotFound
	}
	return e, nil
}

func (s *ledger) List(_ context.Context, prefixes ...string) (Snapshot, error) {
	snap := Snapshot{Revision: s.revision}
	for _, key := range slices.Sorted(maps.Keys(s.entries)) {
		if slices.ContainsFunc(prefixes, func(p string) bool { return Under(key, p) }) {
			snap.Entries = append(snap.Entries, s.entries[key])
		}
	}
	return snap, nil
}

func (s *ledger) Commit(_ context.Context, t Txn) (int64, error) {
	if err := t.Check(); err != nil {
		return 0, err
	}
	for _, c := range t.If {
		if have := s.entries[c.Key].Revision; have != c.Revision {
			return 0, c.Failed(have)
		}
	}
	for _, op := range t.Then {
		if s.denied && strings.HasPrefix(op.Key, HistoryPrefix) {
			return 0, ErrDenied
		}
		if strings.HasPrefix(op.Key, HistoryPrefix) && op.Value != nil && s.room != 0 && s.recorded()+len(op.Value) > s.room {
			return 0, ErrFull
		}
	}
	s.revision++
	for _, op := range t.Then {
		if s.entries[op.Key] = (Entry{Key: op.Key, Value: op.Value, Revision: s.revision}); op.Value == nil {
			delete(s.entries, op.Key)
		}
	}
	return s.revision, nil
}

// recorded is how many bytes the history has.
func (s *ledger) recorded() (n int) {
	for _, e := range s.entries {
		if strings.HasPrefix(e.Key, HistoryPrefix) {
			n += len(e.Key) + len(e.Value)
		}
	}
	return n
}

// TestRecorderOfAFullStore: the change is made, without a record, and the next one has
// room again.
func TestRecorderOfAFullStore(t *testing.T) {
	s := &ledger{entries: map[string]Entry{}, room: HistoryBytes / 4}
	r := &Recorder{Store: s}
	change := func(i int) bool { // on record
		t.Helper()
		key := KindPrefix(KindProfile) + fmt.Sprint("p", i)
		value := []byte(`"` + strings.Repeat("x", 50<<10) + `"`)
		at, err := r.Commit(t.Context(), Txn{If: []Condition{{Key: key}}, Then: []Op{{Key: key, Value: value}}})
		if err != nil {
			t.Fatal(err)
		}
		list, err := History(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list, func(r HistoryRecord) bool { return r.Revision == at })
	}
	n := 0
	for ; change(n); n++ {
		if n > HistoryBytes/4/(50<<10) {
			t.Fatal("it is never full")
		}
	}
	if have := s.recorded(); have > HistoryBytes/8 || have == 0 {
		t.Errorf("%d bytes are left", have)
	}
	if !change(n + 1) {
		t.Error("no record of the next change")
	}
}

func profileOf(t *testing.T, name string, rules ...string) *Profile {
	t.Helper()
	p := &Profile{Metadata: Metadata{Name: name}}
	for _, text := range rules {
		r, err := ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		p.Spec.Inbound = append(p.Spec.Inbound, r)
	}
	p.SetDefaults()
	return p
}

// TestRecorder: the record has the revision of the change, what was there and what is, to
// the byte; what fails, changes nothing, or is not people's leaves none.
func TestRecorder(t *testing.T) {
	s := &ledger{entries: map[string]Entry{}}
	for _, remember := range []bool{true, false} {
		r := &Recorder{Store: s, Who: HistoryRecord{User: "u", Host: "h", Node: "n", Command: "c"}, Remember: remember, Except: []Kind{KindNode}}
		name := fmt.Sprint("web-", remember)
		p := profileOf(t, name, "deny from cidr 10.0.0.0/8")
		if err := Create(t.Context(), r, p); err != nil {
			t.Fatal(err)
		}
		created := s.entries[KindPrefix(KindProfile)+name].Value
		if _, err := Modify(t.Context(), r, name, func(p *Profile) error { p.Spec.Tags = []string{"a"}; return nil }); err != nil {
			t.Fatal(err)
		}
		changed := s.revision
		if _, err := Modify(t.Context(), r, name, func(*Profile) error { return nil }); err != nil { // nothing
			t.Fatal(err)
		}
		if err := Create(t.Context(), r, &Node{Metadata: Metadata{Name: "n" + name}, Spec: NodeSpec{Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}}}); err != nil {
			t.Fatal(err)
		}
		p.Metadata.Revision = 1
		if err := Update(t.Context(), r, p); remember && !errors.Is(err, ErrConflict) {
			t.Errorf("got %v", err)
		}
		list, err := History(t.Context(), s)
		if err != nil || len(list) < 2 {
			t.Fatalf("%d records, %v", len(list), err)
		}
		last := list[len(list)-1]
		if last.Revision != changed || last.User != "u" || string(last.Changes[0].Before) != string(created) ||
			!strings.Contains(string(last.Changes[0].After), `"tags"`) || list[len(list)-2].Changes[0].Before != nil {
			t.Errorf("%+v", last)
		}
	}
	// Who may not write one changes things all the same.
	s.denied = true
	before := len(s.entries)
	if err := Create(t.Context(), &Recorder{Store: s}, profileOf(t, "plain")); err != nil || len(s.entries) != before+1 {
		t.Errorf("%v, %d keys", err, len(s.entries)-before)
	}
}

// TestHistoryIsBounded: by number, by age, and by what a transaction takes.
func TestHistoryIsBounded(t *testing.T) {
	s := &ledger{entries: map[string]Entry{}}
	r := &Recorder{Store: s}
	for i := range HistoryRecords + 150 {
		p := profileOf(t, fmt.Sprint("p", i%7), fmt.Sprintf("allow tcp to ports %d", i+1))
		p.Metadata.Revision = s.entries[KindPrefix(KindProfile)+p.Metadata.Name].Revision
		if err := Update(t.Context(), r, p); p.Metadata.Revision == 0 && err != nil {
			if err := Create(t.Context(), r, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	tidy := func(bytes int64, now time.Time) (list []HistoryRecord) {
		t.Helper()
		if err := TidyHistory(t.Context(), s, bytes, now); err != nil {
			t.Fatal(err)
		}
		list, err := History(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	newest := s.revision
	if list := tidy(HistoryBytes, time.Now()); len(list) != HistoryRecords || list[len(list)-1].Revision != newest || list[0].Revision < 150 {
		t.Errorf("%d records, from %d", len(list), list[0].Revision)
	}
	s.revision++ // a record of long ago that somebody writes now costs no other one
	s.entries[HistoryPrefix+"1-2"] = Entry{Key: HistoryPrefix + "1-2", Value: []byte(`{"changes":[{"key":"x"}]}`), Revision: s.revision}
	if list := tidy(HistoryBytes, time.Now()); len(list) != HistoryRecords || list[len(list)-1].Revision != newest {
		t.Errorf("%d records", len(list))
	}
	size := 0
	for _, e := range s.entries {
		if strings.HasPrefix(e.Key, HistoryPrefix) {
			size = max(size, len(e.Key)+len(e.Value))
		}
	}
	if list := tidy(int64(20*size), time.Now()); len(list) < 20 || len(list) > 30 || list[len(list)-1].Revision != newest {
		t.Errorf("%d records of 20 times %d bytes", len(list), size)
	}
	if list := tidy(HistoryBytes, time.Now().Add(HistoryAge+time.Hour)); len(list) != 0 {
		t.Errorf("%d records", len(list))
	}
	large := Op{Key: KindPrefix(KindProfile) + "large", Value: []byte(`"` + strings.Repeat("x", MaxTxnBytes*3/4) + `"`)}
	txn, err := r.recorded(Txn{Then: []Op{large}}, []HistoryChange{{Key: large.Key, After: large.Value}})
	if err != nil || len(txn.Then[1].Value) > 1000 || !strings.Contains(string(txn.Then[1].Value), `"omitted":true`) {
		t.Errorf("%d bytes, %v", len(txn.Then[1].Value), err)
	}
}

// TestGrantHistory: a node records what it does, as itself and as it was; nothing else, so
// that nobody who undoes it does what the node wants.
func TestGrantHistory(t *testing.T) {
	s := shelf{}
	evil := []byte(`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"web"},"spec":{"inbound":["allow"]}}`)
	web := profileOf(t, "web")
	_, put, err := OpPut(web)
	if err != nil {
		t.Fatal(err)
	}
	other := KindPrefix(KindProfile) + "other"
	for what, c := range map[string]struct {
		node    string
		change  HistoryChange
		at      int64
		allowed bool
	}{
		"its own":           {"n2", HistoryChange{Key: put.Key, After: put.Value}, 0, true},
		"another node's":    {"n1", HistoryChange{Key: put.Key, After: put.Value}, 0, false},
		"what never was":    {"n2", HistoryChange{Key: put.Key, Before: evil, After: put.Value}, 0, false},
		"what is not to be": {"n2", HistoryChange{Key: put.Key, After: evil}, 0, false},
		"another object":    {"n2", HistoryChange{Key: other, Before: evil}, 0, false},
		"a sum":             {"n2", HistoryChange{Key: put.Key, Sum: HistorySum(put.Value)}, 0, false},
		"nothing kept":      {"n2", HistoryChange{Key: put.Key, Omitted: true}, 0, false},
		"an old record":     {"n2", HistoryChange{Key: put.Key, After: put.Value}, 5, false},
	} {
		value, err := encodeHistory(HistoryRecord{Node: c.node, Changes: []HistoryChange{c.change}})
		if err != nil {
			t.Fatal(err)
		}
		key := HistoryPrefix + "1-2"
		err = s.grant().Write(Txn{If: []Condition{{Key: put.Key}, {Key: key, Revision: c.at}}, Then: []Op{put, {Key: key, Value: value}}})
		if (err == nil) != c.allowed {
			t.Errorf("%s: %v", what, err)
		}
		if err := s.grant().Write(Txn{If: []Condition{{Key: key}}, Then: []Op{{Key: key}}}); err == nil {
			t.Errorf("%s: a record may be deleted", what)
		}
	}
}
