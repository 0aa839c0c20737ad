package commands

import (
	"errors"
	"os"
	"strings"
	"testing"

	"netctl/datastore"
)

func TestManifestErrorsNameTheLine(t *testing.T) {
	const head = "apiVersion: netctl/v1\nkind: Profile\nmetadata:\n  name: p\n"
	for _, c := range []struct{ in, want string }{
		{head + "spec:\n  tags: [p]\n  inbound:\n    - allow\n    - allow form tag x\n", `f:9: spec.inbound[1]: rule: "form": expected`},
		{head + "spec:\n  tgas: [p]\n", "f:6: spec.tgas: unknown key"},
		{head + "spec:\n  tags: [p]\n  tags: [q]\n", "f:7: spec.tags: given twice"},
		{head + "  labels:\n    a.b/c: ok\n    a.b: \"\\n\"\n", `f:7: metadata.labels.a.b "\n": is no label value`},
		{head + "spec:\n  labels: {a: 1}\n", `f:6: spec.labels.a "1": must be a text`},
		{"---\n" + head + "---\napiVersion: netctl/v1\nkind: Pool\nspec:\n  cidr: 10.0.0.1/8\n", `f:10: spec.cidr "10.0.0.1/8": has bits set`},
		{"- " + strings.ReplaceAll(head, "\n", "\n  ") + "\n- kind: Pool\n", "f:6: apiVersion: must be netctl/v1"},
		{"[{\"apiVersion\": \"netctl/v1\",\n \"kind\": \"Pool\",\n \"spec\": {\"cidr\": 5}}]", `f:3: spec.cidr "5": must be a text`},
		{"a: &x 1\nb: *x\n", "f:2: anchors and aliases are not supported"},
		{"? [a]\n: b\n", "f:1: a key must be a text"},
		{"a: !!binary aGk=\n", "f:1: the tag !!binary has no place here"},
		{"a: .inf\n", `f:1: ".inf" is no number`},
		{"a: [\n", "f:1: did not find expected node content"},
		{"# nothing\n---\n", "f: no object in it"},
		{"just text\n", "f:1: not an object with the texts apiVersion and kind"},
		{"", "f: no object in it"},
	} {
		_, err := parseManifests("f", []byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n got %v\nwant %s", c.in, err, c.want)
		}
	}
}

func TestManifestForms(t *testing.T) {
	for _, in := range []string{
		"apiVersion: netctl/v1\nkind: Node\nmetadata: {name: n}\nspec: {as: 64512}\nstatus: {subnets: [192.168.99.0/24]}\n",
		"{\n\t\"apiVersion\": \"netctl/v1\",\n\t\"kind\": \"Node\",\n\t\"metadata\": {\"name\": \"n\"},\n\t\"spec\": {\"as\": 64512},\n\t\"status\": {\"subnets\": [\"192.168.99.0/24\"]}\n}",
		"- apiVersion: netctl/v1\n  kind: Node\n  metadata:\n    name: 'n'\n  spec:\n    as: 0xfc00\n  status: {subnets: ['192.168.99.0/24']}\n",
	} {
		list, err := parseManifests("f", []byte(in))
		if err != nil {
			t.Errorf("%s\n%v", in, err)
			continue
		}
		n, ok := list[0].object.(*datastore.Node)
		if !ok || n.Metadata.Name != "n" || n.Spec.AS != 64512 || len(n.Status.Subnets) != 1 {
			t.Errorf("%s\n%+v", in, list[0].object)
		}
	}
}

func FuzzManifestFile(f *testing.F) {
	f.Add([]byte("apiVersion: netctl/v1\nkind: Profile\nmetadata:\n  name: p\nspec:\n  inbound:\n    - allow tcp to ports 80\n"))
	f.Add([]byte("---\n- {apiVersion: netctl/v1, kind: Pool, spec: {cidr: 10.0.0.0/8}}\n---\n# none\n"))
	f.Add([]byte("a: &x [*x]\n"))
	f.Add([]byte(`[{"apiVersion":"netctl/v1","kind":"Config"}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parseManifests("f", raw)
		if err != nil {
			return
		}
		var objects []datastore.Object
		for _, m := range list {
			objects = append(objects, m.object)
		}
		text, err := manifestYAML(objects)
		if err != nil {
			t.Fatalf("%q cannot be printed: %v", raw, err)
		}
		again, err := parseManifests("f", text)
		if err != nil || len(again) != len(list) {
			t.Fatalf("%q is printed as %q: %v", raw, text, err)
		}
		for i := range again {
			was, err1 := datastore.Encode(list[i].object)
			is, err2 := datastore.Encode(again[i].object)
			if err := errors.Join(err1, err2); err != nil || string(was) != string(is) {
				t.Fatalf("%s comes back as %s, %v", was, is, err)
			}
		}
	})
}

// TestModelPage reads the example of docs/model.md.
func TestModelPage(t *testing.T) {
	page, err := os.ReadFile("../docs/model.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```yaml\n")
	example, _, ok2 := strings.Cut(rest, "```")
	list, err := parseManifests("docs/model.md", []byte(example))
	if err != nil || !ok || !ok2 || len(list) != 2 {
		t.Errorf("%d objects, %v", len(list), err)
	}
}
