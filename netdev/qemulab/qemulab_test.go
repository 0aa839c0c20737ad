package qemulab

import (
	"io"
	"strings"
	"testing"
)

// TestConsole: what the script wrote is told apart from what the kernel and init did,
// and how it ended from how the machine did.
func TestConsole(t *testing.T) {
	for _, c := range []struct{ console, out, err string }{
		{"SeaBIOS\r\n\x1b[2J" + begin + "\r\none\r\ntwo\r\n\r\n" + end + "0\r\n[ 6.1] reboot: Power down\r\n", "one\ntwo\n[ 6.1] reboot: Power down\n", ""},
		{begin + "\r\none\r\n" + end + "1\r\n", "one\n", "status 1"},
		{"Kernel panic - not syncing\r\n", "", errNoEnd.Error()},
		{begin + "\r\none", "one\n", errNoEnd.Error()},
	} {
		var out strings.Builder
		err := copyConsole(&out, strings.NewReader(c.console))
		if out.String() != c.out || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %q, %v", c.console, out.String(), err)
		}
	}
}

// TestGuestThatCannotBe: what is missing is said, with what to do where there is that.
func TestGuestThatCannotBe(t *testing.T) {
	for _, g := range []Guest{{Tools: []string{"no-such-tool"}}, {Modules: []string{"no_such_module"}}, {Files: map[string]string{"/x": "/no/such/file"}}} {
		if err := g.Run(t.Context(), io.Discard); err == nil || !strings.HasPrefix(err.Error(), "guest: ") {
			t.Errorf("%+v: %v", g, err)
		}
	}
}
