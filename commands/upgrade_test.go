package commands

import (
	"fmt"
	"strings"
	"testing"
)

// TestPrefixedKeepsTheLast: the last line is written at the end, or told as the cause.
func TestPrefixedKeepsTheLast(t *testing.T) {
	var out strings.Builder
	p := &prefixed{to: &out, prefix: "n2: "}
	fmt.Fprint(p, "one\ntw")
	fmt.Fprint(p, "o\r\n")
	if got := out.String(); got != "n2: one\n" || p.last != "two" {
		t.Errorf("%q, then %q", got, p.last)
	}
	if err := p.end(); err != nil || out.String() != "n2: one\nn2: two\n" {
		t.Errorf("%v, %q", err, out.String())
	}
}
