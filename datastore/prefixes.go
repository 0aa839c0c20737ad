package datastore

import (
	"fmt"
	"net/netip"
	"slices"
)

// checkAllowedPrefixes wants networks that do not overlap, each of a family that the endpoint
// has an address of: they are routed by that.
func checkAllowedPrefixes(s EndpointSpec) error {
	const field = "spec.allowedPrefixes"
	if err := each(field, s.AllowedPrefixes, func(p netip.Prefix) error { return checkRoutable("", p) }); err != nil {
		return err
	}
	return each(field, s.AllowedPrefixes, func(p netip.Prefix) error {
		for _, o := range s.AllowedPrefixes {
			if o != p && o.Overlaps(p) {
				return &FieldError{Value: p.String(), Reason: fmt.Sprintf("overlaps %s of the same list", o)}
			}
		}
		if !slices.ContainsFunc(s.Addresses, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }) {
			return &FieldError{Value: p.String(), Reason: fmt.Sprintf("is %s, of which the endpoint has no address to route it by", FamilyWord(p.Addr()))}
		}
		return nil
	})
}

// FamilyWord is IPv4 or IPv6.
func FamilyWord(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// CheckAllowedPrefixes refuses allowed prefixes of an endpoint that it did not have and that
// no pool is kept for, or that another endpoint or a node has. A pool is kept for such where
// it is disabled, so that nobody draws addresses from it: nodes announce, and believe, what
// lies in pools alone.
func (v *View) CheckAllowedPrefixes(e *Endpoint) error {
	old := v.Endpoint(e.Metadata.Name)
	for i, p := range e.Spec.AllowedPrefixes {
		if old != nil && slices.Contains(old.Spec.AllowedPrefixes, p) {
			continue
		}
		if err := v.knowPolicies(needsDomains, "spec.allowedPrefixes", "networks behind endpoints are"); err != nil {
			return err
		}
		if reason := v.notAllowed(e.Metadata.Name, p); reason != "" {
			return &FieldError{Field: indexed("spec.allowedPrefixes", i), Value: p.String(), Reason: reason}
		}
	}
	return nil
}

// notAllowed says why an endpoint cannot have a prefix; "": it can.
func (v *View) notAllowed(endpoint string, p netip.Prefix) string {
	for _, n := range v.Nodes() {
		for _, s := range slices.Concat(n.Spec.Addresses, n.Status.Subnets) {
			if s = s.Masked(); s.Overlaps(p) {
				return fmt.Sprintf("overlaps %s, a network of node %s", s, n.Metadata.Name)
			}
		}
	}
	pools := v.Pools()
	i := slices.IndexFunc(pools, func(o *Pool) bool { return o.Spec.CIDR.Overlaps(p) })
	if i < 0 {
		return fmt.Sprintf("is in no pool, so other nodes would believe no route to it: `netctl pool add %s --disabled` first", p)
	}
	switch pool := pools[i]; {
	case pool.Spec.CIDR.Bits() > p.Bits():
		return fmt.Sprintf("is more than the pool %s", pool.Spec.CIDR)
	case !pool.Spec.Disabled || pool.Spec.Removed:
		return fmt.Sprintf("is inside the pool %s, from which addresses are given out: it takes one of its own, of `netctl pool add CIDR --disabled`", pool.Spec.CIDR)
	default:
		for _, b := range v.BlocksIn(pool) {
			if b.Spec.CIDR.Overlaps(p) {
				return fmt.Sprintf("overlaps %s, a block of node %s", b.Spec.CIDR, b.Spec.Affinity)
			}
		}
	}
	for _, o := range v.Endpoints() {
		if o.Metadata.Name == endpoint {
			continue
		}
		for _, has := range o.Spec.AllowedPrefixes {
			if has.Overlaps(p) {
				return fmt.Sprintf("overlaps %s of endpoint %s", has, o.Metadata.Name)
			}
		}
		for _, has := range o.Spec.Addresses {
			if p.Contains(has) {
				return fmt.Sprintf("holds %s, the address of endpoint %s", has, o.Metadata.Name)
			}
		}
	}
	return ""
}

// routedIn are the endpoints that have allowed prefixes of a pool.
func (v *View) routedIn(p *Pool) []*Endpoint {
	return slices.DeleteFunc(v.Endpoints(), func(e *Endpoint) bool { return !slices.ContainsFunc(e.Spec.AllowedPrefixes, p.Spec.CIDR.Overlaps) })
}

// checkRouted refuses to give out addresses of a pool that prefixes behind endpoints are of.
func (v *View) checkRouted(p *Pool) error {
	if list := v.routedIn(p); !p.Spec.Disabled && len(list) > 0 {
		return fmt.Errorf("%w: it cannot be enabled: prefixes of it are routed to %s", ErrInUse,
			users("endpoint", list, func(e *Endpoint) string { return e.Metadata.Name }))
	}
	return nil
}

// Owns says whether an address is the endpoint's, or of a network behind it.
func (e *Endpoint) Owns(a netip.Addr) bool {
	return slices.Contains(e.Spec.Addresses, a) || slices.ContainsFunc(e.Spec.AllowedPrefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
