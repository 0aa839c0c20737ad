package commands

import (
	"slices"
	"testing"
)

func TestEditor(t *testing.T) {
	for _, c := range []struct {
		visual, editor string
		want           []string
	}{
		{"", "", []string{"vi"}},
		{" ", "\t", []string{"vi"}},
		{"", "nano", []string{"nano"}},
		{"code --wait", "nano", []string{"code", "--wait"}},
	} {
		if got := editor(c.visual, c.editor); !slices.Equal(got, c.want) {
			t.Errorf("editor(%q, %q) = %q, want %q", c.visual, c.editor, got, c.want)
		}
	}
}
