package datastore

import (
	"cmp"
	"fmt"
)

// QoSControls limit what an endpoint is sent (ingress) and what it sends (egress); a zero
// limits nothing. Of those of an endpoint and of its profiles the least of each applies.
// The names are Calico's, but for the two of new connections.
type QoSControls struct {
	// In bits per second over time, and bits at once; a burst of 0 is left to who applies it.
	IngressBandwidth uint64 `json:"ingressBandwidth,omitempty"`
	IngressBurst     uint64 `json:"ingressBurst,omitempty"`
	EgressBandwidth  uint64 `json:"egressBandwidth,omitempty"`
	EgressBurst      uint64 `json:"egressBurst,omitempty"`
	// In packets per second, and packets at once; a burst of 0 is a tenth of a second's.
	IngressPacketRate  uint32 `json:"ingressPacketRate,omitempty"`
	IngressPacketBurst uint32 `json:"ingressPacketBurst,omitempty"`
	EgressPacketRate   uint32 `json:"egressPacketRate,omitempty"`
	EgressPacketBurst  uint32 `json:"egressPacketBurst,omitempty"`
	// Connections that begin in a second, and as many at once.
	IngressNewConnections uint32 `json:"ingressNewConnections,omitempty"`
	EgressNewConnections  uint32 `json:"egressNewConnections,omitempty"`
	// Connections at a time.
	IngressMaxConnections uint32 `json:"ingressMaxConnections,omitempty"`
	EgressMaxConnections  uint32 `json:"egressMaxConnections,omitempty"`
}

// maxRate bounds packets and connections: nft's limit has no room for much more.
const maxRate = 1 << 30

// Validate checks the limits by themselves.
func (q QoSControls) Validate() error {
	for _, c := range []struct {
		name        string
		rate, burst uint32
	}{
		{"ingressPacketRate", q.IngressPacketRate, q.IngressPacketBurst}, {"egressPacketRate", q.EgressPacketRate, q.EgressPacketBurst},
		{"ingressNewConnections", q.IngressNewConnections, 0}, {"egressNewConnections", q.EgressNewConnections, 0},
		{"ingressMaxConnections", q.IngressMaxConnections, 0}, {"egressMaxConnections", q.EgressMaxConnections, 0},
	} {
		switch {
		case c.rate > maxRate:
			return &FieldError{Field: "." + c.name, Value: fmt.Sprint(c.rate), Reason: fmt.Sprintf("must be at most %d", maxRate)}
		case c.burst > maxRate:
			return &FieldError{Field: "." + c.name, Value: fmt.Sprint(c.burst), Reason: fmt.Sprintf("its burst must be at most %d", maxRate)}
		case c.rate == 0 && c.burst != 0:
			return &FieldError{Field: "." + c.name, Value: "0", Reason: "a burst is nothing without a rate"}
		}
	}
	b := q.Bandwidth()
	for name, r := range map[string]Rate{"ingress": b.Ingress, "egress": b.Egress} {
		switch {
		case r.Bits == 0 && r.Burst != 0:
			return &FieldError{Field: "." + name + "Burst", Value: fmt.Sprint(r.Burst), Reason: "is nothing without a bandwidth"}
		case r.Bits != 0 && r.Bits < MinRate:
			return &FieldError{Field: "." + name + "Bandwidth", Value: fmt.Sprint(r.Bits), Reason: fmt.Sprintf("must be at least %d bits per second", MinRate)}
		}
	}
	return nil
}

// QoSLimit is one of QoSControls: its name in manifests, what it counts, and its value; 0: none.
type QoSLimit struct {
	Name, Unit string
	Value      uint64
}

// pointers are to the values of q, those that rates are made of by name and unit.
func (q *QoSControls) pointers() []struct {
	name, unit string
	bits       *uint64
	count      *uint32
} {
	return []struct {
		name, unit string
		bits       *uint64
		count      *uint32
	}{
		{"ingressBandwidth", "bits/s", &q.IngressBandwidth, nil}, {"ingressBurst", "bits", &q.IngressBurst, nil},
		{"egressBandwidth", "bits/s", &q.EgressBandwidth, nil}, {"egressBurst", "bits", &q.EgressBurst, nil},
		{"ingressPacketRate", "packets/s", nil, &q.IngressPacketRate}, {"ingressPacketBurst", "packets", nil, &q.IngressPacketBurst},
		{"egressPacketRate", "packets/s", nil, &q.EgressPacketRate}, {"egressPacketBurst", "packets", nil, &q.EgressPacketBurst},
		{"ingressNewConnections", "connections/s", nil, &q.IngressNewConnections}, {"egressNewConnections", "connections/s", nil, &q.EgressNewConnections},
		{"ingressMaxConnections", "connections", nil, &q.IngressMaxConnections}, {"egressMaxConnections", "connections", nil, &q.EgressMaxConnections},
	}
}

// All are all limits in their order, also those that limit nothing.
func (q QoSControls) All() (list []QoSLimit) {
	for _, p := range q.pointers() {
		l := QoSLimit{Name: p.name, Unit: p.unit}
		if p.bits != nil {
			l.Value = *p.bits
		} else {
			l.Value = uint64(*p.count)
		}
		list = append(list, l)
	}
	return list
}

// Set sets a limit by its name; 0 ends it.
func (q *QoSControls) Set(name string, value uint64) error {
	for _, p := range q.pointers() {
		switch {
		case p.name != name:
		case p.bits != nil:
			*p.bits = value
			return nil
		case value > maxRate:
			return fmt.Errorf("%s %d: must be at most %d: %w", name, value, maxRate, ErrInvalid)
		default:
			*p.count = uint32(value)
			return nil
		}
	}
	return fmt.Errorf("%q is no limit: %w", name, ErrInvalid)
}

// Bandwidth are those of bandwidth.
func (q QoSControls) Bandwidth() Bandwidth {
	return Bandwidth{Ingress: Rate{q.IngressBandwidth, q.IngressBurst}, Egress: Rate{q.EgressBandwidth, q.EgressBurst}}
}

// least is the lesser limit; of two alike the lesser burst, and 0 is none.
func least[T cmp.Ordered](a, aBurst, b, bBurst T) (T, T) {
	var none T
	switch {
	case b == none:
		return a, aBurst
	case a == none || b < a:
		return b, bBurst
	case a < b || bBurst == none:
		return a, aBurst
	case aBurst == none:
		return b, bBurst
	}
	return a, min(aBurst, bBurst)
}

// Least are the least of each of both.
func (q QoSControls) Least(o QoSControls) (out QoSControls) {
	out.IngressBandwidth, out.IngressBurst = least(q.IngressBandwidth, q.IngressBurst, o.IngressBandwidth, o.IngressBurst)
	out.EgressBandwidth, out.EgressBurst = least(q.EgressBandwidth, q.EgressBurst, o.EgressBandwidth, o.EgressBurst)
	out.IngressPacketRate, out.IngressPacketBurst = least(q.IngressPacketRate, q.IngressPacketBurst, o.IngressPacketRate, o.IngressPacketBurst)
	out.EgressPacketRate, out.EgressPacketBurst = least(q.EgressPacketRate, q.EgressPacketBurst, o.EgressPacketRate, o.EgressPacketBurst)
	out.IngressNewConnections, _ = least(q.IngressNewConnections, 0, o.IngressNewConnections, 0)
	out.EgressNewConnections, _ = least(q.EgressNewConnections, 0, o.EgressNewConnections, 0)
	out.IngressMaxConnections, _ = least(q.IngressMaxConnections, 0, o.IngressMaxConnections, 0)
	out.EgressMaxConnections, _ = least(q.EgressMaxConnections, 0, o.EgressMaxConnections, 0)
	return out
}

// Limits are what applies to the endpoint: its own limits, what its runtime asked for, and
// those of its profiles; profile returns one of them, nil if it does not exist.
func (e *Endpoint) Limits(profile func(name string) *Profile) QoSControls {
	b := e.Spec.Bandwidth
	q := e.Spec.QoSControls.Least(QoSControls{
		IngressBandwidth: b.Ingress.Bits, IngressBurst: b.Ingress.Burst, EgressBandwidth: b.Egress.Bits, EgressBurst: b.Egress.Burst,
	})
	for _, name := range e.Spec.Profiles {
		if p := profile(name); p != nil {
			q = q.Least(p.Spec.QoSControls)
		}
	}
	return q
}
