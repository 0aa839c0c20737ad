package cni

import (
	"net/netip"
	"testing"

	"netctl/commands/control"
	"netctl/datastore"
)

func FuzzNetConf(f *testing.F) {
	f.Add([]byte(plain))
	f.Add([]byte(`{"cniVersion":"0.3.1","name":"n","mtu":1400,"pools":["10.0.0.0/8"],"runtimeConfig":{"ips":["10.0.0.1/8","::1"],"mac":"02:00:00:00:00:01","dns":{"Servers":[]}},"args":{"cni":{"labels":[{"key":"a","value":"b"}]}}}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","prevResult":{"interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"interface":0,"address":"10.0.0.1/32","gateway":""}],"routes":[{"dst":"::/0","table":0}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		conf, err := parseConf(raw)
		if err != nil {
			return
		}
		c := &call{env: map[string]string{"CNI_CONTAINERID": "c"}, warn: func(string) {}, conf: conf}
		if ports, err := conf.ports(); err == nil && len(ports) > control.MaxHostPorts {
			t.Fatalf("%d ports", len(ports))
		}
		if req, err := c.request(); err == nil && (len(req.Addresses) > 2 || datastore.CheckName(req.Workload) != nil) {
			t.Fatalf("request %+v", req)
		}
		prev, err := parseResult(conf.PrevResult)
		if err != nil {
			return
		}
		if prev != nil {
			prev.addresses("eth0")
		}
		out, err := c.encode(attached(prev, control.Attachment{Interface: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}, "ns", conf.dns()))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseResult(out); err != nil || again == nil {
			t.Fatalf("%s: %v", out, err)
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAME=a;MAC=02:00:00:00:00:01;IP=10.0.0.1,fd00::1/64")
	f.Add("IP=;MAC=;;A=B=C;=")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseArgs(s, len(s)%2 == 0)
		if err != nil {
			return
		}
		addrs, err := firstAddresses(said{"", a.ips})
		if err == nil && (len(addrs) > 2 || len(addrs) == 2 && addrs[0].Is4() == addrs[1].Is4()) {
			t.Fatalf("%q: %v", s, addrs)
		}
		if mac, err := firstMAC(said{"", []string{a.mac}}); err == nil && mac != "" && len(mac) != 17 {
			t.Fatalf("%q: %s", s, mac)
		}
	})
}
