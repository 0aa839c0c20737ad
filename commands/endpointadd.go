package commands

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/control"
	"netctl/datastore"
)

// rolePatience is how long a person's command waits for a role that was there and is not:
// one that was killed is back in two seconds at most.
const rolePatience = 3 * time.Second

// orchestratorManual is the orchestrator of what no runtime attaches.
const orchestratorManual = "manual"

type endpointAddOptions struct {
	netns string
	pid   int
	tap   tapOptions
	attachOptions
}

// attachOptions are what an endpoint is to be, however it comes to be attached.
type attachOptions struct {
	addresses []string
	prefixes  []string
	labels    []string
	request   control.AttachRequest
}

func newEndpointAddCommand(a *app) *cobra.Command {
	var o endpointAddOptions
	o.request.Orchestrator = orchestratorManual
	cmd := &cobra.Command{
		Use:   "add (--netns PATH | --pid PID | --tap NAME) [--workload NAME]",
		Short: "Attach what no runtime attaches: a network namespace of this node, or a virtual machine",
		Long: "Attach a network namespace of this node: of a container without a network, of a service, of anything. The node's agent\n" +
			"makes the interface, with address, routes and ACL. It prints the endpoint's ID and addresses.\n\n" +
			"With --tap the agent makes a TAP instead, for QEMU or libvirt to open by that name, and tells the virtual machine its\n" +
			"address by DHCP, router advertisements and DHCPv6; -o cloud-init of endpoint show has it for cloud-init. The machine must\n" +
			"have the MAC that is printed behind the addresses. TAP and address stay until endpoint remove, whether or not the machine\n" +
			"runs.",
		Example: "  netctl endpoint add --workload db --netns /run/netns/db --network dataman\n" +
			"  netctl endpoint add --workload box --pid 4711 --network app-A --ip 10.0.0.7\n" +
			"  netctl endpoint add --tap vm1 --network web --tap-owner libvirt-qemu",
		Args:                  cobra.NoArgs,
		DisableFlagsInUseLine: true,
		RunE:                  func(cmd *cobra.Command, _ []string) error { return a.addEndpoint(cmd, &o) },
	}
	fs := cmd.Flags()
	fs.StringVar(&o.netns, "netns", "", "`path` of the network namespace")
	fs.IntVar(&o.pid, "pid", 0, "`process` whose network namespace it is")
	fs.StringVar(&o.request.Workload, "workload", "", "`name` of the workload (default: that of the TAP)")
	o.tap.flags(cmd)
	o.flags(a, cmd)
	cmd.MarkFlagsOneRequired("netns", "pid", "tap")
	cmd.MarkFlagsMutuallyExclusive("netns", "pid", "tap")
	return cmd
}

func (o *attachOptions) flags(a *app, cmd *cobra.Command) {
	r, fs := &o.request, cmd.Flags()
	fs.StringVar(&r.Interface, "interface", "eth0", "`name` of the interface in the namespace")
	fs.StringVar(&r.Network, "network", "", "`name` of its network; made if there is none")
	fs.StringSliceVar(&r.Profiles, "profile", nil, "its `profiles` (default: the network's)")
	fs.StringSliceVar(&o.addresses, "ip", nil, "`address` it is to have, at most one a family")
	fs.StringSliceVar(&o.prefixes, "allow-prefix", nil, "`CIDR` of a network behind it, of a router or a VPN: routed to it")
	fs.BoolVar(&r.AllowEncapsulation, "allow-encapsulation", false, "let it send VXLAN and IPIP, but to nodes")
	fs.BoolVar(&r.GuardMAC, "guard-mac", false, "drop what it sends with another MAC than its own")
	fs.BoolVar(&r.IPv6, "ipv6", false, "give it an IPv6 address too")
	fs.StringVar(&r.MAC, "mac", "", "`address` of its interface")
	fs.IntVar(&r.MTU, "mtu", 0, "`bytes` of its interface's MTU (default: the agent's)")
	fs.StringSliceVar(&o.labels, "label", nil, "`NAME=VALUE` labels")
	_ = cmd.RegisterFlagCompletionFunc("network", a.complete(datastore.KindNetwork, networkNames))
	_ = cmd.RegisterFlagCompletionFunc("profile", a.complete(datastore.KindProfile, profileNames))
}

func (a *app) addEndpoint(cmd *cobra.Command, o *endpointAddOptions) error {
	if cmd.Flags().Changed("tap") {
		return a.addTap(cmd.Context(), o)
	}
	if err := o.tap.none(cmd); err != nil {
		return err
	}
	if o.request.Workload == "" {
		return usage("--workload is missing: name what the namespace is of")
	}
	path := o.netns
	if o.pid != 0 {
		path = netnsOf(o.pid)
	}
	at, err := a.attach(cmd.Context(), &o.attachOptions, path)
	if err != nil {
		return err
	}
	return a.print(fmt.Sprintf("%s %s\n", at.Endpoint, joined(at.Addresses)))
}

func netnsOf(pid int) string { return fmt.Sprintf("/proc/%d/ns/net", pid) }

// attach has the agent attach the namespace at path, or a TAP where the request asks for
// one.
func (a *app) attach(ctx context.Context, o *attachOptions, path string) (at control.Attachment, err error) {
	s, err := a.settings()
	if err != nil {
		return at, err
	}
	r := o.request
	if err := checkNames(datastore.KindEndpoint, datastore.EndpointName(s.Node, r.Orchestrator, r.Workload, r.Interface)); err != nil {
		return at, err
	}
	if r.Network != "" {
		if err := checkNames(datastore.KindNetwork, r.Network); err != nil {
			return at, err
		}
	}
	for _, text := range o.addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return at, usage("--ip %q is no IP address", text)
		}
		r.Addresses = append(r.Addresses, addr)
	}
	if len(o.prefixes) > 0 {
		if r.AllowedPrefixes, err = parseCIDRs(o.prefixes); err != nil {
			return at, fmt.Errorf("--allow-prefix: %w", err)
		}
		e := &datastore.Endpoint{Metadata: datastore.Metadata{Name: datastore.EndpointName(s.Node, r.Orchestrator, r.Workload, r.Interface)}}
		e.Spec.AllowedPrefixes = r.AllowedPrefixes
		store, err := a.store(ctx)
		if err != nil {
			return at, err
		}
		view, err := a.list(ctx, store, neededToPut(e))
		if err == nil {
			err = argument(view.CheckAllowedPrefixes(e))
		}
		if err != nil {
			return at, err
		}
	}
	given, err := parseLabels(o.labels)
	if err != nil {
		return at, err
	}
	r.Labels = maps.Clone(r.Labels)
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	maps.Copy(r.Labels, given)
	if r.Tap.Is() {
		return a.askAttach(ctx, s, r)
	}
	if r.NetnsPath, err = filepath.Abs(path); err != nil {
		return at, err
	}
	// The agent opens the descriptor through this process: it stays open until
	// the answer is there.
	f, err := control.OpenNetns(r.NetnsPath)
	if err != nil {
		return at, err
	}
	defer f.Close()
	r.NetnsFD = int(f.Fd())
	return a.askAttach(ctx, s, r)
}

// askAttach has the agent attach.
func (a *app) askAttach(ctx context.Context, s *settings, r control.AttachRequest) (control.Attachment, error) {
	defer a.waiting("the agent")()
	ctx, cancel := context.WithTimeout(ctx, control.AgentPatience)
	defer cancel()
	at, err := control.NewAgentClient(s.Agent.Socket).Waiting(control.AgentPatience).Attach(ctx, r)
	if err == nil && at.Warning != "" {
		a.warn("%s", at.Warning)
	}
	return at, err
}

func parseLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, usage("label %q: must be NAME=VALUE", l)
		}
		out[k] = v
	}
	return out, nil
}

func newEndpointRemoveCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Detach an endpoint of this node and give its addresses back",
		Long: "Detach an endpoint of this node and give its addresses back. What a runtime attached, and not endpoint add, goes with its\n" +
			"container; a container that runs would lose its interface, and is left alone without --force.",
		Example: "  netctl endpoint remove slave/manual/db/eth0\n" +
			"  netctl endpoint show --host slave --orchestrator manual --detailed",
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: a.completeFirst(datastore.KindEndpoint, func(v *datastore.View) []string {
			s, err := a.settings()
			if err != nil {
				return nil
			}
			return objectNames(v.EndpointsOf(s.Node))
		}),
	}
	cmd.Flags().BoolVar(&force, "force", false, "take it from a container of a runtime too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		s, err := a.settings()
		if err != nil {
			return err
		}
		if err := checkNames(datastore.KindEndpoint, args[0]); err != nil {
			return err
		}
		part := strings.Split(args[0], "/")
		ctx, cancel := context.WithTimeout(cmd.Context(), control.AgentPatience)
		defer cancel()
		if part[0] != s.Node {
			return a.elsewhere(ctx, s, args[0], part[0])
		}
		detach := func() error {
			return a.detachEndpoint(ctx, s, control.Target{Orchestrator: part[1], Workload: part[2], Interface: part[3]})
		}
		e, err := read[*datastore.Endpoint](ctx, a, args[0])
		switch {
		case errors.Is(err, datastore.ErrNotFound):
			return err
		case err == nil && ofAnotherLink(e):
			return a.deleteEndpoint(ctx, e) // the agent knows of none
		case part[1] == orchestratorManual, err != nil && force:
			return detach()
		case err != nil:
			return err
		}
		return a.takeEndpoint(ctx, e, force, detach)
	}
	return cmd
}

// elsewhere says that an endpoint is another node's, or this one's by another name.
func (a *app) elsewhere(ctx context.Context, s *settings, endpoint, node string) error {
	file := filepath.Join(s.StateDir, "host")
	host, unread := os.ReadFile(file)
	if n, err := read[*datastore.Node](ctx, a, node); unread == nil && err == nil && n.Status.Host == strings.TrimSpace(string(host)) {
		return errors.New(n.OtherName(s.Node, file))
	}
	return usage("endpoint %s is on the node %s: run this there, or, if the node is gone, netctl delete endpoint %s", endpoint, node, endpoint)
}

// detachEndpoint has the agent detach, now or once it can.
func (a *app) detachEndpoint(ctx context.Context, s *settings, t control.Target) error {
	defer a.waiting("the agent")()
	r := control.DetachRequest{Target: t}
	err := control.NewAgentClient(s.Agent.Socket).Waiting(rolePatience).Detach(ctx, r)
	if control.NotRunning(err) {
		return err // nothing has been done yet
	}
	return a.keepDetach(s, r, err)
}

// keepDetach takes what came of a detach, which is stored for the agent if it could not be
// done.
func (a *app) keepDetach(s *settings, r control.DetachRequest, err error) error {
	later, err := control.KeepDetach(filepath.Join(s.RunDir, "pending"), r, err)
	if later != nil {
		a.warn("%v; the endpoint is released once that is over", later)
	}
	return err
}
