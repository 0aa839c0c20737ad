package install

import (
	"fmt"
	"slices"
	"strings"
)

// UnitName is the unit of a role, or of "node", which runs all of the configuration's.
func UnitName(role string) string { return "netctl-" + role + ".service" }

// part is what the unit of one role needs.
type part struct {
	what string
	// capabilities that it needs: without each of them something fails.
	capabilities []string
	families     []string
	// host: it writes /proc/sys/net, enters network namespaces, makes TAPs and executes
	// iptables.
	host bool
	// run: it writes elsewhere in /run.
	run bool
	// first are units that are there before it, then those that wait for it.
	first, then []string
}

// others are programs that write the whole packet filter when they start, or that the
// datastore may be: what netctl writes comes after them. The roles themselves start in
// any order.
func others() []string {
	return []string{"nftables.service", "firewalld.service", "ufw.service", "netfilter-persistent.service", "etcd.service"}
}

// runtimes start containers, which need the agent.
func runtimes() []string {
	return []string{"containerd.service", "docker.service", "nomad.service", "podman-restart.service"}
}

func partOf(role string) part {
	// CAP_SYS_PTRACE: the descriptor of a plugin that called; CAP_NET_BROADCAST: what
	// happens in other namespaces; CAP_DAC_READ_SEARCH: namespaces of other users' Podman,
	// by their path; CAP_NET_RAW: iptables-legacy's socket, and those that virtual machines
	// are told their addresses by (AF_PACKET).
	agent := []string{"CAP_NET_ADMIN", "CAP_NET_BROADCAST", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_NET_RAW"}
	speaker := []string{"CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_NET_RAW"}
	switch role {
	case "datastore":
		return part{what: "embedded etcd", families: []string{"AF_UNIX", "AF_INET", "AF_INET6"}}
	case "agent":
		return part{
			what: "agent: links, routes and rules of this machine's endpoints", host: true, capabilities: agent,
			families: []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"}, first: others(), then: runtimes(),
		}
	case "speaker", "reflector":
		what := "BGP speaker"
		if role == "reflector" {
			what = "BGP route reflector"
		}
		return part{
			what: what, capabilities: speaker,
			families: []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}, first: others(),
		}
	}
	if role == "docker" {
		// Docker finds a plugin by its socket, and waits for none that comes later. Before a
		// port is published the role binds it, to see that no process has it.
		return part{
			what: "Docker's network and IPAM driver", run: true, capabilities: []string{"CAP_NET_BIND_SERVICE"},
			families: []string{"AF_UNIX", "AF_INET", "AF_INET6"}, first: []string{UnitName("agent")}, then: []string{"docker.service"},
		}
	}
	if role == "api" {
		// What it does for people: it looks into the kernel's routes, and opens the
		// namespace that an endpoint is to be added to.
		return part{
			what: "HTTP API", capabilities: []string{"CAP_NET_BIND_SERVICE", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"},
			families: []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}, first: others(),
		}
	}
	all := append(slices.Clone(agent), speaker...)
	slices.Sort(all)
	return part{
		what: "every role of this node", host: true, capabilities: slices.Compact(all),
		families: []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"}, first: others(), then: runtimes(),
	}
}

// unit is the text of a role's unit. binary is the file itself, writable are folders
// beside the default ones.
func unit(role, binary string, writable []string) string {
	p := partOf(role)
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by netctl install; changes belong into a drop-in: systemctl edit %s", UnitName(role))
	line("[Unit]\nDescription=netctl %s", p.what)
	line("Documentation=man:netctl-%s(1)", role)
	line("Wants=network-online.target")
	after := append([]string{"network-online.target"}, p.first...)
	if role != "node" {
		// One of both ways runs the roles; the other ends before.
		line("Conflicts=%s", UnitName("node"))
		after = append(after, UnitName("node"))
	}
	line("After=%s", strings.Join(after, " "))
	if len(p.then) > 0 {
		line("Before=%s", strings.Join(p.then, " "))
	}
	line("StartLimitIntervalSec=0\n")

	// Ready is being in sync, or half a minute later: see docs/install.md.
	line("[Service]\nType=notify\nExecStart=%s-%s --config %s", binary, role, ConfigFile)
	line("Restart=always\nRestartSec=500ms\nTimeoutStartSec=90\nTimeoutStopSec=30\nWatchdogSec=60")
	if role == "node" {
		line("KillMode=mixed") // it ends its roles itself, the last one first
	}
	// While a packet filter that is gone is put back nobody reaches anybody: workloads that
	// keep the machine busy wait for that.
	line("LimitNOFILE=65536\nOOMScoreAdjust=-500\nCPUWeight=1000\nNice=-10\n")

	line("StateDirectory=netctl-node\nStateDirectoryMode=0700")
	line("RuntimeDirectory=netctl-node\nRuntimeDirectoryMode=0700\nRuntimeDirectoryPreserve=yes\nUMask=0077")
	if p.host { // networks of CNI's runtimes and of Podman, whose folder comes with the first
		writable = append([]string{"/etc/cni/net.d", "/etc/containers"}, writable...)
	}
	if p.host || p.run {
		writable = append([]string{"/run"}, writable...) // iptables locks /run/xtables.lock
	}
	line("ProtectSystem=strict")
	if len(writable) > 0 {
		line("ReadWritePaths=%s", strings.Join(quoted(writable), " "))
	}
	if p.host {
		// TAPs of virtual machines are made with a device. A path counts if the node is there
		// when the unit starts, as without the module it may not be; a number always, since
		// systemd 240 (the kernel's devices.txt has it); char-misc would be /dev/kvm too.
		line("DevicePolicy=closed\nDeviceAllow=/dev/net/tun rw\nDeviceAllow=/dev/char/10:200 rw")
	} else {
		line("PrivateDevices=yes")
	}
	line("ProtectHome=read-only\nPrivateTmp=yes\nProtectControlGroups=yes\nProtectKernelModules=yes\nProtectKernelLogs=yes")
	line("ProtectClock=yes\nRestrictSUIDSGID=yes\nRestrictRealtime=yes\nLockPersonality=yes\nMemoryDenyWriteExecute=yes\nNoNewPrivileges=yes")
	if p.host {
		line("RestrictNamespaces=net")
	} else {
		line("RestrictNamespaces=yes\nProtectKernelTunables=yes")
	}
	line("RestrictAddressFamilies=%s", strings.Join(p.families, " "))
	line("SystemCallArchitectures=native\nSystemCallFilter=@system-service\nSystemCallErrorNumber=EPERM")
	line("CapabilityBoundingSet=%s\n", strings.Join(p.capabilities, " "))
	line("[Install]\nWantedBy=multi-user.target")
	return b.String()
}

// quoted are paths as systemd.syntax(7) reads them: a missing one is no failure.
func quoted(paths []string) (list []string) {
	for _, p := range paths {
		list = append(list, `"-`+strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(p)+`"`)
	}
	return list
}
