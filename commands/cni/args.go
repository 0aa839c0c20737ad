package cni

import (
	"maps"
	"path/filepath"
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
func argLabels(podman bool) map[string]string {
	if podman { // it says its own names in Kubernetes' words
		return map[string]string{"K8S_POD_NAME": "podman.name", "K8S_POD_NAMESPACE": "", "K8S_POD_UID": ""}
	}
	return map[string]string{
		"K8S_POD_NAME":      "k8s.pod",
		"K8S_POD_NAMESPACE": "k8s.namespace",
		"K8S_POD_UID":       "k8s.uid",
		"NOMAD_REGION":      "nomad.region",
		"NOMAD_NAMESPACE":   "nomad.namespace",
		"NOMAD_JOB_ID":      "nomad.job",
		"NOMAD_GROUP_NAME":  "nomad.group",
		"NOMAD_ALLOC_ID":    "nomad.alloc",
	}
}

// byPodman says whether a namespace is one that Podman made: it calls them netns-UUID,
// other runtimes cni-UUID or by a process.
func byPodman(netns string) bool { return strings.HasPrefix(filepath.Base(netns), "netns-") }

// ignoredArgs are keys that runtimes send without IgnoreUnknown.
func ignoredArgs() []string { return []string{"K8S_POD_INFRA_CONTAINER_ID"} }

// parseArgs reads "KEY=VALUE;KEY=VALUE", keys in any case. A key that netctl does not know
// is an error, unless IgnoreUnknown is set.
func parseArgs(s string, podman bool) (cniArgs, error) {
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
		upper := strings.ToUpper(key)
		label, named := argLabels(podman)[upper]
		if upper == "K8S_POD_NAME" { // what addresses may be reserved for, too
			a.labels["name"] = value
		}
		switch {
		case upper == "IP":
			a.ips = append(a.ips, strings.Split(value, ",")...)
		case upper == "MAC":
			a.mac = value
		case named && label == "":
		case named:
			a.labels[label] = value
		case upper == "IGNOREUNKNOWN":
			b, err := strconv.ParseBool(strings.ToLower(value))
			if err != nil {
				return cniArgs{}, errorf(codeEnvironment, "CNI_ARGS: IgnoreUnknown %q must be true or false", value)
			}
			ignore = b
		case !slices.Contains(ignoredArgs(), upper):
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
