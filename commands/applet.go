package commands

import (
	"path/filepath"
	"slices"
	"strings"

	"netctl/commands/netavark"
)

// pick is what the binary is to be in this process.
type pick int

const (
	appletCLI      pick = iota // a command line
	appletCNI                  // a CNI plugin call
	appletNetavark             // a call of Podman's network plugin
	appletRole                 // a role, by the name of the file
	appletUnknown              // a name like netctl-x that is no role, and nothing else to go by
	appletNothing              // no arguments, no CNI_COMMAND
)

// roleNames lists the roles that a file called netctl-<role> starts.
func roleNames() []string {
	return []string{"netctl-agent", "netctl-api", "netctl-datastore", "netctl-docker", "netctl-node", "netctl-reflector", "netctl-speaker"}
}

// applet decides by the file's name first, then by CNI_COMMAND, which counts
// only where there are no arguments: a stray one must not break a command line. The
// arguments of netavark's calls are no command line's.
func applet(arg0 string, args []string, cniCommand string) (pick, string) {
	base := filepath.Base(arg0)
	role, suffixed := strings.CutPrefix(base, "netctl-")
	switch {
	case slices.Contains(roleNames(), base):
		return appletRole, role
	case netavark.Called(args):
		return appletNetavark, ""
	case len(args) > 0:
		return appletCLI, "" // also for a copy called netctl-1.2
	case cniCommand != "":
		return appletCNI, ""
	case suffixed:
		return appletUnknown, role
	}
	return appletNothing, ""
}
