package datastore

import (
	"errors"
	"strings"
	"testing"
)

func TestQoSControls(t *testing.T) {
	for q, says := range map[QoSControls]string{
		{IngressBandwidth: 7999}:                              "at least 8000",
		{EgressBurst: 1}:                                      ".egressBurst",
		{IngressPacketBurst: 1}:                               ".ingressPacketRate",
		{EgressMaxConnections: maxRate + 1}:                   ".egressMaxConnections",
		{EgressPacketRate: 1, EgressPacketBurst: maxRate + 1}: "burst must be at most",
	} {
		e := &Profile{Metadata: Metadata{Name: "p"}, Spec: ProfileSpec{QoSControls: q}}
		if err := e.Validate(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "spec.qosControls") {
			t.Errorf("%+v: %v, want %q", q, err, says)
		}
	}
	var q QoSControls
	for i, l := range q.All() {
		if err := q.Set(l.Name, uint64(8000+i)); err != nil {
			t.Fatal(err)
		}
	}
	for i, l := range q.All() {
		if l.Value != uint64(8000+i) {
			t.Errorf("%s is %d", l.Name, l.Value)
		}
	}
	if err := q.Validate(); err != nil {
		t.Error(err)
	}
	for name, value := range map[string]uint64{"ingressPacketRate": maxRate + 1, "nosuch": 1} {
		if err := q.Set(name, value); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLimits: of each the least applies, with its burst, wherever it comes from.
func TestLimits(t *testing.T) {
	e := &Endpoint{Spec: EndpointSpec{
		Profiles: []string{"a", "nosuch", "b"}, Bandwidth: Bandwidth{Ingress: Rate{9000, 100}, Egress: Rate{8000, 0}},
		QoSControls: QoSControls{IngressBandwidth: 10000, IngressBurst: 7, EgressPacketRate: 5},
	}}
	profiles := map[string]*Profile{"a": {}, "b": {}}
	profiles["a"].Spec.QoSControls = QoSControls{IngressBandwidth: 9000, EgressPacketRate: 5, EgressPacketBurst: 3, IngressMaxConnections: 4}
	profiles["b"].Spec.QoSControls = QoSControls{EgressPacketRate: 6, EgressPacketBurst: 1, IngressMaxConnections: 3, EgressNewConnections: 1}
	want := QoSControls{IngressBandwidth: 9000, IngressBurst: 100, EgressBandwidth: 8000, EgressPacketRate: 5, EgressPacketBurst: 3, IngressMaxConnections: 3, EgressNewConnections: 1}
	if got := e.Limits(func(name string) *Profile { return profiles[name] }); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}
