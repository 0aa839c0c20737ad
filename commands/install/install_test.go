package install

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// image is the folder of an image with some of what Debian has, among it links that are
// absolute, and files of a person.
func image(t *testing.T) string {
	t.Helper()
	root, err := os.MkdirTemp("/dev/shm", "netctl-image-") // which has no disk to wait for
	if err != nil {
		root = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	put(t, root, "/usr/lib/os-release", "ID=debian\n")
	put(t, root, "/etc/iproute2/rt_protos.d/mine.conf", "99 mine\n")
	put(t, root, "/data/opt/mine", "mine")
	for link, target := range map[string]string{"/lib": "usr/lib", "/opt": "/data/opt"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func put(t *testing.T, root, name, text string) {
	t.Helper()
	at := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// options install a small file in the place of the program.
func options(t *testing.T, root string) Options {
	t.Helper()
	self := filepath.Join(t.TempDir(), "netctl")
	if err := os.WriteFile(self, []byte("#!/bin/sh\n# "+mark+" 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Options{
		Root: root, Prefix: DefaultPrefix, Self: self, Roles: []string{"datastore", "agent", "speaker"}, AgentProtocol: 87, SpeakerProtocol: 88,
		Share: map[string][]byte{"man/man1/netctl.1": []byte("man"), "bash-completion/completions/netctl": []byte("bash")},
	}
}

// tree is everything below a folder: mode, contents or target by path.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(at string, d fs.DirEntry, err error) error {
		if err != nil || at == root {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		text := st.Mode().String() + " "
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(at)
			all[at[len(root):]] = text + target
			return err
		case st.IsDir():
			all[at[len(root):]] = text
			return nil
		}
		b, err := os.ReadFile(at)
		all[at[len(root):]] = text + string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// differ are the paths that two trees have not alike.
func differ(a, b map[string]string) (list []string) {
	for name := range a {
		if a[name] != b[name] {
			list = append(list, name)
		}
	}
	for name := range b {
		if _, is := a[name]; !is {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

func mustPlan(t *testing.T, o Options) *Plan {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustInstall(t *testing.T, o Options) *Plan {
	t.Helper()
	p := mustPlan(t, o)
	if err := p.Apply(); err != nil {
		t.Fatal(err)
	}
	return p
}

func mustUninstall(t *testing.T, root string) *Plan {
	t.Helper()
	p, err := NewUninstall(root)
	if err != nil || p == nil {
		t.Fatal(p, err)
	}
	if err := p.Apply(); err != nil {
		t.Fatal(err)
	}
	return p
}

func words(p *Plan) (list []string) {
	for _, s := range p.Changes() {
		list = append(list, string(s.Action)+" "+s.Path)
	}
	return list
}

// TestInstall: what is laid down, that doing it again changes nothing, and that it goes
// again without a trace.
func TestInstall(t *testing.T) {
	root := image(t)
	before := tree(t, root)
	o := options(t, root)
	if p := mustPlan(t, o); len(p.Changes()) == 0 || len(differ(before, tree(t, root))) != 0 {
		t.Fatal("a plan does something")
	}
	mustInstall(t, o)
	after := tree(t, root)
	for name, want := range map[string]string{
		"/usr/local/bin/netctl":                               "-rwxr-xr-x #!/bin/sh",
		"/usr/local/bin/netctl-agent":                         "Lrwxrwxrwx netctl",
		"/data/opt/cni/bin/netctl":                            "Lrwxrwxrwx /usr/local/bin/netctl",
		"/etc/cni/net.d/10-netctl.conflist":                   "-rw-r--r-- {",
		"/etc/netctl.yaml":                                    "-rw-r--r-- #",
		"/etc/iproute2/rt_protos.d/netctl.conf":               "-rw-r--r-- 87 netctl\n88 netctl-bgp\n",
		"/etc/systemd/system/netctl-node.service":             "-rw-r--r-- #",
		"/usr/local/share/man/man1/netctl.1":                  "-rw-r--r-- man",
		"/usr/local/share/bash-completion/completions/netctl": "-rw-r--r-- bash",
		"/var/lib/netctl-node":                                "drwx------",
	} {
		if !strings.HasPrefix(strings.Replace(after[name], "Lrwx", "Lrwx", 1), want) {
			t.Errorf("%s: %q, want %q", name, after[name], want)
		}
	}
	if p := mustInstall(t, o); len(p.Changes()) != 0 {
		t.Errorf("again: %q", words(p))
	}
	if d := differ(after, tree(t, root)); len(d) != 0 {
		t.Errorf("installing again changed %q", d)
	}
	mustUninstall(t, root)
	if d := differ(before, tree(t, root)); len(d) != 0 {
		t.Errorf("left or lost: %q", d)
	}
	if p, err := NewUninstall(root); p != nil || err != nil {
		t.Errorf("a second uninstall: %v, %v", p, err)
	}
}

// TestPersonsFiles: nothing of a person is overwritten or taken away, and each is said.
func TestPersonsFiles(t *testing.T) {
	root := image(t)
	o := options(t, root)
	put(t, root, ConfigFile, "node: mine\n")
	put(t, root, "/etc/cni/net.d/05-flannel.conflist", "{}")
	put(t, root, "/etc/systemd/system/netctl-agent.service", "mine")
	put(t, root, "/etc/iproute2/rt_protos.d/netctl.conf", "87 netctl\n88 netctl-bgp\n") // as netctl's: still not its own
	before := tree(t, root)
	p := mustInstall(t, o)
	for _, want := range []string{"kept " + ConfigFile, "kept /etc/cni/net.d", "kept /etc/systemd/system/netctl-agent.service"} {
		if !slices.Contains(words(p), want) {
			t.Errorf("not said: %s, but %q", want, words(p))
		}
	}
	after := tree(t, root)
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("%s was changed", name)
		}
	}
	// A file that was laid down and is changed is the person's.
	unit := "/etc/systemd/system/netctl-speaker.service"
	put(t, root, unit, "tuned")
	if p := mustInstall(t, o); !slices.Contains(words(p), "kept "+unit) {
		t.Errorf("not said: %q", words(p))
	}
	o.Conflist = "99-netctl.conflist"
	o.Replace = true
	mustInstall(t, o)
	after = tree(t, root)
	if after[unit+".orig"] != "-rw-r--r-- tuned" || !strings.Contains(after[unit], "ExecStart=") || after["/etc/cni/net.d/99-netctl.conflist"] == "" {
		t.Errorf("replaced: %q, %q", after[unit+".orig"], after[unit])
	}
	put(t, root, "/usr/local/share/man/man1/netctl.1", "changed")
	if p := mustUninstall(t, root); !slices.Contains(words(p), "kept /usr/local/share/man/man1/netctl.1") {
		t.Errorf("not said: %q", words(p))
	}
	after = tree(t, root)
	maps.DeleteFunc(after, func(name, _ string) bool {
		return strings.HasPrefix(name, "/usr/local") || strings.HasSuffix(name, ".orig") || name == "/etc/systemd/system/netctl-agent.service"
	})
	delete(before, "/etc/systemd/system/netctl-agent.service") // it was replaced: what it was is beside it
	if d := differ(before, after); len(d) != 0 {
		t.Errorf("left or lost: %q", d)
	}
}

// TestInTheWay: what cannot be is said before anything is done.
func TestInTheWay(t *testing.T) {
	for name, c := range map[string]struct {
		put  func(t *testing.T, root string, o *Options)
		want string
	}{
		"another netctl":      {func(t *testing.T, root string, _ *Options) { put(t, root, "/usr/local/bin/netctl", "#!/bin/bash\n") }, "/usr/local/bin/netctl is not netctl's: move it away"},
		"a file for a folder": {func(t *testing.T, root string, _ *Options) { put(t, root, "/data/opt/cni", "x") }, "/data/opt/cni: a file, it must be a folder: move it away"},
		"a file for many":     {func(t *testing.T, root string, _ *Options) { put(t, root, "/usr/local", "x") }, "/usr/local: a file, it must be a folder: move it away"},
		"a folder for a file": {func(t *testing.T, root string, _ *Options) { put(t, root, ConfigFile+"/x", "x") }, "/etc/netctl.yaml: neither a file nor a link"},
		"no such root":        {func(_ *testing.T, _ string, o *Options) { o.Root = "/nowhere" }, "root: stat /nowhere: no such file or directory"},
		"a root that is none": {func(_ *testing.T, root string, o *Options) { o.Root = root + "/usr/lib/os-release" }, "os-release: not a folder"},
		"no such role":        {func(_ *testing.T, _ string, o *Options) { o.Roles = []string{"router"} }, `role "router": the roles are datastore, agent, speaker, reflector`},
		"a relative prefix":   {func(_ *testing.T, _ string, o *Options) { o.Prefix = "usr" }, `prefix "usr": not an absolute path`},
		"a conflist outside":  {func(_ *testing.T, _ string, o *Options) { o.Conflist = "../x.conflist" }, `conflist "../x.conflist"`},
		"a broken manifest":   {func(t *testing.T, root string, _ *Options) { put(t, root, Manifest, "{") }, "is unusable"},
		"a loop of links": {func(t *testing.T, root string, _ *Options) {
			if err := os.Symlink("/etc/cni", filepath.Join(root, "etc/cni")); err != nil {
				t.Fatal(err)
			}
		}, "/etc/cni/net.d/any: too many symbolic links"},
	} {
		t.Run(name, func(t *testing.T) {
			root := image(t)
			o := options(t, root)
			c.put(t, root, &o)
			before := tree(t, root)
			if _, err := New(o); err == nil || strings.Count(err.Error(), c.want) != 1 {
				t.Errorf("got %v, want %q once", err, c.want)
			}
			if d := differ(before, tree(t, root)); len(d) != 0 {
				t.Errorf("changed %q", d)
			}
		})
	}
}

// upgrade is an install of another file over an older one, of which a page is gone.
func upgrade(t *testing.T, root string) Options {
	o := options(t, root)
	o.Share["man/man1/netctl-old.1"] = []byte("old")
	mustInstall(t, o)
	next := options(t, root)
	next.Share["man/man1/netctl-new.1"] = []byte("new")
	if err := os.WriteFile(next.Self, []byte("#!/bin/sh\n# "+mark+" 2\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return next
}

// TestNothingHalfDone breaks an upgrade at each of its steps: all is as it was before.
// Then it is killed there: the next one finishes it, and an uninstall leaves nothing.
func TestNothingHalfDone(t *testing.T) {
	bare := tree(t, image(t))
	steps := 0
	for n := 0; n <= steps; n++ {
		for _, how := range []error{syscall.ENOSPC, errKilled} {
			for what, prepare := range map[string]func(*testing.T, string) Options{"first": options, "upgrade": upgrade} {
				root := image(t)
				o := prepare(t, root)
				before := tree(t, root)
				p := mustPlan(t, o)
				count := 0
				p.disk.fail = func(string, string) error {
					if count++; count-1 == n {
						return how
					}
					return nil
				}
				err := p.Apply()
				if steps = max(steps, count); n >= count {
					if err != nil {
						t.Fatal(err)
					}
					continue
				}
				if errors.Is(how, syscall.ENOSPC) && err != nil { // a leftover alone is no failure
					if d := differ(before, tree(t, root)); len(d) != 0 || !strings.Contains(err.Error(), "no space left") {
						t.Errorf("%s, step %d: %v, differs in %q", what, n, err, d)
					}
				}
				mustInstall(t, o)
				for name := range tree(t, root) {
					if strings.Contains(name, "/.") {
						t.Errorf("%s, step %d, %v: %s is left", what, n, how, name)
					}
				}
				mustUninstall(t, root)
				d := differ(bare, tree(t, root))
				// The folders above the manifest may have been made, and nobody known of it.
				if d = slices.DeleteFunc(d, func(name string) bool { return strings.HasPrefix(Manifest, name) }); len(d) != 0 {
					t.Errorf("%s, step %d, %v: left or lost %q", what, n, how, d)
				}
			}
		}
	}
	if steps < 20 {
		t.Errorf("only %d steps", steps)
	}
}

// TestUninstallKilled: an uninstall that is killed is finished by the next.
func TestUninstallKilled(t *testing.T) {
	bare := tree(t, image(t))
	for n := 0; ; n++ {
		root := image(t)
		mustInstall(t, options(t, root))
		p, err := NewUninstall(root)
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		p.disk.fail = func(string, string) error {
			if count++; count-1 == n {
				return errKilled
			}
			return nil
		}
		if err := p.Apply(); err == nil && n > 10 {
			break
		} else if !errors.Is(err, errKilled) {
			t.Fatalf("step %d: %v", n, err)
		}
		if again, err := NewUninstall(root); err != nil {
			t.Fatal(err)
		} else if again != nil {
			if err := again.Apply(); err != nil {
				t.Fatal(err)
			}
		}
		d := differ(bare, tree(t, root))
		if d = slices.DeleteFunc(d, func(name string) bool { return strings.HasPrefix(Manifest, name) }); len(d) != 0 {
			t.Errorf("step %d: left or lost %q", n, d)
		}
		if again, _ := NewUninstall(root); again != nil {
			t.Errorf("step %d: something is known still", n)
		}
	}
}

// TestPlace follows links as the image itself would.
func TestPlace(t *testing.T) {
	root := image(t)
	for link, target := range map[string]string{"/up": "../../../etc", "/usr/abs": "/etc", "/etc/last": "/nowhere"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"/opt/cni/bin/x": "/data/opt/cni/bin/x", "/lib/x": "/usr/lib/x", "/up/x": "/etc/x", "/usr/abs/x": "/etc/x", "/etc/last": "/etc/last", "/usr/abs/../x": "/usr/x",
	} {
		if got, err := place(root, name); err != nil || got != root+want {
			t.Errorf("%s is at %s (%v), want %s", name, got, err, want)
		}
	}
	if got, err := place("", "/nowhere/x"); err != nil || got != "/nowhere/x" {
		t.Errorf("without a root: %s, %v", got, err)
	}
}

// TestTwoAtOnce: the second one waits for nothing and says so.
func TestTwoAtOnce(t *testing.T) {
	root := image(t)
	o := options(t, root)
	mustInstall(t, o)
	unlock, err := lockFolder(filepath.Join(root, filepath.Dir(Manifest)))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := mustPlan(t, o).Apply(); err == nil || !strings.Contains(err.Error(), "another install") {
		t.Error(err)
	}
}

// TestFinder finds a word wherever the reads part it.
func TestFinder(t *testing.T) {
	for cut := range len("xx" + mark + "yy") {
		text := "xx" + mark + "yy"
		f := &finder{word: []byte(mark)}
		fmt.Fprint(f, text[:cut])
		fmt.Fprint(f, text[cut:])
		if !f.found {
			t.Errorf("not found when parted at %d", cut)
		}
	}
	f := &finder{word: []byte(mark)}
	if fmt.Fprint(f, mark[:len(mark)-1]); f.found {
		t.Error("found what is not there")
	}
}
