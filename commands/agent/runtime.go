package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
)

// What drivers of runtimes ask for beside an attach.

// hold chooses an address for who attaches with it soon.
func (a *api) hold(ctx context.Context, r control.HoldRequest) (h control.HeldAddress, err error) {
	isAway, err := a.loop.gateOrAway(ctx)
	if err != nil {
		return h, fmt.Errorf("address: %w", err)
	}
	req := ipam.Request{Name: r.Name, Pools: r.Pools, Within: r.Within, Family: 4, Away: isAway}
	if r.IPv6 {
		req.Family = 6
	}
	if err := a.loop.do(ctx, func() {
		if n := a.loop.view.Network(r.Network); n != nil && len(req.Pools) == 0 {
			req.Pools = n.Spec.Pools
		}
	}); err != nil {
		return h, err
	}
	if r.Address.IsValid() {
		if r.Address.Is6() != r.IPv6 {
			return h, fmt.Errorf("address %s: %w: is of the other family", r.Address, datastore.ErrInvalid)
		}
		req.Wants = []netip.Addr{r.Address}
	}
	list, err := a.addresses.Hold(ctx, req)
	if err != nil {
		return h, err
	}
	h.Address = list[0]
	if pool := a.loop.addresses.PoolOf(h.Address); pool != nil {
		h.Pool = pool.Spec.CIDR
	}
	return h, nil
}

func (a *api) letGo(_ context.Context, h control.HeldAddress) (struct{}, error) {
	a.addresses.LetGo(h.Address)
	return struct{}{}, nil
}

// pools tells which there are.
func (a *api) pools(ctx context.Context, _ struct{}) (answer control.PoolAnswer, err error) {
	if _, err := a.loop.gateOrAway(ctx); err != nil {
		return answer, fmt.Errorf("pools: %w", err)
	}
	err = a.loop.do(ctx, func() {
		for _, p := range a.loop.view.Pools() {
			e := control.PoolEntry{CIDR: p.Spec.CIDR}
			if p.Spec.Disabled {
				e.Closed = "it is disabled"
			}
			answer.Pools = append(answer.Pools, e)
		}
	})
	return answer, err
}

// network makes a network and its profile if they are not there.
func (a *api) network(ctx context.Context, r control.NetworkRequest) (answer control.NetworkAnswer, err error) {
	if isAway, err := a.loop.gateOrAway(ctx); err != nil {
		return answer, fmt.Errorf("network %s: %w", r.Name, err)
	} else if isAway {
		return a.knownNetwork(ctx, r.Name)
	}
	n := &datastore.Network{Metadata: datastore.Metadata{Name: r.Name, Labels: r.Labels}, Spec: r.Spec}
	n.SetDefaults()
	if err := n.Validate(); err != nil {
		return answer, fmt.Errorf("network %s: %w", r.Name, err)
	}
	have, err := datastore.Get[*datastore.Network](ctx, a.store, r.Name)
	if err == nil {
		return control.NetworkAnswer{Spec: have.Spec}, nil
	}
	if !errors.Is(err, datastore.ErrNotFound) {
		return answer, err
	}
	list := []datastore.Object{n}
	_, err = datastore.Get[*datastore.Profile](ctx, a.store, n.Spec.Profile)
	switch {
	case errors.Is(err, datastore.ErrNotFound):
		p := &datastore.Profile{Metadata: datastore.Metadata{Name: n.Spec.Profile}}
		for _, text := range r.Outbound {
			rule, err := datastore.ParseRule(text)
			if err != nil {
				return answer, fmt.Errorf("network %s: profile: %w", r.Name, err)
			}
			p.Spec.Outbound = append(p.Spec.Outbound, rule)
		}
		p.SetDefaults()
		list = append(list, p)
	case err != nil:
		return answer, err
	}
	var t datastore.Txn
	for _, o := range list {
		cond, op, err := datastore.OpPut(o)
		if err != nil {
			return answer, fmt.Errorf("network %s: %w", r.Name, err)
		}
		t.If, t.Then = append(t.If, cond), append(t.Then, op)
	}
	if _, err := a.store.Commit(ctx, t); err != nil {
		if have, e := datastore.Get[*datastore.Network](ctx, a.store, r.Name); e == nil {
			return control.NetworkAnswer{Spec: have.Spec}, nil // another node was faster
		}
		if errors.Is(err, datastore.ErrDenied) { // by default this node may make one
			return answer, fmt.Errorf("network %s: with a profile of its own (internal, -o profile) it is %w on this node: make it on a member of the datastore", r.Name, datastore.ErrDenied)
		}
		return answer, fmt.Errorf("network %s: %w", r.Name, err)
	}
	a.loop.log.Info("network created", "network", r.Name)
	return control.NetworkAnswer{Spec: n.Spec, Created: true}, nil
}

// knownNetwork answers while the datastore is away: nobody can make one then.
func (a *api) knownNetwork(ctx context.Context, name string) (answer control.NetworkAnswer, err error) {
	known := false
	if err := a.loop.do(ctx, func() {
		if n := a.loop.view.Network(name); n != nil {
			known, answer.Spec = true, n.Spec
		}
	}); err != nil {
		return answer, err
	}
	if !known {
		return answer, fmt.Errorf("network %s is not known on this node, and cannot be made while the datastore is away: %w", name, datastore.ErrUnavailable)
	}
	return answer, nil
}

// labels gives an endpoint labels that were learned after it was attached.
func (a *api) labels(ctx context.Context, r control.LabelRequest) (none struct{}, err error) {
	name := r.Endpoint(a.loop.cfg.Node)
	if _, err := a.loop.gateOrAway(ctx); err != nil {
		return none, fmt.Errorf("label %s: %w", name, err)
	}
	return none, a.service.Amend(ctx, name, func(ep *datastore.Endpoint) error {
		was := ep.Metadata.Labels
		ep.Metadata.Labels = maps.Clone(was)
		if was == nil {
			ep.Metadata.Labels = map[string]string{}
		}
		maps.Copy(ep.Metadata.Labels, r.Labels)
		return nil
	})
}

// ports publishes ports of the node as ports of an endpoint.
func (a *api) ports(ctx context.Context, r control.PortRequest) (none struct{}, err error) {
	name := r.Endpoint(a.loop.cfg.Node)
	if _, err := a.loop.gateOrAway(ctx); err != nil {
		return none, fmt.Errorf("publish ports of %s: %w", name, err)
	}
	a.publishing.Lock() // else two could have one
	defer a.publishing.Unlock()
	if err := a.service.Amend(ctx, name, func(ep *datastore.Endpoint) error {
		var taken error
		if err := a.loop.do(ctx, func() {
			for _, o := range a.loop.view.EndpointsOf(a.loop.cfg.Node) {
				if p, both := bothPublish(o.Spec.HostPorts, r.Ports); both && o.Metadata.Name != name {
					taken = fmt.Errorf("port %d/%s of this node: %w: %s publishes it", p.HostPort, p.Protocol, datastore.ErrInUse, o.Metadata.Name)
				}
			}
		}); err != nil {
			return err
		}
		ep.Spec.HostPorts = r.Ports
		return taken
	}); err != nil {
		return none, err
	}
	return none, a.direct(ctx, name, r.Ports)
}

// direct has what is sent to ports already, and went to the host, go to the endpoint.
func (a *api) direct(ctx context.Context, name string, ports []datastore.HostPort) error {
	var host []netip.Addr
	if err := a.loop.do(ctx, func() { host = a.loop.links.own() }); err != nil {
		return err
	}
	if err := a.undirect(host, ports); err != nil {
		a.loop.log.Warn("who sent to a published port before may not reach it", "endpoint", name, "error", err)
	}
	return nil
}

// bothPublish finds a port of the node that is in both lists.
func bothPublish(a, b []datastore.HostPort) (datastore.HostPort, bool) {
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				return x, true
			}
		}
	}
	return datastore.HostPort{}, false
}
