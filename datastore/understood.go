package datastore

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// understood is what a View does about values that a newer netctl wrote: one that
// it must not use leaves the last one that it could read in force, and what it
// may pass over it tells once.
//
// A role that starts again has nothing to leave in force. It therefore keeps
// Understood in its state folder and begins with Recall.
type understood struct {
	// last is, by key, the last value that could be read of a key whose present
	// value cannot be, and after Recall also of keys that were not seen yet.
	last    map[string]Last
	changed bool // since Understood was called

	met  map[string]bool // what was told
	told []string        // to be told
}

// Last is the last value of a key that could be read, and its revision.
type Last struct {
	Key      string          `json:"key"`
	Value    json.RawMessage `json:"value"`
	Revision int64           `json:"revision"`
}

// Recall gives a new View what Understood returned when the role last ran.
func (v *View) Recall(last []Last) {
	for _, e := range last {
		v.last[e.Key] = e
	}
}

// Understood returns, sorted by key, the last values that could be read of those
// keys whose present value cannot be, and whether that is something else than the
// last time it was called.
func (v *View) Understood() (last []Last, changed bool) {
	changed, v.changed = v.changed, false
	for _, key := range slices.Sorted(maps.Keys(v.last)) {
		last = append(last, v.last[key])
	}
	return last, changed
}

// Unfamiliar returns what is in the store that this netctl does not know and passes
// over, one line for each key path of a kind, each one once.
func (v *View) Unfamiliar() []string {
	told := v.told
	v.told = nil
	return told
}

// maxMet bounds how much is told.
const maxMet = 100

func (v *View) meet(what string) {
	if !v.met[what] && len(v.met) < maxMet {
		v.met[what] = true
		v.told = append(v.told, what)
	}
}

// fallBack finds what is to be in force in place of a value that cannot be read
// for err.
func (v *View) fallBack(kind Kind, name string, e Entry, err error) (c Change) {
	old := v.Object(kind, name)
	last, have := v.last[e.Key]
	switch {
	case old != nil && !have:
		if value, err := Encode(old); err == nil {
			v.last[e.Key] = Last{Key: e.Key, Value: value, Revision: old.Meta().Revision}
			v.changed = true
		}
	case old == nil && have:
		if o, _, err := v.decoder.stored(last.Key, last.Value); err == nil {
			o.Meta().Revision = last.Revision
			c = v.put(kind, name, held{Object: o})
		}
	}
	text := err.Error()
	if v.Object(kind, name) != nil {
		text += "; what this node last understood of it stays in force"
	}
	v.problems[e.Key] = text + removes(e)
	return c
}

// removes says how to be rid of a value that cannot be read; "" of one that a newer netctl
// can, and of a key that no command names.
func removes(e Entry) string {
	kind, name := kindAndName(e.Key)
	odd := func(r rune) bool {
		return !strings.ContainsRune("./_-:", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}
	if kind == "" || name == "" || name[0] == '-' || strings.ContainsFunc(name, odd) || needsOf(e.Value) > ModelVersion {
		return ""
	}
	return fmt.Sprintf("; `netctl delete %s %s --force` removes it", strings.ToLower(string(kind)), name)
}

// Unreadable says why the present value of an object cannot be read; nil: it can, or
// there is none.
func (v *View) Unreadable(kind Kind, name string) error {
	key := KindPrefix(kind) + name
	if text, bad := v.problems[key]; bad {
		return errors.New("its value in the datastore cannot be read: " + strings.TrimPrefix(text, key+": "))
	}
	return nil
}

// forget drops what was kept of a key that can be read again or is gone.
func (v *View) forget(key string) {
	if _, have := v.last[key]; have {
		delete(v.last, key)
		v.changed = true
	}
}

// newerKind is the first part of a key that can only be of a kind which a newer
// netctl has; else "".
func newerKind(key string) string {
	word, name, _ := strings.Cut(strings.TrimPrefix(key, Prefix), "/")
	plain := func(r rune) bool { return r >= 'a' && r <= 'z' }
	if !strings.HasPrefix(key, Prefix) || name == "" || word == "" || kindOf(word) != "" ||
		strings.ContainsFunc(word, func(r rune) bool { return !plain(r) }) {
		return ""
	}
	return word
}
