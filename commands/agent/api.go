package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/commands/serve"
	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev/kernel"
)

// api answers on the control socket.
type api struct {
	filter   *backend
	loop     *loop
	service  *workload.Service
	detaches *detaches
	// namespace opens a descriptor of another process.
	namespace func(pid, fd int) (*kernel.Netns, error)
	// addresses are held by it; store is where networks and labels are written.
	addresses *ipam.Allocator
	store     datastore.Store
	// publishing is held by who looks for a port of the node and takes it.
	publishing sync.Mutex
	// undirect deletes the connection tracking entries of published ports that lead to
	// the host itself.
	undirect func(host []netip.Addr, ports []datastore.HostPort) error
	// counts is what rules of the packet filter have counted.
	counts func(ctx context.Context, rules []acl.Rule) ([]acl.Count, error)
	// counted is how many packets a chain of the packet filter dropped.
	counted func(ctx context.Context, chain string) (uint64, error)
	meters  *meters
}

func (a *api) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/attach", serve.Call(a.attach))
	mux.Handle("POST /v1/detach", serve.Call(a.detach))
	mux.Handle("POST /v1/check", serve.Call(a.check))
	mux.Handle("POST /v1/collect", serve.Call(a.collect))
	mux.Handle("GET /v1/status", serve.Call(a.status))
	mux.Handle("POST /v1/hold", serve.Call(a.hold))
	mux.Handle("POST /v1/letgo", serve.Call(a.letGo))
	mux.Handle("POST /v1/network", serve.Call(a.network))
	mux.Handle("GET /v1/pools", serve.Call(a.pools))
	mux.Handle("POST /v1/labels", serve.Call(a.labels))
	mux.Handle("POST /v1/ports", serve.Call(a.ports))
	mux.Handle("POST /v1/explain", serve.Call(a.explain))
	mux.Handle("POST /v1/counters", serve.Call(a.counters))
	mux.Handle("POST /v1/learned", serve.Call(a.learned))
	return mux
}

// storePatience is how long an attach bears with a datastore that went away just now,
// or that starts as the agent does: who asks does not ask again.
const (
	storePatience = 5 * time.Second
	storePause    = 100 * time.Millisecond
)

func (a *api) attach(ctx context.Context, r control.AttachRequest) (control.Attachment, error) {
	if err := refuseAdopted(r.Target); err != nil {
		return control.Attachment{}, err
	}
	began := time.Now()
	at, err := a.attachSoon(ctx, r)
	a.meters.attaches.took(began, err)
	return at, err
}

// attachSoon attaches as soon as the datastore is there, if that is soon.
func (a *api) attachSoon(ctx context.Context, r control.AttachRequest) (control.Attachment, error) {
	var ns *kernel.Netns
	if !r.Loose && !r.Tap.Is() {
		var err error
		if ns, err = a.open(ctx, r.NetnsFD, r.NetnsPath); err != nil {
			return control.Attachment{}, err
		}
		defer ns.Close()
	}
	patience := storePatience
	if end, ok := ctx.Deadline(); ok {
		patience = min(patience, time.Until(end)/2)
	}
	earlier := a.detaches.earlier(r.Target, control.Began(ctx))
	for began := time.Now(); ; {
		at, err := a.tryAttach(ctx, r, ns, earlier)
		if err == nil || !errors.Is(err, datastore.ErrUnavailable) || errors.Is(err, workload.ErrGivenUp) {
			return at, err
		}
		if time.Since(began) >= patience || a.loop.awayFor(ctx) >= storePatience || !pause(ctx, storePause) {
			return a.attachAway(ctx, r, ns, earlier, err)
		}
	}
}

func (a *api) tryAttach(ctx context.Context, r control.AttachRequest, ns *kernel.Netns, earlier []control.Pending) (control.Attachment, error) {
	if err := a.loop.gate(ctx); err != nil {
		return control.Attachment{}, fmt.Errorf("attach %s: %w", r.Workload, err)
	}
	if err := a.loop.takes(ctx, r.Target); err != nil {
		return control.Attachment{}, err
	}
	if err := a.detaches.first(ctx, earlier); err != nil {
		return control.Attachment{}, fmt.Errorf("attach %s: %w", r.Workload, err)
	}
	return a.service.Attach(ctx, r, ns)
}

// detach of a store that is away takes the interfaces out of service; the caller
// keeps the request until the agent can release the addresses, if the store has any.
func (a *api) detach(ctx context.Context, r control.DetachRequest) (struct{}, error) {
	if err := refuseAdopted(r.Target); err != nil {
		return struct{}{}, err
	}
	began := time.Now()
	err := a.detachOrSever(ctx, r)
	a.meters.detaches.took(began, err)
	return struct{}{}, err
}

func (a *api) detachOrSever(ctx context.Context, r control.DetachRequest) error {
	a.detaches.asked.note(r.Target, time.Now())
	err := a.loop.gate(ctx)
	switch {
	case err == nil:
		return a.service.Detach(ctx, r.Target)
	case errors.Is(err, datastore.ErrUnavailable) && r.Workload != "":
		left, e := a.service.DetachAway(ctx, r.Target)
		if !left {
			return nil
		}
		err = errors.Join(err, e)
	}
	return fmt.Errorf("detach %s: %w", r.Workload, err)
}

// collect releases what a runtime lists no more and is dead.
func (a *api) collect(ctx context.Context, r control.CollectRequest) (control.Collected, error) {
	if err := a.loop.gate(ctx); err != nil {
		return control.Collected{}, fmt.Errorf("collect %s: %w", r.Network, err)
	}
	return a.service.Collect(ctx, r)
}

func (a *api) check(ctx context.Context, r control.CheckRequest) (struct{}, error) {
	ns, err := a.open(ctx, r.NetnsFD, "")
	if err != nil {
		return struct{}{}, err
	}
	defer ns.Close()
	if err = a.service.Check(ctx, r, ns); err != nil && a.loop.putBack(ctx, r.Target) == nil {
		// What others changed a moment ago (a plugin behind ours, the MAC) is ours to mend.
		err = a.service.Check(ctx, r, ns)
	}
	return struct{}{}, err
}

func (a *api) status(ctx context.Context, _ struct{}) (s control.AgentStatus, err error) {
	if err = a.loop.do(ctx, func() {
		s = a.loop.status()
		s.Filter, s.Lacks = a.filter.name, a.filter.lacks
		s.Notes = few(a.loop.filtering.index.Missing())
		s.Refusing = few(a.loop.refusing)
	}); err == nil {
		s.Limited, err = a.limited(ctx)
	}
	return s, err
}

// few are the first of a list, and how many more there are.
func few(list []string) []string {
	const most = 10
	if len(list) > most {
		return append(list[:most:most], fmt.Sprintf("%d more of that kind", len(list)-most))
	}
	return list
}

func (a *api) open(ctx context.Context, fd int, path string) (*kernel.Netns, error) {
	pid := serve.PeerPID(ctx)
	ns, err := a.namespace(pid, fd)
	if err != nil {
		if path == "" {
			path = fmt.Sprintf("of process %d, descriptor %d", pid, fd)
		}
		return nil, &control.Error{Code: control.CodeNamespace, Message: fmt.Sprintf("network namespace %s: %s", path, datastore.Said(err))}
	}
	return ns, nil
}

// oneLine is text without line breaks.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }
