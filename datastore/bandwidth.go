package datastore

import "fmt"

// Bandwidth limits what goes over the interface of an endpoint: Ingress what it is sent,
// Egress what it sends. A zero Rate limits nothing.
type Bandwidth struct {
	Ingress Rate `json:"ingress,omitzero"`
	Egress  Rate `json:"egress,omitzero"`
}

// Rate is a limit: Bits per second over time, and Burst bits at once. A Burst of 0 is
// left to who applies it.
type Rate struct {
	Bits  uint64 `json:"bits"`
	Burst uint64 `json:"burst,omitempty"`
}

// MinRate is the least rate in bits per second: a packet of 1500 bytes takes 1.5 s at it.
const MinRate = 8000

// Validate checks a bandwidth by itself.
func (b Bandwidth) Validate() error {
	return firstError(at(".ingress", b.Ingress.validate()), at(".egress", b.Egress.validate()))
}

func (r Rate) validate() error {
	switch {
	case r.Bits == 0 && r.Burst != 0:
		return &FieldError{Field: ".burst", Value: fmt.Sprint(r.Burst), Reason: "is nothing without a rate"}
	case r.Bits != 0 && r.Bits < MinRate:
		return &FieldError{Field: ".bits", Value: fmt.Sprint(r.Bits), Reason: fmt.Sprintf("must be at least %d bits per second", MinRate)}
	}
	return nil
}
