package api

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"

	"netctl/datastore"
)

// m is an object of JSON; encoding/json sorts its keys.
type m = map[string]any

// Description is the OpenAPI 3.0 description of the API, from the model and the actions.
func Description(actions []Action) ([]byte, error) {
	d := describer{schemas: m{}}
	d.schemas["Failure"] = d.schema(reflect.TypeFor[Failure]())
	d.schemas["Request"] = d.schema(reflect.TypeFor[Request]())
	d.schemas["Answer"] = d.schema(reflect.TypeFor[Answer]())
	d.schemas["Index"] = d.schema(reflect.TypeFor[Index]())
	paths := m{
		"/v1":              m{"get": operation("index", "Who asks, and what there is", nil, answers(200, ref("Index"), "the index"))},
		"/v1/openapi.json": m{"get": operation("openapi", "This description", nil, answers(200, m{"type": "object"}, "OpenAPI 3.0"))},
		"/v1/watch": m{"get": operation("watch", "Objects of several kinds and every change, as server-sent events",
			append([]any{parameter("kind", "query", "a kind as it stands in paths; may be repeated; none: all", m{"type": "array", "items": m{"type": "string", "enum": plurals()}})}, watching()...), stream())},
	}
	for _, k := range datastore.Kinds() {
		if err := d.kind(paths, k); err != nil {
			return nil, err
		}
	}
	for _, a := range actions {
		paths["/v1/actions/"+a.Path] = m{"post": d.action(a)}
	}
	doc := m{
		"openapi": "3.0.3",
		"info": m{"title": "netctl", "version": "v1", "license": m{"name": "see LICENSE"},
			"description": "Every kind and action of the command line. docs/api.md has examples and says who may do what."},
		"servers":    []any{m{"url": "https://localhost:7443"}},
		"paths":      paths,
		"components": m{"schemas": d.schemas, "securitySchemes": m{"certificate": m{"type": "http", "scheme": "mutual", "description": "a client certificate with a role, by TLS; on the unix socket root needs none"}}},
		"security":   []any{m{"certificate": []any{}}},
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("describe the api: %w", err)
	}
	return b.Bytes(), nil
}

type describer struct{ schemas m }

func ref(name string) m { return m{"$ref": "#/components/schemas/" + name} }

func parameter(name, in, text string, schema m) m {
	p := m{"name": name, "in": in, "description": text, "schema": schema}
	if in == "path" {
		p["required"] = true
	}
	return p
}

// watching are the parameters of lists and watches.
func watching() []any {
	text, number := m{"type": "string"}, m{"type": "integer", "format": "int64", "minimum": 1}
	return []any{
		parameter("watch", "query", "go on with every change, as server-sent events (or say Accept: text/event-stream)", m{"type": "boolean"}),
		parameter("after", "query", "watch from this revision on, of a list or an event's id", number),
		parameter("selector", "query", "a label expression", text),
		m{"name": "fields", "in": "query", "style": "form", "explode": true,
			"description": "PATH=VALUE of the manifest, as spec.node=slave; of a list one item is enough",
			"schema":      m{"type": "object", "additionalProperties": text}},
	}
}

func stream() m {
	return m{"200": m{"description": "events put, synced, delete, reset, resync, error", "content": m{"text/event-stream": m{"schema": m{"type": "string"}}}}, "default": failure()}
}

func failure() m {
	return m{"description": "what is wrong", "content": m{"application/json": m{"schema": ref("Failure")}}}
}

func answers(status int, schema m, text string) m {
	return m{fmt.Sprint(status): m{"description": text, "content": m{"application/json": m{"schema": schema}}}, "default": failure()}
}

func operation(id, summary string, parameters []any, responses m) m {
	o := m{"operationId": id, "summary": summary, "responses": responses}
	if len(parameters) > 0 {
		o["parameters"] = parameters
	}
	return o
}

// kind adds the paths of a kind. Names may have slashes, which OpenAPI has no word for:
// they are escaped (%2F) or not.
func (d describer) kind(paths m, k datastore.Kind) error {
	o, err := datastore.New(k)
	if err != nil {
		return err
	}
	schema := d.schema(reflect.TypeOf(o).Elem())
	properties := schema["properties"].(m)
	properties["apiVersion"] = m{"type": "string", "enum": []string{datastore.APIVersion}}
	properties["kind"] = m{"type": "string", "enum": []string{string(k)}}
	properties["metadata"].(m)["properties"].(m)["revision"] = m{"type": "integer", "format": "int64",
		"description": "of the object's last change; what is written with it is refused if it is another by then"}
	schema["required"] = []string{"apiVersion", "kind", "metadata"}
	d.schemas[string(k)] = schema
	one, many, role := string(k), Plural(k), datastore.KindRole(k).String()
	list := m{"type": "object", "required": []string{"revision", "items"}, "properties": m{"revision": m{"type": "integer", "format": "int64"}, "items": m{"type": "array", "items": ref(one)}}}
	body := m{"required": true, "content": m{"application/json": m{"schema": ref(one)}}}
	name := parameter("name", "path", "the object's name", m{"type": "string"})
	get := operation("list"+one, "List or watch "+many, watching(), answers(200, list, "the objects"))
	get["responses"].(m)["200"].(m)["content"].(m)["text/event-stream"] = m{"schema": m{"type": "string"}}
	post := operation("create"+one, "Create one; it must not exist (role "+role+")", nil, answers(201, ref(one), "created"))
	post["requestBody"] = body
	put := operation("put"+one, "Create or update one (role "+role+")",
		[]any{parameter("replace", "query", "it must exist", m{"type": "boolean"})}, answers(200, ref(one), "updated or unchanged, as the header Netctl-Verb says"))
	put["responses"].(m)["201"] = m{"description": "created", "content": m{"application/json": m{"schema": ref(one)}}}
	put["requestBody"] = body
	remove := operation("delete"+one, "Delete one (role "+role+")",
		[]any{parameter("force", "query", "whatever uses it", m{"type": "boolean"})}, m{"204": m{"description": "deleted"}, "default": failure()})
	paths["/v1/"+many] = m{"get": get, "post": post}
	paths["/v1/"+many+"/{name}"] = m{
		"parameters": []any{name}, "put": put, "delete": remove,
		"get": operation("read"+one, "Read one", nil, answers(200, ref(one), "the object")),
	}
	return nil
}

// action describes a command.
func (d describer) action(a Action) m {
	properties, required := m{}, []string{}
	if a.Named {
		properties["name"] = m{"type": "string"}
		required = append(required, "name")
	}
	if a.Args {
		properties["args"] = m{"type": "array", "items": m{"type": "string"}}
	}
	flags, needed := m{}, []string{}
	for _, f := range a.Flags {
		s := m{"type": f.Type, "description": f.Usage}
		if f.Type == "array" {
			s["items"] = m{"type": "string"}
		}
		if f.Type == "integer" { // or their text
			s = m{"description": f.Usage, "oneOf": []any{m{"type": "integer"}, m{"type": "string"}}}
		}
		if flags[f.Name] = s; f.Required {
			needed = append(needed, f.Name)
		}
	}
	if len(flags) > 0 {
		all := m{"type": "object", "additionalProperties": false, "properties": flags}
		if len(needed) > 0 {
			all["required"] = needed
			required = append(required, "flags")
		}
		properties["flags"] = all
	}
	properties["stdin"] = m{"type": "string", "description": "what the command reads for -"}
	properties["files"] = m{"type": "object", "additionalProperties": m{"type": "string"}, "description": "what it reads for other names"}
	schema := m{"type": "object", "additionalProperties": false, "properties": properties}
	if len(required) > 0 {
		schema["required"] = required
	}
	o := operation("do-"+strings.ReplaceAll(a.Path, "/", "-"), a.Summary, nil, answers(200, ref("Answer"), "done (exit 0), or the answer is no (exit 3)"))
	o["description"] = fmt.Sprintf("`%s` (role %s). One that only looks may be asked for by GET too.", a.Usage, a.Rights.Role)
	o["requestBody"] = m{"required": len(required) > 0, "content": m{"application/json": m{"schema": schema}}}
	o["responses"].(m)["default"] = m{"description": "what is wrong", "content": m{"application/json": m{"schema": m{"anyOf": []any{ref("Answer"), ref("Failure")}}}}}
	return o
}

// schema is the JSON of a type, as encoding/json has it.
func (d describer) schema(t reflect.Type) m {
	switch {
	case t == reflect.TypeFor[json.RawMessage]():
		return m{"description": "any JSON"}
	case t == reflect.TypeFor[time.Time]():
		return m{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		return d.schema(t.Elem())
	case t.Implements(reflect.TypeFor[encoding.TextMarshaler]()):
		return m{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return m{"type": "boolean"}
	case reflect.String:
		return m{"type": "string"}
	case reflect.Slice:
		return m{"type": "array", "items": d.schema(t.Elem()), "nullable": true}
	case reflect.Map:
		return m{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Struct:
		properties := m{}
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous && name == "":
				for k, v := range d.schema(f.Type)["properties"].(m) {
					properties[k] = v
				}
			case f.IsExported() && name != "-" && name != "":
				properties[name] = d.schema(f.Type)
			}
		}
		return m{"type": "object", "properties": properties}
	case reflect.Interface:
		return m{"description": "any JSON"}
	}
	return m{"type": "integer"}
}
