package etcd_test

import (
	"net"
	"strings"
	"testing"

	"netctl/datastore/etcd"
)

// TestUnresolvedName: a name server that does not answer is not a host that is
// down.
func TestUnresolvedName(t *testing.T) {
	for _, timeout := range []bool{false, true} {
		err := etcd.DialReason(&net.OpError{Op: "dial", Err: &net.DNSError{Name: "etcd.example", IsTimeout: timeout}}, false)
		if !strings.HasPrefix(err.Error(), "the name etcd.example cannot be resolved") {
			t.Errorf("timeout %v: %v", timeout, err)
		}
	}
	if _, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"192.0.2.1:2379"}}); err == nil || !strings.Contains(err.Error(), "want unix:///path or https://host:port") {
		t.Errorf("endpoint without a scheme: %v", err)
	}
}
