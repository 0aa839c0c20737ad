package commands

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"netctl/datastore"
)

func newHostEndpointCommand(a *app) *cobra.Command {
	cmd := group("hostendpoint", "Show and change host endpoints: interfaces of nodes that policies decide about",
		"  netctl hostendpoint create edge --node node1 --interface eth0 --expected-ip 192.0.2.5 --label role=edge\n  netctl hostendpoint show",
		newHostEndpointShowCommand(a), newHostEndpointCreateCommand(a), newHostEndpointRemoveCommand(a))
	cmd.ValidArgsFunction = a.completeFirst(datastore.KindHostEndpoint, hostEndpointNames)
	return cmd
}

func newHostEndpointShowCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show [NAME]",
		Short:             "Show the host endpoints, or one",
		Example:           "  netctl hostendpoint show\n  netctl hostendpoint show edge -o yaml",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindHostEndpoint, hostEndpointNames),
	}
	f := addFormat(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindHostEndpoint, args...); err != nil {
			return err
		}
		return a.showKind(cmd.Context(), *f, datastore.KindHostEndpoint, args, layoutOf(datastore.KindHostEndpoint, *f), nil)
	}
	return cmd
}

func newHostEndpointCreateCommand(a *app) *cobra.Command {
	var labels, expected, ports []string
	h := &datastore.HostEndpoint{}
	cmd := &cobra.Command{
		Use:   "create NAME --node NODE",
		Short: "Create a host endpoint",
		Long: "Create a host endpoint: an interface of a node itself. From then on policies that pick it by its labels, and behind them its profiles, decide what the\n" +
			"node sends and gets there; what none allows is denied, but for the failsafe ports (agent: failsafeInbound, failsafeOutbound) and what the cluster\n" +
			"needs itself. What the node forwards is denied only by policies with applyOnForward.",
		Example: "  netctl hostendpoint create edge --node node1 --interface eth0 --expected-ip 192.0.2.5 --label role=edge\n" +
			"  netctl hostendpoint create node2 --node node2 --interface '*' --profile hosts",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().StringVar(&h.Spec.Node, "node", "", "`name` of the node")
	cmd.Flags().StringVar(&h.Spec.InterfaceName, "interface", "", "`name` of its interface, or * for each that no other host endpoint is (default: those with an expected address)")
	cmd.Flags().StringSliceVar(&expected, "expected-ip", nil, "`addresses` that rules take for its own")
	cmd.Flags().StringSliceVar(&h.Spec.Profiles, "profile", nil, "`profiles` that are asked behind policies")
	cmd.Flags().StringSliceVar(&labels, "label", nil, "`NAME=VALUE` labels")
	cmd.Flags().StringSliceVar(&ports, "named-port", nil, "named ports, as `NAME=tcp/80`,…")
	_ = cmd.MarkFlagRequired("node")
	_ = cmd.RegisterFlagCompletionFunc("node", a.complete(datastore.KindNode, func(v *datastore.View) []string { return objectNames(v.Nodes()) }))
	_ = cmd.RegisterFlagCompletionFunc("profile", a.complete(datastore.KindProfile, func(v *datastore.View) []string { return objectNames(v.Profiles()) }))
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		h.Metadata.Name = args[0]
		for _, text := range expected {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				return usage("--expected-ip %q is no address", text)
			}
			h.Spec.ExpectedIPs = append(h.Spec.ExpectedIPs, addr)
		}
		if h.Spec.Ports, err = parseNamedPorts(ports); err != nil {
			return err
		}
		if h.Metadata.Labels, err = parseLabels(labels); err != nil {
			return err
		}
		if err := h.Validate(); err != nil {
			return argument(fmt.Errorf("hostendpoint %s: %w", args[0], err))
		}
		return a.create(cmd.Context(), h)
	}
	return cmd
}

func newHostEndpointRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "remove NAME…",
		Short:             "Remove host endpoints: nothing is denied there any more",
		Example:           "  netctl hostendpoint remove edge\n  netctl hostendpoint remove edge node2",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(datastore.KindHostEndpoint, hostEndpointNames),
	}
	cmd.Flags().BoolVar(&force, "force", false, "as with other nouns; nothing uses a host endpoint")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkNames(datastore.KindHostEndpoint, args...); err != nil {
			return err
		}
		return a.remove(cmd.Context(), datastore.KindHostEndpoint, args, force, nil)
	}
	return cmd
}

// parseNamedPorts reads NAME=PROTOCOL/PORT.
func parseNamedPorts(texts []string) (list []datastore.Port, err error) {
	for _, text := range texts {
		name, rest, named := strings.Cut(text, "=")
		protocol, number, ok := strings.Cut(rest, "/")
		port, is := portNumber(number)
		if !named || !ok || !is {
			return nil, usage("--named-port %q: want a name, a protocol and a port, such as http=tcp/80", text)
		}
		list = append(list, datastore.Port{Name: name, Protocol: protocol, Port: port})
	}
	return list, nil
}

func hostEndpointNames(v *datastore.View) []string { return objectNames(v.HostEndpoints()) }

func hostEndpointColumns() []column {
	return append([]column{
		col("Name", name[*datastore.HostEndpoint]),
		col("Node", func(h *datastore.HostEndpoint) string { return h.Spec.Node }),
		col("Interface", func(h *datastore.HostEndpoint) string { return h.Spec.InterfaceName }),
		col("Expected IPs", func(h *datastore.HostEndpoint) string { return joined(h.Spec.ExpectedIPs) }),
		col("Profiles", func(h *datastore.HostEndpoint) string { return strings.Join(h.Spec.Profiles, ",") }),
	}, wide(
		col("Labels", labels[*datastore.HostEndpoint]),
		col("Ports", func(h *datastore.HostEndpoint) string {
			var words []string
			for _, p := range h.Spec.Ports {
				words = append(words, p.Name+"="+p.Protocol+"/"+strconv.Itoa(int(p.Port)))
			}
			return strings.Join(words, ",")
		}))...)
}
