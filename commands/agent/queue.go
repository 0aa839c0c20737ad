package agent

import (
	"context"
	"slices"

	"netctl/datastore"
)

// errEnded is what callers of a loop that ended get.
var errEnded = datastore.As(datastore.ErrUnavailable, "the agent is ending")

// queue is how others reach what the loop owns: they send functions, which the loop
// calls one after the other.
type queue struct {
	calls chan func()
	ended chan struct{}

	// What follows is the loop's.
	waiters []*waiter
	idle    int // calls of this burst that changed nothing
}

// waiter is a caller of await.
type waiter struct {
	check func() (bool, error)
	done  chan error // holds one
}

func newQueue() *queue { return &queue{calls: make(chan func(), 64), ended: make(chan struct{})} }

// burst waits for a call and then works off all that are there. It returns how many
// changed something; false: ctx ended.
func (q *queue) burst(ctx context.Context) (changes int, ok bool) {
	select {
	case <-ctx.Done():
		return 0, false
	case fn := <-q.calls:
		fn()
	}
	for calls := 1; ; calls++ {
		select {
		case fn := <-q.calls:
			fn()
		default:
			changes, q.idle = calls-q.idle, 0
			return changes, true
		}
	}
}

// do runs fn in the loop's goroutine and waits for it.
func (q *queue) do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	if err := q.send(ctx, func() { fn(); close(done) }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-q.ended:
		return errEnded
	}
}

func (q *queue) send(ctx context.Context, fn func()) error {
	select {
	case q.calls <- fn:
		return nil
	case <-q.ended:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// post runs fn in the loop's goroutine some time later.
func (q *queue) post(fn func()) { _ = q.send(context.Background(), fn) }

// again has the loop go round once more, behind the calls that wait.
func (q *queue) again() { go q.post(func() { q.idle++ }) }

// await runs check in the loop's goroutine after each burst until it is done or
// fails.
func (q *queue) await(ctx context.Context, check func() (bool, error)) error {
	w := &waiter{check: check, done: make(chan error, 1)}
	if err := q.send(ctx, func() { q.waiters = append(q.waiters, w) }); err != nil {
		return err
	}
	select {
	case err := <-w.done:
		return err
	case <-q.ended:
		return errEnded
	case <-ctx.Done():
	}
	if err := q.do(context.Background(), func() {
		q.waiters = slices.DeleteFunc(q.waiters, func(o *waiter) bool { return o == w })
	}); err != nil {
		return err
	}
	select {
	case err := <-w.done: // what check did counts
		return err
	default:
		return ctx.Err()
	}
}

// wake has those who wait look again.
func (q *queue) wake() {
	left := q.waiters[:0]
	for _, w := range q.waiters {
		if done, err := w.check(); done || err != nil {
			w.done <- err
			continue
		}
		left = append(left, w)
	}
	clear(q.waiters[len(left):])
	q.waiters = left
}
