package install_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// TestSystemdCluster: two machines, the second one a member of the first one's cluster.
// What goes between their containers notices no restart of a role on either side, no
// hanging agent, and no end of the machine that has the datastore but for its own
// containers.
func TestSystemdCluster(t *testing.T) {
	if os.Getenv("NETCTL_GUEST") == "" {
		t.Skip("takes a minute: `make test-all` has it, or set NETCTL_GUEST")
	}
	a := machine(t, "n1", "192.168.99.101/24", nil)
	b := machine(t, "n2", "192.168.99.102/24", a)
	line := strings.Fields(a.Must(t, "/var/netctl", "init")) // netctl join --datastore TOKEN, or without
	healthy(t, a)
	began := time.Now()
	b.Must(t, append([]string{"/var/netctl"}, line[1:]...)...)
	healthy(t, b)
	fmt.Printf("a second machine that has the file alone: one command, %.1f s (bound: 15 s)\n", time.Since(began).Seconds())
	a.Must(t, "netctl", "install", "--roles", "datastore,agent,speaker", "--now")
	a.Must(t, "netctl", "pool", "add", "10.65.0.0/16")
	wired(t, a, "c1")
	to := wired(t, b, "c2")
	from := &namespace{a, "c1"}
	netlab.Until(t, patience, "a way to the other machine", func() string {
		if out, err := from.Exec(t.Context(), netlab.Cmd{Args: []string{"ping", "-n", "-c1", "-W1", to.String()}}); err != nil {
			return fmt.Sprint(out, err)
		}
		return ""
	})
	stream, err := netlab.StartStream(from, &namespace{b, "c2"}, to)
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"netctl-speaker.service", "netctl-agent.service", "netctl-datastore.service"} {
		unhurt(t, from, to, "n1: "+unit+" restarts", func() { a.Must(t, "systemctl", "restart", unit) })
		unhurt(t, from, to, "n1: "+unit+" is killed", func() { killed(t, a, unit) })
	}
	unhurt(t, from, to, "n2: netctl-node restarts", func() { b.Must(t, "systemctl", "restart", "netctl-node") })
	unhurt(t, from, to, "n2: netctl-node is killed", func() { killed(t, b, "netctl-node.service") })
	unhurt(t, from, to, "n1: the agent hangs", func() { hung(t, a, "netctl-agent.service") })
	upgradedAll(t, a, b, from, to)
	if r := stream.Stop(); r.Err != nil || r.Echoed == 0 {
		t.Errorf("a TCP connection through all of that: %+v", r)
	}
	healthy(t, a)
	healthy(t, b)
}

// upgradedAll upgrades both machines from the first, by ssh: to one that does not start on
// the second, which ends it, and to one that does.
func upgradedAll(t *testing.T, a, b *netlab.Machine, from *namespace, to netip.Addr) {
	t.Helper()
	serveSSH(t, a, b)
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", "-s -w -X netctl/commands.version=9.9.9", "-o", filepath.Join(a.Dir, "var/newer"), "netctl")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	upgrade := []string{"netctl", "upgrade", "/var/newer", "--all", "--ssh", "ssh -F /etc/ssh-client.conf"}
	drop := filepath.Join(b.Dir, "etc/systemd/system/netctl-node.service.d")
	if err := os.MkdirAll(drop, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "[Service]\nExecStartPre=/bin/sh -c '! /usr/local/bin/netctl version | grep -q 9.9.9'\n"
	if err := os.WriteFile(filepath.Join(drop, "broken.conf"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	b.Must(t, "systemctl", "daemon-reload")
	before := mainPID(t, a, "netctl-agent")
	unhurt(t, from, to, "upgrade of all, and the first does not start", func() {
		_, err := a.Run(t.Context(), upgrade...)
		if err == nil || !strings.Contains(err.Error(), "netctl: node n2: ") || !strings.Contains(err.Error(), "what was there runs again") || !strings.Contains(err.Error(), "0 of 2 nodes were done") {
			t.Errorf("upgrade of all, and the first does not start: %v", err)
		}
	})
	if mainPID(t, a, "netctl-agent") != before {
		t.Error("n1 was upgraded after n2 had failed")
	}
	if err := os.RemoveAll(drop); err != nil {
		t.Fatal(err)
	}
	b.Must(t, "systemctl", "daemon-reload")
	healthy(t, a)
	unhurt(t, from, to, "upgrade of all", func() { t.Log(a.Must(t, upgrade...)) })
	for _, m := range []*netlab.Machine{a, b} {
		if out := m.Must(t, "netctl", "version"); !strings.HasPrefix(out, "netctl 9.9.9 ") {
			t.Errorf("%s: %s", m.Name, out)
		}
		if left := m.Must(t, "find", "/var/tmp", "-name", "netctl.*"); left != "" {
			t.Errorf("%s: left behind: %s", m.Name, left)
		}
	}
	if out := a.Must(t, upgrade...); out != "n2: runs 9.9.9 already\nn1: runs 9.9.9 already\n" {
		t.Errorf("again: %s", out)
	}
}

// serveSSH has one machine let in root of another.
func serveSSH(t *testing.T, client, server *netlab.Machine) {
	t.Helper()
	for m, files := range map[*netlab.Machine]map[string]string{
		client: {"ssh-client.conf": "Host *\nUser root\nIdentityFile /etc/ssh-key\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\nBatchMode yes\n"},
		server: {"sshd.conf": "HostKey /etc/ssh-host\nAuthorizedKeysFile /etc/ssh-authorized\nStrictModes no\nUsePAM no\nPidFile none\n",
			"passwd": "root:x:0:0:root:/root:/bin/sh\nsshd:x:107:65534::/run/sshd:/usr/sbin/nologin\n", "shadow": "root:*:19000::::::\nsshd:*:19000::::::\n"},
	} {
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(m.Dir, "etc", name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Chmod(filepath.Join(server.Dir, "etc/passwd"), 0o644); err != nil {
		t.Fatal(err)
	}
	client.Must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh-key")
	copyFile(t, filepath.Join(client.Dir, "etc/ssh-key.pub"), filepath.Join(server.Dir, "etc/ssh-authorized"), "")
	server.Must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh-host")
	server.Must(t, "mkdir", "-p", "/run/sshd")
	server.Must(t, "systemd-run", "-q", "--unit=sshd", "/usr/sbin/sshd", "-D", "-f", "/etc/sshd.conf")
	netlab.Until(t, patience, "ssh", func() string {
		if _, err := client.Run(t.Context(), "ssh", "-F", "/etc/ssh-client.conf", server.Addr.Addr().String(), "true"); err != nil {
			return err.Error()
		}
		return ""
	})
}

// hung stops a unit's process: its watchdog ends it, and it is back.
func hung(t *testing.T, m *netlab.Machine, unit string) {
	t.Helper()
	drop := filepath.Join(m.Dir, "etc/systemd/system", unit+".d")
	if err := os.MkdirAll(drop, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(drop, "soon.conf"), []byte("[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Must(t, "systemctl", "daemon-reload")
	m.Must(t, "systemctl", "restart", unit)
	before := mainPID(t, m, unit)
	m.Must(t, "kill", "-STOP", before)
	netlab.Until(t, patience, unit+" again", func() string {
		state := strings.TrimSpace(m.Must(t, "systemctl", "show", "-p", "ActiveState", "--value", unit))
		if now := mainPID(t, m, unit); state != "active" || now == before {
			return state + " " + now
		}
		return ""
	})
}

// namespace is one of a machine's, by its name.
type namespace struct {
	m    *netlab.Machine
	name string
}

func (n *namespace) Exec(ctx context.Context, c netlab.Cmd) (string, error) {
	return n.m.Run(ctx, append([]string{"ip", "netns", "exec", n.name}, c.Args...)...)
}

func (n *namespace) Do(fn func() error) error {
	return n.m.DoIn("/run/netns/"+n.name, fn)
}
