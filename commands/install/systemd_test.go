package install_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// patience bounds waits for what takes a second or two on a machine that has time.
const patience = time.Minute

// machine is one with systemd and the file in its /var, as a download would be.
func machine(t *testing.T, name, addr string, peer *netlab.Machine) *netlab.Machine {
	t.Helper()
	if _, err := os.Stat(netlab.SystemdPath); err != nil {
		t.Fatalf("%v: install the package systemd", err)
	}
	m := netlab.BootMachine(t, name, netip.MustParsePrefix(addr), peer)
	copyFile(t, netlab.Binary(t), filepath.Join(m.Dir, "var/netctl"), "")
	return m
}

// copyFile copies a program; one with something behind it is another one that runs alike.
func copyFile(t *testing.T, from, to, behind string) {
	t.Helper()
	text, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, append(text, behind...), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// snapshot is what a person sees of a machine's network and files.
func snapshot(t *testing.T, m *netlab.Machine) string {
	t.Helper()
	script := `ip -o link | sed 's/^[0-9]*: //; s/ state .*//; s/,LOWER_UP//'; for f in 4 6; do ip -$f rule; ip -$f route show table all | grep -v ' proto kernel'; done
		ip nexthop; nft list ruleset; find /usr/local /opt /etc -not -name '*.wants' -not -path '*/.*' | sort | grep -v '/etc/\(group\|passwd\|shadow\|gshadow\|machine-id\|resolv\|\.\|mtab\|os-release\)'`
	return m.Must(t, "sh", "-c", script)
}

// wired attaches a namespace on a machine and returns its address.
func wired(t *testing.T, m *netlab.Machine, name string) netip.Addr {
	t.Helper()
	m.Must(t, "ip", "netns", "add", name)
	out := strings.Fields(m.Must(t, "netctl", "endpoint", "add", "--workload", name, "--netns", "/run/netns/"+name, "--network", "web"))
	return netip.MustParseAddr(out[len(out)-1])
}

// healthy waits until status says so.
func healthy(t *testing.T, m *netlab.Machine) {
	t.Helper()
	netlab.Until(t, patience, "status of "+m.Name, func() string {
		if out, err := m.Run(t.Context(), "netctl", "status"); err != nil {
			return fmt.Sprint(out, err)
		}
		return ""
	})
}

// unhurt pings all the time while something happens, and for some packets after it.
func unhurt(t *testing.T, from netlab.Place, to netip.Addr, what string, do func()) {
	t.Helper()
	flood, err := netlab.StartFlood(from, to, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	do()
	more := flood.Answered() + 20
	netlab.Until(t, patience, "traffic", func() string {
		if flood.Answered() < more {
			return "none"
		}
		return ""
	})
	r := flood.Stop()
	t.Logf("%s: %s", what, r)
	if len(r.Lost) > 0 {
		t.Errorf("%s: lost %v", what, r.Lost)
	}
}

// everywhere has a network come and go as a file of CNI's runtimes, in a folder that the
// unit lets its roles write.
func everywhere(t *testing.T, m *netlab.Machine) {
	t.Helper()
	const file = "/etc/cni/net.d/netctl-app.conflist"
	for _, step := range []struct{ command, test string }{{"create", "test -e " + file}, {"remove", "test ! -e " + file}} {
		m.Must(t, "netctl", "network", step.command, "app")
		netlab.Until(t, patience, step.test, func() string {
			if _, err := m.Run(t.Context(), "sh", "-c", step.test); err != nil {
				return m.Must(t, "sh", "-c", "netctl network show app; netctl status; true")
			}
			return ""
		})
	}
}

func mainPID(t *testing.T, m *netlab.Machine, unit string) string {
	t.Helper()
	return strings.TrimSpace(m.Must(t, "systemctl", "show", "-p", "MainPID", "--value", unit))
}

// killed waits until systemd has started a unit again and it is ready.
func killed(t *testing.T, m *netlab.Machine, unit string) {
	t.Helper()
	before := mainPID(t, m, unit)
	m.Must(t, "kill", "-9", before)
	netlab.Until(t, patience, unit+" again", func() string {
		state := strings.TrimSpace(m.Must(t, "systemctl", "show", "-p", "ActiveState", "--value", unit))
		if now := mainPID(t, m, unit); state != "active" || now == before {
			return state + " " + now
		}
		return ""
	})
}

// TestSystemd: from the file to a container with an address by two commands, under a real
// systemd; kills, restarts, another way to run the roles and an upgrade lose no packet; a
// reboot brings all back; in the end everything goes without a trace.
func TestSystemd(t *testing.T) {
	m := machine(t, "n1", "192.168.99.101/24", nil)
	m.Must(t, "sh", "-c", "ip route add 203.0.113.0/24 via 192.168.99.1 proto 99; ip rule add pref 77 to 203.0.113.0/24 lookup 77; nft add table inet mine; ip link add mine type veth peer name yours")
	m.Must(t, "sh", "-c", "[ -e /dev/net/tun ] || { mkdir -p /dev/net; mknod /dev/net/tun c 10 200; }")
	before := snapshot(t, m)
	byHand(t, m)
	cannotBe(t, m)
	began := time.Now()
	t.Log(m.Must(t, "/var/netctl", "install", "--now"))
	m.Must(t, "netctl", "pool", "add", "10.65.0.0/16")
	addr := wired(t, m, "c1")
	m.Must(t, "ping", "-n", "-c1", "-W5", addr.String())
	took := time.Since(began)
	fmt.Printf("from the file to the first container with a routed address: two commands, %.1f s (bound: 30 s)\n", took.Seconds())
	if took > 30*time.Second {
		t.Errorf("took %s", took)
	}
	if out := m.Must(t, "sh", "-c", "systemd-analyze verify --man=no /etc/systemd/system/netctl-*.service 2>&1"); strings.Contains(out, "netctl") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if out := m.Must(t, "/var/netctl", "install", "--now"); out != "all is as it should be\n" {
		t.Errorf("again: %s", out)
	}
	everywhere(t, m)
	tapped(t, m)
	spaced(t, m)
	unhurt(t, m, addr, "netctl-node is killed", func() { killed(t, m, "netctl-node.service") })
	unhurt(t, m, addr, "netctl-node restarts", func() { m.Must(t, "systemctl", "restart", "netctl-node") })
	unhurt(t, m, addr, "units of their own", func() { m.Must(t, "netctl", "install", "--roles", "datastore,agent,speaker", "--now") })
	shut(t, m, addr)
	for _, role := range []string{"datastore", "agent", "speaker"} {
		unhurt(t, m, addr, role+" restarts", func() { m.Must(t, "systemctl", "restart", "netctl-"+role) })
	}
	healthy(t, m)
	apiUnit(t, m)
	tapped(t, m)
	upgraded(t, m, addr)
	rebooted(t, m)
	if n := strings.Count(m.Must(t, "systemctl", "list-units", "--all", "--state=failed", "--plain", "--no-legend"), "netctl"); n > 0 {
		t.Errorf("%d units failed", n)
	}
	gone(t, m, before)
}

// tapped makes and removes a TAP, whose device and packets the unit must let through.
func tapped(t *testing.T, m *netlab.Machine) {
	t.Helper()
	id := strings.Fields(m.Must(t, "netctl", "endpoint", "add", "--tap", "vm1", "--network", "web"))[0]
	netlab.Until(t, patience, "somebody who answers on the TAP", func() string {
		if out := m.Must(t, "cat", "/proc/net/packet"); !strings.Contains(out, " 0800 ") { // ETH_P_IP
			return out
		}
		return ""
	})
	m.Must(t, "netctl", "endpoint", "remove", id)
}

// spaced makes a namespace after the unit started, which the unit must see.
func spaced(t *testing.T, m *netlab.Machine) {
	t.Helper()
	m.Must(t, "ip", "netns", "add", "later")
	id := strings.Fields(m.Must(t, "netctl", "endpoint", "add", "--workload", "later", "--netns", "/run/netns/later", "--network", "web"))[0]
	m.Must(t, "netctl", "endpoint", "remove", id)
	m.Must(t, "ip", "netns", "del", "later")
	if log, _ := m.Run(t.Context(), "journalctl", "--no-pager", "-q", "-u", "netctl-*", "-g", "rules of a workload"); log != "" {
		t.Error(log)
	}
}

// shut flushes the packet filter while the agent's unit cannot look: another one closes it.
func shut(t *testing.T, m *netlab.Machine, addr netip.Addr) {
	t.Helper()
	m.Must(t, "systemctl", "kill", "-s", "STOP", "netctl-agent")
	m.Must(t, "nft", "flush", "ruleset")
	netlab.Until(t, patience, "the packet filter is closed", func() string {
		out, err := m.Run(t.Context(), "nft", "list", "table", "inet", "netctl")
		if err == nil && strings.Contains(out, "shut for a moment") {
			return ""
		}
		return fmt.Sprint(out, err)
	})
	m.Must(t, "systemctl", "kill", "-s", "CONT", "netctl-agent")
	netlab.Until(t, patience, "it is the agent's again", func() string {
		out, err := m.Run(t.Context(), "ping", "-n", "-c1", "-W1", addr.String())
		if err != nil {
			return fmt.Sprint(out, err)
		}
		return ""
	})
	healthy(t, m)
}

// byHand starts a role by hand: units are not started beside it, nothing is laid down.
func byHand(t *testing.T, m *netlab.Machine) {
	t.Helper()
	m.Must(t, "systemd-run", "-q", "--unit=by-hand", "/var/netctl", "speaker", "--config", "/dev/null")
	netlab.Until(t, patience, "a role by hand", func() string {
		if _, err := m.Run(t.Context(), "test", "-s", "/var/lib/netctl-node/speaker.lock"); err != nil {
			return err.Error()
		}
		return ""
	})
	if _, err := m.Run(t.Context(), "/var/netctl", "install", "--now"); err == nil || !strings.Contains(err.Error(), " runs, and no unit of netctl's does that") {
		t.Errorf("beside a role by hand: %v", err)
	}
	if files := m.Must(t, "ls", "/usr/local", "/opt"); strings.Contains(files, "bin") {
		t.Errorf("laid down: %s", files)
	}
	m.Must(t, "systemctl", "stop", "by-hand")
}

// cannotBe has install and init refuse a machine that cannot be a node.
func cannotBe(t *testing.T, m *netlab.Machine) {
	t.Helper()
	m.Must(t, "sh", "-c", "echo 'node: localhost' >/etc/netctl.yaml")
	for _, args := range [][]string{{"install"}, {"init", "--config", "/etc/none.yaml", "--node-name", "localhost"}} {
		_, err := m.Run(t.Context(), append([]string{"/var/netctl"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), `this machine cannot be a node: node name "localhost"`) || !strings.Contains(err.Error(), "--ignore-checks goes on") {
			t.Errorf("%v with a name that is no machine's own: %v", args, err)
		}
	}
	m.Must(t, "rm", "/etc/netctl.yaml")
	if files := m.Must(t, "ls", "/usr/local", "/opt", "/etc"); strings.Contains(files, "bin") || strings.Contains(files, "netctl") {
		t.Errorf("laid down: %s", files)
	}
}

// upgraded installs another file over the one that runs: unit by unit, nothing is lost.
func upgraded(t *testing.T, m *netlab.Machine, addr netip.Addr) {
	t.Helper()
	copyFile(t, netlab.Binary(t), filepath.Join(m.Dir, "var/netctl"), "newer")
	agent := mainPID(t, m, "netctl-agent")
	if out := m.Must(t, "/var/netctl", "install"); !strings.Contains(out, "still run what was there before: netctl-datastore.service netctl-agent.service netctl-speaker.service;") || mainPID(t, m, "netctl-agent") != agent {
		t.Errorf("without --now: %s", out)
	}
	unhurt(t, m, addr, "upgrade", func() {
		out := m.Must(t, "/var/netctl", "install", "--now")
		if !regexp.MustCompile(`(?s)restarted netctl-datastore\.service: in sync.*restarted netctl-agent\.service: in sync.*restarted netctl-speaker\.service: in sync`).MatchString(out) {
			t.Errorf("upgrade: %s", out)
		}
	})
	if mainPID(t, m, "netctl-agent") == agent {
		t.Error("the agent runs the old file")
	}
	putBack(t, m, addr)
}

// putBack upgrades to a file whose agent does not start: what was there runs again.
func putBack(t *testing.T, m *netlab.Machine, addr netip.Addr) {
	t.Helper()
	copyFile(t, netlab.Binary(t), filepath.Join(m.Dir, "var/broken"), "broken")
	drop := filepath.Join(m.Dir, "etc/systemd/system/netctl-agent.service.d")
	if err := os.MkdirAll(drop, 0o755); err != nil {
		t.Fatal(err)
	}
	text := "[Service]\nExecStartPre=/bin/sh -c 'test \"$$(tail -c6 /usr/local/bin/netctl)\" != broken'\nRestartSec=100ms\n"
	if err := os.WriteFile(filepath.Join(drop, "broken.conf"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(drop)
	before := m.Must(t, "sha256sum", "/usr/local/bin/netctl")
	for _, wrong := range []struct{ file, want string }{{"/etc", "is no file"}, {"/etc/passwd", "is no program"}, {"/bin/ls", "is no netctl"}} {
		if _, err := m.Run(t.Context(), "netctl", "upgrade", wrong.file); err == nil || !strings.Contains(err.Error(), wrong.want) {
			t.Errorf("upgrade to %s: %v", wrong.file, err)
		}
	}
	unhurt(t, m, addr, "upgrade to what does not start", func() {
		if _, err := m.Run(t.Context(), "netctl", "upgrade", "/var/broken"); err == nil || !strings.Contains(err.Error(), "upgrade: what was there runs again: ") {
			t.Errorf("upgrade to what does not start: %v", err)
		}
	})
	if after := m.Must(t, "sha256sum", "/usr/local/bin/netctl"); after != before {
		t.Errorf("the file that was there was not put back")
	}
	healthy(t, m)
	if left := m.Must(t, "sh", "-c", "find /usr/local /var/tmp -name '*netctl*new*' -o -name '*netctl*old*'"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// rebooted boots the machine anew: the roles are there, and so is what was in the
// datastore; what went with the boot is attached again.
func rebooted(t *testing.T, m *netlab.Machine) {
	t.Helper()
	_, _ = m.Run(t.Context(), "systemctl", "reboot") // the call may end with the machine
	m.Ended(t)
	// The kernel is the same: it is the earlier boot that had another ID.
	if err := os.WriteFile(filepath.Join(m.Dir, "var/lib/netctl-node/boot"), []byte("00000000-0000-0000-0000-000000000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.Boot(t, nil)
	healthy(t, m)
	m.Must(t, "sh", "-c", "ip route add 203.0.113.0/24 via 192.168.99.1 proto 99; ip rule add pref 77 to 203.0.113.0/24 lookup 77; nft add table inet mine; ip link add mine type veth peer name yours")
	if out := m.Must(t, "netctl", "pool", "show"); !strings.Contains(out, "10.65.0.0/16") {
		t.Errorf("pools after a reboot: %s", out)
	}
	again := wired(t, m, "c2")
	unhurt(t, m, again, "after a reboot", func() {})
}

// gone takes all away.
func gone(t *testing.T, m *netlab.Machine, before string) {
	t.Helper()
	for _, refused := range []string{"cleanup", "uninstall"} {
		if _, err := m.Run(t.Context(), "netctl", refused); err == nil || !strings.Contains(err.Error(), "1 endpoint lives: n1/manual/c2/eth0") {
			t.Errorf("%s with an endpoint that lives: %v", refused, err)
		}
	}
	if out := m.Must(t, "netctl", "cleanup", "--dry-run"); !strings.Contains(out, "nftables table inet netctl") {
		t.Errorf("what there is: %s", out)
	}
	if out := m.Must(t, "sh", "-c", "netctl uninstall --force 2>&1"); !strings.Contains(out, "what runs on this host keeps links of endpoints") {
		t.Errorf("uninstall before cleanup: %s", out)
	}
	t.Log(m.Must(t, "/var/netctl", "cleanup", "--force"))
	if out := m.Must(t, "/var/netctl", "cleanup"); !strings.Contains(out, "Nothing of netctl's is on this host.") {
		t.Errorf("a second cleanup: %s", out)
	}
	if after := snapshot(t, m); after != before {
		t.Errorf("left or lost:\n%s", diff(t, before, after))
	}
}

func diff(t *testing.T, a, b string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"before": a, "after": b} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, _ := exec.Command("diff", "-U1", dir+"/before", dir+"/after").CombinedOutput()
	return string(out)
}
