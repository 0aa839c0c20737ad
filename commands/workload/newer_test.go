package workload

import (
	"errors"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/memory"
)

// TestRereadLeavesWhatWasUnderstood: after a lost race the store's word counts, but
// not where only a newer netctl can read it.
func TestRereadLeavesWhatWasUnderstood(t *testing.T) {
	s := New(Config{Store: memory.New()})
	write := func(key, value string) {
		t.Helper()
		if _, err := s.Store.Commit(t.Context(), datastore.Txn{Then: []datastore.Op{{Key: key, Value: []byte(value)}}}); err != nil {
			t.Fatal(err)
		}
	}
	write("/netctl/v1/profiles/web", `{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"web","needs":99},"spec":{}}`)
	write("/netctl/v1/networks/net", `{"apiVersion":"netctl/v1","kind":"Network","metadata":{"name":"net","needs":99},"spec":{}}`)
	web := &datastore.Profile{Metadata: datastore.Metadata{Name: "web"}}
	net := &datastore.Network{Metadata: datastore.Metadata{Name: "net"}, Spec: datastore.NetworkSpec{Profile: "web"}}
	req := control.AttachRequest{Network: "net"}

	known, err := s.reread(t.Context(), "n1/cni/w/eth0", req, Known{Network: net, Profiles: []*datastore.Profile{web}})
	if err != nil || known.Network != net || len(known.Profiles) != 1 || known.Profiles[0] != web {
		t.Errorf("got %+v, %v", known, err)
	}
	if known, err := s.reread(t.Context(), "n1/cni/w/eth0", req, Known{}); !errors.Is(err, datastore.ErrInvalid) {
		t.Errorf("without anything understood: %+v, %v", known, err)
	}
	if err := datastore.Create(t.Context(), s.Store, &datastore.Network{Metadata: datastore.Metadata{Name: "other"}, Spec: datastore.NetworkSpec{Profile: "web"}}); err != nil {
		t.Fatal(err)
	}
	req.Network = "other"
	known, err = s.reread(t.Context(), "n1/cni/w/eth0", req, Known{Network: net, Profiles: []*datastore.Profile{web}})
	if err != nil || known.Network.Metadata.Name != "other" || len(known.Profiles) != 1 {
		t.Errorf("got %+v, %v", known, err)
	}
}
