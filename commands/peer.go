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
)

func newPeerCommand(a *app) *cobra.Command {
	return group("peer", "Show and change the BGP peers that are no nodes, or are peers by hand",
		"  netctl bgp peer show\n  netctl bgp peer add 192.168.99.1 as 65001 --selector \"rack == 'A1'\"",
		newPeerShowCommand(a), newPeerAddCommand(a), newPeerRemoveCommand(a))
}

func newPeerShowCommand(a *app) *cobra.Command {
	return newListCommand(a, listing{
		kind:    datastore.KindPeer,
		short:   "Show the peers and which nodes have them; `netctl status` has their sessions",
		example: "  netctl bgp peer show\n  netctl bgp peer show -o yaml",
	})
}

func peerColumns() []column {
	return append([]column{
		col("Name", name[*datastore.Peer]),
		col("Address", func(p *datastore.Peer) string { return p.Spec.Neighbour() }),
		col("AS Number", func(p *datastore.Peer) string {
			return cmp.Or(p.Spec.RemoteAS, strconv.FormatUint(uint64(p.Spec.AS), 10))
		}),
		col("Scope", (*datastore.Peer).Scope),
		col("Description", func(p *datastore.Peer) string { return p.Spec.Description }),
	}, wide(
		col("Options", func(p *datastore.Peer) string { return strings.Join(peerOptions(p.Spec), ",") }),
		col("Labels", labels[*datastore.Peer]))...)
}

// peerOptions are in short what is not as usual.
func peerOptions(s datastore.PeerSpec) []string {
	var out []string
	add := func(is bool, format string, args ...any) {
		if is {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	add(s.Shutdown != "", "shutdown")
	add(s.Passive, "passive")
	add(s.Port != 179, "port=%d", s.Port)
	add(s.SourceAddress.IsValid(), "source=%s", s.SourceAddress)
	add(len(s.Families) > 0, "%s", strings.Join(s.Families, "+"))
	add(s.HoldTime != nil, "hold=%d", deref(s.HoldTime))
	add(s.LongLivedTime != nil, "long-lived=%d", deref(s.LongLivedTime))
	add(s.ConnectRetry > 0, "connect-retry=%d", s.ConnectRetry)
	add(s.BFD != nil, "bfd=%s", strings.ReplaceAll(bfdTimers(s.BFD), " ", ""))
	add(s.KeepaliveTime > 0, "keepalive=%d", s.KeepaliveTime)
	add(s.LocalAS > 0, "local-as=%d", s.LocalAS)
	add(s.Multihop > 0, "multihop=%d", s.Multihop)
	add(s.TTLSecurity > 0, "ttl-security=%d", s.TTLSecurity)
	add(s.Password != nil, "password")
	add(s.NextHop != "", "next-hop-%s", s.NextHop)
	add(s.Announce != "", "announce-%s", s.Announce)
	add(s.AddPath != "", "add-path=%s", s.AddPath)
	add(s.AddPathLimit > 0, "add-path-limit=%d", s.AddPathLimit)
	add(len(s.Accept) > 0, "accept=%s", strings.Join(s.Accept, "+"))
	out = append(out, s.Communities...)
	add(s.PrefixLimit > 0, "prefix-limit=%d", s.PrefixLimit)
	add(s.PrefixWarning > 0, "prefix-warning=%d%%", s.PrefixWarning)
	add(s.PrefixAction != "", "prefix-action=%s", s.PrefixAction)
	add(s.PrefixRestart > 0, "prefix-restart=%d", s.PrefixRestart)
	add(len(s.Filters) > 0, "filters=%s", strings.Join(s.Filters, "+"))
	add(s.Aggregate, "aggregate")
	add(s.RouteBudget > 0, "route-budget=%d", s.RouteBudget)
	return out
}

func deref(n *int) int {
	if n == nil {
		return 0
	}
	return *n
}

func newPeerAddCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "add IP as AS | --interface NAME --remote-as AS",
		Short: "Add a peer of every node, of one, or of those that a selector picks",
		Long: "Add a peer of every node, or with --node of one, or with --selector of those whose labels match. With --interface it is whoever is at\n" +
			"the other end of the node's interface of that name, or of those that a pattern matches, and has no address (BGP unnumbered). AS is a\n" +
			"number, or external for any but the node's, or internal for the node's. What is settled here can be changed with\n" +
			"`netctl edit peer NAME`; docs/routing.md says what ends a running session.",
		Example: "  netctl bgp peer add 192.168.99.1 as 65001 --selector \"rack == 'A1'\"\n" +
			"  netctl bgp peer add 10.9.0.1 as 4200000001 --node slave --description 'top of rack'\n" +
			"  netctl bgp peer add --interface eth1 --remote-as external",
		Args: peerArguments,
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return []string{"as"}, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := addPeerFlags(a, cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			args = []string{"", "as", f.remote}
		}
		p, err := f.peer(args[0], args[2])
		if err != nil {
			return err
		}
		if err := a.checkNode(cmd.Context(), p.Spec.Node); err != nil {
			return err
		}
		return a.create(cmd.Context(), p)
	}
	return cmd
}

// peerArguments says what is missing, with the line that would have been right where that
// can be told.
func peerArguments(cmd *cobra.Command, args []string) error {
	link, as := cmd.Flags().Changed("interface"), cmd.Flags().Changed("remote-as")
	right := func(why, format string, a ...any) error {
		return wholeError(fmt.Sprintf(why+": "+cmd.CommandPath()+" "+format, a...))
	}
	switch {
	case len(args) > 0 && link:
		return errors.New("an address or --interface, not both")
	case link && !as:
		return right("its AS number is missing", "--interface %s --remote-as AS", cmd.Flag("interface").Value)
	case link:
		return nil
	case len(args) == 0:
		return errors.New("neither an address nor --interface")
	case as:
		return right("with an address the AS number stands behind it", "%s as %s", args[0], cmd.Flag("remote-as").Value)
	case len(args) == 1, len(args) == 2 && args[1] == "as":
		return right("its AS number is missing", "%s as AS", args[0])
	case len(args) == 2:
		return right("`as` is missing", "%s as %s", args[0], args[1])
	case len(args) > 3:
		return fmt.Errorf("unexpected argument %q", args[3])
	case args[1] != "as":
		return right(fmt.Sprintf("%q is not `as`", args[1]), "%s as %s", args[0], args[2])
	}
	return nil
}

// peerFlags are the options of a new peer.
type peerFlags struct {
	name, source, remote string
	hold, long           int
	withBFD              bool
	bfd                  datastore.BFD
	password             datastore.PeerPassword
	spec                 datastore.PeerSpec
}

func addPeerFlags(a *app, cmd *cobra.Command) *peerFlags {
	p := &peerFlags{}
	s, f := &p.spec, cmd.Flags()
	f.StringVar(&p.name, "name", "", "what to call it (default: IP or interface, and of one node's -NODE behind it)")
	f.StringVar(&s.Interface, "interface", "", "`name` or pattern of the interfaces at whose other end it is")
	f.StringVar(&p.remote, "remote-as", "", "`AS` number of the peer of an interface, or external or internal")
	addPeerScope(a, cmd, &s.Node, &s.NodeSelector)
	f.StringVar(&s.Description, "description", "", "`text` that says who it is")
	f.Uint16Var(&s.Port, "port", 0, "TCP `port` that it listens on (default 179)")
	f.StringVar(&p.source, "source", "", "this side's `address` (default: the node's)")
	f.StringSliceVar(&s.Families, "family", nil, "families to offer: ipv4, ipv6 (default: those that the node has an address of)")
	f.BoolVar(&s.Passive, "passive", false, "wait for it to connect")
	f.IntVar(&p.hold, "hold-time", -1, "hold time in `seconds`, 0 for none (default: the cluster's)")
	f.IntVar(&p.long, "long-lived-time", -1, "for how many `seconds` behind its restart time its routes are kept, 0 for none (RFC 9494; default: the cluster's)")
	f.IntVar(&s.ConnectRetry, "connect-retry", 0, "longest wait between two dials in `seconds` (default 5)")
	f.IntVar(&s.KeepaliveTime, "keepalive", 0, "`seconds` between two KEEPALIVEs (default: a third of the hold time)")
	f.BoolVar(&p.withBFD, "bfd", false, "end the session as soon as BFD finds the path dead (implied by the next two)")
	f.IntVar(&p.bfd.Interval, "bfd-interval", 0, "`milliseconds` between two BFD packets (default 100)")
	f.IntVar(&p.bfd.Multiplier, "bfd-multiplier", 0, "after how many `intervals` without one the path is dead (default 3)")
	f.Uint32Var(&s.LocalAS, "local-as", 0, "AS `number` that the node has towards it (default: the node's)")
	f.IntVar(&s.Multihop, "multihop", 0, "how many `hops` a peer of another AS may be away (default 1)")
	f.IntVar(&s.TTLSecurity, "ttl-security", 0, "how many `hops` it may be away, which its packets must prove (GTSM, RFC 5082)")
	f.StringVar(&p.password.File, "password-file", "", "`file` on the nodes that holds the password (TCP MD5)")
	f.StringVar(&p.password.Credential, "password-credential", "", "systemd `credential` that holds the password")
	cmd.MarkFlagsMutuallyExclusive("password-file", "password-credential")
	cmd.MarkFlagsMutuallyExclusive("ttl-security", "multihop")
	f.StringVar(&s.NextHop, "next-hop", "", "next hop of learnt routes: self or unchanged (default: unchanged within the AS)")
	f.StringVar(&s.Announce, "announce", "", "what a peer of another AS is told: own (default) or all, the other nodes' blocks too")
	f.StringVar(&s.AddPath, "add-path", "", "several paths to a prefix (RFC 7911): send, receive or both (default: neither)")
	f.IntVar(&s.AddPathLimit, "add-path-limit", 0, "how many `paths` of a prefix are sent, the best (default: all)")
	f.StringSliceVar(&s.Accept, "accept", nil, "what is believed: default, foreign, blocks, blackhole (see docs/routing.md)")
	f.StringSliceVar(&s.Communities, "community", nil, "`communities` that it is told everything with: 64512:1, the large 64512:1:2, no-export, …")
	f.IntVar(&s.PrefixWarning, "prefix-warning", 0, "warn at so many `percent` of the limit (default 75)")
	f.StringVar(&s.PrefixAction, "prefix-action", "", "what more prefixes do: stop the session for a while (default), end it until the peer is changed, or only warn")
	f.IntVar(&s.PrefixRestart, "prefix-restart", 0, "how many `seconds` the session is stopped (default 1, doubling to 60)")
	f.StringSliceVar(&s.Filters, "filter", nil, "`names` of filters for what it announces and is told, in their order")
	_ = cmd.RegisterFlagCompletionFunc("filter", a.complete(datastore.KindBGPFilter, filterNames))
	f.BoolVar(&s.Aggregate, "aggregate", false, "tell it of pools as a whole, in place of the blocks and addresses in them")
	f.IntVar(&s.RouteBudget, "route-budget", 0, "warn when the nodes tell it nearly so many `routes`")
	f.IntVar(&s.PrefixLimit, "prefix-limit", 0, "how many prefixes it may send (default 10000)")
	f.StringVar(&s.Shutdown, "shutdown", "", "keep the session down; the peer is told this `text`")
	for flag, words := range map[string][]string{
		"remote-as":     {datastore.RemoteExternal, datastore.RemoteInternal},
		"family":        {datastore.FamilyIPv4, datastore.FamilyIPv6},
		"next-hop":      {datastore.NextHopSelf, datastore.NextHopUnchanged},
		"add-path":      {datastore.AddPathSend, datastore.AddPathReceive, datastore.AddPathBoth},
		"announce":      {datastore.AnnounceOwn, datastore.AnnounceAll},
		"accept":        {datastore.AcceptDefault, datastore.AcceptForeign, datastore.AcceptBlocks, datastore.AcceptBlackhole},
		"prefix-action": {datastore.LimitStops, datastore.LimitWarns, datastore.LimitEnds},
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
	return p
}

// peer is the peer that the command line describes.
func (f *peerFlags) peer(address, as string) (*datastore.Peer, error) {
	s, err := f.spec, error(nil)
	if s.Interface == "" {
		if s.Address, err = parseAddress(address); err != nil {
			return nil, err
		}
	}
	if as == datastore.RemoteExternal || as == datastore.RemoteInternal {
		s.RemoteAS = as
	} else if s.AS, err = parseAS(as); err != nil {
		return nil, err
	}
	if f.source != "" {
		if s.SourceAddress, err = parseAddress(f.source); err != nil {
			return nil, err
		}
	}
	if f.password != (datastore.PeerPassword{}) {
		s.Password = &f.password
	}
	if f.hold >= 0 {
		s.HoldTime = &f.hold
	}
	if f.withBFD || f.bfd != (datastore.BFD{}) {
		s.BFD = &f.bfd
	}
	if f.long >= 0 {
		s.LongLivedTime = &f.long
	}
	p := &datastore.Peer{Metadata: datastore.Metadata{Name: f.name}, Spec: s}
	p.SetDefaults()
	if err := p.Validate(); err != nil {
		return nil, argument(fmt.Errorf("peer %s: %w", s.Neighbour(), err))
	}
	return p, nil
}

func addPeerScope(a *app, cmd *cobra.Command, node, selector *string) {
	cmd.Flags().StringVar(node, "node", "", "`name` of the only node that has it")
	cmd.Flags().StringVar(selector, "selector", "", "`selector` of the nodes that have it")
	cmd.MarkFlagsMutuallyExclusive("node", "selector")
	_ = cmd.RegisterFlagCompletionFunc("node", a.complete(datastore.KindNode, nodeNames))
}

// checkNode refuses a node that is not there; "" is none.
func (a *app) checkNode(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	_, err := read[*datastore.Node](ctx, a, name)
	return err
}

func newPeerRemoveCommand(a *app) *cobra.Command {
	var node, selector string
	cmd := &cobra.Command{
		Use:   "remove IP|INTERFACE…",
		Short: "Remove peers: their sessions end, and their routes go",
		Long: "Remove peers: their sessions end, and their routes go. Where several scopes have a peer there, --node, --selector or its name\n" +
			"says which.",
		Example:           "  netctl bgp peer remove 192.168.99.1\n  netctl bgp peer remove 10.9.0.1 --node slave",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindPeer, peerNames),
	}
	addPeerScope(a, cmd, &node, &selector)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		view, err := a.view(cmd.Context(), datastore.KindPeer)
		if err != nil {
			return err
		}
		var names []string
		for _, arg := range args {
			peers := peersAt(view, arg, node, selector)
			switch len(peers) {
			case 0:
				return fmt.Errorf("peer %s: %w", arg, datastore.ErrNotFound)
			case 1:
				names = append(names, peers[0].Metadata.Name)
			default:
				return usage("several peers are at %s: %s; say which with --node or --selector, or remove it by name", arg, strings.Join(objectNames(peers), ", "))
			}
		}
		return a.remove(cmd.Context(), datastore.KindPeer, names, false, nil)
	}
	return cmd
}

// peersAt are the peers with an address or at an interface, or the one with that name, in
// the scope that is asked for; "": any.
func peersAt(view *datastore.View, arg, node, selector string) []*datastore.Peer {
	address, _ := netip.ParseAddr(arg)
	at := func(p *datastore.Peer) bool {
		return p.Spec.Address.IsValid() && p.Spec.Address == address || p.Spec.Interface == arg
	}
	peers := slices.DeleteFunc(view.Peers(), func(p *datastore.Peer) bool {
		return p.Metadata.Name != arg && !at(p) || node != "" && p.Spec.Node != node || selector != "" && p.Spec.NodeSelector != selector
	})
	if named := slices.IndexFunc(peers, func(p *datastore.Peer) bool { return p.Metadata.Name == arg && !at(p) }); named >= 0 {
		return peers[named : named+1]
	}
	return peers
}

func peerNames(v *datastore.View) []string { return objectNames(v.Peers()) }
