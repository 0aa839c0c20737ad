package datastore

import (
	"net/netip"
	"strings"
)

// needsDomains is the ModelVersion that brought domains of network sets: who passes those over
// has a rule that denies the set deny less, and one that names all but the set allow more.
const needsDomains = 6

// maxDomain is the longest domain name in bytes, without the dot at its end, and maxLabel the
// longest of its labels (RFC 1035, section 2.3.4).
const (
	maxDomain = 253
	maxLabel  = 63
)

// wildcard starts a domain that stands for all the names below it.
const wildcard = "*."

// CanonicalDomain is a domain name in lower case, without the dot at its end.
func CanonicalDomain(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// CheckDomain accepts a domain of a network set as CanonicalDomain makes it: a name, or `*.`
// and a name. The error wraps ErrInvalid.
func CheckDomain(domain string) error {
	name := strings.TrimPrefix(domain, wildcard)
	wrong := func(reason string) error { return &FieldError{Value: domain, Reason: reason} }
	switch _, err := netip.ParseAddr(name); {
	case name == "":
		return wrong("a domain name is missing")
	case err == nil:
		return wrong("is an address: write it to cidrs")
	case strings.Contains(name, "/"):
		return wrong("is no domain name: networks are written to cidrs")
	case strings.Contains(name, "*"):
		return wrong("has a * that is not all before the first dot: write *.example.org")
	case len(name) > maxDomain:
		return wrong("is longer than a domain name may be (253)")
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return wrong("has an empty label")
		case len(label) > maxLabel:
			return wrong("has a label of more than 63 characters")
		case strings.HasPrefix(label, "-"), strings.HasSuffix(label, "-"):
			return wrong("has a label that begins or ends with -")
		}
		for _, c := range label {
			switch {
			case c > '~':
				return wrong("has other letters than a to z: write them as in the DNS, xn--…")
			case (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_':
				return wrong("has " + string(c) + ", which a domain name does not have")
			}
		}
	}
	return nil
}

// DomainMatches says whether a domain of a network set stands for a name, which is as
// CanonicalDomain makes it: its own, or with `*.` any below it, however deep.
func DomainMatches(domain, name string) bool {
	if below, is := strings.CutPrefix(domain, wildcard); is {
		return strings.HasSuffix(name, "."+below) && len(name) > len(below)+1
	}
	return name == domain
}
