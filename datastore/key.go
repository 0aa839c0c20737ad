package datastore

import (
	"slices"
	"strings"
)

// ClusterKey holds the Cluster.
const ClusterKey = Prefix + "cluster"

// ReportPrefix is the root of the reports. It lies beside Prefix, because no role
// acts on a report and so none is told of one.
const ReportPrefix = "/netctl/reports/v1/"

// PoolsKey changes with the set of pools. Who adds a pool makes the transaction
// conditional on it (View.OpPools), so that of two who add overlapping pools at
// the same time only one succeeds. Its value means nothing.
const PoolsKey = Prefix + "pools"

// Kinds returns every kind, in the order in which a cluster is written: what is
// referred to comes before what refers to it.
func Kinds() []Kind {
	return []Kind{KindConfig, KindBGPConfig, KindNode, KindPool, KindReservation,
		KindBlock, KindProfile, KindNetwork, KindEndpoint, KindReport}
}

// KindPrefix is the prefix of the keys of a kind, e.g. "/netctl/v1/pools/".
func KindPrefix(k Kind) string {
	if k == KindReport {
		return ReportPrefix
	}
	return Prefix + strings.ToLower(string(k)) + "s/"
}

// Prefixes are what is listed or watched for objects of kinds, sorted; no kinds are
// all that roles follow. With the pools comes PoolsKey.
func Prefixes(kinds ...Kind) []string {
	if len(kinds) == 0 {
		return []string{Prefix}
	}
	var all []string
	for _, k := range kinds {
		if k == KindPool {
			all = append(all, PoolsKey) // the pools' own prefix begins with it
			continue
		}
		all = append(all, KindPrefix(k))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Key returns the key of the object of that kind and name; it checks every part
// of the name.
func Key(k Kind, name string) (string, error) {
	var err error
	switch k {
	case KindPool, KindBlock:
		_, err = parsePoolName(name)
	case KindEndpoint:
		err = checkEndpointName(name)
	case KindBGPConfig, KindConfig:
		if name != DefaultName {
			err = &FieldError{Value: name, Reason: "the only " + string(k) + " is called " + DefaultName}
		}
	case KindNode, KindReservation, KindNetwork, KindProfile:
		err = CheckName(name)
	case KindReport:
		err = checkReportName(name)
	default:
		return "", &FieldError{Field: "kind", Value: string(k), Reason: "there is no such kind"}
	}
	if err != nil {
		return "", at("metadata.name", err)
	}
	return KindPrefix(k) + name, nil
}

// ParseKey is the inverse of Key; name is as in metadata.name.
func ParseKey(key string) (Kind, string, error) {
	for _, k := range Kinds() {
		name, ok := strings.CutPrefix(key, KindPrefix(k))
		if !ok {
			continue
		}
		if _, err := Key(k, name); err != nil {
			return "", "", at(key, err)
		}
		return k, name, nil
	}
	return "", "", &FieldError{Value: key, Reason: "is no key of netctl"}
}

// KeyOf returns the key of an object.
func KeyOf(o Object) (string, error) { return Key(o.Kind(), o.Meta().Name) }
