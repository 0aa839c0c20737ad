package commands

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"netctl/acl"
	"netctl/commands/agent"
	"netctl/commands/join"
	"netctl/datastore"
	"netctl/datastore/etcd"
	"netctl/netdev"
)

// warnLockouts warns of what is about to be written if, but for the failsafe ports, it would cut
// a node with host endpoints off from the datastore, or from BGP.
func (a *app) warnLockouts(ctx context.Context, store datastore.Store, plans []planned) error {
	concerns := func(p planned) bool {
		switch p.object.Kind() {
		case datastore.KindPolicy, datastore.KindTier, datastore.KindHostEndpoint:
			return p.verb != "unchanged"
		}
		return false
	}
	if !slices.ContainsFunc(plans, concerns) {
		return nil
	}
	s, err := a.settings()
	if err != nil {
		return err
	}
	n := needed{}
	n.all(datastore.KindHostEndpoint)
	view, err := a.list(ctx, store, n)
	if err != nil {
		return err
	}
	host := func(p planned) bool { return p.object.Kind() == datastore.KindHostEndpoint }
	if len(view.HostEndpoints()) == 0 && !slices.ContainsFunc(plans, host) {
		return nil
	}
	n.all(datastore.KindPolicy, datastore.KindTier, datastore.KindProfile, datastore.KindNetworkSet, datastore.KindNode)
	if view, err = a.list(ctx, store, n); err != nil {
		return err
	}
	before := lockouts(view, s)
	for _, p := range plans {
		if _, err := view.Apply(datastore.Entry{Key: p.op.Key, Value: p.op.Value, Revision: p.cond.Revision}); err != nil {
			return err
		}
	}
	for _, text := range lockouts(view, s) {
		if !slices.Contains(before, text) {
			a.warn("%s", text)
		}
	}
	return nil
}

// lockouts are the host endpoints to which rules deny what their node cannot do without, each
// in one line.
func lockouts(view *datastore.View, s *settings) (list []string) {
	for _, h := range view.HostEndpoints() {
		if what := lockedOut(view, s, h); len(what) > 0 {
			list = append(list, fmt.Sprintf("hostendpoint %s: no rule allows node %s %s; nothing but failsafe ports keeps that open", h.Metadata.Name, h.Spec.Node, strings.Join(what, ", ")))
		}
	}
	return list
}

// lockedOut is what rules deny to one of them.
func lockedOut(view *datastore.View, s *settings, h *datastore.HostEndpoint) (what []string) {
	own, other := neighbours(view, h.Spec.Node)
	x := acl.NewIndex(h.Spec.Node, acl.Options{LinkPrefix: s.Agent.LinkPrefix, Group: netdev.Group})
	link := h.Spec.InterfaceName
	switch link {
	case "":
		link = uplinkName
		x.SetHostLinks(map[string][]netip.Addr{link: h.Spec.ExpectedIPs})
	case datastore.AllInterfaces:
		link = uplinkName
	}
	for _, kind := range []datastore.Kind{datastore.KindNetworkSet, datastore.KindTier, datastore.KindPolicy, datastore.KindProfile, datastore.KindHostEndpoint, datastore.KindNode} {
		for _, o := range view.Objects(kind) {
			x.Apply(datastore.Change{Kind: kind, Name: o.Meta().Name, New: o})
		}
	}
	for x.Work() {
	}
	judge := x.Ruleset().Judge()
	in := func(port int) acl.Packet {
		return acl.Packet{InLink: link, Src: other, Dst: own, Protocol: datastore.ProtocolTCP, SrcPort: defaultSourcePort, DstPort: uint16(port), State: acl.New}
	}
	out := func(port int) acl.Packet {
		return acl.Packet{OutLink: link, Src: own, Dst: other, Protocol: datastore.ProtocolTCP, SrcPort: defaultSourcePort, DstPort: uint16(port), State: acl.New}
	}
	ask := func(p acl.Packet, text string) {
		if text = fmt.Sprintf("%s (tcp %d)", text, p.DstPort); !judge.Eval(p).Allowed && !slices.Contains(what, text) {
			what = append(what, text)
		}
	}
	ask(in(s.Speaker.Port), "to be reached by BGP")
	ask(out(s.Speaker.Port), "to reach others by BGP")
	members := etcd.ReadMembers(s.storeOptions().Members, s.Datastore.Endpoints)
	for _, port := range agent.PortsOf(slices.Concat(s.Datastore.Endpoints, members.Endpoints)...) {
		ask(out(int(port)), "to reach the datastore")
	}
	if s.Datastore.Cert != "" {
		ask(out(cmp.Or(members.JoinPort, join.DefaultPort)), "to have its certificate renewed")
	}
	return what
}

// neighbours are an address of the node and one of another node, or of nobody, of one family.
func neighbours(view *datastore.View, node string) (own, other netip.Addr) {
	own, other = netip.MustParseAddr("198.51.100.1"), worldAddresses()[0]
	n := view.Node(node)
	if n == nil || len(n.Spec.Addresses) == 0 {
		return own, other
	}
	if own = n.Spec.Addresses[0].Addr().Unmap(); own.Is6() {
		other = worldAddresses()[1]
	}
	for _, o := range view.Nodes() {
		for _, p := range o.Spec.Addresses {
			if a := p.Addr().Unmap(); o.Metadata.Name != node && a.Is4() == own.Is4() {
				return own, a
			}
		}
	}
	return own, other
}
