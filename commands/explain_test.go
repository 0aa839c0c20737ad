package commands

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
)

// TestSurvey: what an answer for everything says is what single packets would.
func TestSurvey(t *testing.T) {
	rules := []string{"deny tcp to ports 22", "allow tcp to ports 20:25,http", "allow icmp type 3 code 1", "deny udp to ports 65535", "allow udp", "allow 99"}
	ports := []datastore.Port{{Name: "http", Protocol: "tcp", Port: 8080}}
	ask := func(q traffic) (explainedFlow, error) {
		f := explainedFlow{traffic: q, Sides: []explainedSide{{}}}
		side := &f.Sides[0]
		for i, text := range rules {
			r, err := datastore.ParseRule(text)
			if err != nil {
				return f, err
			}
			m := r.Protocol
			is := m.Number == q.number && (!m.HasType || q.first == uint16(m.Type)<<8+uint16(m.Code))
			in := len(r.To.Ports) == 0
			for _, p := range r.To.Ports {
				in = in || p.Name == "" && p.First <= q.first && q.first <= p.Last || p.Name == "http" && q.first == 8080
			}
			place := datastore.RulePlace{Position: i + 1, Rule: text}
			if is && in {
				f.Allowed = r.Action == datastore.Allow
				side.By, side.Allowed = &place, f.Allowed
				return f, nil
			}
			side.Passed = append(side.Passed, control.AskedRule{RulePlace: place})
		}
		return f, nil
	}
	for _, c := range []struct{ args, want string }{
		{"", "icmp type 0 to 3 code 0 no, icmp type 3 code 1 yes, icmp type 3 code 2 to 255 no, " +
			"tcp port 1-19 no, tcp port 20-21 yes, tcp port 22 no, tcp port 23-25 yes, tcp port 26-8079 no, tcp port 8080 yes, tcp port 8081-65535 no, " +
			"udp port 1-65534 yes, udp port 65535 no, 99 yes, other protocols no"},
		{"udp", "udp port 1-65534 yes, udp port 65535 no"},
		{"icmp", "icmp type 8 no"},
		{"tcp 22", "tcp port 22 no"},
		{"99", "99 yes"},
		{"98", "98 no"},
	} {
		q, err := parseTraffic(strings.Fields(c.args))
		if err != nil {
			t.Fatal(err)
		}
		flows, err := q.survey(ports, ask)
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, f := range flows {
			words = append(words, f.String()+map[bool]string{true: " yes", false: " no"}[f.Allowed])
		}
		if got := strings.Join(words, ", "); got != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.args, got, c.want)
		}
	}
	if flows, err := (traffic{}).survey(nil, func(q traffic) (explainedFlow, error) { return explainedFlow{traffic: q, Allowed: true}, nil }); err != nil || len(flows) != 1 || flows[0].String() != "everything" {
		t.Errorf("where all is allowed: %v, %v", flows, err)
	}
}

// TestDropsAreCounted: by who, to whom and why, whatever port they come from.
func TestDropsAreCounted(t *testing.T) {
	rule := &datastore.RulePlace{Kind: datastore.KindProfile, Name: "db", Direction: inbound, Position: 1, Rule: "deny"}
	of := func(src string, sport, dport uint16, rule *datastore.RulePlace) drop {
		return drop{Action: "denied", Direction: inbound, Protocol: "tcp", Count: 1, Rule: rule,
			Source: dropEnd{Address: netip.MustParseAddr(src), Port: sport}, Destination: dropEnd{Address: netip.MustParseAddr("10.0.0.1"), Port: dport, Endpoint: "n1/cni/db/eth0"}}
	}
	other := *rule
	other.Position = 2
	same := *rule
	var all []drop
	for _, d := range []drop{
		of("10.0.0.2", 1, 80, rule), of("10.0.0.2", 2, 80, &same), of("10.0.0.3", 1, 80, rule), of("10.0.0.2", 1, 81, rule), of("10.0.0.2", 3, 80, &other), of("10.0.0.2", 4, 80, nil), of("10.0.0.2", 5, 80, rule),
	} {
		all = counted(all, d)
	}
	var out bytes.Buffer
	a := &app{out: &out}
	if err := a.showDrops(formatTable, all, 0); err != nil {
		t.Fatal(err)
	}
	if len(all) != 5 || !strings.Contains(out.String(), "|    3    | denied |   tcp    | 10.0.0.2 | 10.0.0.1:80 (n1/cni/db/eth0) |  inbound  | profile db, inbound rule 1: deny |") {
		t.Errorf("%d rows:\n%s", len(all), out.String())
	}
}
