package datastore

import (
	"bytes"
	"encoding"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// decoder fills Go values from JSON text. Unlike encoding/json it takes field
// names literally, refuses repeated ones, and its errors say where in the object
// they are. An unknown key is an error too, or with tolerant it is collected in
// unknown. The kinds of which there are many are read by the functions of
// decode_fast.go, all others by reflection.
//
// A decoder may be used again; it then shares texts that repeat.
type decoder struct {
	scanner
	tolerant bool
	slow     bool // everything but the metadata by reflection; for tests
	headed   bool // the outermost object has apiVersion and kind beside its fields
	head     head
	formerly []string // paths of keys that older versions wrote; they are read over

	// at is the path to the present value: for each part the index in keys of the
	// key, or minus one minus the position in a list.
	at    []int
	keys  [][]byte // of the objects around the value, to find repeated ones
	found int      // unknown keys so far
	// unknown is what was found, nil: nothing.
	unknown *unknown
	// news are the paths of what was found, without list positions.
	news []string

	name  string // of the object: its parts are shared, not copied
	names names
	// endpoint finds the name of an endpoint that is held, "" if there is none: who
	// has an address is called so; nil: there are none.
	endpoint func(name []byte) string
	room     []Allocation // for the elements of a list
	// rules are the latest rules by their text; nil: they are not kept. A profile
	// that changed has mostly the rules that it had.
	rules map[string]Rule
}

// head is what an object says of itself outside its fields.
type head struct{ apiVersion, kind string }

// step is one part of the path to a value: a key, or a position in a list.
type step struct {
	key []byte // nil: a position
	at  int
}

// names makes one string of equal ones.
type names map[string]string

// maxNames bounds what names, and what rules, keep alive; which strings repeat changes over time.
const maxNames = 1 << 13

func (n names) share(b []byte) string {
	if s, ok := n[string(b)]; ok {
		return s
	}
	s := string(b)
	if n != nil {
		if len(n) >= maxNames {
			clear(n)
		}
		n[s] = s
	}
	return s
}

// read fills what into points at from raw.
func (d *decoder) read(raw []byte, into any) error {
	d.scanner = scanner{raw: raw}
	d.head, d.at, d.keys, d.news = head{}, d.at[:0], d.keys[:0], nil
	d.found, d.unknown = 0, nil
	if err := d.object(into); err != nil {
		return err
	}
	if d.next() != 0 || d.pos < len(d.raw) {
		return &FieldError{Reason: "something follows the object"}
	}
	return nil
}

// object reads an object into the struct that into points at.
func (d *decoder) object(into any) error {
	if d.null() {
		return nil
	}
	if _, meta := into.(*Metadata); meta || !d.slow {
		if done, err := d.fast(into); done {
			return err
		}
	}
	v := reflect.ValueOf(into).Elem()
	return d.fields(func(key []byte) (bool, error) {
		f, ok := fieldOf(v, string(key))
		if !ok {
			return false, nil
		}
		return true, d.any(f)
	})
}

// null consumes a null: it is as good as no value.
func (d *decoder) null() bool { return d.next() == 'n' && d.word("null") }

// fields calls field for each key of the object that comes next; it reads the
// value, or says that it does not know the key.
func (d *decoder) fields(field func(key []byte) (known bool, err error)) error {
	if d.next() != '{' {
		return d.mismatch("an object")
	}
	first := len(d.keys)
	err := d.members(func() error {
		key, err := d.text()
		if err != nil {
			return err
		}
		d.at = append(d.at, len(d.keys))
		d.keys = append(d.keys, key)
		before := d.keys[first : len(d.keys)-1]
		if slices.ContainsFunc(before, func(k []byte) bool { return bytes.Equal(k, key) }) {
			return d.wrong("", "given twice")
		}
		if len(before) >= maxKeys {
			return d.wrong("", "is one of too many keys")
		}
		if !d.take(':') {
			return errSyntax
		}
		known, err := field(key)
		if err == nil && !known {
			err = d.other(key)
		}
		if err == nil {
			d.at = d.at[:len(d.at)-1]
		}
		return err
	}, '}')
	if err == nil {
		d.keys = d.keys[:first]
	}
	return err
}

// maxKeys is the largest number of keys of one object. Nothing valid has more
// than maxLabels of them.
const maxKeys = 4 * maxLabels

// other reads a value whose key is none of the struct's.
func (d *decoder) other(key []byte) error {
	if d.headed && len(d.at) == 1 {
		switch string(key) {
		case "apiVersion":
			return d.string(&d.head.apiVersion)
		case "kind":
			return d.string(&d.head.kind)
		}
	}
	if !d.tolerant {
		return d.wrong("", "unknown key")
	}
	raw, err := d.value()
	if err != nil {
		return err
	}
	path := pathOf(d.path(), false)
	if slices.Contains(d.formerly, path) {
		return nil
	}
	d.found++
	d.unknown = d.unknown.add(d.path(), raw)
	d.news = append(d.news, path)
	return nil
}

// list reads a list, each element by one.
func list[T any](d *decoder, into *[]T, one func(*T) error) error {
	return listBy(d, into, nil, one)
}

// listBy is list with room for the elements, which are copied from there: a list
// of unknown length would otherwise be moved again and again.
func listBy[T any](d *decoder, into *[]T, room []T, one func(*T) error) error {
	if d.null() {
		return nil
	}
	if d.next() != '[' {
		return d.mismatch("a list")
	}
	out, found := room[:0], d.found
	err := d.members(func() error {
		d.at = append(d.at, -1-len(out))
		out = append(out, *new(T))
		before, e := d.found, &out[len(out)-1]
		if d.null() {
			return d.wrong("", "is null: leave it out")
		}
		if err := one(e); err != nil {
			return err
		}
		if d.found > before {
			if err := d.unknown.identify(d.path(), *e); err != nil {
				return err
			}
		}
		d.at = d.at[:len(d.at)-1]
		return nil
	}, ']')
	if room != nil || out == nil || cap(out) > len(out) {
		out = append(make([]T, 0, len(out)), out...)
	}
	if d.found > found {
		d.unknown.find(d.path()).length = len(out)
	}
	*into = out
	return err
}

// entries reads a map from text to text.
func (d *decoder) entries(into *map[string]string) error {
	if d.null() {
		return nil
	}
	m := map[string]string{}
	*into = m
	return d.fields(func(key []byte) (bool, error) {
		var s string
		err := d.shared(&s)
		m[d.names.share(key)] = s
		return true, err
	})
}

// any reads a value of any type of the model.
func (d *decoder) any(v reflect.Value) error {
	if d.null() {
		return nil
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	into := v.Addr().Interface()
	if u, ok := into.(encoding.TextUnmarshaler); ok {
		return d.parsed(u)
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.object(into)
	case reflect.Map:
		return d.entries(into.(*map[string]string))
	case reflect.Slice:
		return d.anyList(v)
	case reflect.String:
		s, err := d.plain()
		v.SetString(d.names.share(s))
		return err
	case reflect.Bool:
		var yes bool
		err := d.bool(&yes)
		v.SetBool(yes)
		return err
	case reflect.Int, reflect.Int64:
		i, err := d.whole(v.Type().Bits())
		v.SetInt(i)
		return err
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		u, err := d.unsigned(v.Type().Bits())
		v.SetUint(u)
		return err
	}
	return d.wrong("", "the model has no such type: "+v.Type().String())
}

func (d *decoder) anyList(v reflect.Value) error {
	var elements []reflect.Value
	e := v.Type().Elem()
	err := list(d, &elements, func(el *reflect.Value) error {
		*el = reflect.New(e).Elem()
		return d.any(*el)
	})
	if err == nil {
		v.Set(reflect.Append(reflect.MakeSlice(v.Type(), 0, len(elements)), elements...))
	}
	return err
}

// plain consumes a text that the model wants here.
func (d *decoder) plain() ([]byte, error) {
	if d.next() != '"' {
		return nil, d.mismatch("a text")
	}
	return d.text()
}

// string reads a text that does not repeat.
func (d *decoder) string(into *string) error {
	if d.null() {
		return nil
	}
	b, err := d.plain()
	*into = string(b)
	return err
}

// shared reads a text that repeats from object to object.
func (d *decoder) shared(into *string) error {
	if d.null() {
		return nil
	}
	b, err := d.plain()
	*into = d.names.share(b)
	return err
}

// part reads a text that probably is name, or a part of it between slashes.
func (d *decoder) part(into *string, name string) error {
	if d.null() {
		return nil
	}
	b, err := d.plain()
	for at := 0; at+len(b) <= len(name); {
		if name[at:at+len(b)] == string(b) {
			*into = name[at : at+len(b)]
			return err
		}
		slash := strings.IndexByte(name[at:], '/')
		if slash < 0 {
			break
		}
		at += slash + 1
	}
	*into = string(b)
	return err
}

// parsed reads a text that has a grammar of its own.
func (d *decoder) parsed(into encoding.TextUnmarshaler) error {
	if d.null() {
		return nil
	}
	b, err := d.plain()
	if err != nil {
		return err
	}
	if r, ok := into.(*Rule); ok && d.rules != nil {
		return d.rule(r, b)
	}
	return d.parse(into, b)
}

func (d *decoder) rule(into *Rule, text []byte) error {
	if r, ok := d.rules[string(text)]; ok {
		*into = r
		return nil
	}
	if err := d.parse(into, text); err != nil {
		return err
	}
	if len(d.rules) >= maxNames {
		clear(d.rules)
	}
	d.rules[string(text)] = *into
	return nil
}

func (d *decoder) parse(into encoding.TextUnmarshaler, b []byte) error {
	if err := into.UnmarshalText(b); err != nil {
		value := string(b[:min(len(b), 64)])
		switch into.(type) {
		case *netip.Prefix:
			return d.wrong(value, "is no CIDR, like 10.0.0.0/26")
		case *netip.Addr:
			return d.wrong(value, "is no IP address")
		case *time.Time:
			return d.wrong(value, "is no time in the form of RFC 3339")
		}
		return d.wrong("", err.Error())
	}
	return nil
}

func (d *decoder) whole(bits int) (int64, error) {
	start := d.pos
	b, err := d.number()
	i, parse := strconv.ParseInt(string(b), 10, bits)
	if err != nil || parse != nil {
		d.pos = start
		return 0, d.mismatch("a whole number")
	}
	return i, nil
}

func (d *decoder) unsigned(bits int) (uint64, error) {
	start := d.pos
	b, err := d.number()
	u, parse := strconv.ParseUint(string(b), 10, bits)
	if err != nil || parse != nil {
		d.pos = start
		return 0, d.mismatch("a whole number from 0 to " + strconv.FormatUint(1<<bits-1, 10))
	}
	return u, nil
}

func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	t := v.Type()
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); name == key && name != "-" && name != "" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// wrong is an error about the value at the present path.
func (d *decoder) wrong(value, reason string) error {
	return &FieldError{Field: pathOf(d.path(), true), Value: value, Reason: reason}
}

// mismatch says that what comes next is of the wrong type.
func (d *decoder) mismatch(want string) error {
	reason := "must be " + want
	switch d.next() {
	case '{':
		return d.wrong("", reason+", not an object")
	case '[':
		return d.wrong("", reason+", not a list")
	}
	raw, err := d.value()
	if err != nil {
		return err
	}
	if raw[0] == '"' {
		raw, _ = unquote(raw)
		raw = raw[:min(len(raw), 64)]
	}
	return d.wrong(string(raw), reason)
}

// path is the path to the present value.
func (d *decoder) path() []step {
	path := make([]step, 0, len(d.at))
	for _, i := range d.at {
		if i < 0 {
			path = append(path, step{at: -1 - i})
		} else {
			path = append(path, step{key: d.keys[i]})
		}
	}
	return path
}

// pathOf is the path as people write it, e.g. spec.ports[1].name; without
// positions spec.ports[].name.
func pathOf(path []step, positions bool) string {
	var b strings.Builder
	for _, s := range path {
		switch {
		case s.key == nil && positions:
			b.WriteString("[" + strconv.Itoa(s.at) + "]")
		case s.key == nil:
			b.WriteString("[]")
		default:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.Write(s.key)
		}
	}
	return b.String()
}
