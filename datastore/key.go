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
	return []Kind{KindConfig, KindBGPFilter, KindBGPConfig, KindNode, KindPeer, KindPool, KindReservation,
		KindBlock, KindNetworkSet, KindTier, KindPolicy, KindProfile, KindNetwork, KindEndpoint, KindHostEndpoint, KindReport}
}

// KindPrefix is the prefix of the keys of a kind, e.g. "/netctl/v1/pools/".
func KindPrefix(k Kind) string {
	if k == KindReport {
		return ReportPrefix
	}
	return Prefix + Plural(k) + "/"
}

// Plural is the name of several objects of a kind, as in keys and on the command line.
func Plural(k Kind) string {
	word := strings.ToLower(string(k))
	if stem, ok := strings.CutSuffix(word, "y"); ok {
		return stem + "ies"
	}
	return word + "s"
}

// Prefixes are what is listed or watched for objects of kinds, sorted; no kinds are
// all that roles follow.
func Prefixes(kinds ...Kind) []string {
	if len(kinds) == 0 {
		return []string{Prefix}
	}
	var all []string
	for _, k := range kinds {
		all = append(all, KindPrefix(k))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Key returns the key of the object of that kind and name; it checks every part
// of the name.
func Key(k Kind, name string) (string, error) {
	if err := checkObjectName(k, name); err != nil {
		return "", err
	}
	return KindPrefix(k) + name, nil
}

// checkObjectName says why an object of that kind cannot have the name.
func checkObjectName(k Kind, name string) error {
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
	case KindNode, KindBGPFilter, KindReservation, KindNetwork, KindProfile, KindTier, KindNetworkSet, KindHostEndpoint:
		err = CheckName(name)
	case KindPolicy:
		if err = CheckName(name); name == "test" { // netctl policy test
			err = verbError(name)
		}
	case KindPeer:
		err = checkPeerName(name)
	case KindReport:
		err = checkReportName(name)
	default:
		return &FieldError{Field: "kind", Value: string(k), Reason: "there is no such kind"}
	}
	return at("metadata.name", err)
}

// ParseKey is the inverse of Key; name is as in metadata.name and shares the
// key's memory.
func ParseKey(key string) (k Kind, name string, err error) {
	if k, name = kindAndName(key); k == "" {
		return "", "", &FieldError{Value: key, Reason: "is no key of netctl"}
	}
	if err := checkObjectName(k, name); err != nil {
		return "", "", at(key, err)
	}
	return k, name, nil
}

// kindAndName are those of a key, the name not checked; k is "" if there are none.
func kindAndName(key string) (k Kind, name string) {
	if rest, ok := strings.CutPrefix(key, ReportPrefix); ok {
		return KindReport, rest
	}
	if rest, ok := strings.CutPrefix(key, Prefix); ok {
		word, name, _ := strings.Cut(rest, "/")
		return kindOf(word), name
	}
	return "", ""
}

// kindOf is the kind whose keys begin with Prefix and word, "" if there is none.
func kindOf(word string) Kind {
	switch word {
	case "nodes":
		return KindNode
	case "peers":
		return KindPeer
	case "bgpfilters":
		return KindBGPFilter
	case "pools":
		return KindPool
	case "blocks":
		return KindBlock
	case "reservations":
		return KindReservation
	case "networks":
		return KindNetwork
	case "endpoints":
		return KindEndpoint
	case "profiles":
		return KindProfile
	case "tiers":
		return KindTier
	case "policies":
		return KindPolicy
	case "hostendpoints":
		return KindHostEndpoint
	case "networksets":
		return KindNetworkSet
	case "bgpconfigs":
		return KindBGPConfig
	case "configs":
		return KindConfig
	}
	return ""
}

// KeyOf returns the key of an object.
func KeyOf(o Object) (string, error) { return Key(o.Kind(), o.Meta().Name) }

// Under says whether key is among those that a prefix stands for in List and Watch:
// all that begin with it if it ends in /, itself if it does not.
func Under(key, prefix string) bool {
	return key == prefix || strings.HasSuffix(prefix, "/") && strings.HasPrefix(key, prefix)
}
