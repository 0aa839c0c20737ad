package commands

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
)

// TestDoctorAsksMembers: the date is asked of the members of a datastore of netctl's own,
// where nodes join, and of nobody's etcd.
func TestDoctorAsksMembers(t *testing.T) {
	s := &settings{StateDir: filepath.Join(t.TempDir(), "none")}
	s.Agent.Gateway = "169.254.1.1"
	s.Datastore.Endpoints = []string{"https://192.0.2.2:2379", "https://192.0.2.1:2379", "unix:///x"}
	if got := s.doctorConfig().Members; len(got) > 0 {
		t.Errorf("without a certificate: %s", got)
	}
	s.Datastore.Cert = "node.crt"
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:2378"), netip.MustParseAddrPort("192.0.2.2:2378")}
	if got := s.doctorConfig().Members; !slices.Equal(got, want) {
		t.Errorf("%s, want %s", got, want)
	}
	s.Datastore.User = "node1"
	if got := s.doctorConfig().Members; len(got) > 0 {
		t.Errorf("of an external etcd: %s", got)
	}
}
