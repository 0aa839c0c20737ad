package agent

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev/netlab"
)

// ofFilters are, of each packet filter, how much of ours is in the kernel.
func (s *site) ofFilters() string {
	return netlab.Must(s.t, s.node, "sh", "-c", `echo nftables $(nft list tables | grep -c ' netctl$')
for mode in legacy nft; do echo iptables-$mode $( (iptables-$mode-save; ip6tables-$mode-save) 2>/dev/null | grep -c nctl-); done
echo ipset $(ipset list -n | grep -c ^nctl-)`)
}

// alone waits until a packet filter is the only one of ours.
func (s *site) alone(name string) {
	s.t.Helper()
	s.until(name+" alone", func() string {
		text := s.ofFilters()
		for line := range strings.Lines(text) {
			what, n, _ := strings.Cut(strings.TrimSpace(line), " ")
			mine := what == name || what == "ipset" && name != backendNFT
			if (n != "0") != mine {
				return text
			}
		}
		return ""
	})
}

// TestBackends moves a host from one packet filter to the others and back while packets go on:
// none is lost, what is denied stays denied, and nothing of the former one is left. What others
// do to iptables and its sets is put back.
func TestBackends(t *testing.T) {
	s := newSite(t, netlab.Options{IPv6: true}, nil)
	s.pool("10.0.0.0/24")
	c1, _ := s.attach("c1", "dataman", nil)
	c2, a2 := s.attach("c2", "dataman", nil)
	c3, _ := s.attach("c3", "app", nil)
	to := a2.Addresses[0]
	s.reaches(c1, to)
	s.alone(backendNFT)
	for _, name := range []string{iptablesLegacy, iptablesNFT, backendAuto} {
		s.cfg.Backend = name
		s.across("move to "+name, c1, c2, to, func() { s.kill(unix.SIGTERM) })
		if name == backendAuto {
			name = backendNFT
		}
		s.alone(name)
		if st := s.status(); st.Filter != name || len(st.Problems) > 0 || (name == backendNFT) != (len(st.Lacks) == 0) {
			t.Errorf("%+v", st)
		}
		s.until("noted for the next start", func() string {
			if kept, err := os.ReadFile(s.node.Path("/run/netctl-node/packet-filter")); err != nil || string(kept) != name {
				return fmt.Sprint(string(kept), err)
			}
			return ""
		})
		if s.ping(c3, to) {
			t.Errorf("%s: another profile's endpoint gets through", name)
		}
		if name != backendNFT {
			drift(t, s, name, c1, c3, to)
		}
	}
}

// drift has others damage a packet filter.
func drift(t *testing.T, s *site, flavour string, friend, stranger *netlab.Container, to netip.Addr) {
	t.Helper()
	state := func() string {
		return netlab.Must(t, s.node, "sh", "-c", fmt.Sprintf("(%[1]s-save; ip6%[2]s-save) 2>/dev/null | grep -e nctl- -e ':FORWARD'; ipset save | grep -v -e unseen -e timeout | grep ^add | sort", flavour, strings.TrimPrefix(flavour, "ip")))
	}
	plain := func() string {
		return strings.Join(strings.FieldsFunc(state(), func(r rune) bool { return r == '[' || r == ']' }), "")
	}
	before := plain()
	for _, damage := range []string{
		flavour + " -F", flavour + " -I FORWARD -j ACCEPT", "ip6" + strings.TrimPrefix(flavour, "ip") + " -t raw -F", flavour + " -N nctl-left",
		"for s in $(ipset list -n); do ipset destroy $s 2>/dev/null || ipset flush $s; done",
	} {
		netlab.Must(t, s.node, "sh", "-c", damage)
		began := time.Now()
		s.until("repair of "+damage, func() string {
			if now := plain(); counted(now) != counted(before) && damage != flavour+" -I FORWARD -j ACCEPT" {
				return differ(counted(before), counted(now))
			}
			if first := netlab.Must(t, s.node, "sh", "-c", flavour+" -S FORWARD | sed -n 2p"); !strings.Contains(first, "-j nctl-FORWARD") {
				return first
			}
			return ""
		})
		t.Logf("%s: %s repaired after %v", flavour, damage, time.Since(began))
		if strings.Contains(damage, "-I FORWARD") {
			netlab.Must(t, s.node, flavour, "-D", "FORWARD", "-j", "ACCEPT")
		}
	}
	s.reaches(friend, to)
	if s.ping(stranger, to) {
		t.Errorf("%s repaired: another profile's endpoint gets through", flavour)
	}
}

// counted is text without what rules have counted.
func counted(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		if before, _, is := strings.Cut(line, " 0:0"); is {
			line = before
		}
		if strings.HasPrefix(line, ":") {
			line, _, _ = strings.Cut(line, " ")
		}
		out = append(out, strings.TrimSpace(line))
	}
	return strings.Join(out, "\n")
}
