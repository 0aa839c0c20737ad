package commands

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"
)

// maxConfigFile bounds a configuration file, in bytes.
const maxConfigFile = 1 << 20

// readConfigFile gives viper the file that --config, NETCTL_CONFIG or the
// default names; a default that does not exist is no error. It returns the name
// and the line of every key, and refuses keys that do not exist.
func readConfigFile(ctx context.Context, v *viper.Viper, flags *pflag.FlagSet) (string, map[string]int, error) {
	file, named := "", true
	if f := flags.Lookup("config"); f != nil {
		file = f.Value.String()
	}
	if file == "" {
		file = os.Getenv("NETCTL_CONFIG")
	}
	if file == "" {
		file, named = defaultConfigFile, false
	}
	text, err := readInput(ctx, nil, file, maxConfigFile)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("config: %w", err)
	}
	lines, err := checkConfig(file, text)
	if err != nil {
		return "", nil, err
	}
	v.SetConfigType("yaml")
	if err := v.ReadConfig(bytes.NewReader(text)); err != nil {
		return "", nil, fmt.Errorf("config %s: %w", file, err)
	}
	return file, lines, nil
}

// checkConfig holds the text against the table of settings: shape, unknown keys
// and types, each error with file and line.
func checkConfig(file string, text []byte) (map[string]int, error) {
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return nil, yamlError(file, err)
	}
	if dec.Decode(&second) == nil {
		return nil, fmt.Errorf("%s:%d: one document only", file, second.Line)
	}
	lines := map[string]int{}
	if len(doc.Content) == 0 {
		return lines, nil
	}
	return lines, checkMapping(file, "", doc.Content[0], lines)
}

// yamlError puts the parser's line where the other messages have it; the parser
// leaves the first line out.
func yamlError(file string, err error) error {
	text, line := strings.TrimPrefix(err.Error(), "yaml: "), 1
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, what, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				text, line = what, n
			}
		}
	}
	return fmt.Errorf("%s:%d: %s", file, line, text)
}

func checkMapping(file, prefix string, n *yaml.Node, lines map[string]int) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: want keys and values, such as `node: n1`", file, n.Line)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		key := prefix + name.Value
		st, leaf, group := lookupSetting(key)
		switch {
		case group:
			if err := checkMapping(file, key+delimiter, value, lines); err != nil {
				return err
			}
			continue
		case !leaf:
			return fmt.Errorf("%s:%d: unknown key %q; the keys are: %s", file, name.Line, strings.ReplaceAll(key, delimiter, "."), strings.Join(keysUnder(prefix), ", "))
		}
		if lines[key] > 0 {
			return fmt.Errorf("%s:%d: key %q stands already in line %d", file, name.Line, key, lines[key])
		}
		lines[key] = name.Line
		_, list := st.def.([]string)
		if list && value.Kind == yaml.SequenceNode {
			for _, item := range value.Content {
				if item.Kind != yaml.ScalarNode {
					return fmt.Errorf("%s:%d: %s: want %s", file, item.Line, name.Value, st.kind())
				}
			}
			continue
		}
		if value.Kind != yaml.ScalarNode || list {
			return fmt.Errorf("%s:%d: %s: want %s", file, value.Line, name.Value, st.kind())
		}
	}
	return nil
}

// lookupSetting finds a key; group tells that settings lie below it.
func lookupSetting(key string) (st setting, leaf, group bool) {
	for _, s := range settingTable() {
		if s.key == key {
			return s, true, false
		}
		group = group || strings.HasPrefix(s.key, key+delimiter)
	}
	return setting{}, false, group
}

// keysUnder lists the names that may stand at a level of the file.
func keysUnder(prefix string) []string {
	var names []string
	for _, s := range settingTable() {
		rest, ok := strings.CutPrefix(s.key, prefix)
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(rest, delimiter)
		if len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	return names
}
