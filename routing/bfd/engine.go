package bfd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The intervals that are kept.
const (
	shortest = time.Millisecond
	longest  = time.Minute
)

// listenRetry is between two tries to listen on an address.
const listenRetry = time.Second

// Engine speaks BFD with its peers. Its methods are safe for concurrent use.
type Engine struct {
	config Config
	// open makes the socket that hears the neighbours of a local address, dial the one that
	// speaks to one.
	open  func(ctx context.Context, local netip.Addr, peers []netip.Addr) (receiver, error)
	dial  func(Peer) (net.Conn, error)
	tasks sync.WaitGroup

	mu       sync.Mutex
	ctx      context.Context // nil: Run was not called
	ended    bool
	wanted   map[pathKey]Peer
	sessions map[pathKey]*session
	ears     map[netip.Addr]*ear
}

// receiver is a socket that hears neighbours.
type receiver interface {
	// receive waits for a packet.
	receive(b []byte) (n int, from netip.Addr, err error)
	// unread says whether one waits.
	unread() bool
	// admit has it hear these addresses alone.
	admit(peers []netip.Addr) error
	Close() error
}

// ear is a local address that is listened on.
type ear struct {
	end     context.CancelFunc
	socket  receiver // nil: it is not open
	peers   []netip.Addr
	problem string
}

// New returns an Engine without peers; nothing is opened before Run.
func New(c Config) *Engine {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{
		config: c, open: openReceiver, dial: dial,
		wanted: map[pathKey]Peer{}, sessions: map[pathKey]*session{}, ears: map[netip.Addr]*ear{},
	}
}

// Run speaks until ctx ends. Neighbours are then told that this is on purpose.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	if e.ctx != nil {
		e.mu.Unlock()
		return errors.New("bfd: runs already")
	}
	e.ctx = ctx
	e.apply()
	e.mu.Unlock()
	<-ctx.Done()
	e.mu.Lock()
	e.ended = true
	e.mu.Unlock()
	e.tasks.Wait()
	return nil
}

// Configure makes peers the whole set of neighbours, no two with the same addresses. Those
// that go are told so, and do not take the path for dead.
func (e *Engine) Configure(peers []Peer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.wanted)
	for _, p := range peers {
		p.Interval, p.Multiplier = min(max(p.Interval, shortest), longest), max(p.Multiplier, 1)
		e.wanted[pathKey{p.Address, p.Local}] = p
	}
	if e.ctx != nil && !e.ended {
		e.apply()
	}
}

// apply brings sessions and sockets to what is wanted. The caller holds mu.
func (e *Engine) apply() {
	locals := map[netip.Addr][]netip.Addr{}
	for k, p := range e.wanted {
		locals[k.local] = append(locals[k.local], k.peer)
		if s := e.sessions[k]; s == nil || !s.want(&p) {
			e.start(p)
		}
	}
	for k, s := range e.sessions {
		if _, wanted := e.wanted[k]; !wanted {
			s.want(nil)
		}
	}
	for a, ear := range e.ears {
		if locals[a] == nil {
			ear.end()
			delete(e.ears, a)
		}
	}
	for a, peers := range locals {
		slices.SortFunc(peers, netip.Addr.Compare)
		known := e.ears[a]
		switch {
		case known == nil:
			ctx, end := context.WithCancel(e.ctx)
			known = &ear{end: end, peers: peers}
			e.ears[a] = known
			e.tasks.Go(func() { e.listen(ctx, a, known) })
		case !slices.Equal(known.peers, peers):
			known.peers = peers
			if known.socket != nil {
				e.complain(a, known, known.socket.admit(peers))
			}
		}
	}
}

// start begins a session. The caller holds mu.
func (e *Engine) start(p Peer) {
	mouth := &mouth{dial: func() (net.Conn, error) { return e.dial(p) }}
	s := newSession(p, e.number(), &e.config, mouth.send, func() bool { return e.unread(p.Local) })
	e.sessions[s.key] = s
	e.tasks.Go(func() {
		s.run(e.ctx)
		mouth.close()
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.sessions[s.key] == s {
			delete(e.sessions, s.key)
		}
	})
}

// number is a discriminator that no session has. The caller holds mu.
func (e *Engine) number() uint32 {
	for {
		n, taken := rand.Uint32(), false
		for _, s := range e.sessions {
			taken = taken || s.named(n)
		}
		if n != 0 && !taken {
			return n
		}
	}
}

// mouth is the socket of one session, opened when there is something to send.
type mouth struct {
	dial func() (net.Conn, error)
	conn net.Conn
}

func (m *mouth) send(b []byte) error {
	if m.conn == nil {
		c, err := m.dial()
		if err != nil {
			return err
		}
		m.conn = c
	}
	_, err := m.conn.Write(b)
	return err
}

func (m *mouth) close() {
	if m.conn != nil {
		_ = m.conn.Close()
	}
}

// unread says whether packets wait on a local address.
func (e *Engine) unread(local netip.Addr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	ear := e.ears[local]
	return ear != nil && ear.socket != nil && ear.socket.unread()
}

// listen hears the neighbours of a local address until ctx ends.
func (e *Engine) listen(ctx context.Context, local netip.Addr, ear *ear) {
	for ctx.Err() == nil {
		e.mu.Lock()
		peers := ear.peers
		e.mu.Unlock()
		socket, err := e.open(ctx, local, peers)
		e.mu.Lock()
		if err == nil {
			ear.socket = socket
			if !slices.Equal(peers, ear.peers) {
				err = socket.admit(ear.peers)
			}
		}
		e.complain(local, ear, err)
		e.mu.Unlock()
		if socket != nil {
			stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
			e.hear(local, socket)
			stop()
			e.mu.Lock()
			ear.socket = nil
			e.mu.Unlock()
			_ = socket.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenRetry):
		}
	}
}

// complain notes what is wrong with a local address, or that nothing is. The caller holds mu.
func (e *Engine) complain(local netip.Addr, ear *ear, err error) {
	was := ear.problem
	if ear.problem = ""; err != nil {
		ear.problem = fmt.Sprintf("BFD is not heard on %v: %s", local, plain(err))
	}
	if ear.problem != was && err != nil {
		e.config.Log.Warn("bfd is not heard", "address", local, "error", err)
	}
}

// hear reads a socket until it fails.
func (e *Engine) hear(local netip.Addr, socket receiver) {
	var b [1500]byte
	for {
		n, from, err := socket.receive(b[:])
		if err != nil {
			return
		}
		p, err := Parse(b[:n])
		if err != nil {
			continue
		}
		e.mu.Lock()
		s := e.sessions[pathKey{from, local}]
		e.mu.Unlock()
		if s != nil {
			s.deliver(p)
		}
	}
}

// Status returns all sessions that are wanted, by address.
func (e *Engine) Status() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []Status
	for k := range e.wanted {
		if s := e.sessions[k]; s != nil {
			st := s.Status()
			if ear := e.ears[k.local]; ear != nil && ear.problem != "" {
				st.Trouble = ear.problem
			}
			all = append(all, st)
		}
	}
	slices.SortFunc(all, func(a, b Status) int { return a.Peer.Compare(b.Peer) })
	return all
}

// Problems says in words what is wrong with the sockets, sorted.
func (e *Engine) Problems() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	problems := map[string]bool{}
	for _, ear := range e.ears {
		if ear.problem != "" {
			problems[ear.problem] = true
		}
	}
	return slices.Sorted(maps.Keys(problems))
}
