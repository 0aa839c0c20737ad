package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"netctl/acl/nft"
	"netctl/datastore"
	"netctl/netdev/kernel"
)

// tracer watches a packet in this node's kernel where somebody asks for it, and sends it
// where an endpoint of this node is its sender: one at a time.
type tracer struct {
	loop  *loop
	nft   *nft.Table
	store datastore.Store
	log   *slog.Logger
	asks  map[string]*pendingAsk // by key
	busy  atomic.Int32           // how many asks are worked on
	one   atomic.Bool            // a packet is watched: the table for it has one owner
}

// pendingAsk is an Ask that this node has its part in.
type pendingAsk struct {
	datastore.Ask
	stop  func()        // takes it back
	send  chan struct{} // closed when the packet may be sent
	begun bool          // send is closed
}

const (
	traceWait  = 1500 * time.Millisecond // for the packet, when it was or may be sent
	maxTraces  = 4                       // at a time
	answerTime = 2 * time.Second         // of the datastore
)

// Run follows what is asked until ctx ends.
func (t *tracer) Run(ctx context.Context) error {
	t.asks = map[string]*pendingAsk{}
	return besides{store: t.store, prefix: datastore.AsksPrefix, log: t.log, hear: t.hear, listed: func(there map[string]bool) {
		for key, a := range t.asks {
			if !there[key] {
				a.stop()
				delete(t.asks, key)
			}
		}
		t.sweep(ctx, there)
	}}.run(ctx)
}

// hear takes an Ask that came, changed, or went.
func (t *tracer) hear(ctx context.Context, e datastore.Entry) {
	a := t.asks[e.Key]
	if e.Value == nil {
		if a != nil {
			a.stop()
			delete(t.asks, e.Key)
		}
		return
	}
	ask, err := datastore.DecodeAsk(e)
	if err != nil || ask.Trace == nil && ask.Changes == nil || !slices.Contains(ask.Nodes, t.loop.cfg.Node) {
		return
	}
	if a == nil {
		life, stop := context.WithTimeout(ctx, datastore.AskLife)
		a = &pendingAsk{Ask: ask, stop: stop, send: make(chan struct{})}
		t.asks[e.Key] = a
		old := ask.Go // what is asked was done, or is too late
		t.loop.spawn(func(context.Context) error {
			if !old {
				t.answer(life, a)
			}
			<-life.Done()
			stop()
			t.forget(context.WithoutCancel(ctx), e.Key, ask.ID, errors.Is(life.Err(), context.DeadlineExceeded))
			return nil
		})
	}
	if ask.Go && !a.begun {
		a.begun = true
		close(a.send)
	}
}

// forget removes the answer, and an ask that outlived its time: whoever asked is gone.
func (t *tracer) forget(ctx context.Context, key, id string, late bool) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	keys := []string{datastore.AnswerKey(t.loop.cfg.Node, id)}
	if late {
		keys = append(keys, key)
	}
	for _, k := range keys { // each by itself: not every node may remove another's ask
		if _, err := t.store.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: k}}}); err != nil {
			t.log.Debug("trace not removed", "key", k, "error", err)
		}
	}
}

// sweep removes this node's answers to what nobody asks any more, of an agent that was
// killed meanwhile.
func (t *tracer) sweep(ctx context.Context, asked map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	ids := map[string]bool{}
	for key := range asked {
		ids[key[strings.LastIndexByte(key, '/')+1:]] = true
	}
	snap, err := t.store.List(ctx, datastore.AnswerKey(t.loop.cfg.Node, ""))
	for _, e := range snap.Entries {
		if err == nil && !ids[e.Key[strings.LastIndexByte(e.Key, '/')+1:]] {
			_, err = t.store.Commit(ctx, datastore.Txn{Then: []datastore.Op{{Key: e.Key}}})
		}
	}
	if err != nil {
		t.log.Debug("answers to traces not looked through", "error", err)
	}
}

// tell writes the answer.
func (t *tracer) tell(ctx context.Context, id string, a datastore.Answer) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	op, err := datastore.RecordOp(datastore.AnswerKey(t.loop.cfg.Node, id), a)
	if err == nil {
		_, err = t.store.Commit(ctx, datastore.Txn{Then: []datastore.Op{op}})
	}
	if err != nil {
		t.log.Debug("answer to a trace not written", "error", err)
	}
}

// answer watches the packet of an Ask, and sends it.
func (t *tracer) answer(ctx context.Context, a *pendingAsk) {
	defer t.busy.Add(-1)
	if t.busy.Add(1) > maxTraces {
		t.tell(ctx, a.ID, datastore.Answer{Error: "too much is asked at a time"})
		return
	}
	if a.Trace == nil {
		out := datastore.Answer{Ready: true, Told: true}
		var err error
		if out.Flows, err = t.wouldCut(ctx, a.Changes); err != nil {
			out.Error = oneLine(err.Error())
		}
		t.tell(ctx, a.ID, out)
		return
	}
	if !t.one.CompareAndSwap(false, true) {
		t.tell(ctx, a.ID, datastore.Answer{Error: "another packet is traced there: try again in some seconds"})
		return
	}
	defer t.one.Store(false)
	trace, send, err := t.arm(ctx, a)
	if err != nil {
		t.tell(ctx, a.ID, datastore.Answer{Error: oneLine(err.Error())})
		return
	}
	defer trace.Close()
	if send != nil {
		defer send.close()
	}
	t.tell(ctx, a.ID, datastore.Answer{Ready: true})
	select {
	case <-ctx.Done():
		return
	case <-a.send:
	}
	out := datastore.Answer{Ready: true, Told: true}
	within, cancel := context.WithTimeout(ctx, traceWait)
	defer cancel()
	sent := make(chan struct{})
	if send == nil {
		close(sent)
	} else {
		t.loop.spawn(func(context.Context) error {
			defer close(sent)
			out.Sent, out.Answered = send.do(within)
			return nil
		})
	}
	steps, fate, lost, err := trace.Follow(within)
	<-sent
	out.Fate, out.Lost = fate, lost
	if err != nil {
		out.Error = oneLine(err.Error())
	}
	if err := t.loop.do(ctx, func() { out.Steps = t.loop.placed(steps) }); err != nil {
		out.Error = oneLine(err.Error())
	}
	t.tell(ctx, a.ID, out)
}

// arm has the kernel watch, and opens where the packet is sent from (nil: elsewhere).
func (t *tracer) arm(ctx context.Context, a *pendingAsk) (trace *nft.Trace, send *probe, err error) {
	if t.nft == nil {
		return nil, nil, fmt.Errorf("%s: its kernel has no nftables, by which packets are traced", t.loop.cfg.Node)
	}
	if a.Trace.From == t.loop.cfg.Node {
		if a.By != datastore.Anybody && a.By != t.loop.cfg.Node {
			return nil, nil, fmt.Errorf("%s does not send packets for %s: trace on %s itself, or on a member of the datastore", t.loop.cfg.Node, a.By, t.loop.cfg.Node)
		}
		if send, err = t.sender(ctx, *a.Trace); err != nil {
			return nil, nil, err
		}
	}
	if trace, err = t.nft.Trace(*a.Trace); err != nil && send != nil {
		send.close()
	}
	return trace, send, err
}

// sender is where a flow's packet is sent from.
func (t *tracer) sender(ctx context.Context, f datastore.TraceFlow) (p *probe, err error) {
	p = &probe{flow: f, in: func(fn func() error) error { return fn() }, close: func() {}}
	if f.Endpoint == "" {
		return p, nil
	}
	var place kernel.Place
	if failed := t.loop.do(ctx, func() {
		lo := t.loop.locals.named[f.Endpoint]
		switch {
		case lo == nil || lo.ep == nil || !slices.Contains(lo.ep.Spec.Addresses, f.Sources[0]):
			err = fmt.Errorf("endpoint %s with address %s: %w on this node", f.Endpoint, f.Sources[0], datastore.ErrNotFound)
		case lo.ep.Spec.Tap.Is():
			err = fmt.Errorf("endpoint %s is a virtual machine's: nobody can send from it but the machine", f.Endpoint)
		default:
			place = t.loop.links.wires[lo.link].place
		}
	}); failed != nil || err != nil {
		return nil, errors.Join(failed, err)
	}
	ns, err := kernel.OpenNetnsFile(place.Path)
	if err != nil {
		return nil, fmt.Errorf("network namespace of endpoint %s: %w", f.Endpoint, err)
	}
	if place.Ino != 0 && (ns.Dev != place.Dev || ns.Ino != place.Ino) {
		return nil, errors.Join(fmt.Errorf("network namespace of endpoint %s: %s is another one now", f.Endpoint, place.Path), ns.Close())
	}
	p.in, p.close = ns.Do, func() { _ = ns.Close() }
	return p, nil
}

// placed are the steps with the rules of the model, and the endpoint that they lead to.
func (l *loop) placed(steps []nft.Step) (list []datastore.TraceStep) {
	for _, s := range steps {
		for _, p := range l.filtering.index.Placed(s.Chain) {
			if s.Is(&p.Rule) {
				s.Rule = &p.Place
				break
			}
		}
		s.Endpoint = l.links.owners[s.Out]
		list = append(list, s.TraceStep)
	}
	return list
}
