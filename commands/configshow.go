package commands

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/cobra"
)

func newConfigCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print this machine's settings and where each comes from",
		Long: "Print this machine's settings as they are after flags, environment, file and defaults, in the form of the\n" +
			"configuration file, each with its origin as a comment.",
		Example: "  netctl config\n  netctl config --config ./netctl.yaml > /etc/netctl.yaml",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			s, err := a.settings()
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(a.out, s.yaml())
			return err
		},
	}
}

// yaml is the settings as a configuration file.
func (s *settings) yaml() string {
	var b strings.Builder
	open := []string{}
	for _, st := range settingTable() {
		parts := strings.Split(st.key, delimiter)
		for depth, p := range parts[:len(parts)-1] {
			if depth >= len(open) || open[depth] != p {
				fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), p)
				open = append(open[:depth:depth], p)
			}
		}
		open = open[:len(parts)-1]
		v := reflect.ValueOf(s).Elem()
		for _, part := range parts {
			v = v.FieldByNameFunc(func(n string) bool { return strings.EqualFold(n, part) })
		}
		text := fmt.Sprint(v.Interface())
		if list, ok := v.Interface().([]string); ok {
			quoted := make([]string, len(list))
			for i, item := range list {
				quoted[i] = fmt.Sprintf("%q", item)
			}
			text = "[" + strings.Join(quoted, ", ") + "]"
		} else if v.Kind() == reflect.String {
			text = fmt.Sprintf("%q", text)
		}
		fmt.Fprintf(&b, "%s%s: %s  # %s\n", strings.Repeat("  ", len(parts)-1), parts[len(parts)-1], text, s.origin[st.key])
	}
	return b.String()
}
