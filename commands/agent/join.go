package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing"
)

// joiner does what comes between a complete view and serving: the node's
// registration, live endpoints that the store lost, detaches that the agent was
// not there for.
type joiner struct {
	cfg     Config
	loop    *loop
	store   datastore.Store
	service *workload.Service
	host    string // this machine's ID
	resolve func(context.Context, netip.Addr) (routing.NextHop, error)
	workOff func(ctx context.Context) error
}

// enter is loop.enter. It tries until everything is done or ctx ends; that
// another machine has the node's name ends the role.
func (j *joiner) enter(ctx context.Context, restore []*workload.Record) error {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		revision, err := j.once(ctx, restore)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			_ = j.loop.do(ctx, func() {
				if ctx.Err() == nil { // else a newer listing is being joined
					j.loop.standing.joined(revision)
				}
			})
			return nil
		case errors.Is(err, errTaken), errors.Is(err, datastore.ErrInvalid):
			return err
		}
		j.loop.log.Warn("not joined yet", "error", err)
		if !pause(ctx, wait) {
			return nil
		}
	}
}

func (j *joiner) once(ctx context.Context, restore []*workload.Record) (int64, error) {
	revision, err := j.register(ctx)
	if err != nil {
		return 0, err
	}
	for _, rec := range restore {
		r, err := j.restore(ctx, rec)
		if err != nil {
			return 0, err
		}
		revision = max(revision, r)
	}
	return revision, j.workOff(ctx)
}

// errTaken ends the role: the node's name belongs to another machine.
var errTaken = errors.New("name taken")

// register writes the node as it is now, if that differs from what the store
// has. It returns the revision of the change, 0 for none.
func (j *joiner) register(ctx context.Context) (int64, error) {
	var (
		node  *datastore.Node
		nodes []*datastore.Node
		have  []kernel.Address
		known []netip.Addr
		ends  []datastore.Tunnel
		told  bool // whether others are told ends
	)
	if err := j.loop.do(ctx, func() {
		node, nodes, have, known = j.loop.view.Node(j.cfg.Node), j.loop.view.Nodes(), j.loop.links.addrs, j.loop.knownBy()
		ends, told = j.loop.ends(netdev.TunnelMAC(j.host)), j.loop.tunnels.known
		if told && len(j.loop.locals.sized) > 0 { // no packet is sent through one that is too large for it
			told, j.loop.sizes.waited = false, true
		}
	}); err != nil {
		return 0, err
	}
	c := chooser{
		configured: j.cfg.Addresses, pattern: j.cfg.Interface, have: have, known: known,
		targets: append(storeTargets(ctx, j.cfg.Store.Endpoints), nodeTargets(j.cfg.Node, nodes)...),
		resolve: func(a netip.Addr) (routing.NextHop, error) { return j.resolve(ctx, a) },
	}
	chosen, rule, err := c.choose()
	if err != nil && (node == nil || node.Status.Host != j.host || len(node.Spec.Addresses) == 0) {
		return 0, fmt.Errorf("%w: %w", datastore.ErrInvalid, err)
	} // else it is gone for the moment, as it may go while the agent runs: goBy says so
	j.told(ctx, chosen, rule)
	set := func(n *datastore.Node) (changed bool, err error) {
		if n.Status.Host != "" && n.Status.Host != j.host {
			return false, j.taken(ctx, n)
		}
		before := fingerprint(n)
		if len(chosen) > 0 { // else others cannot be told better
			n.Spec.Addresses = chosen
		}
		if len(j.cfg.Labels) > 0 {
			n.Metadata.Labels = maps.Clone(n.Metadata.Labels)
			if n.Metadata.Labels == nil {
				n.Metadata.Labels = map[string]string{}
			}
			maps.Copy(n.Metadata.Labels, j.cfg.Labels)
		}
		s := &n.Status
		s.Host, s.Version, s.Model, s.Subnets = j.host, j.cfg.Version, datastore.ModelVersion, subnets(have)
		if told { // else they are as they were
			s.Tunnels = ends
		}
		return fingerprint(n) != before, nil
	}
	return j.write(ctx, node, set)
}

// fingerprint is the node's JSON, to tell whether anything changed.
func fingerprint(n *datastore.Node) string {
	b, err := datastore.Encode(n)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// write applies set to the node as the view has it (nil: absent), and only if
// the view was behind to the node as the store has it.
func (j *joiner) write(ctx context.Context, node *datastore.Node, set func(*datastore.Node) (bool, error)) (int64, error) {
	for {
		n := &datastore.Node{Metadata: datastore.Metadata{Name: j.cfg.Node}}
		if node != nil {
			clone := *node
			n = &clone
		}
		changed, err := set(n)
		if err != nil || !changed {
			return 0, err
		}
		if node == nil {
			err = datastore.Create(ctx, j.store, n)
		} else {
			err = datastore.Update(ctx, j.store, n)
		}
		if err == nil {
			return n.Metadata.Revision, nil
		}
		if !errors.Is(err, datastore.ErrExists) && !errors.Is(err, datastore.ErrConflict) {
			return 0, err
		}
		node, err = datastore.Get[*datastore.Node](ctx, j.store, j.cfg.Node)
		if errors.Is(err, datastore.ErrNotFound) {
			node = nil
		} else if err != nil {
			return 0, err
		}
	}
}

// taken is why the node's name cannot be had.
func (j *joiner) taken(ctx context.Context, n *datastore.Node) error {
	var seen time.Time
	if r, err := datastore.Get[*datastore.Report](ctx, j.store, datastore.ReportName(n.Metadata.Name, datastore.ReportAgent)); err == nil {
		seen = r.Status.Seen
	}
	return fmt.Errorf("node %s: %w: %s", n.Metadata.Name, errTaken, n.RegisteredBy(j.host, seen))
}

// told hands the choice of the node's address to the loop.
func (j *joiner) told(ctx context.Context, chosen []netip.Prefix, rule string) {
	_ = j.loop.do(ctx, func() {
		if j.loop.rule != rule {
			j.loop.log.Info("node address chosen", "addresses", chosen, "rule", rule)
		}
		j.loop.rule = rule
		j.loop.goBy(chosen)
	})
}

// restore writes one live endpoint back. That its address belongs to somebody
// else now is a problem to show, not one that another try would solve.
func (j *joiner) restore(ctx context.Context, rec *workload.Record) (int64, error) {
	var cluster datastore.Cluster
	if err := j.loop.do(ctx, func() { cluster = j.loop.standing.cluster }); err != nil {
		return 0, err
	}
	revision, err := j.service.Restore(ctx, rec, cluster)
	if err == nil {
		j.loop.log.Info("live endpoint written back", "endpoint", rec.Endpoint.Metadata.Name, datastore.EventEndpoint.Mark())
		return revision, nil
	}
	if errors.Is(err, datastore.ErrUnavailable) || errors.Is(err, datastore.ErrDetached) || ctx.Err() != nil {
		return 0, err
	}
	j.loop.log.Error("live endpoint not written back", "endpoint", rec.Endpoint.Metadata.Name, "error", err, datastore.EventEndpoint.Mark())
	name := rec.Endpoint.Metadata.Name
	_ = j.loop.do(ctx, func() {
		j.loop.problems.note("restore "+name, fmt.Sprintf("endpoint %s runs on and is not in the datastore: %v", name, err))
	})
	return 0, nil
}

// subnets are what the host's own interfaces are connected to, each once.
func subnets(have []kernel.Address) []netip.Prefix {
	var list []netip.Prefix
	for _, a := range have {
		if !a.Prefix.Addr().IsLinkLocalUnicast() {
			list = append(list, a.Subnet)
		}
	}
	slices.SortFunc(list, routing.ComparePrefixes)
	return slices.Compact(list)
}

// hostIDFile is the name of the file of this machine's ID in the state folder.
const hostIDFile = "host"

// hostID reads this machine's ID and makes one the first time.
func hostID(state *control.Kept) (string, error) {
	b, err := state.Read(hostIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		raw := make([]byte, 8)
		_, _ = rand.Read(raw) // never fails (crypto/rand)
		id := hex.EncodeToString(raw)
		return id, state.Write(hostIDFile, []byte(id+"\n"))
	}
	if err != nil {
		return "", fmt.Errorf("host id: %w", err)
	}
	id := strings.TrimSpace(string(b))
	if raw, err := hex.DecodeString(id); err != nil || len(raw) != 8 {
		return "", fmt.Errorf("host id %s: %w: not 16 hex digits: delete the file to make a new one", state.Path(hostIDFile), datastore.ErrInvalid)
	}
	return id, nil
}
