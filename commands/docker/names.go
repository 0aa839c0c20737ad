package docker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"time"

	"netctl/commands/control"
	"netctl/commands/engine"
	"netctl/datastore"
)

// The waits between two tries of what Docker's API or the agent did not answer.
const (
	retryMin = 50 * time.Millisecond
	retryMax = 5 * time.Second
	// apiTimeout is for one question to Docker's API.
	apiTimeout = 5 * time.Second
)

// names learns from Docker's API what its driver calls do not say: what networks and
// containers are called, and their labels. It works outside of all calls.
type names struct {
	p       *plugin
	api     *engine.Client
	wakened chan struct{} // holds one

	mu      sync.Mutex
	changed chan struct{}    // closed, and made anew, when something was learned
	why     map[string]error // why the last try of a network failed, by its ID
}

func newNames(p *plugin) *names {
	return &names{p: p, api: engine.New(p.cfg.API), wakened: make(chan struct{}, 1), changed: make(chan struct{}), why: map[string]error{}}
}

// wake has it look for what is not known.
func (k *names) wake() {
	select {
	case k.wakened <- struct{}{}:
	default:
	}
}

// network is a network whose name is known and that the cluster has: else an attach
// would make one of that name by default, open and for good, whatever this one is to be.
// It waits for that as long as ctx allows.
func (k *names) network(ctx context.Context, id string) (network, error) {
	for {
		k.mu.Lock()
		changed := k.changed
		k.mu.Unlock()
		n, ok := k.p.state.network(id)
		if ok && n.Name != "" && n.Made {
			return n, nil
		}
		if !ok { // what was remembered is gone: it is looked up
			if err := k.p.state.putNetwork(network{ID: id}); err != nil {
				return n, err
			}
		}
		k.wake()
		select {
		case <-changed:
		case <-time.After(time.Until(deadline(ctx)) - callTimeout/10):
			k.mu.Lock()
			defer k.mu.Unlock()
			if n.Name != "" {
				return n, fmt.Errorf("the cluster has no such network yet: %w", orUnanswered(k.why[id]))
			}
			return n, fmt.Errorf("network %.12s: its name is not known, since Docker's API at %s does not tell: %w", id, k.api.Socket, orUnanswered(k.why[id]))
		}
	}
}

func orUnanswered(err error) error {
	if err == nil {
		return errors.New("no answer yet")
	}
	return err
}

func deadline(ctx context.Context) time.Time {
	if end, ok := ctx.Deadline(); ok {
		return end
	}
	return time.Now().Add(callTimeout)
}

// run learns until ctx ends.
func (k *names) run(ctx context.Context) error {
	wait := retryMin
	for {
		err := k.learn(ctx)
		k.mu.Lock()
		if err == nil {
			wait = retryMin
		}
		close(k.changed)
		k.changed = make(chan struct{})
		k.mu.Unlock()
		var again <-chan time.Time
		if err != nil {
			again = time.After(wait)
			wait = min(2*wait, retryMax)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-k.wakened:
			if err != nil { // not faster than it can be answered
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(retryMin):
				}
			}
		}
	}
}

// learn makes one round over what is not known; an error says that something is left.
func (k *names) learn(ctx context.Context) error {
	var errs []error
	for _, n := range k.p.state.allNetworks(func(n network) bool { return n.Name == "" || !n.Made }) {
		err := k.learnNetwork(ctx, n)
		k.because(n.ID, err)
		errs = append(errs, err)
	}
	for _, e := range k.p.state.allEndpoints(func(e endpoint) bool { return e.Sandbox != "" && e.Peer != "" && !e.Named }) {
		errs = append(errs, k.learnContainer(ctx, e))
	}
	return errors.Join(errs...)
}

// because remembers why a network is not learned, and says so when that is news: but not
// that Docker, which is still making it, does not have it yet.
func (k *names) because(id string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	had := k.why[id]
	if err == nil {
		delete(k.why, id)
		return
	}
	k.why[id] = err
	if !errors.Is(err, engine.ErrNoSuch) && (had == nil || had.Error() != err.Error()) {
		k.p.log.Warn("network not made yet: no container starts in it", "id", id, "error", err)
	}
}

// learnNetwork finds out a network's name and has the cluster's network made.
func (k *names) learnNetwork(ctx context.Context, n network) error {
	if n.Name == "" {
		ctx, cancel := context.WithTimeout(ctx, apiTimeout)
		defer cancel()
		told, err := k.api.Network(ctx, n.ID)
		if errors.Is(err, engine.ErrNoSuch) && n.Tokens == nil && n.Subnets == nil {
			return errors.Join(k.p.state.dropNetwork(n.ID), err)
		}
		if err != nil {
			return fmt.Errorf("network %.12s: %w", n.ID, err)
		}
		if err := k.p.state.changeNetwork(n.ID, func(n *network) { n.recall(told) }); err != nil {
			return err
		}
		n, _ = k.p.state.network(n.ID)
		k.tell()
	}
	return k.makeNetwork(ctx, n)
}

// tell wakes who waits for a name.
func (k *names) tell() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.changed)
	k.changed = make(chan struct{})
}

// recall takes what Docker says of a network that it has, all of which was known if the
// call that created it was.
func (n *network) recall(told engine.Network) {
	n.Name = told.Name
	if n.Tokens != nil || n.Subnets != nil {
		return
	}
	n.Internal, n.IPv6 = told.Internal, told.EnableIPv6
	for _, c := range told.IPAM.Config {
		if s, err := netip.ParsePrefix(c.Subnet); err == nil && s.Bits() > 0 {
			n.Subnets = append(n.Subnets, s.Masked())
		}
		if a, err := netip.ParseAddr(c.Gateway); err == nil {
			if t := tokenOf(netip.PrefixFrom(a, 0).String()); t != "" {
				n.Tokens = append(n.Tokens, t)
			}
		}
	}
	options := map[string]any{}
	for key, value := range told.Options {
		options[key] = value
	}
	_ = n.options(options) // it was accepted once
}

// makeNetwork has the cluster's network of that name there.
func (k *names) makeNetwork(ctx context.Context, n network) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	req := control.NetworkRequest{Name: datastore.ForeignName(n.Name), Spec: datastore.NetworkSpec{Pools: n.Pools, Profile: n.Profile, IPv6: n.IPv6}}
	if req.Name != n.Name {
		req.Labels = map[string]string{datastore.LabelNetwork: n.Name}
	}
	for _, s := range n.Subnets {
		pools, err := k.p.poolsOf(ctx, s)
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		req.Spec.Pools = append(req.Spec.Pools, pools...)
	}
	if n.Internal {
		profile := n.Profile
		if profile == "" {
			profile = req.Name
		}
		req.Outbound = []string{"allow to tag " + profile}
	}
	answer, err := k.p.agent.Network(ctx, req)
	if err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	if !answer.Created {
		k.p.log.Info("network was there already", "network", req.Name, "profile", answer.Spec.Profile)
	}
	return k.p.state.changeNetwork(n.ID, func(n *network) { n.Made = true })
}

// learnContainer finds out whose an endpoint is and gives it the labels.
func (k *names) learnContainer(ctx context.Context, e endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	id, err := k.api.ContainerOf(ctx, e.Network, e.ID)
	var c engine.Container
	if err == nil {
		c, err = k.api.Container(ctx, id)
	}
	if err == nil {
		err = k.p.agent.Label(ctx, control.LabelRequest{Target: target(e.ID), Labels: labelsOf(id, c)})
	}
	if err != nil {
		return fmt.Errorf("container of endpoint %.12s: %w", e.ID, err)
	}
	return k.p.state.changeEndpoint(e.ID, func(e *endpoint) { e.Named = true })
}

// mostLabels bounds how many labels of a container its endpoints get.
const mostLabels = 32

// labelsOf are the labels of an endpoint by its container: the container's own, those
// of compose by shorter names too, and who it is, which no label of its own can say.
func labelsOf(id string, c engine.Container) map[string]string {
	all := map[string]string{}
	for key, value := range c.Config.Labels {
		if len(all) < mostLabels && !strings.HasPrefix(key, "netctl/") && !strings.HasPrefix(key, "docker.") && datastore.CheckLabel(key, value) == nil {
			all[key] = value
		}
	}
	who := map[string]string{
		"docker.name": strings.TrimPrefix(c.Name, "/"), "docker.image": c.Config.Image, "docker.id": id,
		"docker.project": c.Config.Labels["com.docker.compose.project"], "docker.service": c.Config.Labels["com.docker.compose.service"],
	}
	maps.DeleteFunc(who, func(key, value string) bool { return value == "" || datastore.CheckLabel(key, value) != nil })
	maps.Copy(all, who)
	return all
}
