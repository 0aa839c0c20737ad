package bfd

import "time"

// slow is the shortest interval of a session that is not up (RFC 5880, section 6.8.3).
const slow = time.Second

// machine is a session's state machine: the variables of RFC 5880, section 6.8.1, and
// what changes them. It knows neither clock nor socket.
type machine struct {
	// What is configured.
	interval   time.Duration
	multiplier uint8

	state           State
	diag            Diag
	local, remote   uint32 // discriminators; remote 0: not known
	minTx, minRx    time.Duration
	usedTx, usedRx  time.Duration // those in force while a Poll Sequence is under way
	poll, pollAgain bool

	remoteState       State
	remoteDiag        Diag
	remoteTx          time.Duration
	remoteRx          time.Duration
	remoteMultiplier  uint8
	remoteDemand      bool
	remoteIndependent bool
}

// newMachine is a session that is down.
func newMachine(interval time.Duration, multiplier uint8, discriminator uint32) *machine {
	m := &machine{
		interval: interval, multiplier: multiplier, local: discriminator,
		state: Down, remoteState: Down, remoteRx: time.Microsecond,
	}
	m.minTx, m.minRx = max(slow, interval), interval
	m.usedTx, m.usedRx = m.minTx, m.minRx
	return m
}

// resume goes on with the session that an earlier life of this system had, and that the
// neighbour still takes for up: by the discriminator that it has of that one nothing ever
// happened (RFC 5882, section 3.3).
func (m *machine) resume(discriminator uint32) {
	m.local = discriminator
	m.enter(Up, DiagNone)
}

// pause prepares the neighbour for a silence: what restarts on purpose may make the detection
// time longer than its restart takes (RFC 5882, section 4.3.2.2).
func (m *machine) pause(d time.Duration) {
	m.minTx = max(m.minTx, d/time.Duration(m.multiplier)+time.Microsecond)
	m.poll = true
}

// open ends the state AdminDown.
func (m *machine) open() {
	if m.state == AdminDown {
		m.enter(Down, DiagNone)
	}
}

// close is the state AdminDown.
func (m *machine) close() { m.enter(AdminDown, DiagAdmin) }

// enter is a change of state, and of the interval that goes with it.
func (m *machine) enter(s State, d Diag) {
	m.state, m.diag = s, d
	m.adjust()
}

// tune changes the configured timers of a session that goes on.
func (m *machine) tune(interval time.Duration, multiplier uint8) {
	m.interval, m.multiplier = interval, multiplier
	m.adjust()
}

// adjust is RFC 5880, section 6.8.3.
func (m *machine) adjust() {
	tx, rx := m.interval, m.interval
	if m.state != Up {
		tx = max(slow, tx)
	}
	if tx == m.minTx && rx == m.minRx {
		return
	}
	// A change is told by a Poll Sequence, and one during that by another.
	m.pollAgain = m.poll
	m.poll = true
	// The neighbour of a session that is up goes by the old values until it has answered:
	// so long nothing is sent less often than it expects.
	if m.minTx = tx; m.state != Up || tx < m.usedTx {
		m.usedTx = tx
	}
	// Nor is anything expected more often than it sends.
	if m.minRx = rx; m.state != Up || rx > m.usedRx {
		m.usedRx = rx
	}
}

// receive takes a packet of the neighbour's that Parse let through and that is for this
// session (RFC 5880, section 6.8.6). answer: it asks for a packet with Final, at once.
func (m *machine) receive(p Packet) (answer bool) {
	m.remote, m.remoteState, m.remoteDiag, m.remoteDemand = p.Mine, p.State, p.Diag, p.Demand
	m.remoteTx, m.remoteRx, m.remoteMultiplier, m.remoteIndependent = p.MinTx, p.MinRx, p.Multiplier, p.Independent
	if p.Final && m.poll {
		if m.poll, m.pollAgain = m.pollAgain, false; !m.poll {
			m.usedTx, m.usedRx = m.minTx, m.minRx
		}
	}
	switch m.state {
	case AdminDown:
		return false // it is discarded
	case Down:
		switch p.State {
		case Down:
			m.enter(Init, DiagNone)
		case Init:
			m.enter(Up, DiagNone)
		}
	case Init:
		switch p.State {
		case AdminDown:
			m.enter(Down, DiagNeighbour)
		case Init, Up:
			m.enter(Up, DiagNone)
		}
	case Up:
		if p.State == Down || p.State == AdminDown {
			m.enter(Down, DiagNeighbour)
		}
	}
	return p.Poll
}

// expire is the end of a detection time without a packet.
func (m *machine) expire() {
	if m.state == Init || m.state == Up {
		m.enter(Down, DiagExpired)
	}
	// Its discriminator is forgotten (section 6.8.1), and what it said of itself, too.
	m.remote, m.remoteRx, m.remoteDemand = 0, time.Microsecond, false
	m.poll, m.pollAgain = false, false
	m.usedTx, m.usedRx = m.minTx, m.minRx
}

// packet is what is told now.
func (m *machine) packet(final bool) Packet {
	return Packet{
		Diag: m.diag, State: m.state, Poll: m.poll && !final, Final: final, Multiplier: m.multiplier,
		Mine: m.local, Yours: m.remote, MinTx: m.minTx, MinRx: m.minRx,
	}
}

// every is the agreed time between two of our packets, jitter apart (section 6.8.7); 0: none
// are sent.
func (m *machine) every() time.Duration {
	if m.remoteRx == 0 {
		return 0
	}
	// It asks for silence (Demand mode, section 6.6), but for a Poll Sequence.
	if m.remoteDemand && m.state == Up && m.remoteState == Up && !m.poll {
		return 0
	}
	return max(m.usedTx, m.remoteRx)
}

// detection is how long a neighbour that sends may be silent (section 6.8.4); 0: it never sent.
func (m *machine) detection() time.Duration {
	return time.Duration(m.remoteMultiplier) * max(m.usedRx, m.remoteTx)
}
