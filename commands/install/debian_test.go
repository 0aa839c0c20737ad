package install_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// debianTar is a Debian tree with systemd: .ci/debian makes it.
const debianTar = "/var/cache/netctl-test/debian.tar"

// TestDebianTree: `install --root` into a tree of debootstrap, as an image is built from. Its
// own systemd finds the units sound and enabled, its own shell runs netctl, and uninstall
// leaves nothing.
func TestDebianTree(t *testing.T) {
	if os.Getenv("NETCTL_GUEST") == "" {
		t.Skip("make test-all installs into a tree of debootstrap")
	}
	root := filepath.Join(t.TempDir(), "root")
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	run("tar", "-C", root, "-xpf", debianTar)
	list := func() string {
		return run("sh", "-c", "cd "+root+"; find . \\( -path ./dev -o -path ./run/systemd \\) -prune -o -printf '%p %M %l\n' | sort")
	}
	before := list()
	netctl := netlab.Binary(t)
	out := run(netctl, "install", "--root", root, "--enable")
	if !strings.Contains(out, "/usr/local/bin/netctl") {
		t.Errorf("install says\n%s", out)
	}
	within := func(args ...string) string {
		t.Helper()
		return run("chroot", append([]string{root}, args...)...)
	}
	units := within("sh", "-c", "ls /etc/systemd/system/netctl-*.service")
	if strings.Count(units, "\n") != 7 {
		t.Errorf("units:\n%s", units)
	}
	if said := within(append([]string{"systemd-analyze", "verify", "--man=no"}, strings.Fields(units)...)...); said != "" {
		t.Errorf("its systemd says of the units:\n%s", said)
	}
	if is := within("systemctl", "is-enabled", "netctl-node.service"); is != "enabled\n" {
		t.Errorf("netctl-node is %s", is)
	}
	if v := within("/usr/local/bin/netctl", "version"); v != run(netctl, "version") {
		t.Errorf("version %s", v)
	}
	within("test", "-x", "/opt/cni/bin/netctl")
	if c := within("netctl", "config"); !strings.Contains(c, "/etc/netctl.yaml") {
		t.Errorf("the configuration is\n%s", c)
	}
	if again := run(netctl, "install", "--root", root, "--enable"); strings.Contains(again, "create") {
		t.Errorf("a second time it says\n%s", again)
	}
	run(netctl, "uninstall", "--root", root)
	was := map[string]bool{}
	for line := range strings.Lines(before) {
		was[line] = true
	}
	for line := range strings.Lines(list()) {
		if !was[line] {
			t.Errorf("left: %s", line)
		}
		delete(was, line)
	}
	for line := range was {
		t.Errorf("lost: %s", line)
	}
}
