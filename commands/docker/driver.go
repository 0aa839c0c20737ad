package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/netdev"
)

const (
	// orchestrator is the first part of an endpoint's name below the node.
	orchestrator = "docker"
	// prefix starts the interface's name in the container; Docker numbers it.
	prefix = "eth"
)

// createNetwork takes note of a network. What it is called Docker says to nobody before
// it has made it, so the network of the cluster is made after the call.
func (p *plugin) createNetwork(_ context.Context, r createNetwork) (any, error) {
	n := network{ID: r.NetworkID}
	if err := checkID(r.NetworkID); err != nil {
		return nil, err
	}
	n.Internal, n.IPv6 = flag(r.Options[optInternal]), flag(r.Options[optIPv6])
	for _, d := range append(slices.Clone(r.IPv4Data), r.IPv6Data...) {
		if d.AddressSpace != localSpace && d.AddressSpace != globalSpace {
			return nil, fmt.Errorf("network: its addresses (%s) are not netctl's: say `--ipam-driver netctl` too", d.Pool)
		}
		if t := tokenOf(d.Gateway); t != "" {
			n.Tokens = append(n.Tokens, t)
		}
		if s, err := netip.ParsePrefix(d.Pool); err == nil && s.Bits() > 0 {
			n.Subnets = append(n.Subnets, s.Masked())
		}
	}
	if err := n.options(r.Options[optGeneric]); err != nil {
		return nil, err
	}
	if have, ok := p.state.network(n.ID); ok && have.Name != "" {
		n.Name, n.Made = have.Name, have.Made
	}
	if err := p.state.putNetwork(n); err != nil {
		return nil, err
	}
	p.names.wake()
	return nothing{}, nil
}

// flag reads an option of Docker's, which is a boolean or the text of one.
func flag(v any) bool {
	is, err := strconv.ParseBool(fmt.Sprint(v))
	return err == nil && is
}

// options are those of `docker network create -o`.
func (n *network) options(generic any) error {
	given, _ := generic.(map[string]any)
	for key, v := range given {
		text := fmt.Sprint(v)
		switch strings.TrimPrefix(key, "netctl.") {
		case "profile":
			if err := datastore.CheckName(text); err != nil {
				return fmt.Errorf("-o profile: %w", err)
			}
			n.Profile = text
		case "name":
			n.Name = text
		case "pool", "pools":
			for one := range strings.SplitSeq(text, ",") {
				cidr, err := netip.ParsePrefix(strings.TrimSpace(one))
				if err != nil {
					return fmt.Errorf("-o pool: %q is no CIDR of a pool, like 10.0.0.0/16", one)
				}
				n.Pools = append(n.Pools, cidr.Masked())
			}
		case "mtu", "com.docker.network.driver.mtu":
			mtu, err := strconv.Atoi(text)
			if err != nil || mtu < netdev.MinMTU || mtu > netdev.MaxMTU {
				return fmt.Errorf("-o mtu: %q: must be %d to %d bytes", text, netdev.MinMTU, netdev.MaxMTU)
			}
			n.MTU = mtu
		case "nat-outgoing", "ipip":
			return fmt.Errorf("-o %s: is a setting of the pool: `netctl pool add CIDR --%s`", key, key)
		default:
			return fmt.Errorf("-o %s: there is no such option; there are profile, pool, mtu and name", key)
		}
	}
	return nil
}

// checkID refuses what cannot be the name of a file.
func checkID(id string) error {
	if datastore.CheckName(id) != nil {
		return fmt.Errorf("id %q: is none of Docker's", id)
	}
	return nil
}

func (p *plugin) deleteNetwork(_ context.Context, r endpointCall) (any, error) {
	if err := checkID(r.NetworkID); err != nil {
		return nil, err
	}
	return nothing{}, p.state.dropNetwork(r.NetworkID)
}

// createEndpoint takes note of an endpoint: it is attached when it joins a sandbox.
func (p *plugin) createEndpoint(ctx context.Context, r endpointCall) (any, error) {
	ctx, cancel := short(ctx)
	defer cancel()
	if err := errors.Join(checkID(r.NetworkID), checkID(r.EndpointID)); err != nil {
		return nil, err
	}
	if _, err := p.names.network(ctx, r.NetworkID); err != nil {
		return nil, err
	}
	e := endpoint{ID: r.EndpointID, Network: r.NetworkID}
	given := cmp.Or(r.Interface, &endpointInterface{})
	for _, text := range []string{given.Address, given.AddressIPv6} {
		if text == "" {
			continue
		}
		a, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("endpoint: address %q: is none", text)
		}
		e.Addresses = append(e.Addresses, a.Addr().Unmap())
	}
	if len(e.Addresses) == 0 {
		return nil, errors.New("endpoint: has no address: say `--ipam-driver netctl` when its network is created")
	}
	var told createdEndpoint
	if e.MAC = given.MacAddress; e.MAC == "" {
		e.MAC = netdev.NewMAC()
		told.Interface.MacAddress = e.MAC
	}
	if have, ok := p.state.endpoint(e.ID); ok && slices.Equal(have.Addresses, e.Addresses) { // said again
		if given.MacAddress == "" {
			told.Interface.MacAddress = have.MAC
		}
		return told, nil
	}
	return told, p.state.putEndpoint(e)
}

func target(id string) control.Target {
	return control.Target{Orchestrator: orchestrator, Workload: id, Interface: prefix}
}

// join attaches an endpoint: address, link, routes and rules are there when Docker takes
// the interface into the sandbox, and addresses and routes it as it is told.
func (p *plugin) join(ctx context.Context, r endpointCall) (any, error) {
	e, ok := p.state.endpoint(r.EndpointID)
	if !ok {
		return nil, fmt.Errorf("endpoint %.12s: is not known: Docker did not create it, or this machine was started since", r.EndpointID)
	}
	asked, cancel := short(ctx)
	defer cancel()
	n, err := p.names.network(asked, e.Network)
	if err != nil {
		return nil, err
	}
	if e, err = p.state.enter(e.ID, r.SandboxKey, p.cfg.Gateway); err != nil {
		return nil, err
	}
	a, err := p.attach(ctx, n, e)
	if err != nil {
		return nil, errors.Join(err, p.state.quit(e.ID))
	}
	if err := p.state.changeEndpoint(e.ID, func(e *endpoint) { e.Peer = a.Peer }); err != nil {
		return nil, err
	}
	p.names.wake()
	return answerJoin(a), nil
}

func (p *plugin) attach(ctx context.Context, n network, e endpoint) (control.Attachment, error) {
	req := control.AttachRequest{
		Target: target(e.ID), Network: datastore.ForeignName(n.Name), NetnsPath: e.Sandbox, Loose: true, Gateway: e.Gateway,
		Destinations: n.Subnets, Addresses: e.Addresses, Held: true, MAC: e.MAC, MTU: n.MTU,
	}
	if req.Network != n.Name {
		req.Labels = map[string]string{datastore.LabelNetwork: n.Name}
	}
	return heed(ctx, p, func(ctx context.Context) (control.Attachment, error) {
		return p.agent.Waiting(callTimeout/2).Attach(ctx, req)
	})
}

// answerJoin says how Docker is to set up the interface. It gives no route but the
// default one: any other is in the way of the addresses of further interfaces.
func answerJoin(a control.Attachment) joined {
	j := joined{InterfaceName: interfaceName{SrcName: a.Peer, DstPrefix: prefix}, DisableGatewayService: true}
	for _, gw := range a.Gateways {
		if gw.Is6() {
			j.GatewayIPv6 = gw.String()
			continue
		}
		j.Gateway = gw.String()
		j.StaticRoutes = append(j.StaticRoutes, staticRoute{Destination: host(gw), RouteType: routeConnected})
	}
	return j
}

// leave ends a stay in a sandbox. The interface is Docker's to give back, and goes with
// the endpoint.
func (p *plugin) leave(_ context.Context, r endpointCall) (any, error) {
	return nothing{}, p.state.quit(r.EndpointID)
}

// deleteEndpoint releases an endpoint. Docker cannot do anything about an agent that is
// away: then the agent releases it once it is back.
func (p *plugin) deleteEndpoint(ctx context.Context, r endpointCall) (any, error) {
	if err := checkID(r.EndpointID); err != nil {
		return nil, err
	}
	req := control.DetachRequest{Target: target(r.EndpointID)}
	ctx, cancel := short(ctx)
	defer cancel()
	later, err := control.KeepDetach(filepath.Join(p.cfg.RunDir, filepath.Base(control.PendingDir)), req, p.agent.Detach(ctx, req))
	if later != nil {
		p.log.Warn("endpoint is released later", "endpoint", r.EndpointID, "cause", later)
	}
	if err != nil && !errors.Is(err, datastore.ErrNotFound) {
		return nil, err
	}
	return nothing{}, p.state.dropEndpoint(r.EndpointID)
}

// enter books that an endpoint is in a sandbox, with a gateway that no other there has.
func (s *state) enter(id, sandbox string, first netip.Addr) (endpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.endpoints[id]
	if !ok {
		return e, fmt.Errorf("endpoint %.12s: is gone", id)
	}
	if e.Sandbox == sandbox && sandbox != "" {
		return e, nil // said again
	}
	var gateways []netip.Addr
	for _, o := range s.endpoints {
		if o.ID != id && o.Sandbox == sandbox && sandbox != "" {
			gateways = append(gateways, o.Gateway)
		}
	}
	e.Sandbox, e.Gateway = sandbox, netip.Addr{}
	if slices.ContainsFunc(e.Addresses, netip.Addr.Is4) {
		free := slices.DeleteFunc(netdev.Gateways(first), func(a netip.Addr) bool { return slices.Contains(gateways, a) })
		if len(free) == 0 {
			return e, fmt.Errorf("endpoint %.12s: the container has %d interfaces of netctl, more than there are gateways", id, len(gateways))
		}
		e.Gateway = free[0]
	}
	return e, s.keepEndpoint(e)
}

// quit is enter's opposite.
func (s *state) quit(id string) error {
	return s.changeEndpoint(id, func(e *endpoint) { e.Sandbox, e.Gateway, e.Peer, e.Named = "", netip.Addr{}, "", false })
}
