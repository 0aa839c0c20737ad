package cni

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"netctl/datastore"
)

// cniArgs is CNI_ARGS, as far as netctl knows its keys.
type cniArgs struct {
	ips    []string
	mac    string
	labels map[string]string
}

// argLabels maps keys of CNI_ARGS to the labels that they become: who the
// workload is to its orchestrator.
func argLabels() map[string]string {
	return map[string]string{
		"K8S_POD_NAME":      "name", // Podman and CRI runtimes: the container's or pod's name
		"K8S_POD_NAMESPACE": "namespace",
		"K8S_POD_UID":       "pod-uid",
		"NOMAD_REGION":      "nomad-region",
		"NOMAD_NAMESPACE":   "namespace",
		"NOMAD_JOB_ID":      "job",
		"NOMAD_GROUP_NAME":  "group",
		"NOMAD_ALLOC_ID":    "alloc",
	}
}

// ignoredArgs are keys that runtimes send without IgnoreUnknown.
func ignoredArgs() []string { return []string{"IgnoreUnknown", "K8S_POD_INFRA_CONTAINER_ID"} }

// parseArgs reads "KEY=VALUE;KEY=VALUE". A key that netctl does not know is an
// error, unless IgnoreUnknown is set.
func parseArgs(s string) (cniArgs, error) {
	a := cniArgs{labels: map[string]string{}}
	var unknown []string
	ignore := false
	for pair := range strings.SplitSeq(s, ";") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return cniArgs{}, errorf(codeEnvironment, "CNI_ARGS: %q is not KEY=VALUE", pair)
		}
		label, named := argLabels()[key]
		switch {
		case key == "IP":
			a.ips = append(a.ips, strings.Split(value, ",")...)
		case key == "MAC":
			a.mac = value
		case named:
			a.labels[label] = value
		case key == "IgnoreUnknown":
			b, err := strconv.ParseBool(strings.ToLower(value))
			if err != nil {
				return cniArgs{}, errorf(codeEnvironment, "CNI_ARGS: IgnoreUnknown %q must be true or false", value)
			}
			ignore = b
		case !slices.Contains(ignoredArgs(), key):
			unknown = append(unknown, key)
		}
	}
	if len(unknown) > 0 && !ignore {
		return cniArgs{}, errorf(codeEnvironment, "CNI_ARGS: unknown keys %s (IgnoreUnknown=1 would let them pass)", strings.Join(unknown, ", "))
	}
	return a, nil
}

// labels joins the labels of an endpoint: the network's, CNI_ARGS', then those
// of args.cni.
func labels(containerID string, conf *netConf, args cniArgs) map[string]string {
	all := map[string]string{}
	for label, name := range map[string]string{datastore.LabelContainer: containerID, datastore.LabelNetwork: conf.Name} {
		if datastore.ForeignName(name) != name {
			all[label] = name
		}
	}
	maps.Copy(all, conf.Labels)
	maps.Copy(all, args.labels)
	for _, l := range conf.Args.CNI.Labels {
		all[l.Key] = l.Value
	}
	return all
}
