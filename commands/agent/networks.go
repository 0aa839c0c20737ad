package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netctl/commands/runtimes"
	"netctl/datastore"
)

// runtimeNetworks is what this node's container runtimes have of the networks. Its owner
// is the loop.
type runtimeNetworks struct {
	status map[string][]datastore.RuntimeStatus // by place
	noted  []string                             // problems
}

// networkCluster is what the keeper of the runtimes' networks asks the loop, and tells it.
type networkCluster struct{ *loop }

// Wish implements runtimes.Cluster; false: the view is not (yet) what this node should be.
func (l networkCluster) Wish(ctx context.Context) (w runtimes.Wish, ok bool) {
	err := l.do(ctx, func() {
		l.idle++
		if ok = l.standing.stage == ready && !l.standing.frozen(); !ok {
			return
		}
		for _, n := range l.view.Networks() {
			if len(n.Spec.Runtimes) == 0 {
				continue
			}
			w.Revision = max(w.Revision, n.Metadata.Revision)
			w.Networks = append(w.Networks, runtimes.Network{
				Name: n.Metadata.Name, Runtimes: n.Spec.Runtimes, IPv6: n.Spec.IPv6, Subnets: onlyPools(n.Spec),
			})
		}
	})
	return w, ok && err == nil
}

// onlyPools are the pools of those families that a network draws from one of: Docker
// takes wishes for addresses where it knows the subnet, and then goes by no other.
func onlyPools(s datastore.NetworkSpec) (list []netip.Prefix) {
	for _, v6 := range []bool{false, true} {
		of := slices.DeleteFunc(slices.Clone(s.Pools), func(p netip.Prefix) bool { return p.Addr().Is6() != v6 })
		if len(of) == 1 && (!v6 || s.IPv6) {
			list = append(list, of[0])
		}
	}
	return list
}

// Used implements runtimes.Cluster.
func (l networkCluster) Used(ctx context.Context, orchestrator, network string) (n int, err error) {
	prefix := l.cfg.Node + "/" + orchestrator + "/"
	err = l.do(ctx, func() {
		l.idle++
		for _, e := range l.view.EndpointsIn(network) {
			if strings.HasPrefix(e.Metadata.Name, prefix) {
				n++
			}
		}
	})
	return n, err
}

// Tell implements runtimes.Cluster.
func (l networkCluster) Tell(place string, list []datastore.RuntimeStatus) {
	l.post(func() { l.noteRuntimes(place, list) })
}

// noteRuntimes takes what a place has, and says what is wrong there.
func (l *loop) noteRuntimes(place string, list []datastore.RuntimeStatus) {
	l.networks.status[place] = list
	was := l.networks.noted
	l.networks.noted = nil
	for _, s := range l.runtimeStatus() {
		for _, w := range s.Wrong {
			what := fmt.Sprintf("network %s in %s", w.Network, s.Runtime)
			l.problems.note(what, w.State+": "+w.Reason)
			l.networks.noted = append(l.networks.noted, what)
		}
	}
	for _, what := range was {
		if !slices.Contains(l.networks.noted, what) {
			l.problems.note(what, "")
		}
	}
}

// runtimeStatus is what every runtime of this node has, in the order of their names.
func (l *loop) runtimeStatus() (all []datastore.RuntimeStatus) {
	for _, list := range l.networks.status {
		all = append(all, list...)
	}
	slices.SortFunc(all, func(x, y datastore.RuntimeStatus) int { return strings.Compare(x.Runtime, y.Runtime) })
	return all
}
