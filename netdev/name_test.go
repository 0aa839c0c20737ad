package netdev

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"netctl/datastore"
)

func TestLinkName(t *testing.T) {
	const endpoint = "node1/cni/4f2c/eth0"
	got := LinkName(DefaultPrefix, endpoint)
	if got != "nc42117a9d9ae" {
		t.Errorf("LinkName = %q: a changed name orphans every running endpoint", got)
	}
	if cali := LinkName("cali", endpoint); len(cali) != MaxName || ValidInterface(cali) != nil {
		t.Errorf("LinkName(cali) = %q", cali)
	}
	if LinkName("nc", "node1/cni/4f2c/eth1") == got {
		t.Error("two interfaces of one workload share a link")
	}
	for name, is := range map[string]bool{got: true, "nc42117a9d9a": false, "foo": false, "nc42117a9d9ax": false, "xx42117a9d9ae": false, "nc42117a9d9aG": false} {
		if IsLinkName(DefaultPrefix, name) != is {
			t.Errorf("IsLinkName(%s) is not %v", name, is)
		}
	}
	if retired := RetiredName(1<<31 - 1); ValidInterface(retired) != nil {
		t.Errorf("RetiredName = %q", retired)
	}
}

func TestValidInterface(t *testing.T) {
	for _, name := range []string{"eth0", "a", "cali0@x", "exactly15chars_"} {
		if err := ValidInterface(name); err != nil {
			t.Errorf("%q refused: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "a/b", "a:1", "a b", "eth%d", "a\n", "ü", "sixteen_letters_"} {
		err := ValidInterface(name)
		if !errors.Is(err, datastore.ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestValidPrefix(t *testing.T) {
	for _, p := range []string{"nc", "cali", "x"} {
		if err := ValidPrefix(p); err != nil {
			t.Errorf("%q refused: %v", p, err)
		}
	}
	for _, p := range []string{"", "calix", "n-", "n.", "ü"} {
		if err := ValidPrefix(p); !errors.Is(err, datastore.ErrInvalid) {
			t.Errorf("%q: %v", p, err)
		}
	}
}

func TestHostLinkLocalFollowsFromHostMAC(t *testing.T) {
	mac, err := net.ParseMAC(HostMAC)
	if err != nil {
		t.Fatal(err)
	}
	a := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	if got := netip.AddrFrom16(a); got != HostLinkLocal() {
		t.Errorf("EUI-64 of %s is %s, HostLinkLocal %s", HostMAC, got, HostLinkLocal())
	}
}

func FuzzValidInterface(f *testing.F) {
	for _, s := range []string{"eth0", "..", "a/b", "nc0123456789a", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if ValidInterface(name) != nil {
			return
		}
		if len(name) > MaxName || strings.ContainsAny(name, "/ \x00\n") {
			t.Errorf("accepted %q", name)
		}
	})
}
