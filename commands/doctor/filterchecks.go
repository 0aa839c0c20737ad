package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"netctl/acl/iptables"
	"netctl/acl/nft"
)

func forwardPolicy(ctx context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	flavours, err := s.Iptables(ctx, s.cfg.LinkPrefix)
	for _, f := range flavours {
		if !f.ForwardDrop && f.ForwardEnds == "" || f.Accepts {
			continue
		}
		chain := "FORWARD"
		if f.Docker {
			chain = "DOCKER-USER"
		}
		var fix []string
		for _, direction := range []string{"-i", "-o"} {
			fix = append(fix, fmt.Sprintf("%s -w -I %s %s %s+ -m comment --comment netctl -j ACCEPT", f.Binary, chain, direction, s.cfg.LinkPrefix))
		}
		if f.ForwardEnds != "" { // a person's rule, which the agent leaves alone
			found = append(found, Finding{
				What: fmt.Sprintf("%s: FORWARD ends with a rule that is %s for everything, and nothing before it accepts what workloads send and receive", f.Binary, f.ForwardEnds),
				Fix:  append(fix, "# and in the file that the rules come from, such as /etc/sysconfig/iptables or /etc/iptables/rules.v4"),
			})
			continue
		}
		found = append(found, Finding{
			What:    fmt.Sprintf("%s: the policy of FORWARD is DROP, and nothing accepts what workloads send and receive (the agent adds these two rules when it starts)", f.Binary),
			Fix:     fix,
			repairs: []repair{accept(s.cfg.LinkPrefix)},
		})
	}
	return found, err
}

// accept adds the two rules to every flavour that needs them.
func accept(prefix string) repair {
	return func(_ context.Context, h Host) (string, error) {
		n, err := h.Accept(prefix)
		if n == 0 {
			return "", err
		}
		return fmt.Sprintf("iptables: %d rules that accept forwarded packets of %s* added, was 0", n, prefix), err
	}
}

// ofIptables says that a chain is what iptables-nft shows, which has a check of its own.
func ofIptables(c nft.BaseChain, seen []iptables.Flavour) bool {
	if c.Family != "ip" && c.Family != "ip6" || c.Name != strings.ToUpper(c.Hook) {
		return false
	}
	return slices.ContainsFunc(seen, func(f iptables.Flavour) bool { return !f.Legacy && f.IPv6 == (c.Family == "ip6") })
}

func foreignChains(ctx context.Context, s *scene) (found []Finding, err error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	chains, err := s.BaseChains(s.cfg.LinkPrefix)
	if err != nil {
		return nil, err
	}
	seen, _ := s.Iptables(ctx, s.cfg.LinkPrefix) // what it cannot read is looked at here
	links := s.cfg.LinkPrefix + "*"
	for _, c := range chains {
		ends := c.Refuses != "" && c.Surely // by a rule
		if !c.Drop && !ends || ofIptables(c, seen) || c.Table == "firewalld" || c.Family == "arp" {
			continue
		}
		in, out := !c.In, !c.Out
		switch c.Hook {
		case "forward":
		case "prerouting":
			out = false
		case "postrouting":
			in = false
		default:
			continue // of what is for the host itself
		}
		var fix []string
		if in {
			fix = append(fix, fmt.Sprintf(`nft insert rule %s iifname "%s" accept`, c, links))
		}
		if out {
			fix = append(fix, fmt.Sprintf(`nft insert rule %s oifname "%s" accept`, c, links))
		}
		if len(fix) > 0 {
			found = append(found, Finding{
				What: fmt.Sprintf("nftables chain %s (hook %s, priority %d) %ss what it does not know, and no rule in it accepts %s", c, c.Hook, c.Priority, cmp.Or(c.Refuses, "drop"), links),
				Fix:  append(fix, "# and add the same rules to the file that makes the chain, such as /etc/nftables.conf"),
			})
		}
	}
	return found, nil
}

// firewalld: its table judges by zones, of which only that of the sources matters here.
func firewalld(ctx context.Context, s *scene) ([]Finding, error) {
	if !s.has(roleAgent) {
		return nil, skip("no agent is to run here")
	}
	chains, err := s.BaseChains(s.cfg.LinkPrefix)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(chains, func(c nft.BaseChain) bool { return c.Table == "firewalld" && c.Hook == "forward" }) {
		return nil, skip("firewalld has no rules here")
	}
	if forwards, err := s.zoneForwards(ctx); err != nil || forwards {
		return nil, err
	}
	var missing []string
	if s.cfg.Cluster != nil {
		sources, err := s.Run(ctx, "firewall-cmd", "--zone=trusted", "--list-sources")
		if err != nil {
			return nil, fmt.Errorf("firewall-cmd: %w", err)
		}
		for _, p := range s.cfg.Cluster.Pools {
			if cidr := p.Spec.CIDR.String(); !slices.Contains(strings.Fields(sources), cidr) {
				missing = append(missing, cidr)
			}
		}
		if len(missing) == 0 {
			return nil, nil
		}
	} else {
		missing = []string{"POOL"}
	}
	f := Finding{What: "firewalld filters here, and does not trust the addresses of pools: " + strings.Join(missing, ", ")}
	for _, m := range missing {
		f.Fix = append(f.Fix, "firewall-cmd --permanent --zone=trusted --add-source="+m)
	}
	f.Fix = append(f.Fix, "firewall-cmd --permanent --add-port=179/tcp --add-port=4789/udp --add-port=51820/udp --add-protocol=4", "firewall-cmd --reload")
	return []Finding{f}, nil
}

// zoneForwards says whether firewalld lets pass what stays in its default zone, which
// interfaces are in that nobody put elsewhere, and the uplink is in that, too.
func (s *scene) zoneForwards(ctx context.Context) (bool, error) {
	out, err := s.Run(ctx, "firewall-cmd", "--query-forward")
	if err != nil || strings.TrimSpace(out) != "yes" {
		return false, nil // it says no by its exit code; older ones do not know the question
	}
	zone, err := s.Run(ctx, "firewall-cmd", "--get-default-zone")
	if err != nil {
		return false, fmt.Errorf("firewall-cmd: %w", err)
	}
	up, ok, err := s.address(false)
	if err != nil || !ok {
		return false, err
	}
	of, err := s.Run(ctx, "firewall-cmd", "--get-zone-of-interface="+up.link.Name)
	if err != nil {
		return true, nil // it is in none: the default one is its
	}
	return strings.TrimSpace(of) == strings.TrimSpace(zone), nil
}

func bothFlavours(ctx context.Context, s *scene) ([]Finding, error) {
	flavours, err := s.Iptables(ctx, s.cfg.LinkPrefix)
	var legacy, modern []string
	words := func(f iptables.Flavour) string {
		drops := ""
		if f.ForwardDrop {
			drops = ", FORWARD drops"
		}
		return fmt.Sprintf("%s (%d rules%s)", f.Binary, f.Rules, drops)
	}
	for _, f := range flavours {
		switch {
		case f.InUse && f.Legacy:
			legacy = append(legacy, words(f))
		case f.InUse:
			modern = append(modern, words(f))
		}
	}
	if len(legacy) == 0 || len(modern) == 0 {
		return nil, err
	}
	f := Finding{What: "both flavours of iptables have rules: " + strings.Join(append(modern, legacy...), ", ")}
	for _, binary := range []string{"iptables", "ip6tables"} {
		if slices.ContainsFunc(legacy, func(l string) bool { return strings.HasPrefix(l, binary+"-") }) {
			f.Fix = append(f.Fix,
				fmt.Sprintf("%s-legacy-save > /root/%s-legacy.rules", binary, binary),
				fmt.Sprintf("%s-nft-restore --noflush < /root/%s-legacy.rules", binary, binary),
				fmt.Sprintf("for t in $(cat /proc/net/%s_tables_names); do for c in INPUT FORWARD OUTPUT; do %s-legacy -t $t -P $c ACCEPT 2>/dev/null; done; %s-legacy -t $t -F; %s-legacy -t $t -X; done",
					strings.TrimSuffix(binary, "tables"), binary, binary, binary))
		}
	}
	f.Fix = append(f.Fix, "update-alternatives --set iptables /usr/sbin/iptables-nft; update-alternatives --set ip6tables /usr/sbin/ip6tables-nft")
	return []Finding{f}, err
}
