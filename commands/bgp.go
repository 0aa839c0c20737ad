package commands

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newBGPCommand(a *app) *cobra.Command {
	return group("bgp", "Show and change the cluster's BGP configuration",
		"  netctl bgp node-mesh\n  netctl bgp default-node-as 64512",
		newNodeMeshCommand(a), newDefaultASCommand(a), newTopologyCommand(a), newPeerCommand(a), newFilterCommand(a), newBGPRoutesCommand(a), newBGPSessionCommand(a))
}

func newNodeMeshCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:       "node-mesh [on|off]",
		Short:     "Show or switch the mesh of sessions between all nodes",
		Example:   "  netctl bgp node-mesh\n  netctl bgp node-mesh off",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				c, err := a.bgpConfig(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(onOff(*c.Spec.Mesh) + "\n")
			}
			return a.changeBGP(cmd.Context(), func(c *datastore.BGPConfig) { c.Spec.Mesh = new(args[0] == "on") })
		},
	}
}

func newDefaultASCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "default-node-as [AS]",
		Short:             "Show or set the AS number of nodes that have none of their own",
		Example:           "  netctl bgp default-node-as\n  netctl bgp default-node-as 64512",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				c, err := a.bgpConfig(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(fmt.Sprintln(c.Spec.DefaultAS))
			}
			as, err := parseAS(args[0])
			if err != nil {
				return err
			}
			return a.changeBGP(cmd.Context(), func(c *datastore.BGPConfig) { c.Spec.DefaultAS = as })
		},
	}
}

func parseAS(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 0 {
		return 0, usage("%q is no AS number from 1 to 4294967294", s)
	}
	return uint32(n), nil
}

// bgpConfig is the cluster's BGP configuration, the defaults if there is none.
func (a *app) bgpConfig(ctx context.Context) (*datastore.BGPConfig, error) {
	c, err := read[*datastore.BGPConfig](ctx, a, datastore.DefaultName)
	if errors.Is(err, datastore.ErrNotFound) {
		c, err = &datastore.BGPConfig{}, nil
		c.SetDefaults()
	}
	return c, err
}

func (a *app) changeBGP(ctx context.Context, change func(*datastore.BGPConfig)) error {
	for races := 0; ; races++ {
		c, err := a.bgpConfig(ctx)
		if err != nil {
			return err
		}
		change(c)
		if err := c.Validate(); err != nil {
			return argument(err)
		}
		s, err := a.store(ctx)
		if err != nil {
			return err
		}
		if c.Metadata.Revision == 0 {
			err = datastore.Create(ctx, s, c)
		} else {
			err = datastore.Update(ctx, s, c)
		}
		if !errors.Is(err, datastore.ErrConflict) && !errors.Is(err, datastore.ErrExists) || races == maxRaces {
			return err
		}
	}
}
