package datastore

import (
	"fmt"
	"net/netip"
	"slices"
)

// checkAddr accepts a unicast address without a zone.
func checkAddr(field string, a netip.Addr) error {
	switch {
	case !a.IsValid():
		return &FieldError{Field: field, Reason: "an IP address is missing"}
	case a.Zone() != "" || a.Is4In6():
		return &FieldError{Field: field, Value: a.String(), Reason: "must be a plain IPv4 or IPv6 address"}
	case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback():
		return &FieldError{Field: field, Value: a.String(), Reason: "is not the address of a machine"}
	}
	return nil
}

// checkCIDR accepts a CIDR without host bits.
func checkCIDR(field string, p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return &FieldError{Field: field, Reason: "a CIDR is missing"}
	case p.Addr().Is4In6():
		return &FieldError{Field: field, Value: p.String(), Reason: "must be a plain IPv4 or IPv6 CIDR"}
	case p != p.Masked():
		return &FieldError{Field: field, Value: p.String(), Reason: "has bits set behind its prefix length; write " + p.Masked().String()}
	}
	return nil
}

// special are the ranges that no pool can be in (RFC 6890).
func special() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),
		netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"),
		netip.MustParsePrefix("224.0.0.0/3"),
		netip.MustParsePrefix("::/8"),
		netip.MustParsePrefix("fe80::/10"),
		netip.MustParsePrefix("ff00::/8"),
	}
}

func checkRoutable(field string, p netip.Prefix) error {
	if err := checkCIDR(field, p); err != nil {
		return err
	}
	i := slices.IndexFunc(special(), p.Overlaps)
	if i >= 0 {
		return &FieldError{Field: field, Value: p.String(), Reason: fmt.Sprintf("overlaps %s, whose addresses cannot be routed", special()[i])}
	}
	return nil
}

// each checks every element of a list and that none is there twice.
func each[T comparable](field string, list []T, check func(T) error) error {
	for i, v := range list {
		if err := check(v); err != nil {
			return at(indexed(field, i), err)
		}
		if slices.Contains(list[:i], v) {
			return &FieldError{Field: indexed(field, i), Value: fmt.Sprint(v), Reason: "is in the list twice"}
		}
	}
	return nil
}

// firstError returns the first error that is not nil.
func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkMeta(o Object) error {
	m := o.Meta()
	if err := checkObjectName(o.Kind(), m.Name); err != nil {
		return err
	}
	switch {
	case m.Needs > ModelVersion:
		return needsError(m.Needs)
	case m.Needs < 0:
		return &FieldError{Field: "metadata.needs", Value: decimal(m.Needs), Reason: "must be a version of the model"}
	}
	return checkLabels("metadata.labels", m.Labels)
}

// ComparePrefix orders prefixes by family, address and length.
func ComparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// LastAddr is the highest address of p.
func LastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
