package commands

import (
	"bytes"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// TestBackupExternal: from one etcd that is not ours into another, which is empty.
func TestBackupExternal(t *testing.T) {
	dir := t.TempDir()
	ca, err := pki.Create(filepath.Join(dir, "tls"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := ca.Issue(filepath.Join(dir, "tls"), pki.Node{Name: "n1", Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}})
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"CA": files.CA, "CERT": files.Cert, "KEY": files.Key} {
		t.Setenv("NETCTL_DATASTORE_"+name, value)
	}
	t.Setenv("NETCTL_STATE_DIR", filepath.Join(dir, "state"))
	t.Setenv("NETCTL_RUN_DIR", filepath.Join(dir, "run"))
	config := filepath.Join(dir, "netctl.yaml")
	if err := os.WriteFile(config, []byte("node: n1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NETCTL_CONFIG", config)
	use := func(name string) {
		t.Helper()
		url, peer := "https://"+netlab.FreeAddress(t), "https://"+netlab.FreeAddress(t)
		cmd := exec.Command("/usr/bin/etcd", "--name="+name, "--data-dir="+filepath.Join(dir, name),
			"--listen-client-urls="+url, "--advertise-client-urls="+url,
			"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster="+name+"="+peer,
			"--client-cert-auth", "--trusted-ca-file="+files.CA, "--cert-file="+files.Cert, "--key-file="+files.Key,
			"--peer-client-cert-auth", "--peer-trusted-ca-file="+files.CA, "--peer-cert-file="+files.Cert, "--peer-key-file="+files.Key)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatalf("%v (Debian package etcd-server)", err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		t.Setenv("NETCTL_DATASTORE_ENDPOINTS", url)
		netlab.Until(t, time.Minute, "etcd", func() string {
			var out bytes.Buffer
			if Main([]string{"netctl", "pool", "show"}, strings.NewReader(""), &out, &out) != 0 {
				return out.String()
			}
			return ""
		})
	}
	run := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if code := Main(append([]string{"netctl"}, args...), strings.NewReader(""), &out, &out); code != 0 {
			t.Fatalf("%s: %d %s", args, code, out.String())
		}
		return out.String()
	}
	use("first")
	run("pool", "add", "10.65.0.0/16", "--ipip")
	run("profile", "add", "web")
	held := func() string {
		lines := strings.Split(run("get", "pools", "-o", "yaml")+run("get", "profiles", "-o", "yaml"), "\n")
		return strings.Join(slices.DeleteFunc(lines, func(s string) bool { return strings.Contains(s, "revision:") }), "\n")
	}
	want := held()
	file := filepath.Join(dir, "netctl.backup")
	run("backup", file)
	if st, err := os.Stat(file); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	use("second")
	if got := run("restore", file); !strings.Contains(got, "pool: 1 restored\nprofile: 1 restored\n") {
		t.Error(got)
	}
	if got := held(); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
