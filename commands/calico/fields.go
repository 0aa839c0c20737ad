package calico

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// fields is a mapping of a resource, out of which what is understood is taken; what is left
// then is what nobody understood.
type fields struct {
	c    *conversion
	path string
	m    map[string]any
	subs []*fields
	// meant are the fields that were read: what is left of them has no value that they may.
	meant map[string]bool
}

// mean takes note of a field that is read.
func (f *fields) mean(key string) {
	if f.meant == nil {
		f.meant = map[string]bool{}
	}
	f.meant[key] = true
}

func (f *fields) at(key string) string {
	if f.path == "" {
		return key
	}
	return f.path + "." + key
}

// take removes a field; ok is false, and the field stays, if it is missing or no T.
func take[T any](f *fields, key string) (value T, ok bool) {
	f.mean(key)
	if value, ok = f.m[key].(T); ok {
		delete(f.m, key)
	}
	return value, ok
}

func (f *fields) text(key string) string { s, _ := take[string](f, key); return s }
func (f *fields) flag(key string) bool   { b, _ := take[bool](f, key); return b }

// word is a text, or a number as text: Calico has ports, protocols and AS numbers as both.
func (f *fields) word(key string) string {
	if n, ok := take[json.Number](f, key); ok {
		return n.String()
	}
	return f.text(key)
}

// number is a whole number; ok is false, and the field stays, if it is none.
func (f *fields) number(key string) (n int, ok bool) {
	f.mean(key)
	v, _ := f.m[key].(json.Number)
	n, err := strconv.Atoi(v.String())
	if err == nil {
		delete(f.m, key)
	}
	return n, err == nil
}

// sub is the mapping of a field, empty if there is none.
func (f *fields) sub(key string) *fields {
	m, _ := take[map[string]any](f, key)
	s := &fields{c: f.c, path: f.at(key), m: m}
	f.subs = append(f.subs, s)
	return s
}

// items are the mappings of a list.
func (f *fields) items(key string) (list []*fields) {
	f.mean(key)
	raw, ok := f.m[key].([]any)
	for _, v := range raw {
		_, is := v.(map[string]any)
		ok = ok && is
	}
	if !ok {
		return nil
	}
	delete(f.m, key)
	for i, v := range raw {
		s := &fields{c: f.c, path: fmt.Sprintf("%s[%d]", f.at(key), i), m: v.(map[string]any)}
		f.subs, list = append(f.subs, s), append(list, s)
	}
	return list
}

// words are the texts and numbers of a list; the field stays if it holds anything else.
func (f *fields) words(key string) (list []string) {
	f.mean(key)
	raw, _ := f.m[key].([]any)
	for _, v := range raw {
		switch v := v.(type) {
		case string:
			list = append(list, v)
		case json.Number:
			list = append(list, v.String())
		default:
			return nil
		}
	}
	if raw != nil {
		delete(f.m, key)
	}
	return list
}

// labels are the texts of a mapping; the field stays if it holds anything else.
func (f *fields) labels(key string) map[string]string {
	f.mean(key)
	raw, _ := f.m[key].(map[string]any)
	out := map[string]string{}
	for k, v := range raw {
		s, ok := v.(string)
		if !ok {
			return nil
		}
		out[k] = s
	}
	if raw != nil {
		delete(f.m, key)
	}
	return out
}

// nets are the networks that a field names, a list or one; without bits behind their
// length, each once. The field stays if one of them is none.
func (f *fields) nets(keys ...string) (list []netip.Prefix) {
	for _, key := range keys {
		f.mean(key)
		raw, _ := f.m[key].([]any)
		if one, ok := f.m[key].(string); ok {
			raw = []any{one}
		}
		var more []netip.Prefix
		for _, v := range raw {
			s, _ := v.(string)
			p, err := parseNet(s)
			if err != nil {
				more = nil
				break
			}
			if p = p.Masked(); !slices.Contains(list, p) && !slices.Contains(more, p) {
				more = append(more, p)
			}
		}
		if len(more) > 0 {
			delete(f.m, key)
			list = append(list, more...)
		}
	}
	return list
}

func parseNet(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Prefix(a.BitLen())
	}
	return netip.ParsePrefix(s)
}

// as is an AS number, also in the form 1.10; 0 if there is none.
func (f *fields) as(key string) uint32 {
	f.mean(key)
	word := fmt.Sprint(f.m[key])
	high, low, dotted := strings.Cut(word, ".")
	bits := 32
	if dotted {
		bits = 16
	} else {
		high, low = "0", high
	}
	h, err1 := strconv.ParseUint(high, 10, 16)
	l, err2 := strconv.ParseUint(low, 10, bits)
	if err1 != nil || err2 != nil {
		return 0
	}
	delete(f.m, key)
	return uint32(h<<16 | l)
}

// bookkeeping takes away what Calico's datastore keeps of a resource and nobody sets.
func (f *fields) bookkeeping() {
	for _, s := range f.subs {
		for _, key := range []string{"uid", "resourceVersion", "creationTimestamp", "generation", "selfLink", "managedFields"} {
			delete(s.m, key)
		}
		if a, ok := s.m["annotations"].(map[string]any); ok {
			delete(a, "kubectl.kubernetes.io/last-applied-configuration")
			delete(a, "projectcalico.org/metadata")
		}
	}
}

// rest is what was not taken and says something, in order, with why; it is taken then.
func (f *fields) rest() (list []Remark) {
	for _, key := range slices.Sorted(maps.Keys(f.m)) {
		switch path, value := f.at(key), f.m[key]; {
		case empty(value):
		case f.meant[key]:
			text, _ := json.Marshal(value)
			list = append(list, Remark{Field: path, Text: fmt.Sprintf("%.60s is no value that it can have", text)})
		default:
			list = append(list, Remark{Field: path, Text: hint(path)})
		}
		delete(f.m, key)
	}
	for _, s := range f.subs {
		list = append(list, s.rest()...)
	}
	return list
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	case map[string]any:
		return len(v) == 0
	}
	return false
}
