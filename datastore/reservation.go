package datastore

import "net/netip"

// Kind returns KindReservation.
func (*Reservation) Kind() Kind { return KindReservation }

// Meta implements Object.
func (r *Reservation) Meta() *Metadata { return &r.Metadata }

// SetDefaults implements Object; a reservation has none.
func (*Reservation) SetDefaults() {}

// Validate implements Object.
func (r *Reservation) Validate() error {
	if len(r.Spec.CIDRs) == 0 {
		return &FieldError{Field: "spec.cidrs", Reason: "a reservation needs at least one CIDR"}
	}
	return firstError(checkMeta(r),
		each("spec.cidrs", r.Spec.CIDRs, func(p netip.Prefix) error { return checkCIDR("", p) }))
}
