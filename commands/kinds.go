package commands

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"netctl/datastore"
	"netctl/datastore/ipam"
)

// layout is how objects of a kind are printed for people.
type layout struct {
	reads []datastore.Kind // beside the kind itself
	text  func(*datastore.View, []datastore.Object) string
}

// column is one of a kind's table.
type column struct {
	name  string
	wide  bool             // only with -o wide
	reads []datastore.Kind // what the cell is made of beside the object
	cell  func(*datastore.View, datastore.Object) string
}

// col is a column of objects of one type.
func col[T datastore.Object](name string, cell func(T) string) column {
	return column{name: name, cell: func(_ *datastore.View, o datastore.Object) string { return cell(o.(T)) }}
}

// lookup is a column whose cells need objects of other kinds.
func lookup[T datastore.Object](name string, cell func(*datastore.View, T) string, reads ...datastore.Kind) column {
	return column{name: name, reads: reads, cell: func(v *datastore.View, o datastore.Object) string { return cell(v, o.(T)) }}
}

// wide makes columns of -o wide only.
func wide(list ...column) []column {
	for i := range list {
		list[i].wide = true
	}
	return list
}

// layoutOf is the usual one of a kind.
func layoutOf(kind datastore.Kind, f format) layout {
	if kind == datastore.KindPool {
		return poolLayout(f)
	}
	if kind == datastore.KindPolicy {
		return policyLayout(f)
	}
	return tableLayout(columns(kind), f)
}

// tableLayout is a table of those columns that a format shows.
func tableLayout(list []column, f format) layout {
	shown := slices.DeleteFunc(list, func(c column) bool { return c.wide && f != formatWide })
	var l layout
	var header []string
	for _, c := range shown {
		header = append(header, c.name)
		l.reads = append(l.reads, c.reads...)
	}
	l.text = func(view *datastore.View, objects []datastore.Object) string {
		var rows [][]string
		for _, o := range objects {
			var row []string
			for _, c := range shown {
				row = append(row, c.cell(view, o))
			}
			rows = append(rows, row)
		}
		return table(header, rows)
	}
	return l
}

// columns is a kind's table.
func columns(kind datastore.Kind) []column {
	switch kind {
	case datastore.KindNode:
		return nodeColumns()
	case datastore.KindPeer:
		return peerColumns()
	case datastore.KindBGPFilter:
		return filterColumns()
	case datastore.KindBlock:
		return append([]column{
			col("CIDR", func(b *datastore.Block) string { return b.Spec.CIDR.String() }),
			col("Node", func(b *datastore.Block) string { return b.Spec.Affinity }),
			col("Used", func(b *datastore.Block) string { return strconv.Itoa(len(b.Spec.Allocations)) }),
			col("Free", func(b *datastore.Block) string { return strconv.Itoa(b.Size() - len(b.Spec.Allocations)) }),
		}, wide(col("In quarantine", func(b *datastore.Block) string { return strconv.Itoa(len(b.Spec.Released)) }))...)
	case datastore.KindReservation:
		return []column{
			col("Name", name[*datastore.Reservation]),
			col("CIDRs", func(r *datastore.Reservation) string { return joined(r.Spec.CIDRs) }),
			col("For", func(r *datastore.Reservation) string { return r.Spec.For }),
		}
	case datastore.KindNetwork:
		return append([]column{
			col("Name", name[*datastore.Network]),
			col("Pools", func(n *datastore.Network) string { return joined(n.Spec.Pools) }),
			col("Profile", func(n *datastore.Network) string { return n.Spec.Profile }),
			col("IPv6", func(n *datastore.Network) string { return yes(n.Spec.IPv6) }),
			col("Runtimes", func(n *datastore.Network) string { return strings.Join(n.Spec.Runtimes, ",") }),
		}, wide(
			lookup("Endpoints", func(v *datastore.View, n *datastore.Network) string {
				return strconv.Itoa(len(v.EndpointsIn(n.Metadata.Name)))
			}, datastore.KindEndpoint),
			lookup("Tenant", func(v *datastore.View, n *datastore.Network) string { return v.TenantOf(n.Spec.Profile) }, datastore.KindProfile),
			col("Labels", labels[*datastore.Network]))...)
	case datastore.KindEndpoint:
		return endpointColumns()
	case datastore.KindProfile:
		return append([]column{col("Name", name[*datastore.Profile])}, wide(
			col("Tags", func(p *datastore.Profile) string { return strings.Join(p.Spec.Tags, ",") }),
			col("Tenant", func(p *datastore.Profile) string { return p.Spec.Labels[datastore.LabelTenant] }),
			col("Inbound rules", func(p *datastore.Profile) string { return strconv.Itoa(len(p.Spec.Inbound)) }),
			col("Outbound rules", func(p *datastore.Profile) string { return strconv.Itoa(len(p.Spec.Outbound)) }),
			lookup("Endpoints", func(v *datastore.View, p *datastore.Profile) string {
				return strconv.Itoa(len(v.EndpointsWithProfile(p.Metadata.Name)))
			}, datastore.KindEndpoint))...)
	case datastore.KindTier:
		return tierColumns()
	case datastore.KindNetworkSet:
		return networkSetColumns()
	case datastore.KindHostEndpoint:
		return hostEndpointColumns()
	case datastore.KindBGPConfig:
		return []column{
			col("Name", name[*datastore.BGPConfig]),
			col("Default AS", func(c *datastore.BGPConfig) string { return strconv.FormatUint(uint64(c.Spec.DefaultAS), 10) }),
			col("Mesh", func(c *datastore.BGPConfig) string { return onOff(*c.Spec.Mesh) }),
			col("Topology", func(c *datastore.BGPConfig) string { return string(c.Spec.Topology.Mode) }),
			col("Hold time", func(c *datastore.BGPConfig) string { return strconv.Itoa(*c.Spec.HoldTime) + " s" }),
			col("Restart time", func(c *datastore.BGPConfig) string { return strconv.Itoa(c.Spec.RestartTime) + " s" }),
			col("Long-lived time", func(c *datastore.BGPConfig) string { return strconv.Itoa(c.Spec.LongLivedTime) + " s" }),
			col("BFD", func(c *datastore.BGPConfig) string { return bfdTimers(c.Spec.BFD) }),
		}
	case datastore.KindConfig:
		return configColumns()
	case datastore.KindReport:
		return []column{
			col("Node", func(r *datastore.Report) string { node, _ := r.Of(); return node }),
			col("Role", func(r *datastore.Report) string { _, role := r.Of(); return role }),
			col("Seen", func(r *datastore.Report) string { return seen(r.Status.Seen) }),
			col("Started", func(r *datastore.Report) string { return seen(r.Status.Started) }),
			col("Problems", func(r *datastore.Report) string { return strconv.Itoa(len(r.Status.Problems)) }),
			col("Endpoints", func(r *datastore.Report) string { return strconv.Itoa(r.Status.Endpoints) }),
			col("Sessions", func(r *datastore.Report) string { return strconv.Itoa(len(r.Status.Sessions)) }),
		}
	}
	return []column{col("Name", func(o datastore.Object) string { return o.Meta().Name })}
}

func configColumns() []column {
	return []column{
		col("Name", name[*datastore.Config]),
		col("MTU", func(c *datastore.Config) string {
			if c.Spec.MTU > 0 {
				return strconv.Itoa(c.Spec.MTU)
			}
			return "of the node's interface"
		}),
		col("Established", func(c *datastore.Config) string { return string(cmp.Or(c.Spec.Established, datastore.EstablishedCut)) }),
	}
}

func nodeColumns() []column {
	return append([]column{
		col("Name", name[*datastore.Node]),
		col("Addresses", func(n *datastore.Node) string { return joined(n.Spec.Addresses) }),
		lookup("AS Number", asNumber, datastore.KindBGPConfig),
		lookup("Endpoints", func(v *datastore.View, n *datastore.Node) string {
			return strconv.Itoa(len(v.EndpointsOf(n.Metadata.Name)))
		}, datastore.KindEndpoint),
		lookup("Seen", func(v *datastore.View, n *datastore.Node) string { return seen(lastSeen(v, n.Metadata.Name)) }, datastore.KindReport),
	}, wide(
		col("Drained", func(n *datastore.Node) string {
			if n.Spec.Drain == nil {
				return ""
			}
			return n.Spec.Drain.Words()
		}),
		col("Version", func(n *datastore.Node) string { return n.Status.Version }),
		col("Labels", labels[*datastore.Node]),
		col("Subnets", func(n *datastore.Node) string { return joined(n.Status.Subnets) }))...)
}

func endpointColumns() []column {
	return append([]column{
		col("Hostname", func(e *datastore.Endpoint) string { return e.Spec.Node }),
		col("Orchestrator ID", func(e *datastore.Endpoint) string { return e.Spec.Orchestrator }),
		col("Workload ID", func(e *datastore.Endpoint) string { return e.Spec.Workload }),
		col("Endpoint ID", func(e *datastore.Endpoint) string { return e.Spec.Interface }),
		col("Addresses", func(e *datastore.Endpoint) string {
			return strings.TrimSuffix(joined(e.Spec.Addresses)+","+joined(e.Spec.AllowedPrefixes), ",")
		}),
		col("MAC", func(e *datastore.Endpoint) string { return e.Spec.MAC }),
		col("Profiles", func(e *datastore.Endpoint) string { return strings.Join(e.Spec.Profiles, ",") }),
		lookup("State", endpointState, datastore.KindNode, datastore.KindReport),
	}, wide(
		col("ID", name[*datastore.Endpoint]),
		col("Network", func(e *datastore.Endpoint) string { return e.Spec.Network }),
		lookup("Tenant", func(v *datastore.View, e *datastore.Endpoint) string {
			return cmp.Or(e.Metadata.Labels[datastore.LabelTenant], v.TenantOf(e.Spec.Profiles...))
		}, datastore.KindProfile),
		col("Guards", switchedGuards),
		col("Host interface", func(e *datastore.Endpoint) string { return e.Spec.Link }),
		col("Labels", labels[*datastore.Endpoint]))...)
}

// poolLayout is one table for each family that has a pool; -o wide has what is
// used of them.
func poolLayout(f format) layout {
	if f != formatWide {
		return layout{text: func(_ *datastore.View, objects []datastore.Object) string { return poolTables(objects, nil, false) }}
	}
	return layout{reads: ipam.Kinds(), text: func(v *datastore.View, objects []datastore.Object) string {
		return poolTables(objects, ipam.Use(v), true)
	}}
}

// asNumber is the node's AS number, and whether it is the cluster's.
func asNumber(view *datastore.View, n *datastore.Node) string {
	if n.Spec.AS != 0 {
		return strconv.FormatUint(uint64(n.Spec.AS), 10)
	}
	return strconv.FormatUint(uint64(view.BGP().Spec.DefaultAS), 10) + " (inherited)"
}

func name[T datastore.Object](o T) string { return o.Meta().Name }

func labels[T datastore.Object](o T) string {
	m := o.Meta().Labels
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, ",")
}

// lastSeen is when the node's agent last reported; zero: never.
func lastSeen(view *datastore.View, node string) (t time.Time) {
	if r := view.Report(node, datastore.ReportAgent); r != nil {
		t = r.Status.Seen
	}
	return t
}

func seen(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format(time.DateTime)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// bfdTimers are those of BFD, as people say them.
func bfdTimers(b *datastore.BFD) string {
	if b == nil {
		return "off"
	}
	return fmt.Sprintf("%d × %d ms", b.Multiplier, b.Interval)
}
