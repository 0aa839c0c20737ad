package commands

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
	"netctl/routing"
)

func newTopologyCommand(a *app) *cobra.Command {
	var limit int
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "topology [auto|mesh|reflectors]",
		Short: "Show or set which nodes have sessions with which",
		Long: "Which nodes have BGP sessions with which: all with all (mesh), each with two route reflectors of its zone (reflectors), or a\n" +
			"mesh up to --mesh-limit nodes and reflectors beyond (auto). A node's zone is its label \"" + datastore.ZoneLabel + "\". Old sessions go when the new\n" +
			"ones carry the routes.",
		Example:   "  netctl bgp topology reflectors --dry-run\n  netctl bgp topology auto --mesh-limit 30\n  netctl bgp topology show",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{string(datastore.TopologyAuto), string(datastore.TopologyMesh), string(datastore.TopologyReflectors)},
	}
	cmd.Flags().IntVar(&limit, "mesh-limit", 0, "`nodes` up to which auto is a mesh")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change, and change nothing")
	cmd.AddCommand(newTopologyShowCommand(a))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		limited := cmd.Flags().Changed("mesh-limit")
		if len(args) == 0 && !limited {
			c, err := a.bgpConfig(cmd.Context())
			if err != nil {
				return err
			}
			return a.print(string(c.Spec.Topology.Mode) + "\n")
		}
		if limited && limit == 0 {
			return usage("--mesh-limit 0: a mesh of no nodes is topology reflectors")
		}
		change := func(c *datastore.BGPConfig) {
			if len(args) > 0 {
				c.Spec.Topology.Mode = datastore.TopologyMode(args[0])
			}
			if limited {
				c.Spec.Topology.MeshLimit = limit
			}
		}
		if dryRun {
			return a.tryTopology(cmd.Context(), change)
		}
		return a.changeBGP(cmd.Context(), change)
	}
	return cmd
}

// tryTopology says what a change would do.
func (a *app) tryTopology(ctx context.Context, change func(*datastore.BGPConfig)) error {
	view, err := a.view(ctx, datastore.KindNode, datastore.KindBGPConfig)
	if err != nil {
		return err
	}
	was := routing.Arrange(view.Nodes(), view.BGP())
	// A copy: the view's is shared.
	next := *view.BGP()
	change(&next)
	if err := next.Validate(); err != nil {
		return argument(err)
	}
	is := routing.Arrange(view.Nodes(), &next)
	move := was.Move(is)
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", is.Why)
	for _, line := range []struct {
		what  string
		names []string
	}{{"become reflectors", move.NewReflectors}, {"are reflectors no more", move.GoneReflectors}} {
		if len(line.names) > 0 {
			fmt.Fprintf(&b, "%s: %s\n", line.what, strings.Join(line.names, ", "))
		}
	}
	fmt.Fprintf(&b, "sessions: %d more, %d fewer, %d change in place\n", move.NewSessions, move.GoneSessions, move.ChangedSessions)
	if !*next.Spec.Mesh {
		b.WriteString("node-mesh is off: nodes have no sessions with each other\n")
	}
	return a.print(b.String() + a.arrangementProblems(is))
}

func (a *app) arrangementProblems(is *routing.Arrangement) string {
	var b strings.Builder
	for _, p := range is.Problems {
		b.WriteString(a.bad("! "+p.Text) + "\n")
	}
	return b.String()
}

// shownTopology is `bgp topology show -o json`.
type shownTopology struct {
	Mode     datastore.TopologyMode `json:"mode"`
	Why      string                 `json:"why"`
	Sessions int                    `json:"sessions"`
	// Mesh is how many a mesh has.
	Mesh     int            `json:"mesh"`
	Zones    []routing.Zone `json:"zones"`
	Problems []string       `json:"problems,omitempty"`
}

func newTopologyShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Show the reflectors and clients of each zone",
		Example: "  netctl bgp topology show\n  netctl bgp topology show -o wide",
		Args:    cobra.NoArgs,
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		view, err := a.view(cmd.Context(), datastore.KindNode, datastore.KindBGPConfig)
		if err != nil {
			return err
		}
		is := routing.Arrange(view.Nodes(), view.BGP())
		s := shownTopology{Mode: view.BGP().Spec.Topology.Mode, Why: is.Why, Zones: is.Zones()}
		s.Sessions, s.Mesh = is.Sessions()
		if !*view.BGP().Spec.Mesh {
			s.Why, s.Sessions = "node-mesh is off", 0
		}
		for _, p := range is.Problems {
			s.Problems = append(s.Problems, p.Text)
		}
		if f.manifests() {
			return a.showPlain(*f, s)
		}
		text := a.arrangementProblems(is)
		text += fmt.Sprintf("%s. %s, in a mesh %d.\n", s.Why, count(s.Sessions, "session"), s.Mesh)
		return a.print(text + zoneTable(s.Zones, *f == formatWide))
	}
	return cmd
}

// zoneTable has a line for each zone; wide, one for each node.
func zoneTable(zones []routing.Zone, wide bool) string {
	if len(zones) == 0 {
		return "No nodes.\n"
	}
	header := []string{"AS Number", "Zone", "Reflectors", "Clients", "In a mesh"}
	if wide {
		header = []string{"AS Number", "Zone", "Node", "Is", "Reflectors"}
	}
	var rows [][]string
	for _, z := range zones {
		as := strconv.FormatUint(uint64(z.AS), 10)
		if !wide {
			rows = append(rows, []string{as, z.Name, strings.Join(z.Reflectors, ", "), strconv.Itoa(len(z.Clients)), strconv.Itoa(len(z.Meshed))})
			continue
		}
		for _, n := range z.Reflectors {
			rows = append(rows, []string{as, z.Name, n, "reflector", ""})
		}
		for _, c := range z.Clients {
			rows = append(rows, []string{as, z.Name, c.Name, "client", strings.Join(c.Reflectors, ", ")})
		}
		for _, n := range z.Meshed {
			rows = append(rows, []string{as, z.Name, n, "in a mesh", ""})
		}
	}
	return table(header, rows)
}

func newNodeSetReflectorCommand(a *app) *cobra.Command {
	var id, clients string
	modes := []string{string(datastore.ReflectorAuto), string(datastore.ReflectorAlways), string(datastore.ReflectorNever)}
	cmd := &cobra.Command{
		Use:   "reflector [auto|always|never]",
		Short: "Set whether the node is a route reflector, and whose",
		Long: "Set whether the node is a BGP route reflector where the topology has any: if it is chosen (auto, the default), always, or never;\n" +
			"by which cluster ID, and for which nodes. The topology is `netctl bgp topology`.",
		Example:   "  netctl node slave set reflector always\n  netctl node slave set reflector always --clients \"rack == 'A1'\" --cluster-id 10.0.0.1",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: modes,
	}
	cmd.Flags().StringVar(&id, "cluster-id", "", "cluster `ID`, as an IPv4 address (default: the router ID; \"\" takes it back)")
	cmd.Flags().StringVar(&clients, "clients", "", "`selector` of its clients by label (default: the nodes of its zone; \"\" takes it back)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && !cmd.Flags().Changed("cluster-id") && !cmd.Flags().Changed("clients") {
			return usage("say auto, always or never, --cluster-id or --clients")
		}
		var cluster netip.Addr
		if id != "" {
			var err error
			if cluster, err = netip.ParseAddr(id); err != nil {
				return usage("--cluster-id %q: must look like an IPv4 address", id)
			}
		}
		return changeNode(cmd, a, func(n *datastore.Node) {
			r := datastore.Reflector{}
			if n.Spec.Reflector != nil {
				r = *n.Spec.Reflector
			}
			if len(args) > 0 {
				r.Mode = datastore.ReflectorMode(args[0])
			}
			if cmd.Flags().Changed("cluster-id") {
				r.ClusterID = cluster
			}
			if cmd.Flags().Changed("clients") {
				r.Clients = clients
			}
			if n.Spec.Reflector = &r; r == (datastore.Reflector{}) || r == (datastore.Reflector{Mode: datastore.ReflectorAuto}) {
				n.Spec.Reflector = nil
			}
		})
	}
	return cmd
}
