package install

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"netctl/commands/cni"
)

// TestMark: what is looked for is the name of a function that the program and the plugin
// both are made to run.
func TestMark(t *testing.T) {
	if name := runtime.FuncForPC(reflect.ValueOf(cni.Run).Pointer()).Name(); name != mark {
		t.Errorf("%s, not %s", name, mark)
	}
	for _, file := range []string{"../main.go", "../plugin/main.go"} {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), "cni.Run(") {
			t.Errorf("%s does not run it: %v", file, err)
		}
	}
}

// TestPlugin: a build that carries the plugin lays it down for the runtimes, also where an
// older one linked itself, and one that carries none links itself again.
func TestPlugin(t *testing.T) {
	root := image(t)
	bare := tree(t, root)
	o := options(t, root)
	mustInstall(t, o)
	at := []string{"/data/opt/cni/bin/netctl", "/usr/local/libexec/netavark/netctl"}
	wants := func(what, want string) {
		t.Helper()
		have := tree(t, root)
		for _, path := range at {
			if have[path] != want {
				t.Errorf("%s: %s is %q, not %q", what, path, have[path], want)
			}
		}
	}
	wants("without", "Lrwxrwxrwx /usr/local/bin/netctl")
	o.Plugin = []byte("plugin")
	mustInstall(t, o)
	wants("with", "-rwxr-xr-x plugin")
	if changes := words(mustInstall(t, o)); len(changes) > 0 {
		t.Errorf("again: %q", changes)
	}
	o.Plugin = nil
	mustInstall(t, o)
	wants("without again", "Lrwxrwxrwx /usr/local/bin/netctl")
	// Ours without a list that says so: a plugin of before, a copy of the program, links to
	// it. Another's is kept.
	for _, there := range []string{"\x7fELF " + mark + " old", "/usr/local/bin/netctl", "../../../usr/local/bin/netctl", "/usr/sbin/../local/bin/netctl", "mine", "/usr/bin/other"} {
		for _, plugin := range [][]byte{[]byte("plugin " + mark), nil} {
			root := image(t)
			o.Root, o.Plugin = root, plugin
			want, where := "Lrwxrwxrwx /usr/local/bin/netctl", filepath.Join(root, at[0])
			if plugin != nil {
				want = "-rwxr-xr-x " + string(plugin)
			}
			put(t, root, at[0], there)
			if strings.Contains(there, "/") && !strings.Contains(there, mark) {
				if err := errors.Join(os.Remove(where), os.Symlink(there, where)); err != nil {
					t.Fatal(err)
				}
			}
			if there == "mine" || there == "/usr/bin/other" {
				want = tree(t, root)[at[0]]
			}
			mustInstall(t, o)
			if got := tree(t, root)[at[0]]; got != want {
				t.Errorf("%q there, with a plugin %t: %q", there, plugin != nil, got)
			}
		}
	}
	o.Root = root
	o.Plugin = []byte("plugin")
	mustInstall(t, o)
	mustUninstall(t, root)
	if d := differ(bare, tree(t, root)); len(d) != 0 {
		t.Errorf("left: %q", d)
	}
}
