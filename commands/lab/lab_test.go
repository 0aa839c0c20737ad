package lab

import (
	"net/netip"
	"testing"

	"netctl/netdev/netlab"
)

func TestNodeConfig(t *testing.T) {
	first := &netlab.Host{Name: "node1", Addr: netip.MustParsePrefix("192.168.99.102/24"), Addr6: netip.MustParsePrefix("fd00:99::102/64")}
	second := &netlab.Host{Name: "node2", Addr: netip.MustParsePrefix("192.168.99.103/24")}
	l := &netlab.Lab{Hosts: []*netlab.Host{first, second}}
	const tls1 = `ca: "/var/lib/netctl-node/tls/ca.crt", cert: "/var/lib/netctl-node/tls/node1.crt", key: "/var/lib/netctl-node/tls/node1.key"`
	const tls2 = `ca: "/var/lib/netctl-node/tls/ca.crt", cert: "/var/lib/netctl-node/tls/node2.crt", key: "/var/lib/netctl-node/tls/node2.key"`
	for _, c := range []struct {
		host     *netlab.Host
		settings string
		want     string
	}{
		{first, "", `# made by netctl lab
node: node1
roles: [datastore, agent, speaker]
etcd: {listen: ["https://192.168.99.102:2379"], tls: {` + tls1 + `}}
datastore: {endpoints: ["https://192.168.99.102:2379"], ` + tls1 + `}
agent:
    addresses: ["192.168.99.102", "fd00:99::102"]
    runtimes: [docker, cni]
`},
		{second, "log:\n    level: debug\nagent:\n    lostAfter: 2s\n", `# made by netctl lab
node: node2
roles: [agent, speaker]
datastore: {endpoints: ["https://192.168.99.102:2379"], ` + tls2 + `}
log:
    level: debug
agent:
    addresses: ["192.168.99.103"]
    runtimes: [docker, cni]
    lostAfter: 2s
`},
		{second, "log:\n    level: debug\n", `# made by netctl lab
node: node2
roles: [agent, speaker]
datastore: {endpoints: ["https://192.168.99.102:2379"], ` + tls2 + `}
agent:
    addresses: ["192.168.99.103"]
    runtimes: [docker, cni]
log:
    level: debug
`},
		{second, "agent:\n    runtimes: []\n", `# made by netctl lab
node: node2
roles: [agent, speaker]
datastore: {endpoints: ["https://192.168.99.102:2379"], ` + tls2 + `}
agent:
    addresses: ["192.168.99.103"]
    runtimes: []
`},
	} {
		if got := nodeConfig(l, c.host, c.settings); got != c.want {
			t.Errorf("%s with %q:\n%s\nwant\n%s", c.host.Name, c.settings, got, c.want)
		}
	}
}
