package iptables

import "testing"

// TestRead reads what iptables-save prints of hosts with and without Docker.
func TestRead(t *testing.T) {
	const ours = "-A FORWARD -o nc+ -m comment --comment netctl -j ACCEPT\n-A FORWARD -i nc+ -m comment --comment netctl -j ACCEPT\n"
	for what, x := range map[string]struct {
		text string
		want Flavour
	}{
		"nothing":      {"", Flavour{}},
		"no rules":     {"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", Flavour{}},
		"a drop":       {"*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i eth0 -j ACCEPT\nCOMMIT\n", Flavour{Rules: 1, InUse: true, ForwardDrop: true}},
		"accepted":     {"*filter\n:FORWARD DROP [0:0]\n" + ours + "COMMIT\n", Flavour{InUse: true, ForwardDrop: true, Accepts: true}},
		"one way":      {"*filter\n:FORWARD DROP [0:0]\n-A FORWARD -i nc+ -m comment --comment netctl -j ACCEPT\nCOMMIT\n", Flavour{InUse: true, ForwardDrop: true}},
		"other prefix": {"*filter\n:FORWARD DROP [0:0]\n-A FORWARD -o cali+ -m comment --comment netctl -j ACCEPT\n-A FORWARD -i cali+ -m comment --comment netctl -j ACCEPT\nCOMMIT\n", Flavour{InUse: true, ForwardDrop: true}},
		"behind Docker's": {"*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n" + ours + "COMMIT\n",
			Flavour{Rules: 1, InUse: true, ForwardDrop: true, Docker: true}},
		"in Docker's": {"*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n-A FORWARD -j DOCKER-USER\n" +
			"-A DOCKER-USER -o nc+ -m comment --comment netctl -j ACCEPT\n-A DOCKER-USER -i nc+ -m comment --comment netctl -j ACCEPT\nCOMMIT\n",
			Flavour{Rules: 1, InUse: true, ForwardDrop: true, Docker: true, Accepts: true}},
		"the distribution's": {"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited\n" + ours + "COMMIT\n",
			Flavour{Rules: 4, InUse: true, ForwardEnds: "REJECT"}},
		"a rule that says why": {"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -m comment --comment \"no \\\"-j ACCEPT\\\" here\" -j DROP\nCOMMIT\n", Flavour{Rules: 1, InUse: true, ForwardEnds: "DROP"}},
		"accepted before it":   {"*filter\n:FORWARD ACCEPT [0:0]\n" + ours + "-A FORWARD -j DROP\nCOMMIT\n", Flavour{Rules: 1, InUse: true, ForwardEnds: "DROP", Accepts: true}},
		"perhaps accepted":     {"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.65.0.0/16 -j ACCEPT\n-A FORWARD -j DROP\nCOMMIT\n", Flavour{Rules: 2, InUse: true}},
		"dropped for some":     {"*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i eth9 -j DROP\nCOMMIT\n", Flavour{Rules: 1, InUse: true}},
		"of another chain":     {"*filter\n:FORWARD ACCEPT [0:0]\n:x - [0:0]\n-A x -j DROP\nCOMMIT\n", Flavour{Rules: 1, InUse: true}},
		"another table":        {"*mangle\n:FORWARD DROP [0:0]\nCOMMIT\n", Flavour{InUse: true}},
	} {
		var f Flavour
		f.read(x.text, "nc")
		if f != x.want {
			t.Errorf("%s: %+v, want %+v", what, f, x.want)
		}
	}
}
