package datastore

import (
	"strings"
	"testing"
)

func TestBandwidth(t *testing.T) {
	for _, ok := range []Bandwidth{{}, {Ingress: Rate{Bits: MinRate}}, {Egress: Rate{1 << 60, 1}}} {
		if err := ok.Validate(); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	for b, says := range map[Bandwidth]string{
		{Ingress: Rate{Bits: MinRate - 1}}: ".ingress.bits", {Egress: Rate{Bits: 1}}: ".egress.bits", {Egress: Rate{Burst: 1}}: ".egress.burst",
	} {
		if err := b.Validate(); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v", b, err)
		}
	}
}

// TestIPv6Alone: what has no IPv4 has IPv6, whatever it says.
func TestIPv6Alone(t *testing.T) {
	n := &Network{Metadata: Metadata{Name: "six"}, Spec: NetworkSpec{IPv4: new(false)}}
	n.SetDefaults()
	if !n.Spec.IPv6Only() || !n.Spec.IPv6 {
		t.Errorf("%+v", n.Spec)
	}
	if m := (&NetworkSpec{IPv4: new(true)}); m.IPv6Only() || (&NetworkSpec{}).IPv6Only() {
		t.Error("IPv4 is not had")
	}
}
