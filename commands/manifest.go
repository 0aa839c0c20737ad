package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"

	"go.yaml.in/yaml/v3"

	"netctl/datastore"
)

// maxManifest bounds a manifest file, in bytes.
const maxManifest = 64 << 20

// manifest is one object of a file and where it stands there.
type manifest struct {
	object datastore.Object
	file   string
	line   int
	// revision is that which the object was read in, as its text says; 0: it says none.
	revision int64
}

// where is the prefix of a message about the object.
func (m manifest) where() string {
	if m.file == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d: ", m.file, m.line)
}

// readManifests reads a file ("-" is stdin) of YAML or JSON documents, each an
// object or a list of them. Errors name file and line.
func (a *app) readManifests(ctx context.Context, file string) ([]manifest, error) {
	raw, err := a.readInput(ctx, file, maxManifest)
	if err != nil {
		return nil, err
	}
	return parseManifests(inputName(file), raw)
}

func parseManifests(name string, raw []byte) ([]manifest, error) {
	dec := yaml.NewDecoder(bytes.NewReader(raw))
	var out []manifest
	listed := false // an empty list is a list
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, yamlError(name, err)
		}
		if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
			continue // a comment between two ---
		}
		items := []*yaml.Node{doc.Content[0]}
		if items[0].Kind == yaml.SequenceNode {
			items, listed = items[0].Content, true
		}
		for _, n := range items {
			o, err := decodeNode(n)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", name, errorLine(n, err), err)
			}
			out = append(out, manifest{object: o, file: name, line: n.Line, revision: o.Meta().Revision})
		}
	}
	if len(out) == 0 && !listed {
		return nil, fmt.Errorf("%s: no object in it", name)
	}
	return out, nil
}

func decodeNode(n *yaml.Node) (datastore.Object, error) {
	var buf bytes.Buffer
	if err := writeJSON(&buf, n); err != nil {
		return nil, err
	}
	return datastore.DecodeManifest(buf.Bytes())
}

// lineError is an error that knows its line itself.
type lineError struct {
	line int
	text string
}

func (e *lineError) Error() string { return e.text }
func (e *lineError) Unwrap() error { return datastore.ErrInvalid }

// writeJSON writes a YAML node as JSON; repeated keys stay, the model refuses
// them.
func writeJSON(buf *bytes.Buffer, n *yaml.Node) error {
	switch n.Kind {
	case yaml.MappingNode:
		buf.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Kind != yaml.ScalarNode {
				return &lineError{n.Content[i].Line, "a key must be a text"}
			}
			if i > 0 {
				buf.WriteByte(',')
			}
			writeString(buf, n.Content[i].Value)
			buf.WriteByte(':')
			if err := writeJSON(buf, n.Content[i+1]); err != nil {
				return err
			}
		}
		buf.WriteByte('}')
		return nil
	case yaml.SequenceNode:
		buf.WriteByte('[')
		for i, c := range n.Content {
			if i > 0 {
				buf.WriteByte(',')
			}
			if err := writeJSON(buf, c); err != nil {
				return err
			}
		}
		buf.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		return writeScalar(buf, n)
	}
	return &lineError{n.Line, "anchors and aliases are not supported: write the value out"}
}

func writeScalar(buf *bytes.Buffer, n *yaml.Node) error {
	switch n.ShortTag() {
	case "!!null":
		buf.WriteString("null")
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err != nil {
			return &lineError{n.Line, fmt.Sprintf("%q: must be true or false", n.Value)}
		}
		fmt.Fprint(buf, b)
	case "!!int":
		i, ok := new(big.Int).SetString(strings.ReplaceAll(n.Value, "_", ""), 0)
		if !ok {
			return &lineError{n.Line, fmt.Sprintf("%q is no number", n.Value)}
		}
		buf.WriteString(i.String())
	case "!!float":
		if !json.Valid([]byte(n.Value)) {
			return &lineError{n.Line, fmt.Sprintf("%q is no number", n.Value)}
		}
		buf.WriteString(n.Value)
	case "!!str", "!!timestamp":
		writeString(buf, n.Value)
	default:
		return &lineError{n.Line, fmt.Sprintf("the tag %s has no place here", n.Tag)}
	}
	return nil
}

func writeString(buf *bytes.Buffer, s string) {
	b, _ := json.Marshal(s)
	buf.Write(b)
}

// errorLine is the line of the field that an error is about, else of the object.
func errorLine(n *yaml.Node, err error) int {
	var line *lineError
	if errors.As(err, &line) {
		return line.line
	}
	var field *datastore.FieldError
	if errors.As(err, &field) {
		return fieldLine(n, field.Field)
	}
	return n.Line
}

// fieldLine follows a path such as spec.addresses[1] as far as it exists.
func fieldLine(n *yaml.Node, path string) int {
	line := n.Line
	for path != "" {
		next, rest := (*yaml.Node)(nil), ""
		switch n.Kind {
		case yaml.MappingNode:
			// Label keys hold dots: the longest key that the path begins with is it.
			// Of a key given twice the second is the mistake.
			longest := -1
			for i := 0; i+1 < len(n.Content); i += 2 {
				key := n.Content[i].Value
				after, ok := strings.CutPrefix(path, key)
				if ok && len(key) >= longest && (after == "" || after[0] == '.' || after[0] == '[') {
					longest, line, next, rest = len(key), n.Content[i].Line, n.Content[i+1], strings.TrimPrefix(after, ".")
				}
			}
		case yaml.SequenceNode:
			var i int
			if _, err := fmt.Sscanf(path, "[%d]", &i); err == nil && i < len(n.Content) {
				_, rest, _ = strings.Cut(path, "]")
				next, line, rest = n.Content[i], n.Content[i].Line, strings.TrimPrefix(rest, ".")
			}
		}
		if next == nil {
			return line
		}
		n, path = next, rest
	}
	return line
}
