package netdev

import (
	"fmt"
	"strings"

	"netctl/datastore"
)

// MaxName is the longest name of an interface in bytes (IFNAMSIZ less the zero).
const MaxName = 15

// LinkName is the name of the host side of an endpoint, as in datastore.LinkName.
func LinkName(prefix, endpoint string) string { return datastore.LinkName(prefix, endpoint) }

// PeerName is what the workload's side of a link is called as long as it waits on the
// host for somebody else to take it into the workload's namespace.
func PeerName(link string) string {
	return "np" + link[max(0, len(link)-datastore.LinkDigits):]
}

// IsLinkName says whether name is what LinkName makes of some endpoint.
func IsLinkName(prefix, name string) bool {
	digits, ok := strings.CutPrefix(name, prefix)
	return ok && len(digits) == datastore.LinkDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

// RetiredName is what a link with the given index is called between the end of
// its service and its deletion.
func RetiredName(index int) string { return fmt.Sprintf("ncgone%x", index) }

// ValidPrefix reports why prefix cannot start the name of a link.
func ValidPrefix(prefix string) error {
	if prefix == "" || len(prefix) > MaxName-datastore.LinkDigits {
		return fmt.Errorf("interface prefix %q: must have 1 to %d characters: %w", prefix, MaxName-datastore.LinkDigits, datastore.ErrInvalid)
	}
	for _, r := range prefix {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') {
			return fmt.Errorf("interface prefix %q: only letters and digits: %w", prefix, datastore.ErrInvalid)
		}
	}
	return nil
}

// ValidInterface reports why the kernel or the CNI specification (section 2,
// CNI_IFNAME) would refuse name for an interface.
func ValidInterface(name string) error {
	switch {
	case name == "" || len(name) > MaxName:
		return fmt.Errorf("interface %q: must have 1 to %d characters: %w", name, MaxName, datastore.ErrInvalid)
	case name == "." || name == "..":
		return fmt.Errorf("interface %q: not a name: %w", name, datastore.ErrInvalid)
	case strings.ContainsAny(name, "/:%"):
		return fmt.Errorf("interface %q: must not contain '/', ':' or '%%': %w", name, datastore.ErrInvalid)
	}
	for _, r := range name {
		if r <= ' ' || r > '~' {
			return fmt.Errorf("interface %q: only printable ASCII without blanks: %w", name, datastore.ErrInvalid)
		}
	}
	return nil
}
