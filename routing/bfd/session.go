package bfd

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"netctl/datastore"
)

// pathKey is what a session is known by.
type pathKey struct{ peer, local netip.Addr }

// queueLen bounds the packets that wait for a session; more are lost.
const queueLen = 16

// farewells are how many packets, one a second, say that a session is switched off.
const farewells = 3

// quiet is how long a session that flaps is not logged again.
const quiet = time.Second

// session is a neighbour. Its goroutine, run, owns the fields above in.
type session struct {
	key     pathKey
	config  *Config
	log     *slog.Logger
	machine *machine
	send    func([]byte) error
	// unread says whether packets wait to be read, by which the neighbour may be alive.
	unread func() bool

	sent      Packet // the last one
	sentAt    time.Time
	every     time.Duration // what tx runs by
	tx        *time.Timer
	detect    *time.Timer
	heard     time.Time // the last packet
	heardUp   time.Time // the last one of a session that is up
	farewells int       // that are left
	listening bool      // nothing was sent yet
	loggedAt  time.Time

	in      chan Packet
	control chan struct{}

	mu sync.Mutex
	// number is our discriminator; new: no packet was taken yet.
	number uint32
	new    bool
	wanted *Peer // nil: the session is to end
	gone   bool  // it has
	status Status
}

func newSession(p Peer, discriminator uint32, c *Config, send func([]byte) error, unread func() bool) *session {
	return &session{
		key: pathKey{p.Address, p.Local}, config: c, log: c.Log.With("peer", p.Address),
		machine: newMachine(p.Interval, p.Multiplier, discriminator), send: send, unread: unread,
		in: make(chan Packet, queueLen), control: make(chan struct{}, 1), number: discriminator, new: true,
		wanted: &p, status: Status{Peer: p.Address, Local: p.Local, State: Down, Since: time.Now()},
	}
}

// want changes the settings, or with nil ends the session in a while; false: it has ended.
func (s *session) want(p *Peer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return false
	}
	s.wanted = p
	select {
	case s.control <- struct{}{}:
	default:
	}
	return true
}

// deliver takes a packet of the session's addresses, by which a neighbour has one session at
// most (RFC 5881, section 3); it never blocks. If it names a discriminator it must be ours, but the
// first one may name that of an earlier life.
func (s *session) deliver(p Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Yours != 0 && p.Yours != s.number {
		if !s.new || p.State != Up {
			return
		}
		s.number = p.Yours
	}
	s.new = false
	select {
	case s.in <- p:
	default:
	}
}

// named says whether a discriminator is the session's.
func (s *session) named(n uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.number == n
}

// Status is the session's.
func (s *session) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// run speaks until the session is not wanted any more, or ctx ends: of that the neighbour
// hears once, since this system has no time to lose then. First it listens whether the
// neighbour has a session with an earlier life of this system, which the first packet would end.
func (s *session) run(ctx context.Context) {
	s.tx, s.detect = time.NewTimer(max(slow, s.machine.interval)), time.NewTimer(time.Hour)
	defer s.tx.Stop()
	defer s.detect.Stop()
	s.listening = true
	for {
		s.settle()
		select {
		case <-ctx.Done():
			s.leave()
			return
		case <-s.control:
			if s.obey(); s.machine.state == AdminDown && s.machine.every() == 0 && s.end() {
				s.transmit(false)
				return // it wants to hear nothing more
			}
		case p := <-s.in:
			s.receive(p)
		case <-s.tx.C:
			if s.farewells > 0 {
				if s.farewells--; s.farewells == 0 && s.end() {
					return
				}
			}
			s.transmit(false)
		case <-s.detect.C:
			s.silent()
		}
	}
}

// leave tells the neighbour that this system ends.
func (s *session) leave() {
	s.mu.Lock()
	p := s.wanted
	s.mu.Unlock()
	switch {
	case s.listening:
		return
	case p != nil && p.Away > 0 && s.machine.state == Up:
		s.machine.pause(p.Away)
	default:
		s.machine.close()
	}
	s.transmit(false)
}

// obey takes what was ordered.
func (s *session) obey() {
	s.mu.Lock()
	p := s.wanted
	s.mu.Unlock()
	switch {
	case p != nil:
		s.farewells = 0
		s.machine.tune(p.Interval, p.Multiplier)
		s.machine.open()
	case s.listening:
		s.machine.close()
		s.farewells = 1 // nobody knows of it
	case s.farewells == 0:
		// "BFD Control packets SHOULD be transmitted for at least a Detection Time after
		// transitioning to AdminDown state" (RFC 5880, section 6.8.16).
		s.farewells = farewells
		s.machine.close()
	}
}

// end is the session's, unless it is wanted again.
func (s *session) end() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = s.wanted == nil
	return s.gone
}

func (s *session) receive(p Packet) {
	was := s.machine.state
	s.listening = false
	if p.Yours != 0 && p.Yours != s.machine.local && was == Down {
		s.machine.resume(p.Yours)
	}
	answer := s.machine.receive(p)
	s.heard = time.Now()
	if s.machine.state == Up && p.State == Up {
		s.heardUp = s.heard
	}
	s.detect.Reset(s.machine.detection())
	s.mu.Lock()
	s.status.In++
	s.status.Heard = true
	s.mu.Unlock()
	s.moved(was)
	if answer {
		s.transmit(true)
	}
}

// silent is the end of a detection time. What waits to be read was sent before: this
// process was late, not the neighbour. It gets a second detection time for that at most.
func (s *session) silent() {
	detection := s.machine.detection()
	silence := time.Since(s.heard)
	switch {
	case detection == 0: // it was never heard
		return
	case silence < detection:
		s.detect.Reset(detection - silence)
		return
	case silence < 2*detection && (len(s.in) > 0 || s.unread()):
		s.detect.Reset(max(time.Millisecond, detection/64))
		return
	}
	was := s.machine.state
	s.machine.expire()
	s.mu.Lock()
	s.status.Heard = false
	s.mu.Unlock()
	s.moved(was)
}

// moved says what became of the state.
func (s *session) moved(was State) {
	m := s.machine
	if m.state == was {
		return
	}
	left := was == Up && m.state == Down
	s.mu.Lock()
	s.status.State, s.status.Since = m.state, time.Now()
	switch {
	case m.state == Up:
		s.status.Ups++
	case m.state == Down && m.diag != DiagNone:
		s.status.Diag, s.status.RemoteDiag, s.status.DiagAt = m.diag, DiagNone, s.status.Since
		if m.diag == DiagNeighbour {
			s.status.RemoteDiag = m.remoteDiag
		}
	}
	s.status.RemoteState = m.remoteState
	status := s.status
	s.mu.Unlock()
	if (left || m.state == Up) && time.Since(s.loggedAt) >= quiet {
		s.loggedAt = time.Now()
		if m.state == Up {
			s.log.Info("bfd session is up", datastore.EventSession.Mark())
		} else {
			s.log.Info("bfd session is not up", "reason", status.why(), datastore.EventSession.Mark())
		}
	}
	// AdminDown, ours or the neighbour's, says nothing of the path (RFC 5882, section 3.2).
	if left && (m.diag != DiagNeighbour || m.remoteState != AdminDown) && s.config.OnDown != nil {
		s.config.OnDown(s.key.peer, s.heardUp, status.why())
	}
	if s.config.OnChange != nil {
		s.config.OnChange()
	}
}

// settle sends at once what is news to the neighbour (section 6.8.7), has the timer run by
// what is agreed, and shows it.
func (s *session) settle() {
	if s.listening {
		return
	}
	news := s.machine.packet(false)
	last := s.sent
	news.Poll, last.Poll, last.Final = false, false, false
	if news != last {
		s.transmit(false)
	}
	if every := s.machine.every(); every != s.every {
		s.every = every
		if s.tx.Stop(); every > 0 {
			s.tx.Reset(max(0, s.jitter()-time.Since(s.sentAt)))
		}
	}
	m := s.machine
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State != m.state { // by order
		s.status.State, s.status.Since = m.state, time.Now()
	}
	s.status.RemoteState, s.status.Every, s.status.Mine, s.status.Yours = m.remoteState, m.every(), m.local, m.remote
	s.status.Detection = m.detection()
}

// jitter is the time to the next packet: the agreed one less 0 to 25 %, or where one lost
// packet is one too many, less 10 to 25 % (section 6.8.7).
func (s *session) jitter() time.Duration {
	most := 25.0
	if s.machine.multiplier == 1 {
		most = 15
	}
	return time.Duration(float64(s.every) * (75 + most*rand.Float64()) / 100)
}

// transmit sends what is to be told, whatever the timer says, and sets that.
func (s *session) transmit(final bool) {
	s.listening = false
	p := s.machine.packet(final)
	s.sent = p
	err := s.send(p.Append(make([]byte, 0, packetLen)))
	if errors.Is(err, syscall.ECONNREFUSED) {
		// That is the answer to the packet before; this one was not sent.
		err = s.send(p.Append(make([]byte, 0, packetLen)))
		if err == nil {
			err = errRefused
		}
	}
	s.mu.Lock()
	if err == nil || errors.Is(err, errRefused) {
		s.status.Out++
	}
	s.status.Trouble = troubleOf(err)
	s.mu.Unlock()
	if final {
		return
	}
	s.sentAt = time.Now()
	if s.every = s.machine.every(); s.every > 0 {
		s.tx.Reset(s.jitter())
	}
}

// errRefused says that nobody listens on the neighbour's port.
var errRefused = errors.New("the neighbour has no BFD: nothing listens on its port")

func troubleOf(err error) string {
	var sys syscall.Errno
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errRefused):
		return err.Error()
	case errors.As(err, &sys):
		return "cannot be sent: " + sys.Error()
	}
	return "cannot be sent: " + err.Error()
}
