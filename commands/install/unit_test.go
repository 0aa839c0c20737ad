package install

import (
	"strings"
	"testing"
)

// TestUnits: who comes before whom, who may do what; whether systemd reads them is
// TestSystemd's.
func TestUnits(t *testing.T) {
	for role, want := range map[string][]string{
		"datastore": {"CapabilityBoundingSet=\n", "RestrictNamespaces=yes\n", "Conflicts=netctl-node.service\n", "After=network-online.target netctl-node.service\n"},
		"agent": {
			"Before=containerd.service docker.service nomad.service podman-restart.service\n", "After=network-online.target nftables.service firewalld.service ",
			"CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BROADCAST CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_NET_RAW\n", "ReadWritePaths=\"-/run\" \"-/etc/cni/net.d\" \"-/etc/containers\" \"-/data/a b%%\"\n",
			"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK AF_PACKET\n", "DevicePolicy=closed\nDeviceAllow=/dev/net/tun rw\nDeviceAllow=/dev/char/10:200 rw\n",
		},
		"speaker":   {"CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_RAW\n", "ProtectKernelTunables=yes\n", "PrivateDevices=yes\n", "ReadWritePaths=\"-/data/a b%%\"\n"},
		"reflector": {"ExecStart=/usr/local/bin/netctl-reflector --config /etc/netctl.yaml\n", "Description=netctl BGP route reflector\n"},
		// `docker run -p` has it bind the port, also one below 1024, of either protocol and family.
		"docker": {"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\n", "Before=docker.service\n", "ReadWritePaths=\"-/run\" \"-/data/a b%%\"\n"},
		"node":   {"KillMode=mixed\n", "DeviceAllow=/dev/char/10:200 rw\n", "Before=containerd.service docker.service ", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_SYS_ADMIN"},
	} {
		text := unit(role, "/usr/local/bin/netctl", []string{"/data/a b%"})
		for _, w := range append(want,
			"Type=notify\n", "Restart=always\n", "WatchdogSec=60\n", "NoNewPrivileges=yes\n", "ProtectSystem=strict\n", "RuntimeDirectoryPreserve=yes\n",
			"Wants=network-online.target\n", "StartLimitIntervalSec=0\n", "CPUWeight=1000\n", "Nice=-10\n", "WantedBy=multi-user.target\n") {
			if strings.Count(text, w) != 1 {
				t.Errorf("%s: %q is not in it once:\n%s", role, w, text)
			}
		}
		if role == "node" && strings.Contains(text, "Conflicts=") {
			t.Error("node: the others' units say that they conflict with it")
		}
	}
}
