package nft

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

type netns struct {
	*netlab.Netns
	t testing.TB
}

func newNetns(t testing.TB) *netns {
	t.Helper()
	return &netns{netlab.NetnsForTest(t), t}
}

// input runs a command with text on its standard input.
func (n *netns) input(text string, args ...string) (string, error) {
	c := n.Command(args...)
	c.Stdin = strings.NewReader(text)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.String(), err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
