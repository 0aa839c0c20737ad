package datastore

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// newer is the value of a profile as a netctl of model version 9 may write it.
func newer(name string) []byte {
	return fmt.Appendf(nil, `{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":%q,"needs":9},"spec":{"inbound":[{"allow":"at night"}]}}`, name)
}

func profileValue(t *testing.T, name, tag string) (key string, value []byte) {
	t.Helper()
	_, op, err := OpPut(&Profile{Metadata: Metadata{Name: name}, Spec: ProfileSpec{Tags: []string{tag}}})
	if err != nil {
		t.Fatal(err)
	}
	return op.Key, op.Value
}

// TestUnderstoodAcrossRestarts: an object that needs a newer netctl leaves in force
// what was understood of it, also in a role that starts again, until it can be read
// again or is gone.
func TestUnderstoodAcrossRestarts(t *testing.T) {
	key, value := profileValue(t, "p", "x")
	check := func(v *View, tag string, wantChanged bool, wantKept int) []Last {
		t.Helper()
		if p := v.Profile("p"); (p == nil) != (tag == "") || p != nil && p.Spec.Tags[0] != tag {
			t.Fatalf("profile is %+v, want tag %q", p, tag)
		}
		last, changed := v.Understood()
		if changed != wantChanged || len(last) != wantKept {
			t.Fatalf("kept %+v, %v", last, changed)
		}
		return last
	}
	v := NewView()
	if _, err := v.Apply(Entry{Key: key, Value: value, Revision: 1}); err != nil {
		t.Fatal(err)
	}
	check(v, "x", false, 0)
	c, err := v.Apply(Entry{Key: key, Value: newer("p"), Revision: 2})
	if err == nil || c != (Change{}) {
		t.Fatalf("got %+v, %v", c, err)
	}
	last := check(v, "x", true, 1)
	if !reflect.DeepEqual(last, []Last{{Key: key, Value: value, Revision: 1}}) {
		t.Fatalf("kept %s", last[0].Value)
	}
	check(v, "x", false, 1)
	if _, err = v.Apply(Entry{Key: key, Value: newer("p"), Revision: 3}); err == nil {
		t.Fatal("taken")
	}
	check(v, "x", false, 1)

	again := NewView()
	again.Recall(last)
	check(again, "", false, 1) // not before the store says that the object is there
	changes, err := again.Replace(Snapshot{Revision: 3, Entries: []Entry{{Key: key, Value: newer("p"), Revision: 3}}})
	if err == nil || len(changes) != 1 || changes[0].New != Object(again.Profile("p")) || again.Profile("p").Metadata.Revision != 1 {
		t.Fatalf("got %+v, %v", changes, err)
	}
	check(again, "x", false, 1)
	if want := `/netctl/v1/profiles/p: metadata.needs "9": the object is for a newer netctl, this one knows the model up to version 7; what this node last understood of it stays in force`; len(again.Problems()) != 1 || again.Problems()[0] != want {
		t.Fatalf("got %q", again.Problems())
	}
	if changes, _ := again.Replace(Snapshot{Revision: 3, Entries: []Entry{{Key: key, Value: newer("p"), Revision: 3}}}); len(changes) != 0 {
		t.Fatalf("the same again changes %+v", changes)
	}
	_, value = profileValue(t, "p", "y")
	if _, err := again.Apply(Entry{Key: key, Value: value, Revision: 4}); err != nil {
		t.Fatal(err)
	}
	check(again, "y", true, 0)

	gone := NewView()
	gone.Recall(last)
	if changes, err := gone.Replace(Snapshot{Revision: 5}); err != nil || len(changes) != 0 {
		t.Fatalf("got %+v, %v", changes, err)
	}
	check(gone, "", true, 0)
}

// TestNotUnderstoodFromTheStart: there is nothing to leave in force.
func TestNotUnderstoodFromTheStart(t *testing.T) {
	key, _ := profileValue(t, "p", "x")
	v := NewView()
	if _, err := v.Apply(Entry{Key: key, Value: newer("p"), Revision: 1}); err == nil || v.Profile("p") != nil {
		t.Fatalf("got %+v, %v", v.Profile("p"), err)
	}
	if p := v.Problems(); len(p) != 1 || strings.Contains(p[0], "stays in force") {
		t.Fatalf("got %q", p)
	}
	if last, changed := v.Understood(); len(last) != 0 || changed {
		t.Fatalf("kept %+v", last)
	}
}

// TestUnfamiliarIsToldOnce, whatever the number of objects and events.
func TestUnfamiliarIsToldOnce(t *testing.T) {
	v := NewView()
	for i := range 20 {
		name := fmt.Sprintf("p%d", i%10)
		raw := fmt.Appendf(nil, `{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":%q},"spec":{"colour":%d}}`, name, i)
		if _, err := v.Apply(Entry{Key: KindPrefix(KindProfile) + name, Value: raw, Revision: int64(i + 1)}); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Apply(Entry{Key: Prefix + "gizmos/" + name, Value: []byte("{}"), Revision: int64(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"Profile spec.colour: a key that this netctl does not know", "objects under /netctl/v1/gizmos/: a kind that this netctl does not know"}
	if got := v.Unfamiliar(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
	if got := v.Unfamiliar(); len(got) != 0 || len(v.Problems()) != 0 || v.Count(KindProfile) != 10 {
		t.Errorf("got %q, %q, %d profiles", got, v.Problems(), v.Count(KindProfile))
	}
}

// TestUnfamiliarIsBounded: who writes ever new keys does not fill the memory.
func TestUnfamiliarIsBounded(t *testing.T) {
	v, told := NewView(), 0
	for i := range 3 * maxMet {
		raw := fmt.Appendf(nil, `{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"p"},"spec":{"key%d":1}}`, i)
		if _, err := v.Apply(Entry{Key: KindPrefix(KindProfile) + "p", Value: raw, Revision: int64(i + 1)}); err != nil {
			t.Fatal(err)
		}
		told += len(v.Unfamiliar())
	}
	if told != maxMet || len(v.met) != maxMet {
		t.Errorf("told %d, %d kept", told, len(v.met))
	}
}
