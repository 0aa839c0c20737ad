package datastore

// BFD is how a dead path is found (RFC 5880): a neighbour that is silent for Multiplier
// intervals is not reached any more.
type BFD struct {
	// Interval is between two packets, each way, in milliseconds; default 100. The longer one
	// of both sides counts.
	Interval int `json:"interval,omitempty"`
	// Multiplier is the neighbour's detection time in intervals; default 3.
	Multiplier int `json:"multiplier,omitempty"`
}

// What BFD is set to unless somebody says otherwise: a dead neighbour is found in 300 ms.
const (
	DefaultBFDInterval   = 100 // ms
	DefaultBFDMultiplier = 3
)

func (b *BFD) setDefaults() {
	if b == nil {
		return
	}
	if b.Interval == 0 {
		b.Interval = DefaultBFDInterval
	}
	if b.Multiplier == 0 {
		b.Multiplier = DefaultBFDMultiplier
	}
}

func (b *BFD) validate() error {
	switch {
	case b == nil:
	case b.Interval != 0 && (b.Interval < 10 || b.Interval > 60_000):
		return &FieldError{Field: "spec.bfd.interval", Value: decimal(b.Interval), Reason: "must be from 10 to 60000 milliseconds"}
	case b.Multiplier < 0 || b.Multiplier > 255:
		return &FieldError{Field: "spec.bfd.multiplier", Value: decimal(b.Multiplier), Reason: "must be from 1 to 255 intervals (RFC 5880)"}
	}
	return nil
}

// checkHops refuses BFD with a peer that may be behind a router.
func (s *PeerSpec) checkHops() error {
	if hops := max(s.Multihop, s.TTLSecurity); s.BFD != nil && hops > 1 {
		field := "spec.multihop"
		if s.TTLSecurity > 0 {
			field = "spec.ttlSecurity"
		}
		return &FieldError{Field: field, Value: decimal(hops), Reason: "stands beside bfd, which works over a single hop only: leave one of them out"}
	}
	return nil
}
