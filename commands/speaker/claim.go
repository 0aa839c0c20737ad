package speaker

import (
	"fmt"
	"time"

	"netctl/datastore"
)

// claim finds out whether the node is this host's, and tells. Until it is, there
// are no plans and no reports: what runs goes on as it is. A host that has run as
// the node need not wait for its agent to register it again.
func (f *follower) claim() {
	n := f.view.Node(f.node)
	why := f.judge(n)
	if why == f.alien {
		return
	}
	switch f.alien = why; {
	case why == "":
		f.log.Info("node is this host's", "node", f.node)
	case registered(n):
		f.log.Warn("node is not this host's, nothing is changed", "reason", why)
	default:
		f.log.Info("node is not registered, nothing is changed", "reason", why)
	}
	f.state.setAlien(why)
	f.wake()
}

func registered(n *datastore.Node) bool { return n != nil && n.Status.Host != "" }

// judge says why n, nil if it is not there, is not this host's.
func (f *follower) judge(n *datastore.Node) string {
	own, err := readHost(f.host)
	if !registered(n) {
		others := f.view.OtherNodesOf(own, f.node)
		switch {
		case f.ours:
			return ""
		case f.agentless && n != nil: // a person registered it
			return ""
		case f.agentless && len(others) == 0:
			return fmt.Sprintf("node %s is not in the datastore: netctl node add %s --ip ADDRESS/LENGTH", f.node, f.node)
		case len(others) > 0:
			return others[0].OtherName(f.node, f.host)
		case n == nil:
			return fmt.Sprintf("node %s is not in the datastore: start its agent", f.node)
		}
		return fmt.Sprintf("node %s is registered by no host yet: start its agent", f.node)
	}
	switch {
	case err != nil:
		return err.Error()
	case own == n.Status.Host, own == "" && f.ours && f.before.Host == n.Status.Host:
		f.ours = true
		return ""
	}
	f.ours = false
	return fmt.Sprintf("node %s is %s", f.node, n.RegisteredBy(own, time.Time{}))
}
