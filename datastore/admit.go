package datastore

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxNamed bounds how many users of an object an error names.
const maxNamed = 3

// CheckPut says why writing o would contradict what the View holds: pools that
// overlap, a pool's blocks of another size, a second peer of one address for the same
// nodes, a network's pool that is not there,
// an endpoint's profile or a policy's tier that is not there, its link or a new address of it that is not
// its own. Errors wrap ErrInvalid or ErrInUse.
// o must be valid by itself.
func (v *View) CheckPut(o Object) error {
	switch o := o.(type) {
	case *Report:
		return &FieldError{Field: "kind", Value: string(KindReport), Reason: "is written by the nodes' roles alone"}
	case *Peer:
		return v.checkPeer(o)
	case *BGPConfig:
		for i, f := range o.Spec.Filters {
			if err := v.checkFilters(indexed("spec.filters", i)+".filters", f.Filters); err != nil {
				return err
			}
		}
	case *Pool:
		return v.checkPool(o)
	case *Policy:
		if o.Spec.Tier != DefaultTier && v.Tier(o.Spec.Tier) == nil {
			return &FieldError{Field: "spec.tier", Value: o.Spec.Tier, Reason: "there is no such tier"}
		}
		switch {
		case slices.ContainsFunc(slices.Concat(o.Spec.Ingress, o.Spec.Egress), ofLists):
			return v.knowPolicies(needsCIDRs, "spec", listsAre)
		case o.Metadata.Needs >= needsHostEndpoints:
			return v.knowPolicies(needsHostEndpoints, "spec", "policies with applyOnForward, preDNAT or doNotTrack are")
		case o.Spec.Staged:
			return v.knowPolicies(needsStaged, "spec.staged", "staged policies are")
		}
		return v.knowPolicies(needsPolicies, "kind", policiesAre)
	case *Profile:
		if slices.ContainsFunc(slices.Concat(o.Spec.Inbound, o.Spec.Outbound), ofLists) {
			return v.knowPolicies(needsCIDRs, "spec", listsAre)
		}
	case *NetworkSet:
		if len(o.Spec.Domains) > 0 {
			return v.knowPolicies(needsDomains, "spec.domains", "domains of network sets are")
		}
		return v.knowPolicies(needsPolicies, "kind", policiesAre)
	case *Tier:
		return v.knowPolicies(needsPolicies, "kind", policiesAre)
	case *HostEndpoint:
		if err := v.checkHostEndpoint(o); err != nil {
			return err
		}
		return v.knowPolicies(needsHostEndpoints, "kind", "host endpoints are")
	case *Network:
		for i, p := range o.Spec.Pools {
			if v.Pool(PoolName(p)) == nil {
				return &FieldError{Field: indexed("spec.pools", i), Value: p.String(), Reason: "there is no such pool"}
			}
		}
	case *Endpoint:
		if err := checkLink(o); err != nil {
			return err
		}
		if err := v.checkAddresses(o); err != nil {
			return err
		}
		if err := v.CheckAllowedPrefixes(o); err != nil {
			return err
		}
		if n := v.Node(o.Spec.Node); o.Spec.GuardMAC && n != nil && n.Status.Host != "" && n.Status.Model < needsGuardMAC {
			return &FieldError{Field: "spec.guardMAC", Reason: "is passed over by the older netctl of node " + o.Spec.Node + ": upgrade it there first"}
		}
		for i, p := range o.Spec.Profiles {
			if v.Profile(p) == nil {
				return &FieldError{Field: indexed("spec.profiles", i), Value: p, Reason: "there is no such profile"}
			}
		}
	}
	return nil
}

const (
	policiesAre = "policies, tiers and network sets are"
	listsAre    = "rules with several CIDRs are"
)

func ofLists(r Rule) bool { return r.needs() >= needsCIDRs }

// knowPolicies refuses what a field says while a node has an agent that would pass it over.
func (v *View) knowPolicies(model int, field, what string) error {
	old := slices.DeleteFunc(v.Nodes(), func(n *Node) bool { return n.Status.Host == "" || n.Status.Model >= model })
	if len(old) == 0 {
		return nil
	}
	return &FieldError{Field: field, Reason: what + " passed over by the older netctl of " +
		users("node", old, func(n *Node) string { return n.Metadata.Name }) + ": upgrade it there first"}
}

// checkLink refuses an endpoint that names another's link.
func checkLink(e *Endpoint) error {
	if OwnsLink(e.Metadata.Name, e.Spec.Link) {
		return nil
	}
	return &FieldError{Field: "spec.link", Value: e.Spec.Link,
		Reason: "is another endpoint's: that of this name ends in " + LinkName("", e.Metadata.Name)}
}

// checkAddresses refuses addresses that the endpoint did not have and that no block
// holds for it, and to take all that it had.
func (v *View) checkAddresses(e *Endpoint) error {
	old := v.Endpoint(e.Metadata.Name)
	if old != nil && len(old.Spec.Addresses) > 0 && len(e.Spec.Addresses) == 0 {
		return &FieldError{Field: "spec.addresses", Reason: "is empty, which cuts off a workload that runs: `netctl endpoint remove` ends it"}
	}
	for i, a := range e.Spec.Addresses {
		if old != nil && slices.Contains(old.Spec.Addresses, a) {
			continue
		}
		if handle := v.Holder(a); handle != e.Metadata.Name {
			reason := "no block holds it for this endpoint; an attach draws addresses"
			if handle != "" {
				reason = "is held by " + handle
			}
			return &FieldError{Field: indexed("spec.addresses", i), Value: a.String(), Reason: reason}
		}
	}
	return nil
}

// Holder is the handle that holds an address; "": no block says so.
func (v *View) Holder(a netip.Addr) string {
	for bits := a.BitLen() - maxBlockBits; bits <= a.BitLen(); bits++ {
		b := v.Block(PoolName(netip.PrefixFrom(a, bits)))
		if b == nil {
			continue
		}
		low := binary.BigEndian.Uint16(a.AsSlice()[a.BitLen()/8-2:])
		ordinal := int(low) & (b.Size() - 1)
		for _, held := range b.Spec.Allocations {
			if held.Ordinal == ordinal {
				return held.Handle
			}
		}
	}
	return ""
}

func (v *View) checkPool(p *Pool) error {
	// Not by Validate: one that is stored is read as before.
	if err := each("spec.communities", p.Spec.Communities, checkOwn); err != nil {
		return err
	}
	for _, other := range v.Pools() {
		if other.Metadata.Name != p.Metadata.Name && other.Spec.CIDR.Overlaps(p.Spec.CIDR) {
			return &FieldError{Field: "spec.cidr", Value: p.Spec.CIDR.String(),
				Reason: fmt.Sprintf("overlaps the pool %s", other.Spec.CIDR)}
		}
	}
	if err := v.checkRouted(p); err != nil {
		return err
	}
	// Those of no pool count too: their pool was removed.
	others := slices.DeleteFunc(v.BlocksIn(p), func(b *Block) bool { return b.Spec.CIDR.Bits() == p.Spec.BlockSize })
	if len(others) > 0 {
		return fmt.Errorf("%w: blocks of /%d cannot become /%d: %s", ErrInUse, others[0].Spec.CIDR.Bits(), p.Spec.BlockSize,
			users("there is block", others, func(b *Block) string { return b.Spec.CIDR.String() }))
	}
	return nil
}

// checkPeer refuses two peers of one address or interface for the same nodes. Where several scopes
// have a node in common, routing.Plan says which peer is the node's.
func (v *View) checkPeer(p *Peer) error {
	if err := v.checkFilters("spec.filters", p.Spec.Filters); err != nil {
		return err
	}
	for _, other := range v.Peers() {
		if other.Metadata.Name != p.Metadata.Name && other.Spec.Neighbour() == p.Spec.Neighbour() && other.Scope() == p.Scope() {
			field := "spec.address"
			if p.Spec.Interface != "" {
				field = "spec.interface"
			}
			return &FieldError{Field: field, Value: p.Spec.Neighbour(),
				Reason: fmt.Sprintf("is that of peer %s already, for the same nodes (%s)", other.Metadata.Name, p.Scope())}
		}
	}
	return nil
}

func (v *View) checkFilters(field string, names []string) error {
	for i, name := range names {
		if v.BGPFilter(name) == nil {
			return &FieldError{Field: indexed(field, i), Value: name, Reason: "there is no such filter"}
		}
	}
	return nil
}

// OpPools is the condition and operation that belong into every transaction
// that adds a pool; see PoolsKey.
func (v *View) OpPools() (Condition, Op) {
	return Condition{Key: PoolsKey, Revision: v.pools}, Op{Key: PoolsKey, Value: []byte("{}")}
}

// BlocksIn returns the blocks of a pool by address.
func (v *View) BlocksIn(p *Pool) []*Block {
	return slices.DeleteFunc(v.Blocks(), func(b *Block) bool { return !p.Spec.CIDR.Overlaps(b.Spec.CIDR) })
}

// CheckDelete says what uses an object: addresses of a pool, endpoints and
// networks of a profile, endpoints of a network or node, peers of a filter, policies of a tier,
// rules that name a network set. The error
// wraps ErrInUse.
func (v *View) CheckDelete(o Object) error {
	name := o.Meta().Name
	endpoints := func(list []*Endpoint) string {
		return users("endpoint", list, func(e *Endpoint) string { return e.Metadata.Name })
	}
	networks := func(uses func(*Network) bool) string {
		list := slices.DeleteFunc(v.Networks(), func(n *Network) bool { return !uses(n) })
		return users("network", list, func(n *Network) string { return n.Metadata.Name })
	}
	var by []string
	switch o := o.(type) {
	case *Pool:
		held := slices.DeleteFunc(v.BlocksIn(o), func(b *Block) bool { return !b.InUse() })
		by = append(by, users("addresses of block", held, func(b *Block) string { return b.Spec.CIDR.String() }), endpoints(v.routedIn(o)),
			networks(func(n *Network) bool { return slices.Contains(n.Spec.Pools, o.Spec.CIDR) }))
	case *Profile:
		hosts := slices.DeleteFunc(v.HostEndpoints(), func(h *HostEndpoint) bool { return !slices.Contains(h.Spec.Profiles, name) })
		by = append(by, endpoints(v.EndpointsWithProfile(name)), users("hostendpoint", hosts, func(h *HostEndpoint) string { return h.Metadata.Name }),
			networks(func(n *Network) bool { return n.Spec.Profile == name }))
	case *Network:
		by = append(by, users("endpoint", v.EndpointsIn(name), endpointWords))
	case *Tier:
		policies := slices.DeleteFunc(v.Policies(), func(p *Policy) bool { return p.Spec.Tier != name })
		by = append(by, users("policy", policies, func(p *Policy) string { return p.Metadata.Name }))
	case *NetworkSet:
		names := func(rules []Rule) bool {
			return slices.ContainsFunc(rules, func(r Rule) bool { return r.From.Set.Value == name || r.To.Set.Value == name })
		}
		policies := slices.DeleteFunc(v.Policies(), func(p *Policy) bool { return !names(p.Spec.Ingress) && !names(p.Spec.Egress) })
		profiles := slices.DeleteFunc(v.Profiles(), func(p *Profile) bool { return !names(p.Spec.Inbound) && !names(p.Spec.Outbound) })
		by = append(by, users("policy", policies, func(p *Policy) string { return p.Metadata.Name }), users("profile", profiles, func(p *Profile) string { return p.Metadata.Name }))
	case *BGPFilter:
		peers := slices.DeleteFunc(v.Peers(), func(p *Peer) bool { return !slices.Contains(p.Spec.Filters, name) })
		by = append(by, users("peer", peers, func(p *Peer) string { return p.Metadata.Name }))
		if slices.ContainsFunc(v.BGP().Spec.Filters, func(f PeerFilters) bool { return slices.Contains(f.Filters, name) }) {
			by = append(by, "bgpconfig "+DefaultName)
		}
	case *Node:
		held := slices.DeleteFunc(v.BlocksOf(name), func(b *Block) bool { return !b.InUse() })
		hosts := slices.DeleteFunc(v.HostEndpoints(), func(h *HostEndpoint) bool { return h.Spec.Node != name })
		by = append(by, endpoints(v.EndpointsOf(name)), users("hostendpoint", hosts, func(h *HostEndpoint) string { return h.Metadata.Name }), users("addresses of block", held, func(b *Block) string { return b.Spec.CIDR.String() }))
	}
	by = slices.DeleteFunc(by, func(s string) bool { return s == "" })
	if len(by) == 0 {
		return nil
	}
	return fmt.Errorf("%w by %s", ErrInUse, strings.Join(by, " and "))
}

// endpointWords are an endpoint's name, which begins with its node's, and what people call
// its container.
func endpointWords(e *Endpoint) string {
	for _, label := range []string{"docker.name", "podman.name", "name"} {
		if called := e.Metadata.Labels[label]; called != "" {
			return e.Metadata.Name + " (" + called + ")"
		}
	}
	return e.Metadata.Name
}

// users names the first few of a list: "endpoint a, b, c and 4 more"; "" if it is empty.
func users[T any](what string, list []T, name func(T) string) string {
	if len(list) == 0 {
		return ""
	}
	var names []string
	for _, x := range list[:min(len(list), maxNamed)] {
		names = append(names, name(x))
	}
	s := what + " " + strings.Join(names, ", ")
	if more := len(list) - maxNamed; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}
