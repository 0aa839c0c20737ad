package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"netctl/datastore/pki"
	"netctl/netdev/netlab"
)

// authorityOf is what a host says of the authorities.
func authorityOf(t *testing.T, h *netlab.Host) (phase string, awaited []string) {
	t.Helper()
	out, failed := netlab.Try(t, h, "netctl", "datastore", "ca", "show", "-o", "json")
	if failed != nil {
		return failed.Error(), nil
	}
	var shown struct {
		Phase   string
		Awaited []string
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	return shown.Phase, shown.Awaited
}

// trusts are the hashes of the authorities in a file of a host.
func trusts(t *testing.T, h *netlab.Host, file string) (hashes []string) {
	t.Helper()
	list, err := pki.ReadCertificates(h.Path("/var/lib/netctl-node/" + file))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		hashes = append(hashes, pki.Hash(c))
	}
	return hashes
}

// TestRotate: the authorities of clients and members are replaced while everything runs.
// A node that is away is waited for; a member that is killed at each step goes on.
func TestRotate(t *testing.T) {
	l := bareHosts(t, 4)
	n1, n2, node, late := l.Hosts[0], l.Hosts[1], l.Hosts[2], l.Hosts[3]
	token := found(t, n1)
	starts(t, n1)
	sound(t, n1)
	netlab.Must(t, node, "netctl", "join", token)
	starts(t, node)
	joins(t, n1, n2, true)
	voting(t, n1, 2)
	joins(t, n2, late, false)
	sound(t, n1, n2, node, late)
	netlab.Must(t, n1, "netctl", "pool", "add", "10.65.0.0/16")
	_, a4, _ := attach(t, n1, "a", "web")
	b, _, _ := attach(t, node, "b", "web")
	pings(t, b, a4)
	flood, err := netlab.StartFlood(b, a4, 20*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	speaker := pid(t, node, "speaker", 0)
	clients, peers := trusts(t, n1, "tls/ca.crt"), trusts(t, n1, "etcd-tls/ca.crt")
	old := tokenOf(t, netlab.Must(t, n1, "netctl", "token", "create"))
	netlab.Must(t, n1, "netctl", "api", "grant", "alice", "--role", "read", "--dir", "/var/lib/netctl-node")
	if _, failed := netlab.Try(t, node, "netctl", "datastore", "ca", "rotate"); failed == nil || !strings.Contains(failed.Stderr, "run it on one") {
		t.Errorf("on a node that is no member: %v", failed)
	}

	ends(t, late)
	_, failed := netlab.Try(t, n2, "netctl", "datastore", "ca", "rotate", "--wait", "0s")
	if failed == nil || !strings.Contains(failed.Stderr, "goes on by itself") {
		t.Errorf("without waiting: %v", failed)
	}
	// Members learn and start again; one of them is killed whenever it is up.
	killed := map[int]bool{}
	netlab.Until(t, 2*patience, "all but the node that is away", func() string {
		phase, awaited := authorityOf(t, n1)
		if p := pid(t, n1, "datastore", 0); !killed[p] && len(killed) < 2 && phase == "members" {
			killed[p] = true
			_ = syscall.Kill(p, syscall.SIGKILL)
		}
		if phase != "nodes" || !slices.Equal(awaited, []string{late.Name}) {
			return fmt.Sprint(phase, awaited)
		}
		return ""
	})
	if is := trusts(t, node, "tls/ca.crt"); len(is) != 2 || is[0] != clients[0] {
		t.Errorf("a node trusts %q", is)
	}
	for _, h := range []*netlab.Host{n1, node} {
		if out, _ := netlab.Try(t, h, "netctl", "status"); !strings.Contains(out, "authority is being replaced") {
			t.Errorf("%s says\n%s", h.Name, out)
		}
	}
	if out, failed := netlab.Try(t, n1, "netctl", "datastore", "ca", "rotate", "--wait", "1s"); failed == nil || failed.Code != 1 || !strings.Contains(failed.Stderr, "waits for "+late.Name) {
		t.Errorf("while a node is away: %s %v", out, failed)
	}
	if _, failed := netlab.Try(t, late, "netctl", "join", "--datastore", tokenOf(t, netlab.Must(t, n1, "netctl", "token", "create", "--datastore"))); failed == nil {
		t.Error("a node joined twice")
	}
	starts(t, late)
	out := netlab.Must(t, n1, "netctl", "datastore", "ca", "rotate")
	oldToken, _, _ := strings.Cut(out, "`netctl token create`")
	if !strings.Contains(oldToken, "Tokens of before") || !strings.Contains(out, "(alice)") {
		t.Errorf("when it is done:\n%s", out)
	}
	now, ofPeers := trusts(t, n1, "tls/ca.crt"), trusts(t, n1, "etcd-tls/ca.crt")
	if len(now) != 1 || now[0] == clients[0] || len(ofPeers) != 1 || ofPeers[0] == peers[0] || ofPeers[0] == now[0] {
		t.Errorf("clients' authority %q, before %q; members' %q, before %q", now, clients, ofPeers, peers)
	}
	for _, h := range []*netlab.Host{n1, n2, node, late} {
		netlab.Until(t, patience, h.Name+" trusts the new authority alone", func() string {
			if is := trusts(t, h, "tls/ca.crt"); !slices.Equal(is, now) {
				return fmt.Sprint(is)
			}
			return ""
		})
	}
	for _, h := range []*netlab.Host{n1, n2} {
		for _, file := range []string{"tls/ca-next.key", "tls/ca-next.crt", "etcd-tls/ca-next.key"} {
			if _, err := os.Stat(h.Path("/var/lib/netctl-node/" + file)); err == nil {
				t.Errorf("%s: %s is left", h.Name, file)
			}
		}
	}
	sound(t, n1, n2, node, late)
	voting(t, n1, 2)
	if is := pid(t, node, "speaker", 0); is != speaker {
		t.Errorf("the speaker is %d, and was %d", is, speaker)
	}
	// What is made from here on needs the new authority alone: connections and tokens.
	for _, h := range []*netlab.Host{node, n1} {
		netlab.Must(t, h, "sh", "-c", "kill $(cat /var/lib/netctl-node/agent.lock)")
	}
	sound(t, n1, n2, node, late)
	if r := flood.Stop(); len(r.Lost) > 0 {
		t.Errorf("across all of it: %s", r)
	}
	ends(t, late)
	netlab.Must(t, n1, "netctl", "node", "remove", "--force", late.Name)
	netlab.Must(t, late, "netctl", "cleanup", "--force")
	netlab.Must(t, late, "sh", "-c", "rm -rf /var/lib/netctl-node/* ; : >/etc/netctl.yaml")
	refused(t, late, 1, "its authority is another", "netctl", "join", old)
	joins(t, n2, late, true)
	voting(t, n1, 3)
}
