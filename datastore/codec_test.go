package datastore

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// samples is one object of every kind with every field set.
func samples() []Object {
	when := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	filterRule := func(s string) FilterRule {
		r, err := ParseFilterRule(s)
		if err != nil {
			panic(err)
		}
		return r
	}
	filterRules := []FilterRule{
		filterRule(`accept prefix 0.0.0.0/0, 10.0.0.0/8 ge 9 and not pool 10.0.0.0/8 and community no-export, 1:*:3 and as-path "_65001_" and source local, 10.0.0.1 ` +
			`then local-pref 200 and med 7 and remove community 64512:*, 1:2:* and add community 1:2, 1:2:3 and prepend 3`),
		filterRule("accept next-hop 10.0.0.0/24 then community 64512:1"),
	}
	rule := func(s string) Rule {
		r, err := ParseRule(s)
		if err != nil {
			panic(err)
		}
		return r
	}
	cidr := netip.MustParsePrefix
	addr := netip.MustParseAddr
	return []Object{
		&Node{Metadata{Name: "slave", Labels: map[string]string{"rack": "A 1"}},
			NodeSpec{[]netip.Prefix{cidr("192.168.99.102/24"), cidr("fd00:99::2/64")}, 64512, &Reflector{ReflectorAlways, addr("1.2.3.4"), "rack == 'A'"}, &Drain{"new disks", true}, "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="},
			NodeStatus{"ab12", "1.0.0", 1, []netip.Prefix{cidr("192.168.99.0/24")}, when, []Tunnel{{TunnelVXLAN, "02:00:00:00:00:01", "key", true}}}},
		&Report{Metadata{Name: "slave/agent"}, ReportStatus{Seen: when, Started: when, Problems: []string{"drift"}, Refusing: []string{"chain inet corp late"}, Behind: true, Endpoints: 3,
			Runtimes: []RuntimeStatus{{"docker", 2, 7, "does not answer", []NetworkState{{"web", NetworkDiffers, "made by hand"}}, 1}}}},
		&Report{Metadata{Name: "slave/speaker"}, ReportStatus{Seen: when, Bare: true,
			Sessions: []SessionStatus{{addr("192.168.99.103"), "node-to-node mesh", "up", when, "Established", true, "up", "eth1"}}}},
		&Pool{Metadata{Name: "10.0.0.0-26"}, PoolSpec{cidr("10.0.0.0/26"), 28, EncapIPIP, true, true, true, "has(rack)", []string{"no-export"}}},
		&Pool{Metadata{Name: "fd80:24e2:f998:72d6::-64"}, PoolSpec{cidr("fd80:24e2:f998:72d6::/64"), 122, EncapNone, false, false, false, "all()", nil}},
		&Block{Metadata{Name: "10.0.0.0-28"}, BlockSpec{cidr("10.0.0.0/28"), "slave", true, 3,
			[]Allocation{{0, "h0", "slave", "w", when}, {2, "h2", "slave2", "", when}}, []Released{{1, "boot", 77}}}},
		&Reservation{Metadata{Name: "dns"}, ReservationSpec{[]netip.Prefix{cidr("10.0.0.53/32")}, "w"}},
		&Network{Metadata{Name: "dataman", Needs: needsIPv6Only}, NetworkSpec{[]netip.Prefix{cidr("10.0.0.0/26")}, "p", new(false), true, map[string]string{"a": "b"}, []string{"podman", "cni"}}},
		&Endpoint{Metadata{Name: "slave/cni/0a1b/eth0", Labels: map[string]string{"org.x/y": "ü"}},
			EndpointSpec{"slave", "cni", "0a1b", "eth0", "dataman", "nc0123456789a", "02:00:00:00:00:01",
				[]netip.Addr{addr("10.0.0.48"), addr("fd00::1")}, []netip.Prefix{cidr("10.9.0.0/24")}, []string{"dataman"}, []Port{{"http", "tcp", 80}}, []HostPort{{"udp", addr("192.0.2.1"), 5353, 53}, {"tcp", netip.Addr{}, 8080, 80}},
				Bandwidth{Rate{1e6, 8000}, Rate{2e6, 1}}, Tap{"vm1", 64055, 104, true, 1400, []netip.Addr{addr("192.0.2.53")}, []string{"example.org"}}, QoSControls{8001, 1, 8002, 2, 3, 4, 5, 6, 7, 8, 9, 10}, true, true}},
		&Profile{Metadata{Name: "dataman"}, ProfileSpec{[]string{"dataman", "x"}, map[string]string{"k": "v"},
			[]Rule{rule("allow from tag app-A"), rule(`deny tcp from not selector "a == 'b'" to ports 1:2,http`)}, []Rule{}, QoSControls{8001, 1, 8002, 2, 3, 4, 5, 6, 7, 8, 9, 10}}},
		&BGPConfig{Metadata{Name: "default", Needs: needsFilters}, BGPConfigSpec{64513, new(false), Topology{TopologyReflectors, 7}, new(0), 10, 3600, []PeerFilters{{"role == 'tor'", []string{"tor"}}}, &BFD{20, 1}}},
		&Profile{Metadata{Name: "news", Needs: needsPolicies}, ProfileSpec{[]string{}, nil, []Rule{rule("reject from set blocked")}, []Rule{}, QoSControls{}}},
		&Tier{Metadata{Name: "security"}, TierSpec{new(-5), Pass}},
		&Policy{Metadata{Name: "web", Needs: needsPolicies}, PolicySpec{"security", new(100), false, "role == 'web'", []PolicyType{Ingress, Egress}, []Rule{rule("allow tcp from set lb to ports 80"), rule("pass")}, []Rule{rule("reject")}, false, false, false}},
		&Policy{Metadata{Name: "draft", Needs: needsStaged}, PolicySpec{DefaultTier, nil, true, "all()", []PolicyType{Ingress}, []Rule{rule("deny")}, nil, false, false, false}},
		&Policy{Metadata{Name: "early", Needs: needsHostEndpoints}, PolicySpec{"security", nil, true, "all()", []PolicyType{Ingress}, []Rule{rule("deny")}, nil, true, true, false}},
		&Policy{Metadata{Name: "raw", Needs: needsHostEndpoints}, PolicySpec{"security", nil, false, "all()", []PolicyType{Egress}, nil, []Rule{rule("allow")}, true, false, true}},
		&HostEndpoint{Metadata{Name: "edge", Labels: map[string]string{"k": "v"}}, HostEndpointSpec{"slave", "eth0", []netip.Addr{addr("192.0.2.5")}, []string{"dataman"}, []Port{{"http", "tcp", 80}}}},
		&NetworkSet{Metadata{Name: "lb", Labels: map[string]string{"k": "v"}}, NetworkSetSpec{[]netip.Prefix{cidr("192.0.2.0/24"), cidr("2001:db8::/32")}, nil}},
		&NetworkSet{Metadata{Name: "names", Needs: needsDomains}, NetworkSetSpec{[]netip.Prefix{}, []string{"example.com", "*.example.org"}}},
		&BGPFilter{Metadata{Name: "tor"}, BGPFilterSpec{filterRules, FilterNext, filterRules, FilterReject}},
		&Config{Metadata{Name: "default"}, ConfigSpec{1440, EstablishedStrict}},
		&Peer{Metadata{Name: "tor-a1", Labels: map[string]string{"rack": "A 1"}, Needs: needsFilters}, PeerSpec{addr("192.168.99.1"), "", 4200000001, "", "", "rack == 'A1'", "the rack's switch", 1179,
			64600, 1, 0, &PeerPassword{"/etc/netctl-peers/tor", ""}, addr("192.168.99.102"), []string{"ipv4", "ipv6"}, true, new(0), 3, new(60), 7, &BFD{50, 5}, "self", "all", "both", 3, []string{"64512:1", "64512:1:2", "blackhole"}, []string{"default", "foreign", "blocks", "blackhole"}, 100, 50, "stop", 30, []string{"tor", "all"}, true, 1000, "for repair"}},
		&Peer{Metadata: Metadata{Name: "fd00:99::1-slave"}, Spec: PeerSpec{Address: addr("fd00:99::1"), AS: 65001, Node: "slave", Port: 179, TTLSecurity: 1, Password: &PeerPassword{"", "tor"}}},
		&Peer{Metadata: Metadata{Name: "eth-slave"}, Spec: PeerSpec{Interface: "eth[12]", RemoteAS: "external", Node: "slave", Port: 179}},
	}
}

func TestCodecRoundTrip(t *testing.T) {
	for _, o := range samples() {
		key, err := KeyOf(o)
		if err != nil {
			t.Fatal(err)
		}
		b, err := Encode(o)
		if err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		back, err := Decode(key, b)
		if err != nil {
			t.Fatalf("%s: %v\n%s", key, err, b)
		}
		if !reflect.DeepEqual(o, back) {
			t.Errorf("%s:\n got %+v\nwant %+v", key, back, o)
		}
		again, err := Encode(back)
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("%s: encodes as %s, then as %s, %v", key, b, again, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`"kind":"Pool","spec":{"cidr":"10.0.0.0/8"}`,
			`"kind":"Pool","metadata":{"name":"10.0.0.0-8"},"spec":{"cidr":"10.0.0.0/8","blockSize":26,"encap":"none","nodeSelector":"all()"}`},
		{`"kind":"Pool","spec":{"cidr":"10.0.0.0/28"}`,
			`"kind":"Pool","metadata":{"name":"10.0.0.0-28"},"spec":{"cidr":"10.0.0.0/28","blockSize":28,"encap":"none","nodeSelector":"all()"}`},
		{`"kind":"Pool","spec":{"cidr":"fd00::/64"}`,
			`"kind":"Pool","metadata":{"name":"fd00::-64"},"spec":{"cidr":"fd00::/64","blockSize":122,"encap":"none","nodeSelector":"all()"}`},
		{`"kind":"Profile","metadata":{"name":"p"}`,
			`"kind":"Profile","metadata":{"name":"p"},"spec":{"tags":["p"],"inbound":["allow from tag p"],"outbound":["allow"]}`},
		{`"kind":"Profile","metadata":{"name":"p"},"spec":{"tags":[],"inbound":[],"outbound":null}`,
			`"kind":"Profile","metadata":{"name":"p"},"spec":{"tags":[],"inbound":[],"outbound":["allow"]}`},
		{`"kind":"Network","metadata":{"name":"n"}`,
			`"kind":"Network","metadata":{"name":"n"},"spec":{"profile":"n"}`},
		{`"kind":"BGPConfig"`,
			`"kind":"BGPConfig","metadata":{"name":"default"},"spec":{"defaultAS":64511,"mesh":true,"topology":{"mode":"auto","meshLimit":50},"holdTime":90,"restartTime":120}`},
		{`"kind":"Peer","spec":{"address":"10.9.0.1","as":65001}`,
			`"kind":"Peer","metadata":{"name":"10.9.0.1"},"spec":{"address":"10.9.0.1","as":65001,"port":179}`},
		{`"kind":"Peer","spec":{"address":"fd00::1","as":65001,"node":"n1"}`,
			`"kind":"Peer","metadata":{"name":"fd00::1-n1"},"spec":{"address":"fd00::1","as":65001,"node":"n1","port":179}`},
		{`"kind":"Endpoint","spec":{"node":"a","orchestrator":"cni","workload":"w","interface":"eth0","link":"nc1","addresses":[]}`,
			`"kind":"Endpoint","metadata":{"name":"a/cni/w/eth0"},"spec":{"node":"a","orchestrator":"cni","workload":"w","interface":"eth0","link":"nc1","addresses":[]}`},
	} {
		o, err := DecodeManifest([]byte(`{"apiVersion":"netctl/v1",` + c.in + `}`))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		got, err := Encode(o)
		if want := `{"apiVersion":"netctl/v1",` + c.want + `}`; err != nil || string(got) != want {
			t.Errorf("%s:\n got %s, %v\nwant %s", c.in, got, err, want)
		}
	}
}

// refusal is a manifest and what the error says.
type refusal struct{ in, want string }

func checkRefusals(t *testing.T, refusals []refusal) {
	t.Helper()
	for _, c := range refusals {
		_, err := DecodeManifest([]byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.120s:\n got %v\nwant %s", c.in, err, c.want)
		}
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%.120s: %v is not ErrInvalid", c.in, err)
		}
	}
}

func TestManifestErrors(t *testing.T) {
	pool := func(spec string) string {
		return `{"apiVersion":"netctl/v1","kind":"Pool","spec":{` + spec + `}}`
	}
	checkRefusals(t, []refusal{
		{``, "unexpected end of JSON input (line 1, column 0)"},
		{"{\n  \"kind\": }", "invalid character '}' looking for beginning of value (line 2, column 11)"},
		{`[]`, "not an object with the texts apiVersion and kind"},
		{`{"kind":"Pool"}`, `apiVersion: must be netctl/v1`},
		{`{"apiVersion":"netctl/v2","kind":"Pool"}`, `apiVersion "netctl/v2": must be netctl/v1`},
		{`{"apiVersion":"netctl/v1","kind":"Pod"}`, `kind "Pod": there is no such kind`},
		{pool(`"cidr":"10.0.0.0/8","blocksize":26`), `spec.blocksize: unknown key`},
		{pool(`"cidr":"10.0.0.0/8","cidr":"11.0.0.0/8"`), `spec.cidr: given twice`},
		{`{"apiVersion":"netctl/v1","kind":"Pool","kind":"Pool","spec":{"cidr":"10.0.0.0/8"}}`, `kind: given twice`},
		{`{"apiVersion":"netctl/v1","kind":"Pool","spec":{"cidr":"10.0.0.0/8"},"status":{}}`, `status: unknown key`},
		{pool(`"cidr":"10.0.0.0/8"`) + `{}`, `invalid character '{' after top-level value`},
		{pool(`"cidr":"10.0.0.1/8"`), `spec.cidr "10.0.0.1/8": has bits set behind its prefix length; write 10.0.0.0/8`},
		{pool(`"cidr":"10.0.0.0"`), `spec.cidr "10.0.0.0": is no CIDR, like 10.0.0.0/26`},
		{pool(`"cidr":10`), `spec.cidr "10": must be a text`},
		{pool(``), `spec.cidr: a CIDR is missing`},
		{pool(`"cidr":"127.0.0.0/8"`), `overlaps 127.0.0.0/8, whose addresses cannot be routed`},
		{pool(`"cidr":"0.0.0.0/0"`), `cannot be routed`},
		{pool(`"cidr":"::ffff:10.0.0.0/104"`), `must be a plain IPv4 or IPv6 CIDR`},
		{pool(`"cidr":"10.0.0.0/8","blockSize":21`), `spec.blockSize "21": must be from 22 to 32 for 10.0.0.0/8`},
		{pool(`"cidr":"10.0.0.0/28","blockSize":26`), `must be from 28 to 32`},
		{pool(`"cidr":"10.0.0.0/8","blockSize":"26"`), `spec.blockSize "26": must be a whole number`},
		{pool(`"cidr":"10.0.0.0/8","blockSize":26.5`), `spec.blockSize "26.5": must be a whole number`},
		{pool(`"cidr":"fd00::/64","blockSize":117`), `must be from 118 to 128`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"retiredKey":"abc"}}`, `spec.retiredKey "abc": must be a public key of WireGuard, 32 bytes in base64`},
		{pool(`"cidr":"10.0.0.0/8","encap":"gre"`), `spec.encap "gre": must be one of [none ipip ipip-cross-subnet vxlan vxlan-cross-subnet wireguard wireguard-cross-subnet]`},
		{pool(`"cidr":"fd00::/64","encap":"ipip"`), `spec.encap "ipip": carries IPv4 only`},
		{pool(`"cidr":"10.0.0.0/8","natOutgoing":"yes"`), `spec.natOutgoing "yes": must be true or false`},
		{pool(`"cidr":"10.0.0.0/8","communities":["export"]`), `spec.communities[0] "export": is no community`},
		{pool(`"cidr":"10.0.0.0/8","nodeSelector":"a ="`), `spec.nodeSelector: selector: "=": `},
		{`{"apiVersion":"netctl/v1","kind":"Pool","metadata":{"name":"x"},"spec":{"cidr":"10.0.0.0/8"}}`, `metadata.name "x": is no pool or block name`},
		{`{"apiVersion":"netctl/v1","kind":"Pool","metadata":{"name":"10.0.0.0-9"},"spec":{"cidr":"10.0.0.0/8"}}`, `metadata.name "10.0.0.0-9": must be 10.0.0.0-8, or be left out`},
		{strings.Repeat("[", MaxSize+1), "are more than an object may have"},
		{pool(`"cidr":{`) + "}", `spec.cidr: must be a text, not an object`},
	})
}

func TestManifestErrorsOfOtherKinds(t *testing.T) {
	profile := func(spec string) string {
		return `{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"p"},"spec":{` + spec + `}}`
	}
	named := func(kind, name string) string {
		return `{"apiVersion":"netctl/v1","kind":"` + kind + `","metadata":{"name":"` + name + `"}}`
	}
	endpoint := func(more string) string {
		return `{"apiVersion":"netctl/v1","kind":"Endpoint","spec":{"node":"a","orchestrator":"cni","workload":"w","interface":"eth0","link":"nc1",` + more + `}}`
	}
	peer := func(more string) string {
		return `{"apiVersion":"netctl/v1","kind":"Peer","spec":{"address":"10.9.0.1","as":65001` + more + `}}`
	}
	checkRefusals(t, []refusal{
		{`{"apiVersion":"netctl/v1","kind":"Peer","metadata":{"name":"x"},"spec":{"as":65001}}`, `spec.address: an IP address is missing`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"address":"10.9.0.1"}}`, `spec.as "0": is a reserved AS number`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"address":"10.9.0.1","as":23456}}`, `spec.as "23456": is a reserved AS number`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"address":"10.9.0.1","as":4294967295}}`, `spec.as "4294967295": is a reserved AS number`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"address":"fe80::1","as":65001}}`, `spec.address "fe80::1": is link-local`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"address":"10.9.0.1","remoteAS":"other"}}`, `spec.remoteAS "other": must be one of external, internal`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"interface":"eth1"}}`, `spec.as "0": is a reserved AS number`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"interface":"eth[1","as":7}}`, `spec.interface "eth[1": is no name or pattern of interfaces`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"interface":"eth 1","as":7}}`, `spec.interface "eth 1": is no name or pattern of interfaces`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"interface":"*","as":7}}`, `a name is missing`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"interface":"eth1","as":7,"multihop":2}}`, `spec.multihop "2": stands beside interface`},
		{`{"apiVersion":"netctl/v1","kind":"Peer","spec":{"interface":"eth1","as":7,"sourceAddress":"fe80::1"}}`, `spec.sourceAddress "fe80::1": stands beside interface`},
		{peer(`,"remoteAS":"external"`), `spec.remoteAS "external": stands beside as`},
		{peer(`,"interface":"eth1"`), `spec.address "10.9.0.1": stands beside interface`},
		{peer(`,"node":"a","nodeSelector":"all()"`), `spec.nodeSelector "all()": stands beside node`},
		{peer(`,"node":"a b"`), `spec.node "a b": is no name`},
		{peer(`,"nodeSelector":"a ="`), `spec.nodeSelector: selector: "=": `},
		{peer(`,"sourceAddress":"fd00::1"`), `spec.sourceAddress "fd00::1": is of another family than 10.9.0.1`},
		{peer(`,"sourceAddress":"10.9.0.1"`), `spec.sourceAddress "10.9.0.1": is the peer's own`},
		{peer(`,"localAS":65001`), `spec.localAS "65001": is the peer's`},
		{peer(`,"localAS":65535`), `spec.localAS "65535": is a reserved AS number`},
		{peer(`,"multihop":256`), `spec.multihop "256": must be from 1 to 255 hops`},
		{peer(`,"keepaliveTime":-1`), `spec.keepaliveTime "-1": must be from 1`},
		{peer(`,"nextHop":"here"`), `spec.nextHop "here": must be one of self, unchanged`},
		{peer(`,"announce":"none"`), `spec.announce "none": must be one of own, all`},
		{peer(`,"addPath":"on"`), `spec.addPath "on": must be one of send, receive, both`},
		{peer(`,"addPath":"send","addPathLimit":256`), `spec.addPathLimit "256": must be from 1 to 255 paths`},
		{peer(`,"addPath":"receive","addPathLimit":2`), `spec.addPathLimit "2": stands without addPath send or both`},
		{peer(`,"accept":["all"]`), `spec.accept[0] "all": must be one of default, foreign, blocks, blackhole`},
		{peer(`,"communities":["64512"]`), `spec.communities[0] "64512": is no community`},
		{peer(`,"communities":["70000:1"]`), `spec.communities[0] "70000:1": is no community`},
		{peer(`,"communities":["1:2:4294967296"]`), `spec.communities[0] "1:2:4294967296": is no community`},
		{peer(`,"communities":["1:02"]`), `spec.communities[0] "1:02": is no community`},
		{peer(`,"communities":["1:2","1:2"]`), `spec.communities[1] "1:2": is in the list twice`},
		{peer(`,"accept":["blackhole"]`), `spec.accept[0] "blackhole": stands alone`},
		{peer(`,"prefixWarning":101`), `spec.prefixWarning "101": must be from 1 to 100 percent`},
		{peer(`,"prefixAction":"die"`), `spec.prefixAction "die": must be one of stop, warn`},
		{peer(`,"ttlSecurity":255`), `spec.ttlSecurity "255": must be from 1 to 254 hops`},
		{peer(`,"ttlSecurity":1,"multihop":2`), `spec.multihop "2": stands beside ttlSecurity`},
		{peer(`,"bfd":{},"multihop":2`), `spec.multihop "2": stands beside bfd, which works over a single hop only`},
		{peer(`,"bfd":{},"ttlSecurity":2`), `spec.ttlSecurity "2": stands beside bfd`},
		{peer(`,"bfd":{"interval":9}`), `spec.bfd.interval "9": must be from 10 to 60000 milliseconds`},
		{peer(`,"bfd":{"multiplier":256}`), `spec.bfd.multiplier "256": must be from 1 to 255`},
		{peer(`,"password":{}`), `spec.password: needs either file or credential`},
		{peer(`,"password":{"file":"/a","credential":"b"}`), `spec.password: needs either file or credential`},
		{peer(`,"password":{"file":"a"}`), `spec.password.file "a": must be the absolute path`},
		{peer(`,"password":{"file":"/a/../b"}`), `spec.password.file "/a/../b": must be the absolute path`},
		{peer(`,"password":{"credential":"a/b"}`), `spec.password.credential "a/b": is no name`},
		{peer(`,"password":"secret"`), `spec.password "secret": must be an object`},
		{peer(`,"holdTime":2`), `spec.holdTime "2": must be 0 or from 3`},
		{peer(`,"longLivedTime":16777216`), `spec.longLivedTime "16777216": must be from 0 to 16777215 seconds`},
		{peer(`,"connectRetry":-1`), `spec.connectRetry "-1": must be from 1 to 3600 seconds`},
		{peer(`,"prefixLimit":-1`), `spec.prefixLimit "-1": must be from 1`},
		{peer(`,"families":["ipv5"]`), `spec.families[0] "ipv5": must be one of ipv4, ipv6`},
		{peer(`,"families":["ipv4","ipv4"]`), `spec.families[1] "ipv4": is in the list twice`},
		{peer(`,"shutdown":"a\u0007"`), `spec.shutdown "a\a": must be text of at most 255 bytes`},
		{peer(`,"description":"` + strings.Repeat("x", 256) + `"`), `spec.description`},
		{peer(`,"colour":1`), `spec.colour: unknown key`},
		{profile(`"inbound":[null]`), `spec.inbound[0]: is null: leave it out`},
		{profile(`"tags":["a",null]`), `spec.tags[1]: is null: leave it out`},
		{endpoint(`"addresses":[null]`), `spec.addresses[0]: is null: leave it out`},
		{profile(`"inbound":["allow form tag x"]`), `spec.inbound[0]: rule: "form": expected`},
		{profile(`"inbound":["pass"]`), `spec.inbound[0] "pass": a profile belongs to no tier`},
		{`{"apiVersion":"netctl/v1","kind":"Tier","metadata":{"name":"t"},"spec":{"defaultAction":"allow"}}`, `spec.defaultAction "allow": must be deny or pass`},
		{`{"apiVersion":"netctl/v1","kind":"Tier","metadata":{"name":"t"},"spec":{"order":1.5}}`, `spec.order`},
		{`{"apiVersion":"netctl/v1","kind":"Policy","metadata":{"name":"p"},"spec":{"selector":"a = 'b'"}}`, `spec.selector: selector: "=": expected`},
		{`{"apiVersion":"netctl/v1","kind":"Policy","metadata":{"name":"p"},"spec":{"tier":"a b"}}`, `spec.tier "a b": is no name`},
		{`{"apiVersion":"netctl/v1","kind":"Policy","metadata":{"name":"p"},"spec":{"types":["in"]}}`, `spec.types[0] "in": must be ingress or egress`},
		{`{"apiVersion":"netctl/v1","kind":"Policy","metadata":{"name":"p"},"spec":{"types":["ingress"],"egress":["allow"]}}`, `spec.types: lacks egress, which the policy has rules for`},
		{`{"apiVersion":"netctl/v1","kind":"Policy","metadata":{"name":"p"},"spec":{"ingress":["permit"]}}`, `spec.ingress[0]: rule: "permit": expected allow`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"cidrs":["10.0.0.1/8"]}}`, `spec.cidrs[0] "10.0.0.1/8"`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"cidrs":["10.0.0.0/8","10.0.0.0/8"]}}`, `spec.cidrs[1] "10.0.0.0/8": is in the list twice`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["a.b","A.B."]}}`, `spec.domains[1] "a.b": is in the list twice`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":[""]}}`, `spec.domains[0]: a domain name is missing`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["*."]}}`, `spec.domains[0] "*": has a *`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["192.0.2.1"]}}`, `spec.domains[0] "192.0.2.1": is an address: write it to cidrs`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["10.0.0.0/8"]}}`, `spec.domains[0] "10.0.0.0/8": is no domain name: networks are written to cidrs`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["a.*.b"]}}`, `spec.domains[0] "a.*.b": has a * that`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["*a.b"]}}`, `spec.domains[0] "*a.b": has a * that`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["a..b"]}}`, `spec.domains[0] "a..b": has an empty label`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["-a.b"]}}`, `spec.domains[0] "-a.b": has a label that begins or ends with -`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["bücher.example"]}}`, `spec.domains[0] "bücher.example": has other letters`},
		{`{"apiVersion":"netctl/v1","kind":"NetworkSet","metadata":{"name":"n"},"spec":{"domains":["a b.c"]}}`, `spec.domains[0] "a b.c": has  , which`},
		{profile(`"inbound":"allow"`), `spec.inbound "allow": must be a list`},
		{profile(`"inbound":{}`), `spec.inbound: must be a list, not an object`},
		{`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"p"},"spec":[]}`, `spec: must be an object, not a list`},
		{profile(`"tags":["a","a"]`), `spec.tags[1] "a": is in the list twice`},
		{profile(`"tags":["a b"]`), `spec.tags[0] "a b": is no name`},
		{profile(`"labels":{"a":"1","a":"2"}`), `spec.labels.a: given twice`},
		{profile(`"labels":{"-a":"1"}`), `spec.labels "-a": is no label key`},
		{profile(`"labels":{"a":"\u0000"}`), `spec.labels.a "\x00": is no label value`},
		{named("Profile", "add"), `metadata.name "add": is a verb`},
		{named("Profile", ""), `metadata.name: a name is missing`},
		{named("Profile", "a/b"), `metadata.name "a/b": is no name`},
		{named("Profile", strings.Repeat("a", 129)), `is longer than 128 bytes`},
		{named("BGPConfig", "x"), `metadata.name "x": the only BGPConfig is called default`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"addresses":["10.0.0.1/8","10.0.0.2/8"]}}`, `spec.addresses[1] "10.0.0.2/8": a node has at most one address of each family`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"drain":{"reason":"a\u0007"}}}`, `spec.drain.reason "a\a": must be text`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"as":65535}}`, `spec.as "65535": is a reserved AS number`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"as":4294967296}}`, `spec.as "4294967296": must be a whole number from 0 to 4294967295`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"reflector":{"clusterID":"::1"}}}`, `spec.reflector.clusterID "::1": must look like an IPv4 address`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"reflector":{"clusterID":"0.0.0.0"}}}`, `spec.reflector.clusterID "0.0.0.0": must look like an IPv4 address`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"reflector":{"mode":"yes"}}}`, `spec.reflector.mode "yes": must be auto, always or never`},
		{`{"apiVersion":"netctl/v1","kind":"Node","metadata":{"name":"a"},"spec":{"reflector":{"clients":"a ="}}}`, `spec.reflector.clients: selector: "=": `},
		{`{"apiVersion":"netctl/v1","kind":"BGPConfig","spec":{"topology":{"mode":"star"}}}`, `spec.topology.mode "star": must be auto, mesh or reflectors`},
		{`{"apiVersion":"netctl/v1","kind":"BGPConfig","spec":{"topology":{"meshLimit":501}}}`, `spec.topology.meshLimit "501": must be from 1 to 500 nodes`},
		{`{"apiVersion":"netctl/v1","kind":"Report","metadata":{"name":"a/agent"},"status":{"seen":"now"}}`, `status.seen "now": is no time in the form of RFC 3339`},
		{`{"apiVersion":"netctl/v1","kind":"BGPConfig","spec":{"holdTime":2}}`, `spec.holdTime "2": must be 0 or from 3`},
		{`{"apiVersion":"netctl/v1","kind":"BGPConfig","spec":{"restartTime":4096}}`, `spec.restartTime "4096"`},
		{`{"apiVersion":"netctl/v1","kind":"Config","spec":{"mtu":100}}`, `spec.mtu "100"`},
		{endpoint(`"addresses":["10.0.0"]`), `spec.addresses[0] "10.0.0": is no IP address`},
		{endpoint(`"addresses":["fe80::1%eth0"]`), `must be a plain IPv4 or IPv6 address`},
		{endpoint(`"addresses":["224.0.0.1"]`), `is not the address of a machine`},
		{endpoint(`"addresses":[],"mac":"1"`), `spec.mac "1": is no MAC address`},
		{endpoint(`"addresses":[],"ports":[{"name":"80","protocol":"tcp","port":80}]`), `spec.ports[0].name "80": must begin with a letter`},
		{endpoint(`"addresses":[],"ports":[{"name":"w","protocol":"icmp","port":80}]`), `spec.ports[0].protocol "icmp": must be tcp, udp or sctp`},
		{endpoint(`"addresses":[],"ports":[{"name":"w","protocol":"tcp","port":65536}]`), `spec.ports[0].port "65536": must be a whole number from 0 to 65535`},
		{named("Endpoint", "a/b"), `metadata.name "a/b": is no endpoint name`},
		{named("Reservation", "r"), `spec.cidrs: a reservation needs at least one CIDR`},
		{`{"apiVersion":"netctl/v1","kind":"Block","spec":{"cidr":"10.0.0.0/30","affinity":"a","allocations":[{"ordinal":4,"handle":"h","node":"a","time":"2026-01-01T00:00:00Z"}]}}`, `spec.allocations[0].ordinal "4": must be from 0 to 3`},
		{`{"apiVersion":"netctl/v1","kind":"Block","spec":{"cidr":"10.0.0.0/8","affinity":"a"}}`, `spec.cidr "10.0.0.0/8": is more than 1024 addresses`},
	})
}

func TestDecodeChecksTheKey(t *testing.T) {
	b, err := Encode(&Profile{Metadata: Metadata{Name: "p"}, Spec: ProfileSpec{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{KindPrefix(KindProfile) + "q", KindPrefix(KindNetwork) + "p", "/other/p", KindPrefix(KindProfile)} {
		if o, err := Decode(key, b); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, %v", key, o, err)
		}
	}
}

func TestEncodeRefusesWhatIsInvalid(t *testing.T) {
	if b, err := Encode(&Pool{Metadata: Metadata{Name: "x"}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("got %s, %v", b, err)
	}
}

func FuzzManifest(f *testing.F) {
	for _, o := range samples() {
		b, err := Encode(o)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"apiVersion":"netctl/v1","kind":"Pool","spec":{"cidr":"10.0.0.0/8"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := DecodeManifest(raw)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		sameByAllReaders(t, raw, o)
		b, err := Encode(o)
		if err != nil {
			t.Fatalf("%s is accepted and cannot be encoded: %v", raw, err)
		}
		back, err := DecodeManifest(b)
		if err != nil {
			t.Fatalf("%s becomes %s: %v", raw, b, err)
		}
		again, err := Encode(back)
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%s becomes %s and then %s, %v", raw, b, again, err)
		}
	})
}

// TestRevisionIsInManifestsOnly: people and programs get and give the revision that
// an object was read in; what is stored has none.
func TestRevisionIsInManifestsOnly(t *testing.T) {
	p := &Profile{Metadata: Metadata{Name: "web", Revision: 12}}
	p.SetDefaults()
	stored, err := Encode(p)
	if err != nil || bytes.Contains(stored, []byte("revision")) {
		t.Errorf("stored: %s, %v", stored, err)
	}
	b, err := EncodeManifest(p)
	if err != nil || !bytes.Contains(b, []byte(`"metadata":{"name":"web","revision":12}`)) {
		t.Errorf("manifest: %s, %v", b, err)
	}
	if o, err := DecodeManifest(b); err != nil || o.Meta().Revision != 12 {
		t.Errorf("read back: %+v, %v", o, err)
	}
	if o, err := DecodeManifest(stored); err != nil || o.Meta().Revision != 0 {
		t.Errorf("without: %+v, %v", o, err)
	}
	for _, bad := range []string{`0`, `-1`, `"12"`, `1.5`} {
		if o, err := DecodeManifest(bytes.Replace(b, []byte(":12"), []byte(":"+bad), 1)); err == nil {
			t.Errorf("revision %s: %+v", bad, o)
		}
	}
	// A key of that name that a newer netctl stored is unknown like any other.
	o, err := Decode("/netctl/v1/profiles/web", b)
	if err != nil || o.Meta().Revision != 0 {
		t.Fatalf("stored with a revision: %+v, %v", o, err)
	}
	if again, err := Encode(o); err != nil || !bytes.Contains(again, []byte(`"revision":12`)) {
		t.Errorf("stored again: %s, %v", again, err)
	}
}
