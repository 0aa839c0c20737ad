package install

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"netctl/acl"
	"netctl/acl/iptables"
	"netctl/acl/nft"
	"netctl/commands/control"
	"netctl/netdev"
	"netctl/netdev/netlab"
)

// furnished is a network namespace with everything that netctl may have in a kernel, and
// beside each thing one that is somebody else's; foreign is what one sees of those alone.
func furnished(t *testing.T) (ns *netlab.Netns, foreign string) {
	t.Helper()
	ns = netlab.NetnsForTest(t)
	ns.Run("sh", "-ec", `
		ip link set lo up
		ip link add lan type veth peer name lanp; ip link set lan up; ip link set lanp up; ip address add 192.168.9.1/24 dev lan
		ip link add mine type veth peer name minep; ip link set mine group 7
		ip route add 10.9.0.0/16 via 192.168.9.2 proto 99; ip route add 10.8.0.0/16 via 192.168.9.2 table 77
		ip -6 route add unreachable fd01::/64 proto 99; ip rule add pref 99 lookup 77 protocol 99
		iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i mine -m comment --comment mine -j ACCEPT
		nft add table inet mine; nft add table ip netctl`)
	foreign = seen(ns)
	ns.Run("sh", "-ec", `
		ip link add nc0 type veth peer name nc0p; ip link set nc0 group 0x6e63
		ip link add old0 type veth peer name old0p; ip link set old0 group 0x6e64
		ip link add vxlan.netctl type vxlan id 4096 dstport 4789 local 192.168.9.1; ip link set vxlan.netctl group 0x6e65
		ip route add blackhole 10.0.0.0/26 proto 87; ip route add 169.254.1.1 dev lo proto 87
		ip route add 10.0.1.0/26 via 192.168.9.2 proto 88 metric 32; ip route add 10.0.2.0/26 via 192.168.9.2 table 77 proto 88
		ip -6 route add blackhole fd00::/64 proto 87; ip rule add pref 8800 lookup 77 suppress_prefixlength 0 protocol 88
		iptables-nft -I FORWARD -i nc+ -m comment --comment netctl -j ACCEPT`)
	ns.Do(func() {
		table, err := nft.Open(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		rules := acl.NewIndex("n1", acl.Options{LinkPrefix: "nc", Group: netdev.Group}).Ruleset()
		if _, err := table.Sync(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
		legacy, err := iptables.Open(slog.New(slog.DiscardHandler), iptables.Legacy, "nc")
		if err != nil {
			t.Fatal(err)
		}
		defer legacy.Close()
		if _, err := legacy.Sync(t.Context(), rules); err != nil {
			t.Fatal(err)
		}
	})
	return ns, foreign
}

func seen(ns *netlab.Netns) string {
	return ns.Run("sh", "-ec", `ip -o link | cut -d: -f2; for f in 4 6; do ip -$f rule; ip -$f route show table all | grep -v ' proto kernel'; done; nft list ruleset; (iptables-legacy-save; ip6tables-legacy-save) | grep ^-A || true; ipset list -n`)
}

// TestCleanup: all of netctl's goes, and nothing else.
func TestCleanup(t *testing.T) {
	ns, foreign := furnished(t)
	dir := t.TempDir()
	h := Host{StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), Protocols: []int{87, 88}}
	put(t, h.RunDir, "endpoints/nc0.json", "{}")
	put(t, h.RunDir, "docker/0a1b.json", "{}")
	put(t, h.RunDir, "mine.txt", "mine")
	if err := os.MkdirAll(h.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	before := seen(ns)
	ns.Do(func() {
		s, err := h.LookAt(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Join(s.Lines(), "\n")
		want := "links of endpoints: nc0\nlinks that wait for their deletion: 1\ntunnels: vxlan.netctl\nroutes of protocol 87: 3\nroutes of protocol 88: 2\nip rules of protocol 88: 1\n" +
			"nftables table inet netctl\nnftables table arp netctl\nrules in the host's iptables: 1\nchains and sets of iptables-legacy: N\nfiles below /run: 2"
		got = regexp.MustCompile(`(iptables-legacy: )\d+`).ReplaceAllString(got, "${1}N")
		if got != want || !slices.Equal(s.Endpoints, []string{"nc0"}) {
			t.Errorf("there is\n%s\nof %q, want\n%s", got, s.Endpoints, want)
		}
		if now := seen(ns); now != before {
			t.Errorf("looking changed\n%s\nto\n%s", before, now)
		}
		// Who runs would put it all back.
		for _, role := range []string{"agent", "docker"} {
			lock, err := control.Lock(h.StateDir, role)
			if err != nil {
				t.Fatal(err)
			}
			if err := h.Clean(t.Context()); err == nil || !strings.HasPrefix(err.Error(), role+" (PID ") {
				t.Errorf("while %s runs: %v", role, err)
			}
			if err := lock.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s, err = h.LookAt(t.Context()); err != nil || len(s.Lines()) != 0 {
			t.Errorf("left: %q, %v", s.Lines(), err)
		}
	})
	if now := seen(ns); now != foreign {
		t.Errorf("now there is\n%s\nwant\n%s", now, foreign)
	}
	if d := tree(t, h.RunDir); len(d) != 3 || d["/mine.txt"] == "" {
		t.Errorf("below /run: %q", d)
	}
}

// TestEnd: roles are found by their locks, and end when asked to.
func TestEnd(t *testing.T) {
	h := Host{StateDir: t.TempDir()}
	if list := h.Roles(); len(list) != 0 {
		t.Errorf("%v runs", list)
	}
	if err := h.End(t.Context()); err != nil {
		t.Error(err)
	}
	lock, err := control.Lock(h.StateDir, "speaker")
	if err != nil {
		t.Fatal(err)
	}
	if list := h.Roles(); len(list) != 1 || list[0] != (Running{"speaker", syscall.Getpid()}) {
		t.Errorf("%v runs", list)
	}
	put(t, h.StateDir, "speaker.lock", "") // whoever it is: nobody is told
	done := make(chan error)
	go func() { done <- h.End(t.Context()) }()
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
