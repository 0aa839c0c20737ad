package datastore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxSize is the largest encoded object in bytes (etcd's request limit is
// 1.5 MiB for all operations of a transaction).
const MaxSize = 1 << 20

// New returns an empty object of kind k.
func New(k Kind) (Object, error) {
	switch k {
	case KindNode:
		return &Node{}, nil
	case KindPool:
		return &Pool{}, nil
	case KindBlock:
		return &Block{}, nil
	case KindReservation:
		return &Reservation{}, nil
	case KindNetwork:
		return &Network{}, nil
	case KindEndpoint:
		return &Endpoint{}, nil
	case KindProfile:
		return &Profile{}, nil
	case KindBGPConfig:
		return &BGPConfig{}, nil
	case KindConfig:
		return &Config{}, nil
	case KindReport:
		return &Report{}, nil
	}
	return nil, &FieldError{Field: "kind", Value: string(k), Reason: "there is no such kind"}
}

// Encode returns the object as stored and as in a JSON manifest. It refuses
// what Decode would not read back.
func Encode(o Object) ([]byte, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // people read it, and && stands in selectors
	if err := enc.Encode(o); err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", o.Kind(), o.Meta().Name, err)
	}
	b := fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,`, APIVersion, o.Kind())
	b = append(b, bytes.TrimSuffix(body.Bytes()[1:], []byte("\n"))...)
	if len(b) > MaxSize {
		return nil, &FieldError{Reason: fmt.Sprintf("%d bytes are more than an object may have (%d)", len(b), MaxSize)}
	}
	return b, nil
}

// Decode reads a stored value: strict as DecodeManifest, and kind and name must
// agree with the key.
func Decode(key string, value []byte) (Object, error) {
	kind, name, err := ParseKey(key)
	if err != nil {
		return nil, err
	}
	o, err := DecodeManifest(value)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if o.Kind() != kind || o.Meta().Name != name {
		return nil, fmt.Errorf("%s: %w", key,
			&FieldError{Value: string(o.Kind()) + " " + o.Meta().Name, Reason: "is not what the key says"})
	}
	return o, nil
}

// DecodeManifest reads one JSON object: unknown and repeated keys are errors
// that name the path, defaults are filled in and the result is valid. Errors
// wrap ErrInvalid.
func DecodeManifest(raw []byte) (Object, error) {
	if len(raw) > MaxSize {
		return nil, &FieldError{Reason: fmt.Sprintf("%d bytes are more than an object may have (%d)", len(raw), MaxSize)}
	}
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       Kind   `json:"kind"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return nil, &FieldError{Reason: syntax.Error() + " (" + position(raw, syntax.Offset) + ")"}
		}
		return nil, &FieldError{Reason: "not an object with the texts apiVersion and kind"}
	}
	if head.APIVersion != APIVersion {
		return nil, &FieldError{Field: "apiVersion", Value: head.APIVersion, Reason: "must be " + APIVersion}
	}
	o, err := New(head.Kind)
	if err != nil {
		return nil, err
	}
	if err := decodeStrict(raw, o, "apiVersion", "kind"); err != nil {
		return nil, err
	}
	o.SetDefaults()
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return o, nil
}

func position(raw []byte, offset int64) string {
	before := raw[:min(int(offset), len(raw))]
	line := bytes.Count(before, []byte("\n"))
	return fmt.Sprintf("line %d, column %d", line+1, len(before)-(bytes.LastIndexByte(before, '\n')+1))
}
