package datastore

import (
	"bytes"
	"encoding"
	"encoding/json"
	"io"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// strictDecoder fills Go values from JSON tokens. Unlike encoding/json it takes
// field names literally, refuses unknown and repeated ones, and its errors say
// where in the object they are.
type strictDecoder struct {
	dec   *json.Decoder
	extra []string // keys of the outermost object that are read elsewhere
}

// decodeStrict fills the struct that into points at. raw must be valid JSON.
func decodeStrict(raw []byte, into any, extra ...string) error {
	d := &strictDecoder{dec: json.NewDecoder(bytes.NewReader(raw)), extra: extra}
	d.dec.UseNumber()
	if err := d.value("", reflect.ValueOf(into).Elem()); err != nil {
		return err
	}
	if _, err := d.dec.Token(); err != io.EOF {
		return &FieldError{Reason: "something follows the object"}
	}
	return nil
}

func (d *strictDecoder) value(path string, v reflect.Value) error {
	tok, err := d.dec.Token()
	if err != nil {
		return &FieldError{Field: path, Reason: err.Error()}
	}
	if tok == nil {
		return nil
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		s, ok := tok.(string)
		if !ok {
			return mismatch(path, "a text", tok)
		}
		if err := u.UnmarshalText([]byte(s)); err != nil {
			return textError(path, s, u, err)
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		return d.object(path, tok, func(key string) (reflect.Value, bool) { return fieldOf(v, key) })
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		return d.entries(path, tok, v)
	case reflect.Slice:
		return d.list(path, tok, v)
	}
	return scalar(path, tok, v)
}

func (d *strictDecoder) object(path string, tok json.Token, field func(string) (reflect.Value, bool)) error {
	return d.keys(path, tok, func(key, at string) error {
		f, ok := field(key)
		if ok {
			return d.value(at, f)
		}
		if path == "" && slices.Contains(d.extra, key) {
			_, err := d.dec.Token()
			return err
		}
		return &FieldError{Field: at, Reason: "unknown key"}
	})
}

func (d *strictDecoder) entries(path string, tok json.Token, m reflect.Value) error {
	return d.keys(path, tok, func(key, at string) error {
		e := reflect.New(m.Type().Elem()).Elem()
		if err := d.value(at, e); err != nil {
			return err
		}
		m.SetMapIndex(reflect.ValueOf(key), e)
		return nil
	})
}

// keys calls fn for each key of the object that tok opens, up to its end.
func (d *strictDecoder) keys(path string, tok json.Token, fn func(key, path string) error) error {
	if tok != json.Delim('{') {
		return mismatch(path, "an object", tok)
	}
	seen := map[string]bool{}
	for d.dec.More() {
		t, err := d.dec.Token()
		if err != nil {
			return &FieldError{Field: path, Reason: err.Error()}
		}
		key, _ := t.(string)
		at := strings.TrimPrefix(path+"."+key, ".")
		if seen[key] {
			return &FieldError{Field: at, Reason: "given twice"}
		}
		seen[key] = true
		if err := fn(key, at); err != nil {
			return err
		}
	}
	_, err := d.dec.Token()
	return err
}

func (d *strictDecoder) list(path string, tok json.Token, v reflect.Value) error {
	if tok != json.Delim('[') {
		return mismatch(path, "a list", tok)
	}
	out := reflect.MakeSlice(v.Type(), 0, 0)
	for i := 0; d.dec.More(); i++ {
		e := reflect.New(v.Type().Elem()).Elem()
		if err := d.value(path+"["+strconv.Itoa(i)+"]", e); err != nil {
			return err
		}
		out = reflect.Append(out, e)
	}
	v.Set(out)
	_, err := d.dec.Token()
	return err
}

func scalar(path string, tok json.Token, v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		s, ok := tok.(string)
		if !ok {
			return mismatch(path, "a text", tok)
		}
		v.SetString(s)
	case reflect.Bool:
		b, ok := tok.(bool)
		if !ok {
			return mismatch(path, "true or false", tok)
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, ok := tok.(json.Number)
		i, err := strconv.ParseInt(string(n), 10, v.Type().Bits())
		if !ok || err != nil {
			return mismatch(path, "a whole number", tok)
		}
		v.SetInt(i)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, ok := tok.(json.Number)
		u, err := strconv.ParseUint(string(n), 10, v.Type().Bits())
		if !ok || err != nil {
			return mismatch(path, "a whole number from 0 to "+
				strconv.FormatUint(1<<v.Type().Bits()-1, 10), tok)
		}
		v.SetUint(u)
	default:
		return &FieldError{Field: path, Reason: "the model has no such type: " + v.Type().String()}
	}
	return nil
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

func mismatch(path, want string, tok json.Token) error {
	e := &FieldError{Field: path, Reason: "must be " + want}
	switch t := tok.(type) {
	case string:
		e.Value = t[:min(len(t), 64)]
	case json.Number:
		e.Value = string(t)
	case bool:
		e.Value = strconv.FormatBool(t)
	case json.Delim:
		e.Reason += ", not an object"
		if t == '[' {
			e.Reason = "must be " + want + ", not a list"
		}
	}
	return e
}

func textError(path, s string, u encoding.TextUnmarshaler, err error) error {
	e := &FieldError{Field: path, Value: s[:min(len(s), 64)]}
	switch u.(type) {
	case *netip.Prefix:
		e.Reason = "is no CIDR, like 10.0.0.0/26"
	case *netip.Addr:
		e.Reason = "is no IP address"
	case *time.Time:
		e.Reason = "is no time in the form of RFC 3339"
	default:
		e.Value, e.Reason = "", err.Error()
	}
	return e
}
