package workload

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// maxTries bounds how often an assignment starts over because somebody else
// created the same network or profile.
const maxTries = 5

// ErrGivenUp says that an attach came too late: its detach was asked for since it was begun.
var ErrGivenUp error = &control.Error{Code: control.CodeUnavailable, Message: "attach given up: a detach of the endpoint was asked for since"}

// Attach wires one interface of a workload into ns, which of a loose one and of a TAP is
// nil. It
// returns when address, link, routes and ACLs are in the kernel, or having undone what
// it did.
func (s *Service) Attach(ctx context.Context, req control.AttachRequest, ns *kernel.Netns) (control.Attachment, error) {
	name, release, err := s.enter(ctx, req)
	if err != nil {
		return control.Attachment{}, err
	}
	defer release()
	known, err := s.begin(ctx, name, req)
	if err != nil {
		return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
	}
	defer s.Reconciler.End(name)
	if known.Endpoint != nil {
		a, done, err := s.repeat(ctx, req, known, ns)
		if done || err != nil {
			return a, err
		}
		// What the endpoint was attached to is gone: it is made anew.
		if err := s.remove(ctx, known.Endpoint); err != nil {
			return control.Attachment{}, err
		}
		s.Reconciler.End(name)
		if known, err = s.begin(ctx, name, req); err != nil {
			return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
		}
	}
	ep, revision, err := s.assign(ctx, name, req, known)
	if err != nil && s.behind(ctx, err) {
		s.Reconciler.End(name)
		if known, err = s.begin(ctx, name, req); err == nil {
			ep, revision, err = s.assign(ctx, name, req, known)
		}
	}
	if err != nil {
		return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
	}
	a, err := s.wire(ctx, req, ep, known, ns, revision)
	if err != nil {
		s.undo(ctx, ep)
		return control.Attachment{}, fmt.Errorf("attach %s: %w", name, err)
	}
	s.Log.Info("endpoint attached", "endpoint", name, "link", a.Link, "addresses", a.Addresses, "network", ep.Spec.Network, datastore.EventEndpoint.Mark())
	return a, nil
}

// enter checks a request and waits for the turn of its endpoint, until release.
func (s *Service) enter(ctx context.Context, req control.AttachRequest) (name string, release func(), err error) {
	name = req.Endpoint(s.Node)
	if _, err := datastore.Key(datastore.KindEndpoint, name); err != nil {
		return name, nil, fmt.Errorf("attach: %w", err)
	}
	if gateways := netdev.Gateways(s.Gateway); req.Gateway.IsValid() && !slices.Contains(gateways, req.Gateway) {
		return name, nil, fmt.Errorf("attach %s: gateway %s: %w: must be %s to %s", name, req.Gateway, datastore.ErrInvalid, gateways[0], gateways[len(gateways)-1])
	}
	if release, err = s.turns.take(ctx, name); err != nil {
		return name, nil, err
	}
	if s.GivenUp != nil && s.GivenUp(ctx, req.Target) {
		release()
		return name, nil, ErrGivenUp
	}
	return name, release, nil
}

func (s *Service) begin(ctx context.Context, name string, req control.AttachRequest) (Known, error) {
	return s.Reconciler.Begin(ctx, name, req.Network, req.Profiles)
}

// repeat answers an Attach of what is attached: done with the same result if the
// namespace is the same, an error if another one holds the endpoint, not done if
// the link is gone.
func (s *Service) repeat(ctx context.Context, req control.AttachRequest, known Known, ns *kernel.Netns) (a control.Attachment, done bool, err error) {
	ep := known.Endpoint
	if ep.Spec.Tap.Is() || req.Tap.Is() {
		return s.repeatTap(ctx, req, known)
	}
	rec, err := s.Records.Read(ep.Spec.Link)
	if err != nil || !known.Linked {
		// No record: the attach was cut off before it was answered.
		return a, false, nil
	}
	switch {
	case ns == nil && rec.Netns != req.NetnsPath:
		return a, false, nil // its runtime gave it up
	case ns == nil:
	case rec.Dev != ns.Dev || rec.Ino != ns.Ino:
		return a, false, fmt.Errorf("attach %s: %w: it is attached to another network namespace: detach it first", ep.Metadata.Name, datastore.ErrExists)
	default:
		if err := s.checkLink(rec, ns); err != nil {
			return a, false, fmt.Errorf("attach %s: %w: it is attached, and changed since (%w): detach it first", ep.Metadata.Name, datastore.ErrExists, err)
		}
	}
	if err := lacks(ep, req); err != nil {
		return a, false, err
	}
	if err := s.Reconciler.Program(ctx, rec, 0); err != nil {
		return a, false, fmt.Errorf("attach %s: %w", ep.Metadata.Name, err)
	}
	return rec.Attachment, true, nil
}

// lacks says which of the addresses that are asked for an endpoint does not have.
func lacks(ep *datastore.Endpoint, req control.AttachRequest) error {
	for _, want := range req.Addresses {
		if !slices.Contains(ep.Spec.Addresses, want) {
			return fmt.Errorf("attach %s: %w: it is attached, without address %s: detach it first", ep.Metadata.Name, datastore.ErrExists, want)
		}
	}
	return nil
}

// recorded is the wire as a record describes it, in ns.
func (s *Service) recorded(rec *Record, ns *kernel.Netns) kernel.Wire {
	w := rec.Wire(s.Boot, s.Gateway)
	w.Netns = ns.FD()
	return w
}

// assign writes the endpoint, its addresses, and its network and profiles if
// they do not exist, in one transaction.
func (s *Service) assign(ctx context.Context, name string, req control.AttachRequest, known Known) (*datastore.Endpoint, int64, error) {
	mac := req.MAC
	adopted := req.Orchestrator == datastore.OrchestratorAdopted
	if mac == "" && !adopted { // else it is what it is
		mac = netdev.NewMAC()
	}
	for try := 1; ; try++ {
		plan, err := s.plan(name, mac, req, known)
		if err != nil {
			return nil, 0, err
		}
		ask := plan.ask(name, req)
		ask.Commit, ask.Restore = plan.commit, adopted
		res, err := s.given(ctx, ask)
		if err == nil {
			return plan.endpoint, res.Revision, nil
		}
		if !raced(err) || try == maxTries {
			return nil, 0, plan.unmade(err)
		}
		if known, err = s.reread(ctx, name, req, known); err != nil {
			return nil, 0, err
		}
	}
}

// unmade says of an attach that was not allowed which command makes what this node may not.
func (p *plan) unmade(err error) error {
	if !errors.Is(err, datastore.ErrDenied) {
		return err
	}
	for _, o := range p.create {
		if key, e := datastore.KeyOf(o); e == nil && strings.Contains(err.Error(), "write "+key+":") {
			verb := "network create"
			if o.Kind() == datastore.KindProfile {
				verb = "profile add"
			}
			return fmt.Errorf("%w; there is none, and `netctl %s %s` where that is allowed makes it", err, verb, o.Meta().Name)
		}
	}
	return err
}

// given is Assign within half of the time that ctx has: the rest is for what can be done
// without the store.
func (s *Service) given(ctx context.Context, req ipam.Request) (ipam.Result, error) {
	bounded := ctx
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	res, err := s.Addresses.Assign(bounded, req)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		err = fmt.Errorf("assign %s: %w: no answer in time", req.Handle, datastore.ErrUnavailable)
	}
	return res, err
}

// behind says, of an assignment that was refused, whether the view lacked a pool
// or profile that the store has, and waits until it does not: somebody may have
// made it just before.
func (s *Service) behind(ctx context.Context, err error) bool {
	if !errors.Is(err, datastore.ErrInvalid) && !errors.Is(err, datastore.ErrNotFound) && !errors.Is(err, datastore.ErrExhausted) {
		return false
	}
	var newest int64
	for _, k := range []datastore.Kind{datastore.KindPool, datastore.KindProfile} {
		list, err := s.Store.List(ctx, datastore.KindPrefix(k))
		if err != nil {
			return false
		}
		for _, e := range list.Entries {
			newest = max(newest, e.Revision)
		}
	}
	return s.Reconciler.Reach(ctx, newest) == nil
}

// reread is what is known after a lost race: the store's word, but for a network
// or profile that only a newer netctl can read. What was understood of that stays.
func (s *Service) reread(ctx context.Context, name string, req control.AttachRequest, known Known) (Known, error) {
	_, err := datastore.Get[*datastore.Endpoint](ctx, s.Store, name)
	if err == nil {
		return known, fmt.Errorf("somebody else wrote the endpoint: %w", datastore.ErrConflict)
	}
	if !errors.Is(err, datastore.ErrNotFound) {
		return known, err
	}
	before := known
	known.Network, known.Profiles = nil, nil
	if req.Network != "" {
		n, err := datastore.Get[*datastore.Network](ctx, s.Store, req.Network)
		switch {
		case err == nil:
			known.Network = n
		case errors.Is(err, datastore.ErrInvalid) && before.Network != nil:
			known.Network = before.Network
		case !errors.Is(err, datastore.ErrNotFound):
			return known, err
		}
	}
	profiles := datastore.ProfilesOf(req.Network, known.Network, req.Profiles)
	for _, p := range profiles {
		o, err := datastore.Get[*datastore.Profile](ctx, s.Store, p)
		had := slices.IndexFunc(before.Profiles, func(o *datastore.Profile) bool { return o.Metadata.Name == p })
		switch {
		case err == nil:
			known.Profiles = append(known.Profiles, o)
		case errors.Is(err, datastore.ErrInvalid) && had >= 0:
			known.Profiles = append(known.Profiles, before.Profiles[had])
		case !errors.Is(err, datastore.ErrNotFound):
			return known, err
		}
	}
	return known, nil
}

// plan is one try of an assignment.
type plan struct {
	endpoint *datastore.Endpoint
	asItIs   bool               // it is stored so already
	create   []datastore.Object // besides the endpoint
	pools    []netip.Prefix
	ipv6     bool
	family   int // 6: no IPv4; 0: as ipv6 says
}

// ask is what addresses are asked for, of the store or of the node's own blocks.
func (p *plan) ask(name string, req control.AttachRequest) ipam.Request {
	return ipam.Request{
		Handle: name, Workload: req.Workload, Name: req.Labels["name"], Wants: req.Addresses,
		Pools: p.pools, V6: p.ipv6, Family: p.family, Within: req.Within, Held: req.Held,
	}
}

func (s *Service) plan(name, mac string, req control.AttachRequest, known Known) (*plan, error) {
	p := &plan{pools: req.Pools, ipv6: req.IPv6}
	if req.Network != "" {
		p.network(req, known.Network)
	}
	if req.IPv6Only {
		p.family = 6
	}
	if i := slices.IndexFunc(req.Addresses, netip.Addr.Is4); i >= 0 && p.family == 6 {
		return nil, fmt.Errorf("address %s: %w: the network %s or the request is of IPv6 alone", req.Addresses[i], datastore.ErrInvalid, req.Network)
	}
	profiles := datastore.ProfilesOf(req.Network, known.Network, req.Profiles)
	for _, want := range profiles {
		if slices.ContainsFunc(known.Profiles, func(have *datastore.Profile) bool { return have.Metadata.Name == want }) {
			continue
		}
		if len(req.Profiles) > 0 {
			return nil, fmt.Errorf("profile %s: %w: create it first, with `netctl profile add %s`", want, datastore.ErrNotFound, want)
		}
		p.create = append(p.create, &datastore.Profile{Metadata: datastore.Metadata{Name: want}})
	}
	p.endpoint = &datastore.Endpoint{
		Metadata: datastore.Metadata{Name: name, Labels: req.Labels},
		Spec: datastore.EndpointSpec{
			Node: s.Node, Orchestrator: req.Orchestrator, Workload: req.Workload, Interface: req.Interface,
			Network: req.Network, Link: netdev.LinkName(s.LinkPrefix, name), MAC: mac, Profiles: profiles, Ports: req.Ports, Bandwidth: req.Bandwidth, Tap: req.Tap,
			AllowedPrefixes: req.AllowedPrefixes, AllowEncapsulation: req.AllowEncapsulation, GuardMAC: req.GuardMAC,
		},
	}
	return p, nil
}

// network takes over what the network says, or creates it (n is nil).
func (p *plan) network(req control.AttachRequest, n *datastore.Network) {
	if n == nil {
		n = &datastore.Network{Metadata: datastore.Metadata{Name: req.Network}}
		if original := req.Labels[datastore.LabelNetwork]; original != "" && datastore.ForeignName(original) == req.Network {
			n.Metadata.Labels = map[string]string{datastore.LabelNetwork: original}
		}
		p.create = append(p.create, n)
	}
	if len(p.pools) == 0 {
		p.pools = n.Spec.Pools
	}
	p.ipv6 = p.ipv6 || n.Spec.IPv6
	if n.Spec.IPv6Only() {
		p.family = 6
	}
}

// commit is what goes into the transaction of the addresses.
func (p *plan) commit(addrs []netip.Addr) (conds []datastore.Condition, ops []datastore.Op, err error) {
	p.endpoint.Spec.Addresses = slices.Clone(addrs)
	for _, o := range append(slices.Clone(p.create), p.endpoint) {
		cond, op, err := datastore.OpPut(o)
		if err != nil {
			return nil, nil, err
		}
		conds = append(conds, cond)
		if o != datastore.Object(p.endpoint) || !p.asItIs {
			ops = append(ops, op)
		}
	}
	return conds, ops, nil
}

// wire makes the link and has it protected, routed and set up. A revision of 0 is of an
// endpoint that the store has yet to hear of.
func (s *Service) wire(ctx context.Context, req control.AttachRequest, ep *datastore.Endpoint, known Known, ns *kernel.Netns, revision int64) (control.Attachment, error) {
	a := control.Attachment{
		Endpoint: ep.Metadata.Name, Link: ep.Spec.Link, LinkMAC: netdev.HostMAC, Interface: ep.Spec.Interface,
		MTU: req.MTU, Addresses: ep.Spec.Addresses,
	}
	if a.MTU == 0 {
		a.MTU = known.Ways.Of(ep.Spec.Addresses)
	}
	if text := known.Ways.Uplink.Of(ep.Spec.Addresses, known.Ways.Tunnelled).Exceeded(a.MTU, false); text != "" {
		a.Warning = "endpoint " + a.Endpoint + " " + text
		s.Log.Warn("mtu above the uplink's", "endpoint", a.Endpoint, "cause", text)
	}
	gateway := s.Gateway
	if req.Loose && req.Gateway.IsValid() {
		gateway = req.Gateway
	}
	for _, addr := range ep.Spec.Addresses {
		if addr.Is4() {
			a.Gateways = append(a.Gateways, gateway)
		} else {
			a.Gateways = append(a.Gateways, netdev.HostLinkLocal())
		}
	}
	w := kernel.Wire{
		Interface: ep.Spec.Interface, Link: ep.Spec.Link, MAC: ep.Spec.MAC, MTU: a.MTU,
		Addresses: ep.Spec.Addresses, Gateway4: gateway, Bandwidth: ep.Spec.Bandwidth, Tap: ep.Spec.Tap,
	}
	rec := &Record{Endpoint: ep, Runtime: req.Runtime, FitMTU: req.MTU == 0, Boot: s.Boot, Netns: req.NetnsPath, Destinations: req.Destinations, Cluster: known.Cluster, Unsettled: revision == 0}
	switch {
	case ep.Spec.Tap.Is():
	case ns == nil:
		a.Peer = netdev.PeerName(a.Link)
		w.Peer = a.Peer
	default:
		w.Netns, rec.Dev, rec.Ino = ns.FD(), ns.Dev, ns.Ino
	}
	made, err := s.Links.Create(w)
	if err != nil {
		return a, err
	}
	a.MAC = made.MAC
	rec.Attachment, rec.Index = a, made.Index
	if err := s.Records.Put(rec); err != nil {
		return a, err
	}
	return a, s.Reconciler.Program(ctx, rec, revision)
}
