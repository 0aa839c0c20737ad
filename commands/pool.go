package commands

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

func newPoolCommand(a *app) *cobra.Command {
	return group("pool", "Show and change the CIDRs that endpoints draw addresses from",
		"  netctl pool show\n  netctl pool add 192.168.0.0/16 --ipip --nat-outgoing",
		newPoolShowCommand(a), newPoolAddCommand(a), newPoolRemoveCommand(a),
		group("range", "Add pools by the first and last address",
			"  netctl pool range add 10.0.0.64 10.0.0.255\n  netctl pool range add fd00:1:: fd00:1::ffff --block-size 124",
			newPoolRangeAddCommand(a)))
}

func newPoolShowCommand(a *app) *cobra.Command {
	var v4, v6 bool
	return newListCommand(a, listing{
		kind:    datastore.KindPool,
		short:   "Show the pools; -o wide adds what is used of them",
		example: "  netctl pool show\n  netctl pool show --ipv4 -o wide",
		flags: func(cmd *cobra.Command) {
			cmd.Flags().BoolVar(&v4, "ipv4", false, "IPv4 pools only")
			cmd.Flags().BoolVar(&v6, "ipv6", false, "IPv6 pools only")
			cmd.MarkFlagsMutuallyExclusive("ipv4", "ipv6")
		},
		keep: func(o datastore.Object) bool {
			is6 := o.(*datastore.Pool).Spec.CIDR.Addr().Is6()
			return !(v4 && is6 || v6 && !is6)
		},
	})
}

// poolTables is one table for each family that has a pool.
func poolTables(pools []datastore.Object, uses []ipam.PoolUse, wide bool) string {
	if len(pools) == 0 {
		return "No pools.\n"
	}
	var b strings.Builder
	for _, family := range []string{"IPv4", "IPv6"} {
		header := []string{family + " CIDR", "Options"}
		if wide {
			header = append(header, "Block size", "Blocks", "Used", "Free", "Nodes")
		}
		var rows [][]string
		for _, o := range pools {
			p := o.(*datastore.Pool)
			if p.Spec.CIDR.Addr().Is6() != (family == "IPv6") {
				continue
			}
			row := []string{p.Spec.CIDR.String(), strings.Join(poolOptions(p), ",")}
			for _, u := range uses {
				if u.CIDR == p.Spec.CIDR {
					row = append(row, poolUse(u)...)
				}
			}
			rows = append(rows, append(row, make([]string, len(header)-len(row))...))
		}
		if len(rows) > 0 {
			b.WriteString(table(header, rows))
		}
	}
	return b.String()
}

func poolOptions(p *datastore.Pool) []string {
	var out []string
	if p.Spec.Encap != datastore.EncapNone {
		out = append(out, string(p.Spec.Encap))
	}
	if p.Spec.NATOutgoing {
		out = append(out, "nat-outgoing")
	}
	out = append(out, p.Spec.Communities...)
	switch {
	case p.Spec.Removed:
		out = append(out, "removed")
	case p.Spec.Disabled:
		out = append(out, "disabled")
	}
	return out
}

// poolUse is block size, number of blocks, used and free addresses, and the
// nodes that have blocks.
func poolUse(u ipam.PoolUse) []string {
	var nodes []string
	for _, b := range u.Blocks {
		nodes = append(nodes, b.Affinity)
	}
	slices.Sort(nodes)
	return []string{"/" + strconv.Itoa(u.BlockSize), strconv.Itoa(len(u.Blocks)), strconv.Itoa(u.Used), u.Free.String(),
		strings.Join(slices.Compact(nodes), ",")}
}

// poolFlags are the options of a new pool.
type poolFlags struct {
	encap       map[datastore.Encap]*bool
	nat, off    bool
	blockSize   int
	nodesSelect string
	communities []string
}

// tunnelWord is what people call a kind of tunnel.
func tunnelWord(k datastore.TunnelKind) string {
	if k == datastore.TunnelWireGuard {
		return "WireGuard"
	}
	return strings.ToUpper(string(k))
}

func addPoolFlags(cmd *cobra.Command) *poolFlags {
	f := &poolFlags{encap: map[datastore.Encap]*bool{}}
	var names []string
	for _, e := range datastore.Encaps() {
		if e != datastore.EncapNone {
			kinds, near := e.Tunnels()
			where := "between nodes"
			if !near {
				where = "between nodes that are not in one subnet"
			}
			f.encap[e] = cmd.Flags().Bool(string(e), false, "packets "+where+" go through "+tunnelWord(kinds[0])+" tunnels")
			names = append(names, string(e))
		}
	}
	cmd.MarkFlagsMutuallyExclusive(names...)
	cmd.Flags().BoolVar(&f.nat, "nat-outgoing", false, "what its endpoints send out of every pool, and to nodes, gets their node's address")
	cmd.Flags().BoolVar(&f.off, "disabled", false, "take no new blocks from it")
	cmd.Flags().IntVar(&f.blockSize, "block-size", 0, "prefix `length` of its blocks (default 26, IPv6 122)")
	cmd.Flags().StringVar(&f.nodesSelect, "node-selector", "", "`selector` of the nodes that may draw from it (default all())")
	cmd.Flags().StringSliceVar(&f.communities, "community", nil, "BGP `communities` of its announcements: 64512:1, the large 64512:1:2, no-export, …")
	return f
}

func (f *poolFlags) pool(cidr netip.Prefix) *datastore.Pool {
	p := &datastore.Pool{Spec: datastore.PoolSpec{CIDR: cidr, BlockSize: f.blockSize, NATOutgoing: f.nat, Disabled: f.off, NodeSelector: f.nodesSelect, Communities: f.communities}}
	for e, on := range f.encap {
		if *on {
			p.Spec.Encap = e
		}
	}
	p.SetDefaults()
	return p
}

func newPoolAddCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "add CIDR…",
		Short:   "Add pools",
		Example: "  netctl pool add 10.0.0.0/26\n  netctl pool add 192.168.0.0/16 fd80:24e2:f998:72d6::/64 --nat-outgoing",
		Args:    cobra.MinimumNArgs(1),
	}
	f := addPoolFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cidrs, err := parseCIDRs(args)
		if err != nil {
			return err
		}
		return a.addPools(cmd.Context(), f, cidrs)
	}
	return cmd
}

func parseCIDRs(args []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range args {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, usage("%q is no CIDR, like 10.0.0.0/26", s)
		}
		out = append(out, p)
	}
	return out, nil
}

func (a *app) addPools(ctx context.Context, f *poolFlags, cidrs []netip.Prefix) error {
	var list []manifest
	for _, c := range cidrs {
		p := f.pool(c)
		if err := p.Validate(); err != nil {
			return argument(fmt.Errorf("pool %s: %w", c, err))
		}
		list = append(list, manifest{object: p})
	}
	if err := a.write(ctx, list, modeCreate, func(planned) {}); err != nil {
		return err
	}
	return a.warnSubnets(ctx, cidrs)
}

// warnSubnets tells which of the nodes' own subnets new pools contain: allowed,
// and no block is taken from there, but rarely meant.
func (a *app) warnSubnets(ctx context.Context, cidrs []netip.Prefix) error {
	view, err := a.view(ctx, datastore.KindNode)
	if err != nil {
		return err
	}
	for _, c := range cidrs {
		said := map[netip.Prefix]bool{}
		for _, n := range view.Nodes() {
			for _, s := range append(slices.Clone(n.Spec.Addresses), n.Status.Subnets...) {
				if s = s.Masked(); s.Overlaps(c) && !said[s] {
					said[s] = true
					a.warn("pool %s overlaps %s, a subnet of node %s: no block is taken from there", c, s, n.Metadata.Name)
				}
			}
		}
	}
	return nil
}

func newPoolRangeAddCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "add START END",
		Short:   "Add the pools that make up a range of addresses",
		Example: "  netctl pool range add 10.0.0.64 10.0.0.255\n  netctl pool range add fd00:1:: fd00:1::ffff --block-size 124",
		Args:    cobra.ExactArgs(2),
	}
	f := addPoolFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		first, err1 := netip.ParseAddr(args[0])
		last, err2 := netip.ParseAddr(args[1])
		switch {
		case err1 != nil || first.Zone() != "":
			return usage("%q is no IP address", args[0])
		case err2 != nil || last.Zone() != "":
			return usage("%q is no IP address", args[1])
		case first.BitLen() != last.BitLen():
			return usage("%s and %s are of different families", first, last)
		case last.Less(first):
			return usage("%s is behind %s", first, last)
		}
		return a.addPools(cmd.Context(), f, cidrsOf(first, last))
	}
	return cmd
}

// cidrsOf is the fewest CIDRs that make up first to last.
func cidrsOf(first, last netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	for {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || last.Less(datastore.LastAddr(wider)) {
				break
			}
			p = wider
		}
		out = append(out, p)
		end := datastore.LastAddr(p)
		if end == last {
			return out
		}
		first = end.Next()
	}
}

func newPoolRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove CIDR…",
		Short: "Remove pools that nothing uses",
		Long: "Remove pools and their empty blocks. A pool with addresses in use, or that a network names, is not removed. With --force\n" +
			"it is: addresses in use stay with their endpoints and announced, nothing new is given out, and the pool goes by itself\n" +
			"with the last of them. pool add takes such a pool back.",
		Example:           "  netctl pool remove 10.0.0.0/26\n  netctl pool remove 192.168.0.0/16 --force",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindPool, poolCIDRs),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove them whatever uses them")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		cidrs, err := parseCIDRs(args)
		if err != nil {
			return err
		}
		for i, c := range cidrs {
			if err := a.removePool(cmd.Context(), datastore.PoolName(c), force); err != nil {
				return farther(i, len(cidrs), err)
			}
		}
		return nil
	}
	return cmd
}

// removePool first disables the pool, so that no node claims a block of it
// between the look for users and the removal.
func (a *app) removePool(ctx context.Context, name string, force bool) error {
	was := true
	disable := func(p *datastore.Pool) error { was, p.Spec.Disabled = p.Spec.Disabled, true; return nil }
	if err := modify(ctx, a, name, disable); errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("%s: %w", labelOf(datastore.KindPool, name), datastore.ErrNotFound)
	} else if err != nil {
		return err
	}
	var used error
	err := a.remove(ctx, datastore.KindPool, []string{name}, force, func(view *datastore.View, o datastore.Object) ([]datastore.Object, error) {
		blocks := view.BlocksIn(o.(*datastore.Pool))
		if slices.ContainsFunc(blocks, (*datastore.Block).InUse) {
			used = view.CheckDelete(o)
			return nil, used
		}
		return asObjects(blocks), nil
	})
	if force && used != nil && errors.Is(err, used) {
		a.warn("%s is %v: the addresses stay with their endpoints and announced, nothing new is given out, and the pool goes with the last of them",
			labelOf(datastore.KindPool, name), used)
		err = modify(ctx, a, name, func(p *datastore.Pool) error { p.Spec.Removed = true; return nil })
	}
	if err == nil || was {
		return err
	}
	enable := func(p *datastore.Pool) error { p.Spec.Disabled = false; return nil }
	return cmp.Or(err, modify(ctx, a, name, enable))
}
