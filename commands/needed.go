package commands

import (
	"context"

	"netctl/datastore"
)

// needed collects what a command reads: single objects, or all of a kind.
type needed map[datastore.Kind]map[string]bool // nil: all of the kind

func (n needed) all(kinds ...datastore.Kind) {
	for _, k := range kinds {
		n[k] = nil
	}
}

func (n needed) one(k datastore.Kind, name string) {
	if names, ok := n[k]; ok && names == nil {
		return
	} else if !ok {
		n[k] = map[string]bool{}
	}
	n[k][name] = true
}

// mostSingle is how many objects of a kind are listed one by one. Where more are
// needed all of the kind are: one large answer costs less than many small ones.
const mostSingle = 4

// read reads the objects at one revision: those of a kind as a whole, single ones by
// their keys.
func (n needed) read(ctx context.Context, s datastore.Store) (datastore.Snapshot, error) {
	var ranges []string
	for k, names := range n {
		if names == nil || len(names) > mostSingle {
			ranges = append(ranges, datastore.KindPrefix(k))
			if k == datastore.KindPool {
				ranges = append(ranges, datastore.PoolsKey)
			}
			continue
		}
		for name := range names {
			if key, err := datastore.Key(k, name); err == nil {
				ranges = append(ranges, key)
			}
		}
	}
	return s.List(ctx, ranges...)
}

// neededToPut is what View.CheckPut looks at, and the objects themselves.
func neededToPut(list ...datastore.Object) needed {
	n := needed{}
	for _, o := range list {
		n.one(o.Kind(), o.Meta().Name)
		switch o := o.(type) {
		case *datastore.Peer:
			n.all(datastore.KindPeer)
			for _, f := range o.Spec.Filters {
				n.one(datastore.KindBGPFilter, f)
			}
		case *datastore.BGPConfig:
			for _, f := range o.Spec.Filters {
				for _, name := range f.Filters {
					n.one(datastore.KindBGPFilter, name)
				}
			}
		case *datastore.BGPFilter: // what can never match is said
			n.all(datastore.KindPool)
		case *datastore.Policy:
			n.all(datastore.KindNode)
			n.one(datastore.KindTier, o.Spec.Tier)
		case *datastore.Tier, *datastore.NetworkSet:
			n.all(datastore.KindNode)
		case *datastore.HostEndpoint:
			n.all(datastore.KindNode, datastore.KindHostEndpoint)
			for _, p := range o.Spec.Profiles {
				n.one(datastore.KindProfile, p)
			}
		case *datastore.Pool:
			n.all(datastore.KindPool, datastore.KindBlock)
			if !o.Spec.Disabled {
				n.all(datastore.KindEndpoint)
			}
		case *datastore.Network:
			for _, p := range o.Spec.Pools {
				n.one(datastore.KindPool, datastore.PoolName(p))
			}
		case *datastore.Profile:
			if o.Metadata.Needs > 0 {
				n.all(datastore.KindNode)
			}
		case *datastore.Endpoint:
			if o.Spec.GuardMAC {
				n.one(datastore.KindNode, o.Spec.Node)
			}
			for _, p := range o.Spec.Profiles {
				n.one(datastore.KindProfile, p)
			}
			if len(o.Spec.AllowedPrefixes) > 0 {
				n.all(datastore.KindPool, datastore.KindBlock, datastore.KindEndpoint, datastore.KindNode)
			}
		}
	}
	return n
}

// neededToDelete is what View.CheckDelete looks at, and the objects themselves.
func neededToDelete(kind datastore.Kind, names ...string) needed {
	n := needed{}
	for _, name := range names {
		n.one(kind, name)
	}
	switch kind {
	case datastore.KindPool:
		n.all(datastore.KindBlock, datastore.KindNetwork, datastore.KindEndpoint)
	case datastore.KindBGPFilter:
		n.all(datastore.KindPeer, datastore.KindBGPConfig)
	case datastore.KindProfile:
		n.all(datastore.KindEndpoint, datastore.KindNetwork, datastore.KindHostEndpoint)
	case datastore.KindNetworkSet:
		n.all(datastore.KindPolicy, datastore.KindProfile)
	case datastore.KindTier:
		n.all(datastore.KindPolicy)
	case datastore.KindNetwork:
		n.all(datastore.KindEndpoint)
	case datastore.KindNode:
		n.all(datastore.KindEndpoint, datastore.KindBlock, datastore.KindHostEndpoint)
	}
	return n
}

// neededForStatus is what status reads: of this node, the local one, its address and
// AS number; of others what they report too.
func neededForStatus(node string, local, all bool) needed {
	n := needed{}
	n.all(datastore.KindBGPConfig)
	if all {
		n.all(datastore.KindNode, datastore.KindReport)
		return n
	}
	n.one(datastore.KindNode, node)
	if !local {
		n.one(datastore.KindReport, datastore.ReportName(node, datastore.ReportAgent))
		n.one(datastore.KindReport, datastore.ReportName(node, datastore.ReportSpeaker))
	}
	return n
}

// checkPut says why writing o would contradict the cluster.
func (a *app) checkPut(ctx context.Context, s datastore.Store, o datastore.Object) error {
	view, err := a.list(ctx, s, neededToPut(o))
	if err != nil {
		return err
	}
	return view.CheckPut(o)
}

// objectsIn are the objects of manifests.
func objectsIn(list []manifest) []datastore.Object {
	out := make([]datastore.Object, 0, len(list))
	for _, m := range list {
		out = append(out, m.object)
	}
	return out
}
