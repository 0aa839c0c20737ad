//go:build bench

package commands_test

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// calico is the layout that Calico's agent writes for the same model, of IPv4 alone: a tree
// of interface names, a chain and direction for each endpoint, marks for verdicts, ipsets
// for tags. It has neither translation of addresses nor policies, which would be more.
func (m policyModel) calico() (sets, rules string) {
	const accepted, pass = "0x10000/0x10000", "0x0/0x10000"
	var set, out, chains strings.Builder
	link := m.calicoLink
	name := func(kind, of string) string {
		return fmt.Sprintf("cali-%s-%.17s", kind, hexOf(of))
	}
	tag := func(t string) string { return "cali40t:" + t }
	add := func(chain, rule string, args ...any) {
		fmt.Fprintf(&out, "-A %s "+rule+"\n", append([]any{chain}, args...)...)
	}
	chain := func(c string) string {
		fmt.Fprintf(&chains, ":%s - [0:0]\n", c)
		return c
	}

	for i := range 500 {
		fmt.Fprintf(&set, "create %s hash:net family inet maxelem 1048576\n", tag(policyTag(i)))
	}
	for i := range m.endpoints {
		fmt.Fprintf(&set, "add %s %s\n", tag(policyTag(m.profileOf(i))), policyAddress(i))
	}
	for p := range m.profiles() {
		in, from := policyRules(p)
		for _, d := range []struct {
			kind  string
			rules []policyRule
		}{{"pri", in}, {"pro", from}} {
			c := chain(name(d.kind, fmt.Sprint("p", p)))
			for _, r := range d.rules {
				var match string
				if r.protocol != "" {
					match += "-p " + r.protocol + " "
				}
				if r.tag != "" {
					match += "-m set --match-set " + tag(r.tag) + " src "
				}
				if r.ports != "" {
					match += "-m multiport --dports " + r.ports + " "
				}
				if r.deny {
					add(c, "%s-j DROP", match)
					continue
				}
				add(c, "%s-j MARK --set-xmark %s", match, accepted)
				add(c, "-m mark --mark %s -j RETURN", accepted)
			}
		}
	}
	for _, d := range []struct{ flag, tree, own, profile string }{
		{"-i", "cali-from-wl-dispatch", "fw", "pro"}, {"-o", "cali-to-wl-dispatch", "tw", "pri"},
	} {
		chain(d.tree)
		leaves := map[byte][]int{}
		for i := range m.endpoints {
			digit := link(i)[4]
			leaves[digit] = append(leaves[digit], i)
		}
		for _, digit := range []byte("0123456789abcdef") {
			switch list := leaves[digit]; len(list) {
			case 0:
				continue
			case 1:
				add(d.tree, "%s %s -g cali-%s-%s", d.flag, link(list[0]), d.own, link(list[0]))
			default:
				leaf := chain(fmt.Sprintf("%s-%c", d.tree, digit))
				add(d.tree, "%s cali%c+ -g %s", d.flag, digit, leaf)
				for _, i := range list {
					add(leaf, "%s %s -g cali-%s-%s", d.flag, link(i), d.own, link(i))
				}
				add(leaf, "-m comment --comment \"Unknown interface\" -j DROP")
			}
		}
		add(d.tree, "-m comment --comment \"Unknown interface\" -j DROP")
		for i := range m.endpoints {
			c := chain("cali-" + d.own + "-" + link(i))
			add(c, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
			add(c, "-m conntrack --ctstate INVALID -j DROP")
			add(c, "-j MARK --set-xmark %s", pass)
			if d.own == "fw" {
				add(c, "-p udp -m multiport --dports 4789 -m comment --comment \"Drop VXLAN encapped packets\" -j DROP")
				add(c, "-p ipencap -m comment --comment \"Drop IPinIP encapped packets\" -j DROP")
			}
			add(c, "-j %s", name(d.profile, fmt.Sprint("p", m.profileOf(i))))
			add(c, "-m comment --comment \"Return if profile accepted\" -m mark --mark %s -j RETURN", accepted)
			add(c, "-m comment --comment \"Drop if no profiles matched\" -j DROP")
		}
	}
	for _, c := range []string{"cali-FORWARD", "cali-from-hep-forward", "cali-to-hep-forward", "cali-cidr-block"} {
		chain(c)
	}
	add("FORWARD", "-j cali-FORWARD")
	add("FORWARD", "-m mark --mark %s -m comment --comment \"Policy explicitly accepted packet.\" -j ACCEPT", accepted)
	add("FORWARD", "-j MARK --set-xmark %s", accepted)
	add("cali-FORWARD", "-j MARK --set-xmark 0x0/0xe0000")
	add("cali-FORWARD", "-m mark --mark %s -j cali-from-hep-forward", pass)
	add("cali-FORWARD", "-i cali+ -j cali-from-wl-dispatch")
	add("cali-FORWARD", "-o cali+ -j cali-to-wl-dispatch")
	add("cali-FORWARD", "-j cali-to-hep-forward")
	add("cali-FORWARD", "-j cali-cidr-block")
	return set.String(), `*raw
:cali-PREROUTING - [0:0]
:cali-from-host-endpoint - [0:0]
:cali-rpf-skip - [0:0]
-A PREROUTING -j cali-PREROUTING
-A cali-PREROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-PREROUTING -i cali+ -j MARK --set-xmark 0x40000/0x40000
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -j cali-rpf-skip
-A cali-PREROUTING -m mark --mark 0x40000/0x40000 -m rpfilter --validmark --invert -j DROP
-A cali-PREROUTING -m mark --mark 0x0/0x40000 -j cali-from-host-endpoint
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
COMMIT
*mangle
:cali-PREROUTING - [0:0]
:cali-POSTROUTING - [0:0]
:cali-from-host-endpoint - [0:0]
:cali-to-host-endpoint - [0:0]
-A PREROUTING -j cali-PREROUTING
-A POSTROUTING -j cali-POSTROUTING
-A cali-PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -j ACCEPT
-A cali-PREROUTING -j cali-from-host-endpoint
-A cali-PREROUTING -m mark --mark 0x10000/0x10000 -m comment --comment "Host endpoint policy accepted packet." -j ACCEPT
-A cali-POSTROUTING -m mark --mark 0x10000/0x10000 -j RETURN
-A cali-POSTROUTING -j MARK --set-xmark 0x0/0xf0000
-A cali-POSTROUTING -m conntrack --ctstate DNAT -j cali-to-host-endpoint
-A cali-POSTROUTING -m mark --mark 0x10000/0x10000 -m comment --comment "Host endpoint policy accepted packet." -j RETURN
COMMIT
*filter
` + chains.String() + out.String() + "COMMIT\n"
}

func (policyModel) calicoLink(i int) string {
	return fmt.Sprintf("cali%.11s", hexOf(policyEndpointName(i)))
}

func hexOf(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }
