package commands

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"netctl/commands/bench"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// benchOptions are what the command line says of a measurement.
type benchOptions struct {
	tests  []string
	sizes  string
	time   time.Duration
	rounds int
	port   uint16
	ssh    string
	chart  string
	lab    bool
	modes  []string
}

func newBenchCommand(a *app) *cobra.Command {
	o := benchOptions{tests: []string{string(bench.TCPBandwidth), string(bench.TCPLatency)}}
	cmd := &cobra.Command{
		Use:   "bench [FROM] TO",
		Short: "Measure bandwidth and latency of a path, by size of message",
		Long: "Measure the path between two endpoints, or from this node: bandwidth and latency of TCP and UDP by size of message, with a sender and a\n" +
			"receiver of its own, as qperf does. FROM is an endpoint of this node or the file of a network namespace (default: the node itself); TO is one too,\n" +
			"or an endpoint or node elsewhere, or an address.\n\n" +
			"The receiver of what is on this node starts by itself. Elsewhere `netctl bench serve` must run, or is started with --ssh; between endpoints the path\n" +
			"of the two nodes themselves is then measured beside it. Rules hold for it as for everything: TCP and UDP to --port.\n\n" +
			"--lab makes two nodes on this machine and measures side by side what connects containers of two hosts: the hosts' own network, netctl's routes\n" +
			"and tunnels as far as the kernel has them, Docker's bridge with a published port, macvlan, and an overlay as Swarm and Flannel build it.",
		Example: "  netctl bench node1/cni/3f2a/eth0 node1/cni/77b0/eth0\n  netctl bench node1/cni/3f2a/eth0 node2/cni/91f0/eth0 --ssh ssh\n" +
			"  netctl bench node2 --tests tcp_bw,udp_lat --sizes '1:64K:*2'\n  netctl bench --lab --chart bench.html",
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: a.complete(datastore.KindEndpoint, endpointNames),
	}
	f := addFormat(cmd)
	fs := cmd.Flags()
	fs.StringSliceVar(&o.tests, "tests", o.tests, "`tests` to make: tcp_bw, tcp_lat, udp_bw, udp_lat")
	fs.StringVar(&o.sizes, "sizes", "1,64,1K,2K,8K,16K,32K,64K", "`sizes` of messages: 64K, a list, or FIRST:LAST:*FACTOR")
	fs.DurationVar(&o.time, "time", 2*time.Second, "how `long` each test of a size takes")
	fs.IntVar(&o.rounds, "rounds", 1, "how `often` each is made; the median counts")
	fs.Uint16Var(&o.port, "port", bench.DefaultPort, "`port` of the receiver, TCP and UDP")
	fs.StringVar(&o.ssh, "ssh", "", "`command` that starts the receiver on another node, like ssh")
	fs.StringVar(&o.chart, "chart", "", "`file` to draw the figures into, NAME.svg or NAME.html")
	fs.BoolVar(&o.lab, "lab", false, "compare ways of connecting containers, on this machine")
	fs.StringSliceVar(&o.modes, "modes", nil, "`ways` of --lab (default all): "+strings.Join(benchModes(), ", "))
	cmd.AddCommand(newBenchServeCommand(a))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := o.plan(args)
		if err != nil {
			return err
		}
		if err := canWrite(o.chart); err != nil {
			return fmt.Errorf("--chart: %w", err)
		}
		all, err := a.measure(cmd.Context(), args, &o, p)
		if err != nil {
			return err
		}
		return a.showBench(*f, &o, p, all)
	}
	return cmd
}

// plan checks what the command line says.
func (o *benchOptions) plan(args []string) (p bench.Plan, err error) {
	switch {
	case o.lab && len(args) > 0:
		return p, usage("bench: --lab has ends of its own: leave out %s", strings.Join(args, " "))
	case !o.lab && len(args) == 0:
		return p, usage("bench: to where? an endpoint, a node or an address; or say --lab")
	case !o.lab && len(o.modes) > 0:
		return p, usage("bench: --modes are of --lab")
	case o.rounds < 1 || o.rounds > 100:
		return p, usage("--rounds %d: want 1 to 100", o.rounds)
	case o.port == 0:
		return p, usage("--port 0: want a port")
	case o.chart != "" && filepath.Ext(o.chart) != ".svg" && filepath.Ext(o.chart) != ".html":
		return p, usage("--chart %s: want NAME.svg or NAME.html", o.chart)
	}
	if err := checkBenchModes(o.modes); err != nil {
		return p, err
	}
	if err := bench.CheckTime(o.time); err != nil {
		return p, usage("--time %w", err)
	}
	p = bench.Plan{Time: o.time, Rounds: o.rounds}
	if p.Tests, err = bench.ParseTests(o.tests); err != nil {
		return p, usage("--tests: %w", err)
	}
	if p.Sizes, err = bench.ParseSizes(o.sizes); err != nil {
		return p, usage("--sizes: %w", err)
	}
	return p, nil
}

// canWrite says why a file cannot be written, and leaves what is there; "" can.
func canWrite(name string) error {
	if name == "" {
		return nil
	}
	_, missing := os.Lstat(name)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err = f.Close(); missing != nil {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

// measure measures the path that the command line names.
func (a *app) measure(ctx context.Context, args []string, o *benchOptions, p bench.Plan) ([]bench.Series, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("bench: must run as root")
	}
	if o.lab {
		return a.compareInLab(ctx, o.modes, p, a.err)
	}
	from, to := &benchEnd{place: bench.Here}, args[len(args)-1]
	if len(args) == 2 {
		var err error
		if from, err = a.benchEnd(ctx, args[0]); err != nil {
			return nil, err
		}
		if from.place == nil {
			return nil, usage("bench: %s is not on this node: run it there, or name an endpoint of this one", args[0])
		}
		defer from.close()
	}
	end, err := a.benchEnd(ctx, to)
	if err != nil {
		return nil, err
	}
	defer end.close()
	ways, stop, err := a.benchWaysTo(ctx, from, end, o)
	if err != nil {
		return nil, err
	}
	defer stop()
	return bench.Compare(ctx, ways, p, a.err)
}

// benchEnd is an end of what is measured.
type benchEnd struct {
	name  string
	place bench.Place // where its sockets are made; nil: not on this node
	addr  netip.Addr  // of the end; invalid: any of it
	node  *datastore.Node
	ns    *kernel.Netns
}

func (e *benchEnd) close() {
	if e.ns != nil {
		_ = e.ns.Close()
	}
}

// benchEnd finds what a person means: the file of a namespace, an endpoint, a node, an
// address.
func (a *app) benchEnd(ctx context.Context, name string) (*benchEnd, error) {
	e := &benchEnd{name: name}
	if addr, err := netip.ParseAddr(name); err == nil {
		e.addr = addr
		return e, nil
	}
	if strings.HasPrefix(name, "/") {
		return e, e.enter(name)
	}
	s, err := a.settings()
	if err != nil {
		return nil, err
	}
	if !strings.Contains(name, "/") {
		if err := checkNames(datastore.KindNode, name); err != nil {
			return nil, err
		}
		if e.node, err = read[*datastore.Node](ctx, a, name); err != nil {
			return nil, noBenchEnd(name, err)
		}
		return e, e.addressOf(e.node)
	}
	if err := checkNames(datastore.KindEndpoint, name); err != nil {
		return nil, err
	}
	ep, err := read[*datastore.Endpoint](ctx, a, name)
	if err != nil {
		return nil, noBenchEnd(name, err)
	}
	if len(ep.Spec.Addresses) == 0 {
		return nil, fmt.Errorf("bench: endpoint %s has no address", name)
	}
	e.addr = ep.Spec.Addresses[0]
	if ep.Spec.Node != s.Node {
		e.node, err = read[*datastore.Node](ctx, a, ep.Spec.Node)
		return e, err
	}
	records, err := workload.NewRecords(filepath.Join(s.RunDir, "endpoints")).All()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	for _, r := range records {
		if r.Endpoint.Metadata.Name == name && r.Netns != "" {
			return e, e.enter(r.Netns)
		}
	}
	return nil, fmt.Errorf("bench: where the namespace of endpoint %s is, this node's agent was not told: name its file", name)
}

// noBenchEnd is err of reading what a name may mean, in words if there is nothing.
func noBenchEnd(name string, err error) error {
	if !errors.Is(err, datastore.ErrNotFound) {
		return fmt.Errorf("bench: %w", err)
	}
	return datastore.As(datastore.ErrNotFound, "bench: there is no node or endpoint %s (`netctl get nodes`, `netctl get endpoints`), and it is no address and no absolute path of a network namespace", name)
}

// addressOf takes the address by which a node is reached.
func (e *benchEnd) addressOf(n *datastore.Node) error {
	for _, v6 := range []bool{false, true} {
		if p := n.Address(v6); p.IsValid() {
			e.addr = p
			return nil
		}
	}
	return fmt.Errorf("bench: node %s has no address", n.Metadata.Name)
}

// enter makes a namespace the end's place.
func (e *benchEnd) enter(path string) error {
	ns, err := kernel.OpenNetnsFile(path)
	if err != nil {
		return fmt.Errorf("bench: network namespace %s: %w", path, err)
	}
	e.ns, e.place = ns, ns.Do
	return nil
}

// addressInside is the first address in a namespace by which others reach it.
func addressInside(in bench.Place) (addr netip.Addr, err error) {
	err = in(func() error {
		list, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
				addr = p.Addr().Unmap()
				return nil
			}
		}
		return errors.New("it has no address")
	})
	return addr, err
}

// benchWaysTo has receivers run, and says how they are reached.
func (a *app) benchWaysTo(ctx context.Context, from, to *benchEnd, o *benchOptions) (ways []bench.Way, stop func(), err error) {
	var stops []func()
	stop = func() {
		for _, fn := range stops {
			fn()
		}
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	add := func(name string, place bench.Place, at netip.Addr) {
		ways = append(ways, bench.Way{Name: name, Sender: bench.Sender{From: place, To: netip.AddrPortFrom(at, o.port)}})
	}
	switch {
	case to.place != nil:
		at := to.addr
		if !at.IsValid() {
			if at, err = addressInside(to.place); err != nil {
				return nil, stop, fmt.Errorf("bench: %s: %w", to.name, err)
			}
		}
		var r *bench.Receiver
		if err = to.place(func() (err error) {
			r, err = bench.Listen(netip.AddrPortFrom(at, o.port))
			return err
		}); err != nil {
			return nil, stop, fmt.Errorf("bench: %s: %w", to.name, err)
		}
		go func() { _ = r.Serve(ctx) }() // it ends with Close
		stops = append(stops, func() { _ = r.Close() })
		add(to.name, from.place, at)
	case o.ssh != "" && to.node != nil:
		host := &benchEnd{}
		if err = host.addressOf(to.node); err != nil {
			return nil, stop, err
		}
		if from.ns != nil && host.addr != to.addr {
			end, err := serveThere(ctx, o, host.addr, "")
			if err != nil {
				return nil, stop, err
			}
			stops = append(stops, end)
			add("nodes", bench.Here, host.addr)
		}
		at := ""
		if host.addr != to.addr {
			at = to.name
		}
		end, err := serveThere(ctx, o, host.addr, at)
		if err != nil {
			return nil, stop, err
		}
		stops = append(stops, end)
		add(to.name, from.place, to.addr)
	default:
		add(to.name, from.place, to.addr)
	}
	return ways, stop, nil
}

// serveThere starts a receiver on another node; it ends with its stdin.
func serveThere(ctx context.Context, o *benchOptions, host netip.Addr, at string) (end func(), err error) {
	words := strings.Fields(o.ssh)
	remote := fmt.Sprintf("netctl bench serve --until-eof --port %d", o.port)
	if at != "" {
		remote += " --endpoint " + at
	}
	cmd := exec.CommandContext(ctx, words[0], append(words[1:], host.String(), remote)...)
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	end = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); !strings.HasPrefix(line, listening) {
		end()
		return nil, fmt.Errorf("bench: %s %s %s: %s", o.ssh, host, remote, cmp.Or(lastLine(said.String()), "it does not serve"))
	}
	return end, nil
}

// listening begins the line of a receiver that is ready.
const listening = "receives at "

func newBenchServeCommand(a *app) *cobra.Command {
	var at, listen string
	var port uint16
	var untilEOF bool
	cmd := &cobra.Command{
		Use:     "serve",
		Short:   "Receive what `netctl bench` on other machines sends",
		Long:    "Receive what `netctl bench` on other machines sends, until Ctrl-C: on this node, or with --endpoint in the namespace of one of its endpoints.",
		Example: "  netctl bench serve\n  netctl bench serve --endpoint node2/cni/91f0/eth0",
		Args:    cobra.NoArgs,
	}
	cmd.Flags().StringVar(&at, "endpoint", "", "`endpoint` of this node, or file of a network namespace")
	cmd.Flags().StringVar(&listen, "listen", "::", "`address` to listen at")
	cmd.Flags().Uint16Var(&port, "port", bench.DefaultPort, "`port`, TCP and UDP")
	cmd.Flags().BoolVar(&untilEOF, "until-eof", false, "end with the standard input")
	_ = cmd.RegisterFlagCompletionFunc("endpoint", a.complete(datastore.KindEndpoint, endpointNames))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		addr, err := netip.ParseAddr(listen)
		if err != nil {
			return usage("--listen %q: want an address", listen)
		}
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		place := bench.Here
		if at != "" {
			end, err := a.benchEnd(ctx, at)
			if err != nil {
				return err
			}
			defer end.close()
			if end.place == nil {
				return usage("--endpoint %s: is not on this node", at)
			}
			place = end.place
		}
		var r *bench.Receiver
		if err := place(func() (err error) {
			r, err = bench.Listen(netip.AddrPortFrom(addr, port))
			return err
		}); err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		if err := a.print(fmt.Sprintf("%s%s, TCP and UDP\n", listening, r.Addr())); err != nil {
			return errors.Join(err, r.Close())
		}
		if untilEOF {
			go func() {
				_, _ = io.Copy(io.Discard, os.Stdin)
				cancel()
			}()
		}
		return r.Serve(ctx)
	}
	return cmd
}

// showBench prints the figures, and draws them.
func (a *app) showBench(f format, o *benchOptions, p bench.Plan, all []bench.Series) error {
	var drawn error
	if o.chart != "" {
		draw := bench.SVG
		if filepath.Ext(o.chart) == ".html" {
			draw = bench.HTML
		}
		if drawn = os.WriteFile(o.chart, draw(p, all), 0o644); drawn != nil {
			drawn = fmt.Errorf("bench: %w", drawn)
		}
	}
	if f.manifests() {
		return errors.Join(a.showPlain(f, all), drawn)
	}
	return errors.Join(a.print(bench.Text(p, all)), drawn)
}
