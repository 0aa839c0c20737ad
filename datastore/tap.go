package datastore

import (
	"net/netip"
	"strings"
)

// Tap is a TAP device that the program of a virtual machine opens (QEMU, libvirt), and
// what the machine is told beside its address. The zero Tap is none.
type Tap struct {
	// Name is what the program knows it by, beside the endpoint's Link.
	Name string `json:"name"`
	// Owner and Group are the user and the group that may open it: both 0 is root alone,
	// an Owner of 0 with a Group every member of the group.
	Owner uint32 `json:"owner,omitempty"`
	Group uint32 `json:"group,omitempty"`
	// MultiQueue is for programs that open several queues, and for those alone.
	MultiQueue bool `json:"multiQueue,omitempty"`
	// MTU of the link in bytes; 0: the agent's.
	MTU int `json:"mtu,omitempty"`
	// DNS are the name servers that the machine is told; none: those of its host that it
	// may reach. Search are the domains in which it looks names up.
	DNS    []netip.Addr `json:"dns,omitempty"`
	Search []string     `json:"search,omitempty"`
}

// Is says whether there is one.
func (t Tap) Is() bool { return t.Name != "" }

// IsZero is for JSON's omitzero.
func (t Tap) IsZero() bool {
	return t.Name == "" && t.Owner == 0 && t.Group == 0 && !t.MultiQueue && t.MTU == 0 && len(t.DNS) == 0 && len(t.Search) == 0
}

// Validate checks a TAP by itself.
func (t Tap) Validate() error {
	if t.IsZero() {
		return nil
	}
	return firstError(
		at(".name", checkInterface(t.Name)),
		each(".dns", t.DNS, func(a netip.Addr) error { return checkAddr("", a) }),
		each(".search", t.Search, checkDomain))
}

// checkDomain wants a domain name (RFC 1035, section 2.3.1, with digits first as RFC 1123,
// section 2.1, allows).
func checkDomain(name string) error {
	ok := len(name) <= 253
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		ok = ok && IsHostLabel(label)
	}
	if !ok {
		return &FieldError{Value: name, Reason: "is no domain name"}
	}
	return nil
}

// IsHostLabel says whether text may be a label of a host's name.
func IsHostLabel(text string) bool {
	if text == "" || len(text) > 63 || strings.HasPrefix(text, "-") || strings.HasSuffix(text, "-") {
		return false
	}
	return strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") == ""
}
