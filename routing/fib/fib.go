// Package fib owns the kernel's routes of one protocol number in the main table
// of one network namespace: it reads, writes and watches them over rtnetlink.
//
// It never changes, replaces or deletes a route of another protocol, runs no
// program, and decides nothing: what should be is the caller's, as
// routing.Route.
//
// Invariants: a namespace has one socket for requests and one for each Watch;
// a failed route never keeps the others of its batch back; routes that were
// applied and then taken by a link going down are put back when it returns, as
// long as Watch runs.
package fib

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/routing"
)

// batch is how many requests are sent before their answers are read; more would
// overrun the socket's receive buffer with acknowledgements.
const batch = 256

// answerBuffer is the receive buffer of a socket in bytes: the kernel's default
// does not hold the refusals of a batch.
const answerBuffer = 1 << 20

// ErrForeign means that another program's route has the prefix and metric.
var ErrForeign = errors.New("another program's route is in its place")

// ErrUnreachable means that no route leads to an address.
var ErrUnreachable = errors.New("no route")

// RouteError is what went wrong with one route of a batch.
type RouteError struct {
	Op    string // "add", "replace" or "delete"
	Route routing.Route
	Err   error
}

// Error implements error.
func (e *RouteError) Error() string {
	return fmt.Sprintf("%s route %s: %v", e.Op, e.Route, e.Err)
}

// Unwrap returns the cause: ErrForeign or the kernel's errno.
func (e *RouteError) Unwrap() error { return e.Err }

// Table is the routes of one protocol number in the main table. It is safe for
// concurrent use.
type Table struct {
	protocol uint8
	log      *slog.Logger

	events *netlink.Conn // Watch's; dialed in Open, where the namespace is known

	mu     sync.Mutex // guards what follows and orders writes
	conn   *netlink.Conn
	port   uint32 // conn's address, which the kernel puts on notifications of what conn did
	names  linkNames
	wanted map[routing.Key]routing.Route
	// missing are wanted routes the kernel refused or lost.
	missing map[routing.Key]bool
	// watching: what is wanted and not missing is in the kernel, or about to
	// be put back.
	watching bool
}

// Open returns the table of the calling thread's network namespace.
func Open(protocol int, log *slog.Logger) (*Table, error) {
	if protocol < 5 || protocol > 255 {
		return nil, fmt.Errorf("open routes of protocol %d: not between 5 and 255", protocol)
	}
	conn, port, err := dial()
	if err != nil {
		return nil, err
	}
	events, _, err := dial()
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	t := &Table{
		protocol: uint8(protocol), log: log, events: events, conn: conn, port: port,
		wanted: map[routing.Key]routing.Route{}, missing: map[routing.Key]bool{},
	}
	t.names.conn = conn
	return t, nil
}

// Close releases the sockets and ends Watch; the routes stay.
func (t *Table) Close() error { return errors.Join(t.conn.Close(), t.events.Close()) }

func dial() (*netlink.Conn, uint32, error) {
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Strict: true})
	if err != nil {
		return nil, 0, fmt.Errorf("open rtnetlink: %w", err)
	}
	// An answer that finds the buffer full is lost, and waited for without end; a
	// refusal carries the request back.
	if err := conn.SetReadBuffer(answerBuffer); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open rtnetlink: %w", errno(err)), conn.Close())
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, 0, errors.Join(err, conn.Close())
	}
	var port uint32
	var nameErr error
	err = raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, nameErr = unix.Getsockname(int(fd)); nameErr == nil {
			port = sa.(*unix.SockaddrNetlink).Pid
		}
	})
	if err = errors.Join(err, nameErr); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open rtnetlink: %w", err), conn.Close())
	}
	return conn, port, nil
}

// Routes returns the kernel's routes of this protocol, sorted; the kernel
// filters, so other protocols' routes cost nothing.
func (t *Table) Routes(ctx context.Context) ([]routing.Route, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dump(ctx, t.protocol)
}

// Connected returns the routes the kernel itself made for the addresses of
// links: the connected subnets of both families, link-local ones included.
func (t *Table) Connected(ctx context.Context) ([]routing.Route, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dump(ctx, unix.RTPROT_KERNEL)
}

// Apply makes the changes, deletions first, and remembers them as wanted (see
// Watch). Each failed route is a *RouteError in the joined error; the others
// are applied. Deleting a route that is not there is no error, and while Watch
// runs a route that is wanted already costs nothing.
func (t *Table) Apply(ctx context.Context, c routing.Changes) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range c.Delete {
		delete(t.wanted, r.Key())
		delete(t.missing, r.Key())
	}
	var put []routing.Route
	for _, r := range c.Put {
		k := r.Key()
		if old, ok := t.wanted[k]; t.watching && ok && !t.missing[k] && old.Equal(r) {
			continue
		}
		t.wanted[k] = r
		put = append(put, r)
	}
	failed := t.write(ctx, requests("delete", c.Delete))
	failed = append(failed, t.put(ctx, put)...)
	return joined(failed)
}

// Adopt takes routes the kernel already has as wanted without writing them.
func (t *Table) Adopt(routes []routing.Route) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range routes {
		t.wanted[r.Key()] = r
	}
}

func joined(failed []*RouteError) error {
	errs := make([]error, len(failed))
	for i, f := range failed {
		errs[i] = f
	}
	return errors.Join(errs...)
}

// request is one change of one route.
type request struct {
	op    string
	route routing.Route
}

func requests(op string, routes []routing.Route) []request {
	out := make([]request, len(routes))
	for i, r := range routes {
		out[i] = request{op, r}
	}
	return out
}

// put creates routes, and replaces those that exist and are ours. Creation is
// exclusive because the kernel's replace takes whatever route of that prefix
// and metric comes first, whoever wrote it.
func (t *Table) put(ctx context.Context, routes []routing.Route) []*RouteError {
	var failed []*RouteError
	var exist []routing.Route
	for _, e := range t.write(ctx, requests("add", routes)) {
		if errors.Is(e.Err, unix.EEXIST) {
			exist = append(exist, e.Route)
		} else {
			failed = append(failed, e)
		}
	}
	if len(exist) > 0 {
		failed = append(failed, t.replace(ctx, exist)...)
	}
	for _, r := range routes {
		delete(t.missing, r.Key())
	}
	for _, e := range failed {
		if _, ok := t.wanted[e.Route.Key()]; ok {
			t.missing[e.Route.Key()] = true
		}
	}
	return failed
}

func (t *Table) replace(ctx context.Context, routes []routing.Route) []*RouteError {
	have, err := t.dump(ctx, t.protocol)
	if err != nil {
		return []*RouteError{{Op: "replace", Route: routes[0], Err: err}}
	}
	ours := make(map[routing.Key]routing.Route, len(have))
	for _, r := range have {
		ours[r.Key()] = r
	}
	var failed []*RouteError
	var todo []request
	for _, r := range routes {
		old, ok := ours[r.Key()]
		switch {
		case !ok:
			failed = append(failed, &RouteError{"add", r, ErrForeign})
		case !old.Equal(r):
			todo = append(todo, request{"replace", r})
		}
	}
	return append(failed, t.write(ctx, todo)...)
}

// write sends the requests in batches and returns those that failed.
func (t *Table) write(ctx context.Context, reqs []request) []*RouteError {
	var failed []*RouteError
	for part := range slices.Chunk(reqs, batch) {
		if err := ctx.Err(); err != nil {
			for _, r := range part {
				failed = append(failed, &RouteError{r.op, r.route, err})
			}
			continue
		}
		failed = append(failed, t.send(part)...)
	}
	return failed
}

func (t *Table) send(reqs []request) []*RouteError {
	t.names.reset()
	var failed []*RouteError
	var msgs []netlink.Message
	var sent []request
	for _, r := range reqs {
		m, err := t.encode(r)
		if err != nil {
			failed = append(failed, &RouteError{r.op, r.route, err})
			continue
		}
		msgs, sent = append(msgs, m), append(sent, r)
	}
	if len(msgs) == 0 {
		return failed
	}
	if _, err := t.conn.SendMessages(msgs); err != nil {
		for _, r := range sent {
			failed = append(failed, &RouteError{r.op, r.route, err})
		}
		return failed
	}
	// The kernel answers every request, in order, each in its own datagram.
	for _, r := range sent {
		_, err := t.conn.Receive()
		if err != nil && !(r.op == "delete" && errors.Is(err, unix.ESRCH)) {
			failed = append(failed, &RouteError{r.op, r.route, errno(err)})
		}
	}
	return failed
}

// errno strips the library's words, keeping the kernel's error and its text.
func errno(err error) error {
	var op *netlink.OpError
	if errors.As(err, &op) {
		if op.Message != "" {
			return fmt.Errorf("%w (%s)", op.Err, op.Message)
		}
		return op.Err
	}
	return err
}

// dump reads a protocol's routes of both families.
func (t *Table) dump(ctx context.Context, protocol uint8) ([]routing.Route, error) {
	t.names.reset()
	var out []routing.Route
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		req := rtnetlink.RouteMessage{
			Family: family, Table: unix.RT_TABLE_MAIN, Protocol: protocol,
			Attributes: rtnetlink.RouteAttributes{Table: unix.RT_TABLE_MAIN},
		}
		data, err := req.MarshalBinary()
		if err != nil {
			return nil, err
		}
		msgs, err := t.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request | netlink.Dump},
			Data:   data,
		})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue // the family has no table yet, or is not in this kernel
		}
		if err != nil {
			return nil, fmt.Errorf("read routes of protocol %d: %w", protocol, errno(err))
		}
		for _, m := range msgs {
			rm, ok := parse(m.Data)
			if !ok || rm.Protocol != protocol || !inMain(rm) {
				continue // a kernel without strict checking ignores the filter
			}
			if r, ok := t.route(rm); ok {
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, routing.Compare)
	return out, nil
}

// Resolve returns how the kernel reaches addr now: directly (Addr is addr) or
// through a gateway. ErrUnreachable wraps every other answer, an address of
// this machine included.
func (t *Table) Resolve(ctx context.Context, addr netip.Addr) (routing.NextHop, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.names.reset()
	return t.resolve(addr)
}
