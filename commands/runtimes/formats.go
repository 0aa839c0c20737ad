package runtimes

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"netctl/datastore"
)

// conflistPrefix starts the names of netctl's files: a runtime of the CRI takes the first
// of the folder, and others' begin with a number.
const conflistPrefix = "netctl-"

// newConflists is the place of CNI's network configuration lists, which Podman 4 has its
// networks in too.
func newConflists(cfg Config, log *slog.Logger) *files {
	const end = ".conflist"
	p := &files{
		dir: cfg.Root + "/etc/cni/net.d", log: log, ends: []string{end, ".conf", ".json"}, text: conflist,
		name: func(network string) string { return conflistPrefix + network + end },
		of: func(file string) string {
			name, is := strings.CutSuffix(file, end)
			if rest, has := strings.CutPrefix(name, conflistPrefix); is && has {
				return rest
			}
			return ""
		},
	}
	p.who = func() (list []string) {
		if there(p.dir) && slices.Contains(cfg.Runtimes, datastore.RuntimeCNI) {
			list = append(list, datastore.RuntimeCNI)
		}
		if podman(cfg.Root) == "cni" && slices.Contains(cfg.Runtimes, datastore.RuntimePodman) {
			list = append(list, datastore.RuntimePodman)
		}
		return list
	}
	return p
}

// conflist is the configuration of a network. Pools, profile and families are the
// cluster's to say, when a container comes. Labels are as Podman 4 keeps them.
func conflist(n Network) []byte {
	return sealed(fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": %q,
  "args": { "podman_labels": { %s } },
  "plugins": [
    { "type": "netctl", "capabilities": { "ips": true, "mac": true, "dns": true, "aliases": true, "bandwidth": true, "portMappings": true } }
  ]
}
`, n.Name, openSeal))
}

// newNetavark is the place of Podman's networks from version 5 on.
func newNetavark(cfg Config, log *slog.Logger) *files {
	const end = ".json"
	return &files{
		dir: cfg.Root + "/etc/containers/networks", log: log, ends: []string{end}, text: netavark,
		name: func(network string) string { return network + end },
		of: func(file string) string {
			name, is := strings.CutSuffix(file, end)
			if !is {
				return ""
			}
			return name
		},
		who: func() []string {
			if podman(cfg.Root) == "netavark" {
				return []string{datastore.RuntimePodman}
			}
			return nil
		},
	}
}

// netavark is a network as Podman keeps it once netctl's plugin has answered to its
// create: addresses are the plugin's. Podman wants an ID of 64 digits.
func netavark(n Network) []byte {
	id := sha256.Sum256([]byte("netctl network " + n.Name))
	return sealed(fmt.Sprintf(`{
  "name": %q,
  "id": "%x",
  "driver": "netctl",
  "ipv6_enabled": %t,
  "internal": false,
  "dns_enabled": false,
  "labels": { %s },
  "ipam_options": { "driver": "none" }
}
`, n.Name, id, n.IPv6, openSeal))
}

// Where Podman's settings are, the later ones first, and where its packages have netavark.
func podmanSettings(root string) []string {
	more, _ := filepath.Glob(root + "/etc/containers/containers.conf.d/*.conf") // the pattern is right
	slices.Reverse(more)
	return append(more, root+"/etc/containers/containers.conf", root+"/usr/share/containers/containers.conf")
}

func netavarkPrograms() []string {
	return []string{"/usr/local/libexec/podman/netavark", "/usr/local/lib/podman/netavark", "/usr/libexec/podman/netavark", "/usr/lib/podman/netavark"}
}

// podman is what Podman has its networks from: "netavark", "cni", or "" where it is not
// installed. Until version 4 settings may choose, or what Podman itself chose once;
// version 5 knows netavark alone.
func podman(root string) string {
	has := func(paths ...string) bool {
		return slices.ContainsFunc(paths, func(p string) bool { return there(root + p) })
	}
	if !has("/usr/bin/podman", "/usr/local/bin/podman") {
		return ""
	}
	for _, path := range podmanSettings(root) {
		text, _ := os.ReadFile(path) // it may not be there
		if is := backendSetting.FindSubmatch(text); is != nil {
			return string(is[1])
		}
	}
	if chosen, err := os.ReadFile(root + "/var/lib/containers/storage/defaultNetworkBackend"); err == nil && strings.TrimSpace(string(chosen)) == "cni" {
		return "cni"
	}
	if has(netavarkPrograms()...) {
		return "netavark"
	}
	return "cni"
}

// backendSetting is containers.conf(5)'s, in [network].
var backendSetting = regexp.MustCompile(`(?m)^\s*network_backend\s*=\s*["'](netavark|cni)["']`)

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
