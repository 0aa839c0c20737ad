package datastore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// MaxSize is the largest encoded object in bytes (etcd's request limit is
// 1.5 MiB for all operations of a transaction).
const MaxSize = 1 << 20

// New returns an empty object of kind k.
func New(k Kind) (Object, error) {
	switch k {
	case KindNode:
		return &Node{}, nil
	case KindPeer:
		return &Peer{}, nil
	case KindBGPFilter:
		return &BGPFilter{}, nil
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
	case KindTier:
		return &Tier{}, nil
	case KindPolicy:
		return &Policy{}, nil
	case KindHostEndpoint:
		return &HostEndpoint{}, nil
	case KindNetworkSet:
		return &NetworkSet{}, nil
	case KindBGPConfig:
		return &BGPConfig{}, nil
	case KindConfig:
		return &Config{}, nil
	case KindReport:
		return &Report{}, nil
	}
	return nil, &FieldError{Field: "kind", Value: string(k), Reason: "there is no such kind"}
}

// Encode returns the object as stored, with the unknown keys that it was read with.
// It refuses what Decode would not read back.
func Encode(o Object) ([]byte, error) { return encode(o, marshal) }

// EncodeManifest is Encode for people and programs: with metadata.revision, as far as
// the object has one.
func EncodeManifest(o Object) ([]byte, error) {
	return encode(o, func(v any) ([]byte, error) {
		body, err := marshal(v)
		if revision := o.Meta().Revision; revision != 0 && err == nil {
			body, err = (&unknown{}).add([]step{{key: []byte("metadata")}, {key: []byte("revision")}}, []byte(strconv.FormatInt(revision, 10))).merge(body)
		}
		return body, err
	})
}

func encode(o Object, marshal func(any) ([]byte, error)) ([]byte, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	body, err := marshal(o)
	if u := o.Meta().unknown; u != nil && err == nil {
		body, err = u.merge(body)
	}
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", o.Kind(), o.Meta().Name, err)
	}
	b := fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,`, APIVersion, o.Kind())
	b = append(b, body[1:]...)
	if len(b) > MaxSize {
		return nil, tooLarge(b)
	}
	return b, nil
}

func tooLarge(b []byte) error {
	return &FieldError{Reason: fmt.Sprintf("%d bytes are more than an object may have (%d)", len(b), MaxSize)}
}

// Decode reads a stored value; kind and name must agree with the key. What a
// newer netctl may have written is tolerated: unknown keys stay with the object,
// and Encode puts them back. All else is as strict as in DecodeManifest; above
// all an object that needs a newer model than this one is refused.
func Decode(key string, value []byte) (Object, error) {
	o, _, err := new(decoder).stored(key, value)
	return o, err
}

// stored is Decode; news are the paths of the unknown keys.
func (d *decoder) stored(key string, value []byte) (o Object, news []string, err error) {
	kind, name, err := ParseKey(key)
	if err != nil {
		return nil, nil, err
	}
	if o, err = New(kind); err != nil {
		return nil, nil, err
	}
	d.tolerant, d.headed, d.name, d.formerly = true, true, name, formerly(kind)
	switch {
	case len(value) > MaxSize:
		err = tooLarge(value)
	default:
		err = d.read(value, o)
	}
	if err == nil && d.head != (head{APIVersion, string(kind)}) {
		err = errSyntax // checkHead has the reason
	}
	if err == nil {
		err = finish(o)
	}
	if err == nil && o.Meta().Name != name {
		err = notTheKey(o)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", key, reason(value, kind, err))
	}
	o.Meta().unknown = d.unknown
	return o, d.news, nil
}

// reason is what is wrong with a stored value that could not be read for err:
// what is wrong with the whole before what is wrong in it.
func reason(value []byte, kind Kind, err error) error {
	if len(value) > MaxSize {
		return err
	}
	is, needs, wrong := readHead(value)
	switch {
	case wrong != nil:
		return wrong
	case needs > ModelVersion:
		return needsError(needs)
	case is != kind:
		return &FieldError{Value: string(is), Reason: "is not the kind that the key says"}
	case errors.Is(err, errSyntax):
		return &FieldError{Reason: fmt.Sprintf("something lies more than %d levels deep", maxDepth)}
	}
	return err
}

func notTheKey(o Object) error {
	return &FieldError{Value: string(o.Kind()) + " " + o.Meta().Name, Reason: "is not what the key says"}
}

// needsError refuses an object whose meaning this netctl must not guess.
func needsError(needs int) error {
	return &FieldError{Field: "metadata.needs", Value: decimal(needs),
		Reason: fmt.Sprintf("the object is for a newer netctl, this one knows the model up to version %d", ModelVersion)}
}

// DecodeManifest reads one JSON object that a person or a program wrote: unknown
// and repeated keys are errors that name the path, defaults are filled in and the
// result is valid. Meta().Revision is the metadata.revision that it has. Errors wrap
// ErrInvalid.
func DecodeManifest(raw []byte) (Object, error) {
	if len(raw) > MaxSize {
		return nil, tooLarge(raw)
	}
	kind, needs, err := readHead(raw)
	if err != nil {
		return nil, err
	}
	if needs > ModelVersion {
		return nil, needsError(needs)
	}
	o, err := New(kind)
	if err != nil {
		return nil, err
	}
	d := decoder{headed: true}
	if err := d.read(raw, o); err != nil {
		return nil, reason(raw, kind, err)
	}
	if err := finish(o); err != nil {
		return nil, err
	}
	return o, nil
}

// finish completes and checks an object that was read.
func finish(o Object) error {
	o.SetDefaults()
	if p, ok := o.(*Profile); ok {
		return p.validateParsed()
	}
	return o.Validate()
}

// readHead finds the kind of an object and the version of the model that it
// needs, whatever else is in it. The error says that it is no object of ours.
func readHead(raw []byte) (k Kind, needs int, err error) {
	if err := syntaxError(raw); err != nil {
		return "", 0, err
	}
	var h struct {
		APIVersion string          `json:"apiVersion"`
		Kind       Kind            `json:"kind"`
		Metadata   json.RawMessage `json:"metadata"`
	}
	if err := json.Unmarshal(raw, &h); err != nil {
		return "", 0, &FieldError{Reason: "not an object with the texts apiVersion and kind"}
	}
	if h.APIVersion != APIVersion {
		return "", 0, &FieldError{Field: "apiVersion", Value: h.APIVersion, Reason: "must be " + APIVersion}
	}
	var m struct {
		Needs int `json:"needs"`
	}
	_ = json.Unmarshal(h.Metadata, &m) // whatever is wrong with it, is found later
	return h.Kind, m.Needs, nil
}

func position(raw []byte, offset int64) string {
	before := raw[:min(int(offset), len(raw))]
	line := bytes.Count(before, []byte("\n"))
	return fmt.Sprintf("line %d, column %d", line+1, len(before)-(bytes.LastIndexByte(before, '\n')+1))
}
