package runtimes

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"netctl/commands/engine"
	"netctl/datastore"
)

// labelOurs is the label of Docker's networks that netctl made; its value is the
// network's name.
const labelOurs = "netctl.network"

// docker is the place of Docker's networks.
type docker struct {
	api    *engine.Client
	socket string // of our driver
}

func newDocker(cfg Config) *docker { return &docker{engine.New(cfg.DockerAPI), cfg.DockerDriver} }

// driver is what Docker calls our driver.
func (d *docker) driver() string { return strings.TrimSuffix(filepath.Base(d.socket), ".sock") }

// serves implements place: Docker runs here, and our driver for it.
func (d *docker) serves() []string {
	if isSocket(d.api.Socket) && isSocket(d.socket) {
		return []string{datastore.RuntimeDocker}
	}
	return nil
}

func (d *docker) look(ctx context.Context) (map[string]found, error) {
	list, err := d.api.Networks(ctx)
	if err != nil {
		return nil, fmt.Errorf("the API of Docker at %s: %w", d.api.Socket, err)
	}
	have := map[string]found{}
	for _, n := range list {
		book(have, n.Name, found{ // Docker may have two of one name
			at: fmt.Sprintf("Docker's network %s (%.12s)", n.Name, n.ID), id: n.ID, ours: n.Labels[labelOurs] == n.Name,
			same: func(w Network) bool { return d.same(n, w) },
		})
	}
	return have, nil
}

// same says whether a network that netctl made is as it would be made now.
func (d *docker) same(n engine.Network, w Network) bool {
	return n.Driver == d.driver() && n.IPAM.Driver == d.driver() && n.EnableIPv6 == w.IPv6 && slices.Equal(subnetsOf(n), sorted(w.Subnets))
}

// subnetsOf are those that a network was made with; without any it has the whole of the
// address space.
func subnetsOf(n engine.Network) (list []netip.Prefix) {
	for _, c := range n.IPAM.Config {
		if s, err := netip.ParsePrefix(c.Subnet); err == nil && s.Bits() > 0 {
			list = append(list, s.Masked())
		}
	}
	return sorted(list)
}

func sorted(list []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(list), netip.Prefix.Compare)
}

func (d *docker) put(ctx context.Context, n Network, have *found) error {
	if have != nil {
		if err := d.remove(ctx, *have); err != nil {
			return err
		}
	}
	made := engine.Network{
		Name: n.Name, Driver: d.driver(), EnableIPv6: n.IPv6, IPAM: engine.IPAM{Driver: d.driver()}, Labels: map[string]string{labelOurs: n.Name},
	}
	for _, s := range n.Subnets {
		made.IPAM.Config = append(made.IPAM.Config, engine.Subnet{Subnet: s.String()})
	}
	return d.api.CreateNetwork(ctx, made)
}

// remove implements place. Docker refuses it while a container runs in the network.
func (d *docker) remove(ctx context.Context, have found) error {
	return d.api.RemoveNetwork(ctx, have.id)
}

func (d *docker) watch(ctx context.Context, changed func()) error {
	if len(d.serves()) == 0 {
		return nil
	}
	return d.api.Events(ctx, changed)
}
