package commands

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
	"netctl/routing"
)

func newFilterCommand(a *app) *cobra.Command {
	return group("filter", "Show, change and try the filters of routes from and to BGP peers",
		"  netctl bgp filter show\n  netctl bgp filter add tor --import 'accept prefix 0.0.0.0/0' --export 'accept pool any then community 64512:1'",
		newFilterShowCommand(a), newFilterAddCommand(a), newFilterRemoveCommand(a), newFilterTestCommand(a))
}

func newFilterShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show [NAME]",
		Aliases:           []string{"list"},
		Short:             "Show the filters, or the rules of one, numbered from 1",
		Example:           "  netctl bgp filter show\n  netctl bgp filter show tor",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindBGPFilter, filterNames),
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return a.showKind(cmd.Context(), *f, datastore.KindBGPFilter, nil, layoutOf(datastore.KindBGPFilter, *f), nil)
		}
		filter, err := read[*datastore.BGPFilter](cmd.Context(), a, args[0])
		if err != nil {
			return err
		}
		return a.show(*f, []datastore.Object{filter}, func() string { return filterText(filter) })
	}
	return cmd
}

func filterNames(v *datastore.View) []string { return objectNames(v.BGPFilters()) }

// filterText is the rules of both directions.
func filterText(f *datastore.BGPFilter) string {
	var b strings.Builder
	for _, side := range []struct {
		title string
		rules []datastore.FilterRule
		rest  datastore.FilterAction
	}{{"Import", f.Spec.Import, f.Spec.ImportDefault}, {"Export", f.Spec.Export, f.Spec.ExportDefault}} {
		fmt.Fprintf(&b, "%s rules:\n", side.title)
		for i, r := range side.rules {
			fmt.Fprintf(&b, "%4d %s\n", i+1, r)
		}
		fmt.Fprintf(&b, "     otherwise %s\n", map[datastore.FilterAction]string{
			datastore.FilterAccept: "accept", datastore.FilterReject: "reject", datastore.FilterNext: "the next filter of the peer", "": "the next filter of the peer"}[side.rest])
	}
	return b.String()
}

func filterColumns() []column {
	rules := func(list []datastore.FilterRule, rest datastore.FilterAction) string {
		return strconv.Itoa(len(list)) + ", otherwise " + string(cmp.Or(rest, datastore.FilterNext))
	}
	return []column{
		col("Name", name[*datastore.BGPFilter]),
		col("Import rules", func(f *datastore.BGPFilter) string { return rules(f.Spec.Import, f.Spec.ImportDefault) }),
		col("Export rules", func(f *datastore.BGPFilter) string { return rules(f.Spec.Export, f.Spec.ExportDefault) }),
		lookup("Peers", func(v *datastore.View, f *datastore.BGPFilter) string {
			return strings.Join(filterUsers(v, f.Metadata.Name), ", ")
		}, datastore.KindPeer, datastore.KindBGPConfig),
	}
}

// filterUsers are the peers that name a filter, and the selectors that give it to some.
func filterUsers(v *datastore.View, filter string) (users []string) {
	for _, p := range v.Peers() {
		if slices.Contains(p.Spec.Filters, filter) {
			users = append(users, p.Metadata.Name)
		}
	}
	for _, f := range v.BGP().Spec.Filters {
		if slices.Contains(f.Filters, filter) {
			users = append(users, f.Peers)
		}
	}
	return users
}

// filterNotes says what of a filter is of no use, beside the pools that there are.
func filterNotes(view *datastore.View, f *datastore.BGPFilter) string {
	var pools []netip.Prefix
	for _, p := range view.Pools() {
		pools = append(pools, p.Spec.CIDR)
	}
	return strings.Join(f.Dead(pools), "; ")
}

func newFilterAddCommand(a *app) *cobra.Command {
	f := &datastore.BGPFilter{}
	var imports, exports []string
	var importRest, exportRest string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a filter, which peers then may name",
		Long: "Add a filter, which peers then may name (`netctl bgp peer add --filter`, or BGPConfig for those that a selector picks). The rules of a\n" +
			"direction are gone through in order, the first that matches decides; a direction without rules and default says nothing.\n" +
			"docs/model.md has the grammar of a rule.",
		Example: "  netctl bgp filter add tor --import 'accept prefix 0.0.0.0/0' --import 'accept prefix 10.0.0.0/8 ge 16 le 24 and as-path \"^65001_\" then local-pref 200'\n" +
			"  netctl bgp filter add quiet --export 'reject prefix 10.65.0.0/16 ge 27' --export-default accept",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringArrayVar(&imports, "import", nil, "`rule` for what peers announce; may be repeated")
	cmd.Flags().StringArrayVar(&exports, "export", nil, "`rule` for what peers are told; may be repeated")
	cmd.Flags().StringVar(&importRest, "import-default", "", "what becomes of the rest: reject (default where there are rules), accept or next, the peer's next filter")
	cmd.Flags().StringVar(&exportRest, "export-default", "", "the same for --export")
	for _, flag := range []string{"import-default", "export-default"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions([]string{"accept", "reject", "next"}, cobra.ShellCompDirectiveNoFileComp))
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		f.Metadata.Name = args[0]
		if f.Spec.Import, err = parseFilterRules(imports); err != nil {
			return err
		}
		if f.Spec.Export, err = parseFilterRules(exports); err != nil {
			return err
		}
		f.Spec.ImportDefault, f.Spec.ExportDefault = datastore.FilterAction(importRest), datastore.FilterAction(exportRest)
		f.SetDefaults()
		if err := f.Validate(); err != nil {
			return argument(fmt.Errorf("filter %s: %w", args[0], err))
		}
		return a.create(cmd.Context(), f)
	}
	return cmd
}

func parseFilterRules(texts []string) (rules []datastore.FilterRule, err error) {
	for _, s := range texts {
		r, err := datastore.ParseFilterRule(s)
		if err != nil {
			return nil, argument(err)
		}
		rules = append(rules, r)
	}
	return rules, nil
}

func newFilterRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NAME…",
		Short: "Remove filters that no peer names",
		Long: "Remove filters that no peer names. With --force one that is named goes, too: peers that name it are believed nothing and told nothing\n" +
			"until it is there again, or they name another.",
		Example:               "  netctl bgp filter remove tor\n  netctl bgp filter remove tor quiet --force",
		Args:                  cobra.MinimumNArgs(1),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     a.complete(datastore.KindBGPFilter, filterNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove them whoever names them")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.remove(cmd.Context(), datastore.KindBGPFilter, args, force, nil)
	}
	return cmd
}

func newFilterTestCommand(a *app) *cobra.Command {
	var pools []string
	var file, direction string
	cmd := &cobra.Command{
		Use:   "test FILE [ROUTE…]",
		Short: "Try filters with routes, without a datastore or a peer",
		Long: "Try the filters of a manifest with routes, without a datastore or a peer: each route, what becomes of it, and which rule decided. Several\n" +
			"filters in the file are a peer's, in their order; pools in it count, beside --pool. A route is\n" +
			"    [accept|reject] PREFIX [as-path \"AS AS …\"] [community C{, C}] [next-hop ADDRESS] [source SOURCE{, SOURCE}]\n" +
			"and is, unless source says otherwise, from a router outside of another AS, on export this node's own.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 usage, 3 a route that says what is to become of it fares otherwise.",
		Example: "  netctl bgp filter test tor.yaml 0.0.0.0/0 'reject 10.65.1.0/26 as-path \"65001\"'\n" +
			"  netctl bgp filter test tor.yaml --direction export --pool 10.65.0.0/16 --routes routes.txt",
		Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	f := addFormat(cmd)
	cmd.Flags().StringVar(&direction, "direction", string(routing.Import), "which rules to try: import or export")
	_ = cmd.RegisterFlagCompletionFunc("direction", cobra.FixedCompletions([]string{string(routing.Import), string(routing.Export)}, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringSliceVar(&pools, "pool", nil, "`CIDR` of a pool")
	cmd.Flags().StringVar(&file, "routes", "", "`file` of routes, one a line; # begins a comment")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		test, err := a.readFilterTest(cmd.Context(), args[0], pools)
		if err != nil {
			return err
		}
		routes, err := a.readFilterRoutes(cmd.Context(), args[1:], file)
		if err != nil {
			return err
		}
		if test.direction = routing.Direction(direction); test.direction != routing.Import && test.direction != routing.Export {
			return usage("--direction %s is neither import nor export", direction)
		}
		results, wrong := test.run(routes)
		show := func() error { return a.print(resultText(results)) }
		if f.manifests() {
			show = func() error { return a.showPlain(*f, results) }
		}
		if err := show(); err != nil || wrong == 0 {
			return err
		}
		return errNo // the table says which
	}
	return cmd
}

// filterTest is filters that routes are tried with.
type filterTest struct {
	filters   []routing.Filter
	pools     []netip.Prefix
	direction routing.Direction
}

func (a *app) readFilterTest(ctx context.Context, file string, pools []string) (t filterTest, err error) {
	list, err := a.readManifests(ctx, file)
	if err != nil {
		return t, err
	}
	for _, m := range list {
		switch o := m.object.(type) {
		case *datastore.BGPFilter:
			t.filters = append(t.filters, routing.Filter{Name: o.Metadata.Name, Spec: o.Spec})
		case *datastore.Pool:
			t.pools = append(t.pools, o.Spec.CIDR)
		default:
			return t, fmt.Errorf("%s%s: is neither a filter nor a pool: %w", m.where(), label(o), datastore.ErrInvalid)
		}
	}
	if len(t.filters) == 0 {
		return t, fmt.Errorf("%s: no filter in it", inputName(file))
	}
	for _, s := range pools {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() {
			return t, usage("%q is no CIDR of a pool", s)
		}
		t.pools = append(t.pools, p)
	}
	return t, nil
}

func (a *app) readFilterRoutes(ctx context.Context, texts []string, file string) (routes []datastore.FilterRoute, err error) {
	for _, s := range texts {
		r, err := datastore.ParseFilterRoute(s)
		if err != nil {
			return nil, argument(err)
		}
		routes = append(routes, r)
	}
	if file != "" {
		raw, err := a.readInput(ctx, file, maxManifest)
		if err != nil {
			return nil, err
		}
		n := 0
		for line := range strings.Lines(string(raw)) {
			n++
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			r, err := datastore.ParseFilterRoute(line)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", inputName(file), n, err)
			}
			routes = append(routes, r)
		}
	}
	if len(routes) == 0 {
		return nil, usage("no route to try: name one, or a file with --routes")
	}
	return routes, nil
}

// filterResult is what became of a route.
type filterResult struct {
	Prefix netip.Prefix `json:"prefix"`
	Result string       `json:"result"`
	Wanted string       `json:"wanted,omitempty"`
	Change string       `json:"change,omitempty"`
	By     string       `json:"by"`
}

func (t filterTest) run(routes []datastore.FilterRoute) (out []filterResult, wrong int) {
	policy := new(routing.Policies).Compile(t.direction, t.filters, t.pools)
	for _, r := range routes {
		v := routing.Verdict{Accept: true, By: "no filter says anything of it"}
		if policy != nil {
			v = policy.Decide(announcementOf(r, t.direction))
		}
		result := filterResult{Prefix: r.Prefix, Result: string(datastore.FilterReject), By: v.By}
		if v.Accept {
			result.Result = string(datastore.FilterAccept)
		}
		if v.Set != nil {
			result.Change = v.Set.Text
		}
		if r.Want != "" && string(r.Want) != result.Result {
			result.Wanted = string(r.Want)
			wrong++
		}
		out = append(out, result)
	}
	return out, wrong
}

// announcementOf is a route from where it says, or else from where routes of the
// direction usually are.
func announcementOf(r datastore.FilterRoute, d routing.Direction) *routing.Announcement {
	out := &routing.Announcement{Prefix: r.Prefix, NextHop: r.NextHop, Attributes: &routing.Attributes{ASPath: r.ASPath, Communities: r.Communities}}
	has := func(word string) bool {
		return slices.ContainsFunc(r.Sources, func(s datastore.FilterSource) bool { return s.Word == word })
	}
	if has(datastore.SourceLocal) || len(r.Sources) == 0 && d == routing.Export {
		return out
	}
	out.Peer = netip.IPv4Unspecified() // one that nobody names
	for _, s := range r.Sources {
		if s.Peer.IsValid() {
			out.Peer = s.Peer
		}
	}
	out.Outside = !has(datastore.SourceNode) && !has(datastore.SourceReflected)
	out.Reflected = has(datastore.SourceReflected)
	out.External = has(datastore.SourceExternal) || out.Outside && !has(datastore.SourceInternal)
	return out
}

// resultText is a line for each route.
func resultText(results []filterResult) string {
	var b strings.Builder
	for _, r := range results {
		wanted := ""
		if r.Wanted != "" {
			wanted = ", wanted " + r.Wanted
		}
		fmt.Fprintf(&b, "%s %s%s: %s\n", r.Result, r.Prefix, wanted, r.By)
	}
	return b.String()
}
