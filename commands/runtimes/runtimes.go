// Package runtimes owns the networks that netctl makes in the container runtimes of
// this node, one for each of the cluster's that wants it: Docker's by its API, Podman's
// and those of CNI as files.
//
// It never changes or removes a network that a person made or changed, never makes one
// inside a call of a runtime's, and knows nothing of addresses, which come with each
// container.
//
// Invariants: what netctl made says so and whether it still is as it was made; each place
// is looked after by one goroutine of its own, so that a runtime that hangs keeps no
// other waiting; nothing is done unless the cluster's word is whole (Cluster.Wish).
package runtimes

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
)

// Network is one that runtimes are to have.
type Network struct {
	Name     string
	Runtimes []string
	IPv6     bool
	// Subnets are its pools, of a family that it has just one of.
	Subnets []netip.Prefix
}

// Wish is what the cluster wants of this node's runtimes.
type Wish struct {
	Networks []Network
	// Revision is the datastore's of the newest of them.
	Revision int64
}

// Config says what is looked after.
type Config struct {
	// Runtimes are those that netctl makes networks in (datastore.Runtimes); none: it
	// leaves all alone.
	Runtimes []string
	// DockerAPI is the socket of Docker's API, DockerDriver the one that Docker finds our
	// driver by.
	DockerAPI, DockerDriver string
	// Root is before the paths of files; "" but in tests.
	Root string
}

// Cluster is who is asked and told. Its methods are called by several goroutines.
type Cluster interface {
	// Wish is what is wanted; false: nobody can say now.
	Wish(ctx context.Context) (Wish, bool)
	// Used is how many endpoints of an orchestrator this node has in a network.
	Used(ctx context.Context, orchestrator, network string) (int, error)
	// Tell takes what a place (by its name) has for the runtimes that have their networks
	// there, whenever that is news; none: this node has no such runtime.
	Tell(place string, list []datastore.RuntimeStatus)
}

// found is a network that a place has.
type found struct {
	// at is where a person finds it.
	at string
	id string // Docker's
	// ours: netctl made it; changed: a person has changed it since.
	ours, changed bool
	// also is where another network of this name is.
	also string
	// same says whether it is as netctl would make it.
	same func(Network) bool
}

// place is where networks of one runtime or more are.
type place interface {
	// serves are the runtimes that have their networks here; none: this node has none.
	serves() []string
	// look returns the networks by name.
	look(ctx context.Context) (map[string]found, error)
	// put makes a network, or makes one of netctl's anew.
	put(ctx context.Context, n Network, have *found) error
	// remove takes away one of netctl's.
	remove(ctx context.Context, have found) error
	// watch calls changed whenever look may find something else, until ctx ends or it
	// cannot go on.
	watch(ctx context.Context, changed func()) error
}

// The pace of a keeper: it lets a burst of changes pass, tries again what failed, and
// now and then looks whether watching was right.
const (
	burst     = 100 * time.Millisecond
	retryMin  = time.Second
	retryMax  = 30 * time.Second
	lookEvery = 10 * time.Minute
	// passTime bounds one pass: a runtime that makes a network may take its time.
	passTime = time.Minute
)

// mostWrong bounds how many networks a status names, and mostReason how long a reason
// is, in bytes.
const mostWrong, mostReason = 32, 300

// Keeper looks after the networks of every place.
type Keeper struct {
	keepers []*keeper
}

// New returns a Keeper; it starts nothing.
func New(cfg Config, cluster Cluster, log *slog.Logger) *Keeper {
	k := &Keeper{}
	add := func(name, orchestrator string, p place) {
		k.keepers = append(k.keepers, &keeper{cluster: cluster, log: log, name: name, orchestrator: orchestrator, place: p, wake: make(chan struct{}, 1)})
	}
	on := func(r string) bool { return slices.Contains(cfg.Runtimes, r) }
	if on(datastore.RuntimeDocker) {
		add("docker", "docker", newDocker(cfg))
	}
	if on(datastore.RuntimePodman) {
		add("netavark", "podman", newNetavark(cfg, log))
	}
	if on(datastore.RuntimePodman) || on(datastore.RuntimeCNI) {
		add("cni", "cni", newConflists(cfg, log))
	}
	return k
}

// Wake has everything looked at.
func (k *Keeper) Wake() {
	for _, one := range k.keepers {
		one.poke()
	}
}

// Tasks are those that look after the places until their context ends.
func (k *Keeper) Tasks() (list []control.Task) {
	for _, one := range k.keepers {
		list = append(list,
			control.Task{Name: "keep the networks of " + one.name, Do: one.run},
			control.Task{Name: "watch the networks of " + one.name, Do: one.follow})
	}
	return list
}

// keeper looks after one place.
type keeper struct {
	cluster      Cluster
	log          *slog.Logger
	name         string
	orchestrator string // of the endpoints that come by it
	place        place
	wake         chan struct{} // holds one
	last         []datastore.RuntimeStatus
	told         bool // the last one
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run makes a pass whenever something may have changed.
func (k *keeper) run(ctx context.Context) error {
	for wait := retryMin; ; {
		next := lookEvery
		if k.pass(ctx) {
			next, wait = wait, min(2*wait, retryMax)
		} else {
			wait = retryMin
		}
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-k.wake:
			timer.Stop()
			if !sleep(ctx, burst) {
				return nil
			}
		}
	}
}

// follow watches the place, which may come and go.
func (k *keeper) follow(ctx context.Context) error {
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		began := time.Now()
		if err := k.place.watch(ctx, k.poke); err != nil && ctx.Err() == nil {
			k.log.Debug("networks of a runtime are not watched", "place", k.name, "error", err)
			k.poke() // it may have ended
		}
		if time.Since(began) > retryMax {
			wait = retryMin
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// sleep waits; false: ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// pass makes the place what is wanted, and tells how it is then; true: something is left
// to be tried again.
func (k *keeper) pass(ctx context.Context) (again bool) {
	wish, ok := k.cluster.Wish(ctx)
	if !ok {
		return false // who could not say wakes us when it can
	}
	serves := k.place.serves()
	want := map[string]Network{}
	for _, n := range wish.Networks {
		if slices.ContainsFunc(n.Runtimes, func(r string) bool { return slices.Contains(serves, r) }) {
			want[n.Name] = n
		}
	}
	if len(serves) == 0 {
		k.tell(nil)
		return len(wish.Networks) > 0 // it may be installed, or started, any time
	}
	ctx, cancel := context.WithTimeout(ctx, passTime)
	defer cancel()
	have, err := k.place.look(ctx)
	if err != nil {
		k.tell(k.unknown(serves, err))
		return true
	}
	wrong, failed := k.make(ctx, want, have)
	left, later := k.clear(ctx, want, have)
	k.tell(statusOf(serves, wish.Revision, want, append(wrong, left...)))
	return failed || later
}

// make has every network that is wanted there, and returns those that are not, and whether
// that may be otherwise at the next try. What a person does is seen.
func (k *keeper) make(ctx context.Context, want map[string]Network, have map[string]found) (wrong []datastore.NetworkState, again bool) {
	for _, name := range slices.Sorted(maps.Keys(want)) {
		n, f := want[name], have[name]
		state := func(state, format string, args ...any) {
			wrong = append(wrong, datastore.NetworkState{Network: name, State: state, Reason: oneLine(fmt.Sprintf(format, args...))})
		}
		switch {
		case f.at == "":
			if err := k.place.put(ctx, n, nil); err != nil {
				again = true
				state(datastore.NetworkMissing, "%v", err)
				continue
			}
			k.log.Info("network made in a runtime", "network", name, "place", k.name)
		case !f.ours:
			state(datastore.NetworkDiffers, "%s was made by hand, and stays; once it is removed netctl makes its own", f.at)
		case f.changed:
			state(datastore.NetworkDiffers, "%s was changed by hand, and stays; once it is removed netctl makes it anew", f.at)
		case f.also != "":
			state(datastore.NetworkDiffers, "%s has the same name: remove one of them", f.also)
		case !f.same(n):
			if err := k.place.put(ctx, n, &f); err != nil {
				again = true
				state(datastore.NetworkDiffers, "%s is as the network was before: %v", f.at, err)
				continue
			}
			k.log.Info("network made anew in a runtime", "network", name, "place", k.name)
		}
	}
	return wrong, again
}

// clear takes away what netctl made and nobody wants any more, and returns what is left,
// and whether that may be otherwise at the next try.
func (k *keeper) clear(ctx context.Context, want map[string]Network, have map[string]found) (left []datastore.NetworkState, again bool) {
	for _, name := range slices.Sorted(maps.Keys(have)) {
		f := have[name]
		if _, wanted := want[name]; wanted || !f.ours {
			continue
		}
		reason := ""
		used, err := k.cluster.Used(ctx, k.orchestrator, name)
		switch {
		case f.changed:
			reason = f.at + " was changed by hand: remove it yourself"
		case err != nil:
			reason = err.Error()
		case used > 0:
			reason = fmt.Sprintf("in use by %d of this node's endpoints", used)
		default:
			if err := k.place.remove(ctx, f); err != nil {
				reason = err.Error()
				break
			}
			k.log.Info("network removed from a runtime", "network", name, "place", k.name)
			continue
		}
		again = again || !f.changed
		left = append(left, datastore.NetworkState{Network: name, State: datastore.NetworkLeft, Reason: oneLine(reason)})
	}
	return left, again
}

// statusOf is what each runtime has of what it is to have.
func statusOf(serves []string, revision int64, want map[string]Network, wrong []datastore.NetworkState) (list []datastore.RuntimeStatus) {
	for i, r := range serves {
		s := datastore.RuntimeStatus{Runtime: r, Revision: revision}
		for _, n := range want {
			if slices.Contains(n.Runtimes, r) {
				s.Networks++
			}
		}
		for _, w := range wrong {
			n, wanted := want[w.Network]
			switch {
			case wanted && slices.Contains(n.Runtimes, r):
				s.Networks--
			case wanted || i > 0: // another's, or one that is left, which the first tells of
				continue
			}
			if len(s.Wrong) == mostWrong {
				s.More++
				continue
			}
			s.Wrong = append(s.Wrong, w)
		}
		list = append(list, s)
	}
	return list
}

// unknown is what is told of a place that cannot be looked at.
func (k *keeper) unknown(serves []string, err error) (list []datastore.RuntimeStatus) {
	for _, r := range serves {
		s := datastore.RuntimeStatus{Runtime: r}
		if i := slices.IndexFunc(k.last, func(l datastore.RuntimeStatus) bool { return l.Runtime == r }); i >= 0 {
			s = k.last[i]
		}
		s.Error = oneLine(err.Error())
		list = append(list, s)
	}
	return list
}

func (k *keeper) tell(list []datastore.RuntimeStatus) {
	if k.told && reflect.DeepEqual(list, k.last) {
		return
	}
	k.last, k.told = list, true
	k.cluster.Tell(k.name, list)
}

// oneLine is text of a bounded length without line breaks.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > mostReason {
		text = strings.ToValidUTF8(text[:mostReason], "") + " …"
	}
	return text
}

// isSocket says whether there is a socket at a path.
func isSocket(path string) bool {
	is, err := os.Stat(path)
	return err == nil && is.Mode()&os.ModeSocket != 0
}
