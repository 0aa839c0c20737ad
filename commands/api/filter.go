package api

import (
	"bytes"
	"encoding/json"
	"net/url"
	"strings"
	"sync"

	"netctl/datastore"
)

// filter keeps objects by their labels and fields; the zero one keeps all.
type filter struct {
	labels *datastore.Selector
	fields []field
}

// field is a path into the manifest and the text that is to be there.
type field struct {
	path []string
	want []string // any of them
}

// parseFilter reads selector=EXPRESSION and PATH=VALUE, as spec.node=slave.
func parseFilter(q url.Values) (f filter, err error) {
	for name, values := range q {
		switch {
		case name == "selector":
			if f.labels, err = datastore.ParseSelector(values[0]); err != nil {
				return f, err
			}
		case strings.Contains(name, "."):
			f.fields = append(f.fields, field{path: strings.Split(name, "."), want: values})
		}
	}
	return f, nil
}

func (f filter) all() bool { return f.labels == nil && len(f.fields) == 0 }

// matches says whether an object is kept, whose manifest tree has.
func (f filter) matches(o datastore.Object, tree func() any) bool {
	if f.labels != nil && !f.labels.Matches(o.Meta().Labels) {
		return false
	}
	if len(f.fields) == 0 {
		return true
	}
	m := tree()
	for _, one := range f.fields {
		if !one.in(m) {
			return false
		}
	}
	return true
}

// treeOf reads a manifest when it is first asked for, for whoever asks then.
func treeOf(manifest []byte) func() any {
	return sync.OnceValue(func() (m any) {
		dec := json.NewDecoder(bytes.NewReader(manifest))
		dec.UseNumber()
		if dec.Decode(&m) != nil {
			return nil
		}
		return m
	})
}

// in says whether the field is so in a manifest; of a list that one of its items is.
func (f field) in(v any) bool {
	for i, key := range f.path {
		m, ok := v.(map[string]any)
		if !ok {
			return false
		}
		// Keys of labels have dots in them.
		if rest, ok := m[strings.Join(f.path[i:], ".")]; ok {
			v = rest
			break
		}
		v = m[key]
	}
	items, ok := v.([]any)
	if !ok {
		items = []any{v}
	}
	for _, item := range items {
		text, ok := item.(string)
		if !ok {
			raw, err := json.Marshal(item)
			if err != nil {
				continue
			}
			text = string(raw)
		}
		for _, want := range f.want {
			if text == want {
				return true
			}
		}
	}
	return false
}
