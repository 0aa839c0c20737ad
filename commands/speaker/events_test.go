package speaker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"netctl/datastore"
	"netctl/netdev/netlab"
)

// logged waits until the log of this run of a node's speaker has so many lines with all of
// the texts, and checks that it gets no more.
func (n *netctlNode) logged(times int, texts ...string) {
	n.rig.t.Helper()
	count := func() (k int) {
		for _, l := range strings.Split(n.proc.Output(), "\n") {
			all := true
			for _, t := range texts {
				all = all && strings.Contains(l, t)
			}
			if all {
				k++
			}
		}
		return k
	}
	netlab.Until(n.rig.t, 20*time.Second, fmt.Sprintf("%s logs %q", n.host.Name, texts), func() string {
		if k := count(); k < times {
			return fmt.Sprintf("%d times, not %d", k, times)
		}
		return ""
	})
	if k := count(); k != times {
		n.rig.t.Errorf("%s logged %q %d times, not %d", n.host.Name, texts, k, times)
	}
}

// TestEvents: what an operator looks for in the log is there, once each time it happens.
func TestEvents(t *testing.T) {
	r := newRig(t, netlab.Options{Nodes: 3})
	r.pool("10.65.0.0/16")
	for _, h := range r.lab.Hosts {
		r.node(h)
	}
	n1, n2 := r.nodes[0], r.nodes[1]
	r.settle(2)
	peer := " peer=" + n2.host.Addr.Addr().String()
	n1.logged(1, `msg="session is established"`, peer)
	// Lost for the same reason twice.
	for i := range 2 {
		n2.proc.Kill()
		n1.logged(1+i, `msg="session is not up"`, ` by peer"`, peer) // closed, or reset if it had not read all
		n2.up()
		n1.logged(2+i, `msg="session is established"`, peer)
	}
	r.settle(2)
	n1.logged(0, `msg="reflectors changed"`)
	r.shape(datastore.TopologyReflectors)
	n1.logged(1, `msg="reflectors changed"`)
	r.shape(datastore.TopologyMesh)
	n1.logged(2, `msg="reflectors changed"`)
	n1.logged(1, `msg="reflectors changed"`, "reflectors=[] here=false")
	r.settle(2)
	drain := func(d *datastore.Drain) {
		t.Helper()
		if _, err := datastore.Modify(r.ctx, r.store, n1.host.Name, func(n *datastore.Node) error { n.Spec.Drain = d; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	drain(&datastore.Drain{Reason: "new disks"})
	n1.logged(1, `msg="node is taken out of use" reason="drained: new disks"`)
	drain(&datastore.Drain{Reason: "new disks", Shutdown: true})
	n1.logged(1, `msg="session is not up"`, `reason="shut down: drained: new disks"`, peer)
	n2.logged(1, `msg="session is not up"`, `reason="shut down: drained: new disks"`, " peer="+n1.host.Addr.Addr().String())
	drain(nil)
	n1.logged(1, `msg="node is in use again"`)
	r.settle(2)
	n1.logged(1, `msg="node is taken out of use"`)
}
