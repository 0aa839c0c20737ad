package datastore

import (
	"bytes"
	"encoding/json"
	"reflect"
	"slices"
)

// unknown is what a stored object holds beyond what this version of the model
// knows: a tree with the shape of the object. It goes with the object (Metadata)
// and is put back by Encode, so that an older netctl that changes an object of a
// newer one takes nothing away. It is never changed once it is complete: copies
// of an object share it. A nil *unknown is nothing.
type unknown struct {
	key     []byte // under which it lies in the object above; nil: in a list
	members []member
	below   []*unknown // of known keys, or of the elements of a list

	length int    // of a list: the number of its elements
	at     int    // of an element of a list: its position
	was    []byte // of an element of a list: its known part, as JSON
}

// KeepUnknown gives o the unknown keys of old, which it is to replace: whoever wrote
// o could say nothing about them.
func KeepUnknown(o, old Object) { o.Meta().unknown = old.Meta().unknown }

// member is a key that is not known, and its value.
type member struct {
	key []byte
	raw []byte
}

// add puts the value at path into the tree and returns the tree.
func (u *unknown) add(path []step, raw []byte) *unknown {
	if u == nil {
		u = &unknown{}
	}
	last := len(path) - 1
	u.find(path[:last]).members = append(u.find(path[:last]).members,
		member{key: bytes.Clone(path[last].key), raw: bytes.Clone(raw)})
	return u
}

// find is the node at path, made if it is not there.
func (u *unknown) find(path []step) *unknown {
	if len(path) == 0 {
		return u
	}
	s := path[0]
	i := slices.IndexFunc(u.below, func(b *unknown) bool { return b.at == s.at && bytes.Equal(b.key, s.key) })
	if i < 0 {
		i = len(u.below)
		u.below = append(u.below, &unknown{key: bytes.Clone(s.key), at: s.at})
	}
	return u.below[i].find(path[1:])
}

// identify remembers which element of a list the node at path belongs to: what
// is unknown goes with the element when others are put before it or removed.
func (u *unknown) identify(path []step, element any) error {
	if v, ok := element.(reflect.Value); ok {
		element = v.Interface()
	}
	was, err := marshal(element)
	u.find(path).was = was
	return err
}

// marshal is the JSON form of what the model knows. People read it, and && stands
// in selectors, so nothing is escaped for HTML.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// merge puts what is unknown back into the JSON form of the known. raw is what
// marshal made of the object that u belongs to, or a part of it.
func (u *unknown) merge(raw []byte) ([]byte, error) {
	s := scanner{raw: raw}
	if s.next() == '[' {
		return u.mergeList(&s)
	}
	var out bytes.Buffer
	write := func(key, value []byte) {
		if out.Len() > 0 {
			out.WriteByte(',')
		}
		quoted, _ := marshal(string(key)) // a text always has a JSON form
		out.Write(quoted)
		out.WriteByte(':')
		out.Write(value)
	}
	left := slices.Clone(u.below)
	err := s.members(func() error {
		key, err := s.text()
		if err != nil || !s.take(':') {
			return errSyntax
		}
		value, err := s.value()
		if i := slices.IndexFunc(left, func(b *unknown) bool { return bytes.Equal(b.key, key) }); i >= 0 && err == nil {
			value, err = left[i].merge(value)
			left = slices.Delete(left, i, i+1)
		}
		write(key, value)
		return err
	}, '}')
	if err != nil {
		return nil, err
	}
	for _, b := range left {
		// The known part is empty and was left out. The elements of a list went
		// with it.
		if b.object() {
			value, err := b.merge([]byte("{}"))
			if err != nil {
				return nil, err
			}
			write(b.key, value)
		}
	}
	for _, m := range u.members {
		write(m.key, m.raw)
	}
	return slices.Concat([]byte("{"), out.Bytes(), []byte("}")), nil
}

// object says whether the node is that of an object, not of a list.
func (u *unknown) object() bool {
	return len(u.members) > 0 || slices.ContainsFunc(u.below, func(b *unknown) bool { return b.key != nil })
}

// mergeList finds for each remembered element where it is now: the element that
// is equal in what is known, the one at the same position first. Where none is
// equal, but the list is as long as it was, the element was changed in its place.
func (u *unknown) mergeList(s *scanner) ([]byte, error) {
	var elements [][]byte
	err := s.members(func() error {
		e, err := s.value()
		elements = append(elements, e)
		return err
	}, ']')
	if err != nil {
		return nil, err
	}
	taken := make([]bool, len(elements))
	put := func(b *unknown, is func(at int) bool) (bool, error) {
		for i := range elements {
			// From the old position on, around the end.
			at := (b.at + i) % len(elements)
			if taken[at] || !is(at) {
				continue
			}
			taken[at] = true
			var err error
			elements[at], err = b.merge(elements[at])
			return true, err
		}
		return false, nil
	}
	var changed []*unknown
	for _, b := range u.below {
		found, err := put(b, func(at int) bool { return bytes.Equal(elements[at], b.was) })
		if err != nil {
			return nil, err
		}
		if !found {
			changed = append(changed, b)
		}
	}
	for _, b := range changed {
		if _, err := put(b, func(at int) bool { return at == b.at && len(elements) == u.length }); err != nil {
			return nil, err
		}
	}
	return slices.Concat([]byte("["), bytes.Join(elements, []byte(",")), []byte("]")), nil
}
