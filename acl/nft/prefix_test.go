package nft

import (
	"net/netip"
	"testing"

	"netctl/datastore"
)

// TestAllowedPrefixes: an endpoint sends from the networks behind it, nobody else does, and
// rules take them for its own.
func TestAllowedPrefixes(t *testing.T) { onAll(t, testAllowedPrefixes) }

func testAllowedPrefixes(t *testing.T, on string) {
	l, x := wiredLab(t, on)
	l.addHost("r", "ncr", testGroup, "10.0.0.7", "fd00::7", "10.9.0.5", "fd09::5")
	behind := func(profile string, prefixes ...string) {
		t.Helper()
		c := endpoint("n1", "n1/cni/r/eth0", "ncr", []string{profile}, "10.0.0.7", "fd00::7")
		for _, p := range prefixes {
			e := c.New.(*datastore.Endpoint)
			e.Spec.AllowedPrefixes = append(e.Spec.AllowedPrefixes, netip.MustParsePrefix(p))
		}
		x.Apply(c)
		l.apply(x.Flush())
		if on == onNFT {
			if wrote, err := l.table.Sync(t.Context(), x.Ruleset()); err != nil || wrote {
				t.Fatalf("read back as something else: %v, %v", wrote, err)
			}
		}
	}
	expect := func(want bool, from, src, dst string) {
		t.Helper()
		l.expect(want, from, l.uniquePort(udp(src, dst, 7)))
	}

	behind("web")
	expect(false, "r", "10.9.0.5", "10.0.0.1")
	expect(false, "r", "fd09::5", "fd00::1")

	behind("web", "10.9.0.0/24", "fd09::/64")
	expect(true, "r", "10.9.0.5", "10.0.0.1")
	expect(true, "r", "fd09::5", "fd00::1")
	expect(true, "r", "10.0.0.7", "10.0.0.1")
	expect(false, "r", "10.9.1.5", "10.0.0.1")
	expect(false, "r", "fd09:0:0:1::5", "fd00::1")
	expect(false, "a", "10.9.0.6", "10.0.0.2")
	expect(false, "n", "198.51.100.5", "10.9.0.5")
	expect(false, "r", "10.9.0.5", "10.0.0.3")
	expect(false, "r", "fd09::5", "fd00::3")
	expect(true, "a", "10.0.0.1", "10.9.0.5")
	expect(false, "c", "10.0.0.3", "10.9.0.5")
	expect(false, "c", "fd00::3", "fd09::5")

	x.Apply(profile(t, "db", []string{"db"}, []string{"deny from not tag web", "allow udp to ports 7"}, []string{"allow"}))
	l.apply(x.Flush())
	expect(true, "r", "10.9.0.5", "10.0.0.3")
	expect(false, "n", "192.0.2.9", "10.0.0.3")
	x.Apply(profile(t, "db", []string{"db"}, []string{"deny from not selector \"role == 'web'\"", "allow udp to ports 7"}, []string{"allow"}))
	l.apply(x.Flush())
	expect(true, "r", "10.9.0.5", "10.0.0.3")
	expect(false, "n", "192.0.2.9", "10.0.0.3")

	behind("web", "10.9.0.0/23") // over what was there
	expect(true, "r", "10.9.1.5", "10.0.0.1")
	expect(false, "r", "fd09::5", "fd00::1")
	behind("db", "10.9.0.0/23")
	expect(false, "r", "10.9.1.5", "10.0.0.1")

	behind("web", "10.9.0.0/24")
	expect(true, "r", "10.9.0.5", "10.0.0.1")
	gone := endpoint("n1", "n1/cni/r/eth0", "ncr", []string{"web"}, "10.0.0.7", "fd00::7")
	gone.Old, gone.New = gone.New, nil
	x.Apply(gone)
	l.apply(x.Flush())
	expect(false, "r", "10.9.0.5", "10.0.0.1")
	x.Apply(profile(t, "db", []string{"db"}, []string{"allow from tag db"}, []string{"allow"}))
	x.Flush()
	if got, want := x.Ruleset().String(), wiredIndex(t, testOptions()).Ruleset().String(); got != want {
		t.Errorf("the endpoint left something:\n%s\nwant\n%s", got, want)
	}
}
