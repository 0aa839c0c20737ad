package commands

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"netctl/datastore"
)

// format is the value of -o.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// manifests says whether objects are printed as they are stored, for programs.
func (f format) manifests() bool { return f == formatJSON || f == formatYAML }

func formats() []string {
	return []string{string(formatTable), string(formatWide), string(formatJSON), string(formatYAML)}
}

// formatFlag is the flag -o.
type formatFlag struct {
	value *format
	may   []string
}

// String implements pflag.Value.
func (f formatFlag) String() string {
	if f.value == nil { // pflag asks the zero one
		return ""
	}
	return string(*f.value)
}

// Type implements pflag.Value.
func (formatFlag) Type() string { return "format" }

// Set implements pflag.Value.
func (f formatFlag) Set(s string) error {
	if !slices.Contains(f.may, s) {
		return fmt.Errorf("must be one of %s", strings.Join(f.may, ", "))
	}
	*f.value = format(s)
	return nil
}

// addFormat gives a command the flag -o, which may be what every one may be or more.
func addFormat(cmd *cobra.Command, more ...format) *format {
	f, may := formatTable, formats()
	for _, m := range more {
		may = append(may, string(m))
	}
	cmd.Flags().VarP(formatFlag{&f, may}, "output", "o", "`format`: "+strings.Join(may, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(may, cobra.ShellCompDirectiveNoFileComp))
	return &f
}

// show prints objects as manifests, or as the table that text makes.
func (a *app) show(f format, objects []datastore.Object, text func() string) error {
	switch f {
	case formatJSON:
		b, err := manifestJSON(objects)
		if err != nil {
			return err
		}
		return a.print(string(b))
	case formatYAML:
		b, err := manifestYAML(objects)
		if err != nil {
			return err
		}
		return a.print(string(b))
	}
	return a.print(text())
}

func asObjects[T datastore.Object](list []T) []datastore.Object {
	out := make([]datastore.Object, 0, len(list))
	for _, o := range list {
		out = append(out, o)
	}
	return out
}

// manifestJSON is a JSON list of manifests.
func manifestJSON(objects []datastore.Object) ([]byte, error) {
	var buf bytes.Buffer
	buf.WriteByte('[')
	for i, o := range objects {
		b, err := datastore.EncodeManifest(o)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			buf.WriteByte(',')
		}
		buf.Write(b)
	}
	buf.WriteByte(']')
	return indented(buf.Bytes())
}

func indented(raw []byte) ([]byte, error) {
	var out bytes.Buffer
	if err := json.Indent(&out, raw, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// manifestYAML is one YAML document for each manifest.
func manifestYAML(objects []datastore.Object) ([]byte, error) {
	if len(objects) == 0 {
		return []byte("[]\n"), nil // the encoder refuses to close without a document
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	for _, o := range objects {
		b, err := datastore.EncodeManifest(o)
		if err != nil {
			return nil, err
		}
		var doc yaml.Node
		if err := yaml.Unmarshal(b, &doc); err != nil {
			return nil, fmt.Errorf("%s %s: %w", o.Kind(), o.Meta().Name, err)
		}
		plain(&doc)
		if err := enc.Encode(&doc); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), enc.Close()
}

// plain takes away JSON's quotes and brackets where YAML needs none.
func plain(n *yaml.Node) {
	n.Style = 0
	if len(n.Content) == 0 && n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// table is bordered, with centred cells of one line each.
func table(header []string, rows [][]string) string {
	for _, row := range rows {
		for i, cell := range row {
			row[i] = datastore.Line(cell)
		}
	}
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	border := func() {
		for _, w := range widths {
			b.WriteString("+" + strings.Repeat("-", w+2))
		}
		b.WriteString("+\n")
	}
	line := func(row []string) {
		for i, cell := range row {
			b.WriteString("| " + centre(cell, widths[i]) + " ")
		}
		b.WriteString("|\n")
	}
	border()
	line(header)
	border()
	for _, row := range rows {
		line(row)
	}
	if len(rows) > 0 {
		border()
	}
	return b.String()
}

// centre pads to width; an odd blank goes to the right of a text of odd length,
// else to its left, as in the tables that the documents show.
func centre(s string, width int) string {
	n := utf8.RuneCountInString(s)
	left := (width - n) / 2
	if (width-n)%2 == 1 && n%2 == 0 {
		left++
	}
	return strings.Repeat(" ", left) + s + strings.Repeat(" ", width-n-left)
}

// What marks a text on a terminal, and what ends that.
const (
	red      = "\x1b[31m"
	unmarked = "\x1b[0m"
)

// bad marks a text that tells of trouble, in red on a terminal.
func (a *app) bad(s string) string {
	f, ok := a.out.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || !isTerminal(f) {
		return s
	}
	return red + s + unmarked
}
