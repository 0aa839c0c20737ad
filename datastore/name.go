package datastore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxName is the largest length of a name in bytes.
const MaxName = 128

// isVerb says whether s is a verb of the command line. Verbs may not be names: the
// command line puts names where another command has its verb (profile NAME rule
// show, profile show), and one list for all kinds is easier to remember than one
// for each.
func isVerb(s string) bool {
	switch s {
	case "add", "append", "apply", "create", "delete", "drain", "edit", "get", "help",
		"info", "json", "profile", "range", "remove", "replace", "rule", "set",
		"setup", "show", "tag", "teardown", "undrain", "update":
		return true
	}
	return false
}

// FieldError says which field of an object is wrong, and why. It wraps
// ErrInvalid.
type FieldError struct {
	Field  string // path, e.g. spec.addresses[1]; may be empty
	Value  string // as it was written; may be empty
	Reason string
}

func (e *FieldError) Error() string {
	s := e.Field
	if e.Value != "" {
		s = strings.TrimSpace(fmt.Sprintf("%s %q", s, e.Value))
	}
	if s == "" {
		return e.Reason
	}
	return s + ": " + e.Reason
}

// Unwrap returns ErrInvalid.
func (e *FieldError) Unwrap() error { return ErrInvalid }

// CheckName says why s cannot be the name of an object; nil if it can.
func CheckName(s string) error {
	if err := checkWord(s); err != nil {
		return err
	}
	if isVerb(s) {
		return verbError(s)
	}
	return nil
}

func verbError(s string) error {
	return &FieldError{Value: s, Reason: "is a verb of the command line and cannot be a name"}
}

// checkWord is CheckName without the reserved words, for tags and for the parts
// of names that never stand alone.
func checkWord(s string) error {
	switch {
	case s == "":
		return &FieldError{Reason: "a name is missing"}
	case len(s) > MaxName:
		return &FieldError{Value: s[:16] + "…", Reason: fmt.Sprintf("is longer than %d bytes", MaxName)}
	}
	for i := range len(s) {
		c := s[i]
		if isAlnum(c) || i > 0 && i < len(s)-1 && (c == '_' || c == '.' || c == '-') {
			continue
		}
		return &FieldError{Value: s, Reason: "is no name: letters, digits and, between them, _ . -"}
	}
	return nil
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// maxInterface is IFNAMSIZ without its final zero (linux/if.h).
const maxInterface = 15

// CheckInterface says what is wrong with the name of an endpoint's interface.
func CheckInterface(s string) error { return checkInterface(s) }

func checkInterface(s string) error {
	if s == "" || len(s) > maxInterface || s == "." || s == ".." {
		return &FieldError{Value: s, Reason: "is no interface name of 1 to 15 bytes"}
	}
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '_' && c != '.' && c != '-' {
			return &FieldError{Value: s, Reason: "is no interface name: letters, digits, _ . -"}
		}
	}
	return nil
}

// The labels that carry originals of foreign names, and the other names that a workload
// has in its network, with commas.
const (
	LabelContainer = "netctl/container"
	LabelNetwork   = "netctl/network"
	LabelAliases   = "netctl/aliases"
)

// LabelTenant is the label of profiles that names the tenant whose they are.
const LabelTenant = "netctl/tenant"

// ForeignName returns s if it is a valid name, else "x-" and 20 hex digits of
// its SHA-256. Who carries a foreign name keeps the original in a label.
func ForeignName(s string) string {
	if CheckName(s) == nil {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	return "x-" + hex.EncodeToString(sum[:10])
}

// PoolName is the name of the pool or block with that CIDR: the masked CIDR
// with "-" for "/", e.g. 10.0.0.0-26; IPv6 in the form of RFC 5952.
func PoolName(p netip.Prefix) string {
	return strings.Replace(p.Masked().String(), "/", "-", 1)
}

// parsePoolName is the inverse of PoolName.
func parsePoolName(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(strings.Replace(s, "-", "/", 1))
	if err != nil || p.Addr().Is4In6() || PoolName(p) != s {
		return netip.Prefix{}, &FieldError{Value: s, Reason: "is no pool or block name, like 10.0.0.0-26"}
	}
	return p, nil
}

// EndpointName joins the parts of an endpoint's name.
func EndpointName(node, orchestrator, workload, iface string) string {
	return node + "/" + orchestrator + "/" + workload + "/" + iface
}

// LinkDigits is how many digits of its name's hash an endpoint's link has.
const LinkDigits = 11

// OrchestratorAdopted is that of endpoints whose interfaces others made, on the host:
// they are only looked at, never changed.
const OrchestratorAdopted = "adopted"

// AdoptedLink is the interface that an endpoint of that name was adopted by; false: it
// was not.
func AdoptedLink(endpoint string) (link string, ok bool) {
	_, rest, _ := strings.Cut(endpoint, "/")
	if rest, ok = strings.CutPrefix(rest, OrchestratorAdopted+"/"); !ok {
		return "", false
	}
	_, link, ok = strings.Cut(rest, "/")
	return link, ok
}

// LinkName is the name of the host side of an endpoint: the prefix and 11 hex
// digits of the SHA-256 of the endpoint's name; of an adopted one it is what it was.
func LinkName(prefix, endpoint string) string {
	if link, ok := AdoptedLink(endpoint); ok {
		return link
	}
	var buf [LinkDigits]byte
	return prefix + string(digitsOf(&buf, endpoint))
}

// OwnsLink says whether a link, with whatever prefix, is the endpoint's. Nobody else's
// name leads to it, so an endpoint that names another's link is none.
func OwnsLink(endpoint, link string) bool {
	if adopted, ok := AdoptedLink(endpoint); ok {
		return link == adopted
	}
	var buf [LinkDigits]byte
	return len(link) > LinkDigits && link[len(link)-LinkDigits:] == string(digitsOf(&buf, endpoint))
}

func digitsOf(buf *[LinkDigits]byte, endpoint string) []byte {
	var text [2 * sha256.Size]byte
	sum := sha256.Sum256([]byte(endpoint))
	hex.Encode(text[:], sum[:])
	return buf[:copy(buf[:], text[:])]
}

// isEndpointName says whether name is EndpointName of the parts, without making it.
func isEndpointName(name, node, orchestrator, workload, iface string) bool {
	rest := name
	for _, part := range []string{node, orchestrator, workload} {
		var ok bool
		if rest, ok = strings.CutPrefix(rest, part); ok {
			rest, ok = strings.CutPrefix(rest, "/")
		}
		if !ok {
			return false
		}
	}
	return rest == iface
}

func checkEndpointName(s string) error {
	node, rest, _ := strings.Cut(s, "/")
	orchestrator, rest, _ := strings.Cut(rest, "/")
	workload, iface, ok := strings.Cut(rest, "/")
	if !ok || strings.Contains(iface, "/") {
		return &FieldError{Value: s, Reason: "is no endpoint name, like node/orchestrator/workload/interface"}
	}
	return firstError(CheckName(node), checkWord(orchestrator), checkWord(workload), checkInterface(iface))
}

const (
	maxLabels     = 256
	maxLabelKey   = 256
	maxLabelValue = 1024
)

// CheckLabel says what is wrong with a label.
func CheckLabel(key, value string) error { return checkLabels("label", map[string]string{key: value}) }

func checkLabels(field string, labels map[string]string) error {
	if len(labels) > maxLabels {
		return &FieldError{Field: field, Reason: fmt.Sprintf("%d labels are more than %d", len(labels), maxLabels)}
	}
	for k, v := range labels {
		if err := checkLabelKey(k); err != nil {
			return at(field, err)
		}
		if len(v) > maxLabelValue || !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl) {
			return &FieldError{Field: field + "." + k, Value: v[:min(len(v), 32)],
				Reason: fmt.Sprintf("is no label value: text of at most %d bytes without control characters", maxLabelValue)}
		}
	}
	return nil
}

// checkLabelKey is wider than a name: runtimes hand over keys such as
// org.opencontainers.image/title.
func checkLabelKey(k string) error {
	ok := k != "" && len(k) <= maxLabelKey && isAlnum(k[0]) && isAlnum(k[len(k)-1])
	for i := 0; ok && i < len(k); i++ {
		ok = isLabelKey(k[i])
	}
	if !ok {
		return &FieldError{Value: k[:min(len(k), 32)], Reason: "is no label key: letters, digits and, between them, _ . - /"}
	}
	return nil
}

func isLabelKey(c byte) bool {
	return isAlnum(c) || c == '_' || c == '.' || c == '-' || c == '/'
}

// at puts a field's path before an error that does not know where it is, or whose
// path begins with a dot.
func at(field string, err error) error {
	if err == nil {
		return nil
	}
	if e := (*FieldError)(nil); errors.As(err, &e) && (e.Field == "" || e.Field[0] == '.') {
		return &FieldError{Field: field + e.Field, Value: e.Value, Reason: e.Reason}
	}
	return &FieldError{Field: field, Reason: err.Error()}
}
