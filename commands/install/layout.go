// Package install owns what `netctl install` lays down on a machine, or in the folder
// of an image, and what `netctl uninstall` and `netctl cleanup` take away.
//
// It never overwrites or removes what a person wrote: a file that is not as it was laid
// down is kept and said. It starts and stops no service; commands does.
//
// Invariants: an install that fails leaves every file as it was; one that is killed is
// finished by the next one, or undone by an uninstall; what was laid down is in the
// manifest before it is in its place.
package install

import (
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// The places that do not depend on the prefix.
const (
	ConfigFile   = "/etc/netctl.yaml"
	PluginFolder = "/opt/cni/bin"
	NetworksDir  = "/etc/cni/net.d"
	Manifest     = "/var/lib/netctl-node/install.json"
	ownUnits     = "/etc/systemd/system"
)

// DefaultPrefix is where the file itself goes to.
const DefaultPrefix = "/usr/local"

// defaultConflist is the network configuration's file unless another name is asked for.
const defaultConflist = "10-netctl.conflist"

// Roles are those with a unit of their own, in the order of their start.
func Roles() []string { return []string{"datastore", "agent", "speaker", "reflector", "docker", "api"} }

// Options say what is laid down and where.
type Options struct {
	// Root is the folder of an image; "" is the machine's own root.
	Root string
	// Prefix holds bin and share; with /usr the units are a package's.
	Prefix string
	// Self is the file to install.
	Self string
	// Plugin is the program for container runtimes; nil: Self is linked there, which does
	// the same and takes longer to start.
	Plugin []byte
	// Roles are written into a new configuration.
	Roles []string
	// Conflist is the name of the network configuration to write; "": one of netctl's
	// own, unless there are others.
	Conflist string
	// Share is what goes below Prefix/share: completions and man pages.
	Share map[string][]byte
	// Writable are folders that the roles write beside their default ones.
	Writable []string
	// AgentProtocol and SpeakerProtocol are the numbers of route protocols to name.
	AgentProtocol, SpeakerProtocol int
	// Replace puts files in the place of ones that are not netctl's; those are kept
	// beside them, with the suffix .orig.
	Replace bool
}

// Item is one file or link that is laid down.
type Item struct {
	Path string // absolute, as on the machine
	Mode fs.FileMode
	Text []byte
	// Source is the file to copy in place of Text.
	Source string
	// Target makes it a symbolic link.
	Target string
	// Yours is a file that is a person's as soon as it is there.
	Yours bool
	// Must be laid down: without it the others are of no use.
	Must bool
}

// Binary is where the file itself goes.
func (o *Options) Binary() string { return path.Join(o.Prefix, "bin/netctl") }

// UnitFolder is where the units go.
func (o *Options) UnitFolder() string {
	if o.Prefix == "/usr" {
		return "/usr/lib/systemd/system"
	}
	return ownUnits
}

// OptionError is one about options that cannot be meant.
type OptionError struct{ text string }

func (e *OptionError) Error() string { return e.text }

func optionError(format string, args ...any) error { return &OptionError{fmt.Sprintf(format, args...)} }

// check refuses options that cannot be meant.
func (o *Options) check() error {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if !path.IsAbs(o.Prefix) || path.Clean(o.Prefix) != o.Prefix || strings.ContainsAny(o.Prefix, " \t\n%\"'\\") {
		return optionError("prefix %q: not an absolute path without blanks and quotes", o.Prefix)
	}
	for _, r := range o.Roles {
		if !slices.Contains(Roles(), r) {
			return optionError("role %q: the roles are %s", r, strings.Join(Roles(), ", "))
		}
	}
	if o.Conflist != "" {
		ext := path.Ext(o.Conflist)
		if path.Base(o.Conflist) != o.Conflist || ext != ".conflist" || o.Conflist == ext {
			return optionError("conflist %q: the name of a file in %s that ends in .conflist", o.Conflist, NetworksDir)
		}
	}
	return nil
}

// items are what is laid down. networks are the files that are in NetworksDir.
func (o *Options) items(networks []string) []Item {
	binary := o.Binary()
	list := []Item{
		{Path: binary, Mode: 0o755, Source: o.Self, Must: true},
		o.plugin(PluginFolder + "/netctl"),
		o.plugin(path.Join(o.Prefix, "libexec/netavark/netctl")), // for Podman 5 and later
	}
	for _, role := range append(Roles(), "node") {
		list = append(list, Item{Path: binary + "-" + role, Target: "netctl", Must: true})
	}
	list = append(list, Item{Path: ConfigFile, Mode: 0o644, Text: config(o.Roles), Yours: true})
	if name := o.conflist(networks); name != "" {
		list = append(list, Item{Path: NetworksDir + "/" + name, Mode: 0o644, Text: []byte(networkConfig), Yours: true})
	}
	list = append(list, Item{
		Path: "/etc/iproute2/rt_protos.d/netctl.conf", Mode: 0o644,
		Text: fmt.Appendf(nil, "%d netctl\n%d netctl-bgp\n", o.AgentProtocol, o.SpeakerProtocol),
	})
	for _, role := range append(Roles(), "node") {
		list = append(list, Item{Path: o.UnitFolder() + "/" + UnitName(role), Mode: 0o644, Text: []byte(unit(role, binary, o.Writable))})
	}
	for _, name := range sortedKeys(o.Share) {
		list = append(list, Item{Path: path.Join(o.Prefix, "share", name), Mode: 0o644, Text: o.Share[name]})
	}
	return list
}

// plugin is what runtimes find at a path.
func (o *Options) plugin(at string) Item {
	if o.Plugin == nil {
		return Item{Path: at, Target: o.Binary()}
	}
	return Item{Path: at, Mode: 0o755, Text: o.Plugin}
}

// conflist is the name of the network configuration that is written; "": none, since a
// runtime of the CRI takes the first of the folder, which is somebody else's.
func (o *Options) conflist(networks []string) string {
	switch {
	case o.Conflist != "":
		return o.Conflist
	case len(networks) == 0, slices.Contains(networks, defaultConflist):
		return defaultConflist
	}
	return ""
}

const networkConfig = `{
  "cniVersion": "1.0.0",
  "name": "netctl",
  "plugins": [
    { "type": "netctl", "capabilities": { "ips": true, "mac": true, "dns": true } }
  ]
}
`

// DefaultRoles are those of a machine that has no configuration and asks for none.
func DefaultRoles() []string { return []string{"datastore", "agent", "speaker"} }

// config is the configuration of a machine that has none.
func config(roles []string) []byte {
	return fmt.Appendf(nil, "# netctl on this machine. Every key is in docs/configuration.md; `netctl config` prints what holds.\n"+
		"# The name of the node is the host's, unless it is set here:\n# node: n1\nroles: [%s]\n", strings.Join(roles, ", "))
}

// networksIn are the configurations in a folder, as the runtimes look for them.
func networksIn(dir string) (names []string) {
	for _, pattern := range []string{"*.conf", "*.conflist", "*.json"} {
		found, _ := filepath.Glob(filepath.Join(dir, pattern)) // the pattern is right
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	slices.Sort(names)
	return names
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
