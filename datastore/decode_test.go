package datastore

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unsafe"
)

// FuzzScanner holds the scanner against encoding/json.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{`{"a":[1,-0.5e+7,true,false,null,"x\u00e9\n"]}`, "\"\xff\"", `"\ud800"`, `01`, `[1,]`, `{"a" 1}`, `-`, `nul`, "\"\x01\"", `"\x"`, ` [ ] `, `1.`, `1e`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := scanner{raw: raw}
		got, err := s.value()
		whole := err == nil && s.next() == 0 && s.pos == len(raw)
		if bytes.Count(raw, []byte("["))+bytes.Count(raw, []byte("{")) < maxDepth && whole != json.Valid(raw) {
			t.Fatalf("%q: %q, %v; encoding/json says %v", raw, got, err, json.Valid(raw))
		}
		if whole && got[0] == '"' {
			var want string
			if err := json.Unmarshal(raw, &want); err != nil {
				t.Fatal(err)
			}
			s = scanner{raw: raw}
			if text, err := s.text(); err != nil || string(text) != want {
				t.Fatalf("%q: got %q, %v, want %q", raw, text, err, want)
			}
		}
	})
}

// sameByAllReaders compares an object that raw was read as with what reading by
// reflection and what encoding/json make of it.
func sameByAllReaders(t *testing.T, raw []byte, o Object) {
	t.Helper()
	slow, _ := New(o.Kind())
	d := decoder{headed: true, slow: true}
	if err := d.read(raw, slow); err != nil {
		t.Fatalf("%s: by reflection: %v", raw, err)
	}
	other, _ := New(o.Kind())
	if err := json.Unmarshal(raw, other); err != nil {
		t.Fatalf("%s: by encoding/json: %v", raw, err)
	}
	other.Meta().Revision = o.Meta().Revision
	for _, x := range []Object{slow, other} {
		if err := finish(x); err != nil || !reflect.DeepEqual(o, x) {
			t.Fatalf("%s:\n got %+v\nwant %+v, %v", raw, o, x, err)
		}
	}
}

func TestReadersAgree(t *testing.T) {
	for _, o := range samples() {
		b, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeManifest(b)
		if err != nil {
			t.Fatal(err)
		}
		sameByAllReaders(t, b, back)
	}
}

// TestSamplesAreWhole keeps the samples complete: a field that no sample sets is
// one that no test reads.
func TestSamplesAreWhole(t *testing.T) {
	unset := map[string]bool{}
	var visit func(path string, v reflect.Value)
	visit = func(path string, v reflect.Value) {
		switch {
		case v.Kind() == reflect.Struct && v.Type().PkgPath() == reflect.TypeFor[Node]().PkgPath() && v.Type() != reflect.TypeFor[Rule]():
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() && f.Tag.Get("json") != "-" {
					visit(path+"."+f.Name, v.Field(i))
				}
			}
		case v.Kind() == reflect.Slice && v.Len() > 0 && v.Type().Elem().Kind() == reflect.Struct:
			unset[path] = false
			for i := range v.Len() {
				visit(path+"[]", v.Index(i))
			}
		default:
			unset[path] = v.IsZero() && (unset[path] || !seen(unset, path))
		}
	}
	for _, o := range samples() {
		visit(string(o.Kind()), reflect.ValueOf(o).Elem())
	}
	for path, is := range unset {
		if is && !strings.HasSuffix(path, ".Metadata.Labels") && !strings.HasSuffix(path, ".Metadata.Needs") {
			t.Errorf("no sample sets %s", path)
		}
	}
}

func seen(m map[string]bool, key string) bool { _, ok := m[key]; return ok }

// sprinkle puts a key that the model does not know into every object of a JSON
// value but those whose keys people choose.
func sprinkle(v any, at string) {
	switch v := v.(type) {
	case map[string]any:
		if at == "labels" || at == "options" {
			return
		}
		for k, e := range v {
			sprinkle(e, k)
		}
		v["colour"] = map[string]any{"of": []any{at, 1.5, nil, map[string]any{}}}
	case []any:
		for _, e := range v {
			sprinkle(e, "")
		}
	}
}

func generic(t *testing.T, raw []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnknownKeysAreKept puts unknown keys everywhere into every sample.
func TestUnknownKeysAreKept(t *testing.T) {
	for _, o := range samples() {
		key, err := KeyOf(o)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := Encode(o)
		if err != nil {
			t.Fatal(err)
		}
		v := generic(t, plain)
		sprinkle(v, "")
		raw := asJSON(t, v)
		if _, err := DecodeManifest(raw); err == nil || !strings.Contains(err.Error(), "unknown key") {
			t.Errorf("%s: a manifest with unknown keys: %v", key, err)
		}
		back, err := Decode(key, raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		out, err := Encode(back)
		if err != nil {
			t.Fatal(err)
		}
		if got := generic(t, out); !reflect.DeepEqual(got, v) {
			t.Errorf("%s:\n got %s\nwant %s", key, out, raw)
		}
		back.Meta().unknown = nil
		if !reflect.DeepEqual(back, o) {
			t.Errorf("%s: what is known:\n got %+v\nwant %+v", key, back, o)
		}
	}
}

// TestUnknownKeysGoWithTheirElement changes lists whose elements hold unknown keys.
func TestUnknownKeysGoWithTheirElement(t *testing.T) {
	const head = `{"apiVersion":"netctl/v1","kind":"Endpoint","metadata":{"name":"a/cni/w/eth0"},"spec":{"node":"a","orchestrator":"cni","workload":"w","interface":"eth0","link":"nc1","addresses":[]`
	port := func(name, more string) string {
		return `{"name":"` + name + `","protocol":"tcp","port":80` + more + `}`
	}
	before := head + `,"ports":[` + port("a", `,"x":1`) + `,` + port("b", "") + `,` + port("c", `,"x":3`) + `]}}`
	for _, c := range []struct {
		name   string
		change func(s *EndpointSpec)
		want   string
	}{
		{"nothing", func(*EndpointSpec) {}, `,"ports":[` + port("a", `,"x":1`) + `,` + port("b", "") + `,` + port("c", `,"x":3`) + `]`},
		{"first removed", func(s *EndpointSpec) { s.Ports = s.Ports[1:] }, `,"ports":[` + port("b", "") + `,` + port("c", `,"x":3`) + `]`},
		{"one put first", func(s *EndpointSpec) { s.Ports = append([]Port{{"n", "tcp", 80}}, s.Ports...) },
			`,"ports":[` + port("n", "") + `,` + port("a", `,"x":1`) + `,` + port("b", "") + `,` + port("c", `,"x":3`) + `]`},
		{"turned round", func(s *EndpointSpec) { s.Ports[0], s.Ports[2] = s.Ports[2], s.Ports[0] },
			`,"ports":[` + port("c", `,"x":3`) + `,` + port("b", "") + `,` + port("a", `,"x":1`) + `]`},
		{"changed in its place", func(s *EndpointSpec) { s.Ports[2].Name = "d" },
			`,"ports":[` + port("a", `,"x":1`) + `,` + port("b", "") + `,` + port("d", `,"x":3`) + `]`},
		{"another list", func(s *EndpointSpec) { s.Ports = []Port{{"n", "tcp", 80}} }, `,"ports":[` + port("n", "") + `]`},
		{"none left", func(s *EndpointSpec) { s.Ports = nil }, ``},
	} {
		o, err := Decode(KindPrefix(KindEndpoint)+"a/cni/w/eth0", []byte(before))
		if err != nil {
			t.Fatal(err)
		}
		c.change(&o.(*Endpoint).Spec)
		got, err := Encode(o)
		if want := head + c.want + "}}"; err != nil || string(got) != want {
			t.Errorf("%s:\n got %s, %v\nwant %s", c.name, got, err, want)
		}
	}
}

// TestUnknownKeysOfAnOmittedField: a status that is empty as far as it is known.
func TestUnknownKeysOfAnOmittedField(t *testing.T) {
	raw := `{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{},"status":{"mood":"good"}}`
	o, err := Decode(KindPrefix(KindNode)+"a", []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Encode(o); err != nil || string(got) != raw {
		t.Errorf("got %s, %v", got, err)
	}
}

// TestFormerKeysVanish: what a node's object once held is no complaint and is
// not kept.
func TestFormerKeysVanish(t *testing.T) {
	raw := `{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{},"status":{"host":"ab","seen":"2026-01-02T03:04:05Z","sessions":[{"x":1}],"mood":1}}`
	d := decoder{}
	o, news, err := d.stored(KindPrefix(KindNode)+"a", []byte(raw))
	if err != nil || !reflect.DeepEqual(news, []string{"status.mood"}) {
		t.Fatalf("got %v, %v", news, err)
	}
	want := `{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{},"status":{"host":"ab","mood":1}}`
	if got, err := Encode(o); err != nil || string(got) != want {
		t.Errorf("got %s, %v", got, err)
	}
}

// TestWhatMustNotBeGuessed: values that no tolerance lets through.
func TestWhatMustNotBeGuessed(t *testing.T) {
	newer := fmt.Sprintf(`metadata.needs "9": the object is for a newer netctl, this one knows the model up to version %d`, ModelVersion)
	profile := func(metadata, spec string) string {
		return `{"apiVersion":"netctl/v1","kind":"Profile","spec":{` + spec + `},"metadata":{"name":"p"` + metadata + `}}`
	}
	for _, c := range []struct{ raw, want string }{
		{profile(`,"needs":9`, ``), newer},
		{profile(`,"needs":9`, `"inbound":[{"allow":"all"}]`), newer},
		{profile(`,"needs":-1`, ``), `metadata.needs "-1": must be a version of the model`},
		{profile(``, `"inbound":[{"allow":"all"}]`), `spec.inbound[0]: must be a text, not an object`},
		{profile(``, `"inbound":["allow at night"]`), `spec.inbound[0]: rule: "at": expected`},
		{profile(``, `"colour":1,"colour":2`), `spec.colour: given twice`},
		{profile(``, `"colour":`+strings.Repeat("[", maxDepth+2)+strings.Repeat("]", maxDepth+2)), `lies more than 1000 levels deep`},
		{strings.Replace(profile(``, ``), "Profile", "Network", 1), `"Network": is not the kind that the key says`},
		{strings.Replace(profile(``, ``), "netctl/v1", "netctl/v2", 1), `apiVersion "netctl/v2": must be netctl/v1`},
		{profile(``, ``) + "x", `invalid character 'x' after top-level value`},
	} {
		_, err := Decode(KindPrefix(KindProfile)+"p", []byte(c.raw))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.100s:\n got %v\nwant %s", c.raw, err, c.want)
		}
		if _, err := DecodeManifest([]byte(c.raw)); err == nil && !strings.Contains(c.want, "the key says") {
			t.Errorf("%.100s is a manifest", c.raw)
		}
	}
	if _, err := Decode(KindPrefix(KindProfile)+"p", []byte(profile(`,"needs":1`, ``))); err != nil {
		t.Error(err)
	}
}

// FuzzStored reads anything as a stored value: what is accepted is encoded, and
// then encoded again, as the same.
func FuzzStored(f *testing.F) {
	for _, o := range samples() {
		b, err := Encode(o)
		if err != nil {
			f.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(b, &v); err != nil {
			f.Fatal(err)
		}
		sprinkle(v, "")
		more, err := marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(more)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		k, _, err := readHead(raw)
		if err != nil {
			return
		}
		o, err := New(k)
		if err != nil {
			return
		}
		d := decoder{headed: true, tolerant: true}
		if d.read(raw, o) != nil || finish(o) != nil {
			return
		}
		o.Meta().unknown = d.unknown
		b, err := Encode(o)
		if err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		key, err := KeyOf(o)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(key, b)
		if err != nil {
			t.Fatalf("%s becomes %s: %v", raw, b, err)
		}
		if again, err := Encode(back); err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%s becomes %s and then %s, %v", raw, b, again, err)
		}
	})
}

// TestDecodeAllocatesLittle: an endpoint is read without reflection, and what
// repeats is shared. (Its own are the object, link, MAC, addresses and profiles.)
func TestDecodeAllocatesLittle(t *testing.T) {
	s := cluster(t, 1, 1)
	e := s.Entries[len(s.Entries)-1]
	d := decoder{names: names{}}
	allocs := testing.AllocsPerRun(100, func() {
		if _, _, err := d.stored(e.Key, e.Value); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 10 {
		t.Errorf("%s takes %v allocations", e.Key, allocs)
	}
	o, _, err := d.stored(e.Key, e.Value)
	if err != nil {
		t.Fatal(err)
	}
	spec := o.(*Endpoint).Spec
	if unsafe.StringData(spec.Node) != unsafe.StringData(o.Meta().Name) {
		t.Error("the parts of the name are not parts of it")
	}
}

// TestBlocksShareTheNamesOfEndpoints: decoding a block again takes no allocation for
// each address that an endpoint holds.
func TestBlocksShareTheNamesOfEndpoints(t *testing.T) {
	s := cluster(t, 1, 100)
	v := NewView()
	if _, err := v.Replace(s); err != nil {
		t.Fatal(err)
	}
	b := v.Blocks()[0]
	for _, a := range b.Spec.Allocations {
		if e := v.Endpoint(a.Handle); unsafe.StringData(a.Handle) != unsafe.StringData(e.Metadata.Name) || a.Workload != e.Spec.Workload {
			t.Fatalf("%+v has a name of its own", a)
		}
	}
	key, _ := KeyOf(b)
	value, err := Encode(b)
	if err != nil {
		t.Fatal(err)
	}
	if allocs := testing.AllocsPerRun(100, func() { _, _, _ = v.decoder.stored(key, value) }); allocs > 20 {
		t.Errorf("%v allocations", allocs)
	}
}

// TestNamesAreBounded: strings that are kept to be shared are let go of in time.
func TestNamesAreBounded(t *testing.T) {
	n := names{}
	for i := range 3 * maxNames {
		text := fmt.Sprint("name", i)
		if got := n.share([]byte(text)); got != text || n.share([]byte(text)) != text {
			t.Fatalf("%q for %q", got, text)
		}
		if len(n) > maxNames {
			t.Fatalf("%d kept", len(n))
		}
	}
}

// TestKeysAreBounded: an object with more keys than any valid one is refused while it
// is read, since each is compared with those before it.
func TestKeysAreBounded(t *testing.T) {
	var b strings.Builder
	for i := range maxKeys + 1 {
		fmt.Fprintf(&b, `,"k%d":"v"`, i)
	}
	raw := fmt.Sprintf(`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"p","labels":{%s}},"spec":{}}`, b.String()[1:])
	if _, err := NewView().Apply(Entry{Key: KindPrefix(KindProfile) + "p", Value: []byte(raw), Revision: 1}); err == nil || !strings.Contains(err.Error(), "too many keys") {
		t.Errorf("%v", err)
	}
}
