package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"netctl/netdev/netlab"
)

// machine is a host with a folder of its own, outside of which no runtime writes.
type machine struct {
	t    *testing.T
	host *netlab.Host
	dir  string // short enough for sockets in it
}

// newRootfs makes a container's file system of busybox, which is linked statically.
func newRootfs(t *testing.T, dir string) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is not installed")
	}
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "run", "var"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(busybox)
	if err == nil {
		err = os.WriteFile(filepath.Join(root, "bin/busybox"), text, 0o755)
	}
	for _, name := range []string{"sh", "sleep", "ping", "ip", "cat", "echo"} {
		if err == nil {
			err = os.Symlink("busybox", filepath.Join(root, "bin", name))
		}
	}
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0:root:/:/bin/sh\n", "dev/null": ""} {
		if err == nil {
			err = os.WriteFile(filepath.Join(root, name), []byte(text), 0o644)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func newMachine(t *testing.T, h *netlab.Host) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "rt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &machine{t, h, dir}
}

// sh runs a script on the machine; what it starts must not hold its output.
func (m *machine) sh(script string) (string, error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.t.Context()), patience) // also to clean up
	defer cancel()
	return m.host.Exec(ctx, netlab.Cmd{Args: []string{"sh", "-c", script}})
}

func (m *machine) must(script string) string {
	m.t.Helper()
	out, err := m.sh(script)
	if err != nil {
		m.t.Fatalf("%s: %s%v", script, out, err)
	}
	return out
}

// address is the address of the endpoint of a workload.
func (m *machine) address(orchestrator, workload string) string {
	m.t.Helper()
	var list []struct {
		Spec struct {
			Orchestrator, Workload string
			Addresses              []string
		}
	}
	text := m.must("netctl get endpoints -o json")
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		var wrapped struct {
			Items json.RawMessage `json:"items"`
		}
		if json.Unmarshal([]byte(text), &wrapped) != nil || json.Unmarshal(wrapped.Items, &list) != nil {
			m.t.Fatalf("%v: %s", err, text)
		}
	}
	for _, e := range list {
		if e.Spec.Orchestrator == orchestrator && e.Spec.Workload == workload {
			return e.Spec.Addresses[0]
		}
	}
	m.t.Fatalf("no endpoint of %s %s: %s", orchestrator, workload, text)
	return ""
}

func (m *machine) nothingLeft() {
	m.t.Helper()
	r := &runtime{t: m.t, host: m.host}
	netlab.Until(m.t, patience, "nothing left", func() string {
		if endpoints, addresses := r.held(); endpoints != 0 || addresses != 0 {
			return fmt.Sprintf("%d endpoints and %d addresses", endpoints, addresses)
		}
		return ""
	})
}

// needs skips without a program that Debian has a package of.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// TestRuntimes has the real ones start and stop containers, by hooks of theirs or by the
// plugin; whatever they forget to take away the agent does.
func TestRuntimes(t *testing.T) {
	l := forTest(t, Config{Nodes: 1, Settings: "agent:\n    lostAfter: 2s\n"})
	h := l.Hosts[0]
	netlab.Must(t, h, "netctl", "pool", "add", "10.0.0.0/24")
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *machine)
	}{
		{"runc", func(t *testing.T, m *machine) { ociHooks(t, m, "runc", "", "192.0.2.1 is in none of the pools") }},
		// crun takes no mixture of both versions of cgroups, and keeps to itself what hooks say.
		{"crun", func(t *testing.T, m *machine) {
			ociHooks(t, m, "crun", "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; ", "hook")
		}},
		{"lxc", lxcHooks}, {"ctr", containerd},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, newMachine(t, h)) })
	}
}

// bundle is an OCI bundle of one container, with both hooks.
func (m *machine) bundle(id, root string, args ...string) string {
	m.t.Helper()
	dir := filepath.Join(m.dir, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		m.t.Fatal(err)
	}
	m.must("cd " + dir + " && runc spec")
	var spec map[string]any
	text, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil || json.Unmarshal(text, &spec) != nil {
		m.t.Fatal(err)
	}
	netctl := strings.TrimSpace(m.must("command -v netctl"))
	hook := []any{map[string]any{"path": netctl, "args": slices.Concat([]string{"netctl", "hook"}, args)}}
	spec["hooks"] = map[string]any{"createRuntime": hook, "poststop": hook}
	spec["annotations"] = map[string]any{"app.tier": "web", "netctl/network": "forged"}
	spec["root"] = map[string]any{"path": root, "readonly": false}
	process := spec["process"].(map[string]any)
	process["terminal"], process["args"], process["rlimits"] = false, []string{"/bin/sleep", "1000"}, []any{}
	for _, set := range []string{"bounding", "effective", "permitted"} {
		caps := process["capabilities"].(map[string]any)
		list, _ := caps[set].([]any)
		caps[set] = append(list, "CAP_NET_RAW")
	}
	if text, err = json.Marshal(spec); err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return dir
}

// ociHooks: two containers reach each other; what is wrong keeps one from starting; one
// that is killed while the agent is away is released later.
func ociHooks(t *testing.T, m *machine, program, before, says string) {
	needs(t, program, "runc")
	root := newRootfs(t, m.dir)
	do := func(script string) (string, error) {
		return m.sh(fmt.Sprintf("unshare -m --propagation slave sh -c '%s%s --root %s/state %s'", before, program, m.dir, script))
	}
	run := func(id string, args ...string) error {
		out, err := do(fmt.Sprintf("run -d --bundle %s %s </dev/null >/dev/null 2>%s/err", m.bundle(id, root, args...), id, m.dir))
		if err != nil {
			said, _ := os.ReadFile(m.dir + "/err")
			err = fmt.Errorf("%s%s: %w", out, said, err)
		}
		return err
	}
	for _, id := range []string{program + "1", program + "2"} {
		if err := run(id, "--network", "hooked"); err != nil {
			t.Fatal(err)
		}
	}
	out, err := do("exec " + program + "1 /bin/ping -c1 -W5 " + m.address("oci", program+"2"))
	if err != nil {
		t.Errorf("ping: %s%v", out, err)
	}
	if labels := m.must("netctl get endpoints -o yaml"); !strings.Contains(labels, "app.tier: web") || strings.Contains(labels, "forged") {
		t.Errorf("labels: %s", labels)
	}
	if err := run(program+"3", "--network", "hooked", "--ip", "192.0.2.1"); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("outside every pool: %v", err)
	}
	_, _ = do("delete -f " + program + "3")
	stopNode(t, m.host)
	if out, err := do("delete -f " + program + "1"); err != nil {
		t.Errorf("delete without an agent: %s%v", out, err)
	}
	if _, err := StartNode(m.host); err != nil {
		t.Fatal(err)
	}
	netlab.Until(t, patience, "node", func() string {
		out, failed := netlab.Try(t, m.host, "netctl", "status")
		if failed != nil {
			return fmt.Sprint(out, failed)
		}
		return ""
	})
	if out, err := do("delete -f " + program + "2"); err != nil {
		t.Errorf("delete: %s%v", out, err)
	}
	m.nothingLeft()
}

func lxcHooks(t *testing.T, m *machine) {
	needs(t, "lxc-start", "lxc-stop", "lxc-attach")
	for _, name := range []string{"a", "b"} {
		root := newRootfs(t, filepath.Join(m.dir, "root-"+name))
		conf := fmt.Sprintf("lxc.uts.name = %[1]s\nlxc.rootfs.path = dir:%[2]s\nlxc.net.0.type = empty\nlxc.init.cmd = /bin/sleep 1000\nlxc.autodev = 0\nlxc.apparmor.profile = unconfined\n"+
			"lxc.hook.version = 1\nlxc.hook.start-host = %[3]s hook --network lxcs\nlxc.hook.post-stop = %[3]s hook --network lxcs\n", name, root, strings.TrimSpace(m.must("command -v netctl")))
		if err := os.MkdirAll(filepath.Join(m.dir, "lxc", name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(m.dir, "lxc", name, "config"), []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := m.sh(fmt.Sprintf("lxc-start -P %[1]s/lxc -n %[2]s -o %[1]s/log </dev/null >/dev/null 2>&1 || { cat %[1]s/log; exit 1; }", m.dir, name)); err != nil {
			t.Fatalf("lxc-start: %s%v", out, err)
		}
	}
	m.must(fmt.Sprintf("lxc-attach -P %s/lxc -n a -- /bin/ping -c1 -W5 %s </dev/null", m.dir, m.address("lxc", "b")))
	for _, name := range []string{"a", "b"} {
		m.must(fmt.Sprintf("lxc-stop -k -P %s/lxc -n %s </dev/null", m.dir, name))
	}
	m.nothingLeft()
}

// containerd by its own client: one whose DEL names no namespace, and those that are killed
// and removed, of which ctr says nothing to anybody.
func containerd(t *testing.T, m *machine) {
	needs(t, "containerd", "ctr")
	root := newRootfs(t, m.dir)
	conf := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n", m.dir+"/root", m.dir+"/state", m.dir+"/c.sock")
	if err := os.WriteFile(m.dir+"/config.toml", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := m.host.Start("containerd", netlab.Cmd{Args: []string{"containerd", "-c", m.dir + "/config.toml"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Stop() })
	ctr := "ctr -a " + m.dir + "/c.sock "
	netlab.Until(t, patience, "containerd", func() string {
		out, err := m.sh(ctr + "version")
		if err != nil {
			return fmt.Sprint(out, err)
		}
		return ""
	})
	(&runtime{t: t, host: m.host}).network("ctr", "1.0.0", "")
	for _, id := range []string{"t1", "t2"} {
		m.must(fmt.Sprintf("%s run -d --cni --rootfs %s %s /bin/sleep 1000 </dev/null >/dev/null 2>%s/err || { cat %[4]s/err; exit 1; }", ctr, root, id, m.dir))
	}
	m.must(ctr + "t exec --exec-id x t1 /bin/ping -c1 -W5 " + m.address("cni", "default-t2"))
	before := m.must("netctl get endpoints")
	m.must(fmt.Sprintf("%s run --rm --cni --rootfs %s t3 /bin/ip addr show dev eth0 </dev/null", ctr, root))
	if after := m.must("netctl get endpoints"); after != before {
		t.Errorf("left of what ran:\n%s", after)
	}
	for _, id := range []string{"t1", "t2"} {
		m.must(ctr + "t kill -s 9 " + id)
		netlab.Until(t, patience, "end of "+id, func() string {
			out, err := m.sh(ctr + "c rm " + id)
			if err != nil {
				return fmt.Sprint(out, err)
			}
			return ""
		})
	}
	m.nothingLeft() // by the agent: nobody asked for it
}
