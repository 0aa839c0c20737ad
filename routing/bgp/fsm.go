package bgp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"

	"netctl/datastore"
)

const (
	firstDial    = 100 * time.Millisecond // the first dial is made within it
	shortestIdle = time.Second
	longestIdle  = time.Minute
	// longQuiet is how long a peer may take to its OPEN before that is said.
	longQuiet = 5 * time.Second
	// steady is how long a session must last for the idle time to start anew.
	steady = time.Minute
	// twins is how close two connections of one start of a peer can be; a
	// later one is a restart.
	twins = 5 * time.Second
)

// state is a state of RFC 4271, section 8.2.2: it runs until it is left and
// returns the next one, nil at the end.
type state func(context.Context) state

// fsm is a peer's state machine. Its goroutine alone touches the fields above mu.
type fsm struct {
	speaker *Speaker
	log     *slog.Logger
	// complaints are of the readers of all connections.
	complaints *complaints
	address    netip.Addr
	peer       *peer // the RIB's; passed on, not looked into
	config     PeerConfig

	conn  *conn // the connection that the state is about
	rival *conn // a second one, until collision detection (section 6.8)

	dialled   chan dialled // not nil while a dial is under way
	stopDial  context.CancelFunc
	failures  int           // since the last session, for the dial's delay
	silent    int           // dials in a row that nobody answered
	idleTime  time.Duration // the next idle hold
	idleUntil time.Time
	wasUp     bool
	// stays: it rests until the limits are others than limited, or it was shut down.
	stays   bool
	limited limits

	incoming chan incoming
	accepted chan net.Conn
	control  chan struct{} // something below changed
	count    counters

	mu     sync.Mutex
	wanted PeerConfig
	remove bool   // the peer is no longer configured
	fatal  *fault // the RIB ends the session
	shown  shown
}

// shown is what Status reads of the state machine.
type shown struct {
	state    string
	up       bool
	since    time.Time
	reason   string
	reasonAt time.Time
	said     bool // reason is in the log, since it was last up
	notice   string
	noticeAt time.Time
	retry    time.Time
	local    netip.Addr
}

// dialled is the outcome of a dial.
type dialled struct {
	conn net.Conn
	err  error
}

func newFSM(s *Speaker, c PeerConfig) *fsm {
	log := s.log.With("peer", c.Address)
	return &fsm{
		speaker: s, log: log, complaints: &complaints{log: log}, address: c.Address, config: c, wanted: c,
		incoming: make(chan incoming), accepted: make(chan net.Conn),
		control: make(chan struct{}, 1), shown: shown{state: "Idle", since: time.Now()},
	}
}

// run goes from state to state until ctx ends or the peer is removed.
func (f *fsm) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for next := f.idle; next != nil; {
		s := next(ctx)
		next = s
	}
	f.abandon()
	for _, c := range []*conn{f.conn, f.rival} {
		if c != nil {
			c.end(ctx, nil)
		}
	}
}

// enter shows a state.
func (f *fsm) enter(name string) {
	f.mu.Lock()
	f.shown.state = name
	if up := name == "Established"; up != f.shown.up {
		f.shown.up, f.shown.since = up, time.Now()
		f.shown.said = f.shown.said && !up // what ends this session is news
	}
	f.shown.retry, f.shown.local = f.idleUntil, netip.Addr{}
	if f.conn != nil {
		f.shown.local = f.local(f.conn)
	}
	f.mu.Unlock()
	f.speaker.sessionChanged()
}

// local is this side's address of a connection; the zone of a link-local one is the peer's.
func (f *fsm) local(c *conn) netip.Addr { return c.local().WithZone(f.config.Address.Zone()) }

// because notes why the session is not up.
func (f *fsm) because(words string) {
	f.mu.Lock()
	same := f.shown.reason == words && f.shown.said
	f.shown.said = true
	f.shown.reason, f.shown.reasonAt = words, time.Now()
	f.mu.Unlock()
	if !same {
		f.log.Info("session is not up", "reason", words, datastore.EventSession.Mark())
		f.speaker.sessionChanged()
	}
}

// noted keeps a NOTIFICATION to be shown.
func (f *fsm) noted(words string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shown.notice, f.shown.noticeAt = words, time.Now()
}

// happening is an event of RFC 4271, section 8.1.
type happening int

const (
	stopped      happening = iota // ctx ended
	reconfigured                  // the configuration changed in place
	timedOut                      // the state's timer
	mustEnd                       // by configuration or by the RIB: event.fault
	connected                     // Events 16 and 17: event.conn
	dialFailed                    // Event 18: event.err
	received                      // a message: event.in
	lost                          // the connection's end: event.in.err
)

type event struct {
	what  happening
	conn  *conn
	in    incoming
	err   error
	fault *fault
}

// next waits for an event. Connections come started: their OPEN is under way.
func (f *fsm) next(ctx context.Context, timer <-chan time.Time) event {
	for {
		select {
		case <-ctx.Done():
			return event{what: stopped}
		case <-timer:
			return event{what: timedOut}
		case <-f.control:
			if flt, end := f.orders(); end {
				return event{what: mustEnd, fault: flt}
			}
			return event{what: reconfigured}
		case c := <-f.accepted:
			return event{what: connected, conn: newConn(c, false, &f.count)}
		case d := <-f.dialled:
			f.dialled = nil
			f.stopDial()
			if f.silent++; d.err == nil || errors.Is(d.err, syscall.ECONNREFUSED) {
				f.silent = 0
			}
			if d.err != nil {
				return event{what: dialFailed, err: d.err}
			}
			return event{what: connected, conn: newConn(d.conn, true, &f.count)}
		case in := <-f.incoming:
			if in.conn != f.conn && in.conn != f.rival {
				continue
			}
			if in.err != nil {
				return event{what: lost, in: in}
			}
			return event{what: received, in: in}
		}
	}
}

// orders takes what was set from outside and says whether it ends the session.
func (f *fsm) orders() (flt *fault, end bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.config
	f.config = f.wanted
	flt, f.fatal = f.fatal, nil
	switch {
	case f.remove && f.config.Leaving:
		return nil, true
	case f.remove:
		return cease(ceaseRemoved, ""), true
	case f.config.Wrong != "" && old.Wrong == "":
		flt = cease(ceaseChange, "")
		flt.words = f.config.Wrong
		return flt, true
	case f.config.Shutdown != "" && old.Shutdown == "":
		return cease(ceaseShutdown, f.config.Shutdown), true
	case flt != nil:
		return flt, true
	case old.ResetBy(f.config) != "":
		flt = cease(ceaseChange, "")
		flt.words += ": " + old.ResetBy(f.config)
		return flt, true
	}
	for _, c := range []*conn{f.conn, f.rival} {
		if c == nil {
			continue
		}
		if err := f.config.by(addrOf(c.RemoteAddr())).retune(c.Conn); err != nil {
			f.log.Warn("connection cannot be set up anew", "error", err)
		}
	}
	return nil, false
}

// off reports whether the session is to stay down.
func (f *fsm) off() bool { return f.config.Shutdown != "" || f.config.Wrong != "" }

// removed reports whether the peer is no longer configured.
func (f *fsm) removed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.remove
}

// idle is the state where "BGP FSM … refuses all incoming BGP connections for
// this peer". Without anything to wait for it is left at once.
func (f *fsm) idle(ctx context.Context) state {
	f.enter("Idle")
	for {
		if f.removed() {
			return nil
		}
		wait := time.Until(f.idleUntil)
		if !f.off() && !f.stays && wait <= 0 {
			break
		}
		if f.stays {
			wait = time.Hour
		}
		if f.off() {
			words := "shut down: " + f.config.Shutdown
			if f.config.Shutdown == "" {
				words = f.config.Wrong
			}
			f.because(words)
			wait = time.Hour
		}
		switch ev := f.next(ctx, time.After(wait)); ev.what {
		case stopped:
			return nil
		case connected:
			_ = ev.conn.Close()
		case mustEnd, reconfigured:
			if f.limited != (limits{}) && (f.off() || f.limited != f.config.limits()) {
				f.stays, f.idleUntil = false, time.Time{}
			}
			f.enter("Idle")
		}
	}
	f.idleUntil, f.limited = time.Time{}, limits{}
	if f.config.Passive {
		// "In response to a ManualStart_with_PassiveTcpEstablishment event
		// (Event 4) …, the local system … changes its state to Active."
		return f.active
	}
	// "In response to a ManualStart event (Event 1) or an AutomaticStart event
	// (Event 3), the local system … initiates a TCP connection to the other
	// BGP peer, listens for a connection …, and changes its state to Connect."
	return f.connect
}

// connect waits for the TCP connection to be completed.
func (f *fsm) connect(ctx context.Context) state {
	f.enter("Connect")
	f.dial(ctx)
	for {
		switch ev := f.next(ctx, nil); ev.what {
		case stopped:
			return nil
		case mustEnd:
			return f.down(ctx, nil)
		case connected:
			// "If the TCP connection succeeds (Event 16 or Event 17), the local system
			// … sends an OPEN message to its peer, … sets the HoldTimer to a
			// large value, and changes its state to OpenSent."
			return f.begin(ev.conn)
		case dialFailed:
			// "If the TCP connection fails (Event 18), … the local system …
			// restarts the ConnectRetryTimer with the initial value,
			// continues to listen … and changes its state to Active."
			f.because(f.config.dialWords(ev.err))
			return f.active
		}
	}
}

// active waits for a connection from the peer, or for the time to dial again.
func (f *fsm) active(ctx context.Context) state {
	f.enter("Active")
	var timer <-chan time.Time
	if !f.config.Passive {
		timer = time.After(f.backOff())
	}
	for {
		switch ev := f.next(ctx, timer); ev.what {
		case stopped:
			return nil
		case mustEnd:
			return f.down(ctx, nil)
		case reconfigured:
			if timer == nil && !f.config.Passive {
				return f.connect
			}
		case timedOut:
			// "In response to a ConnectRetryTimer_Expires event (Event 9),
			// the local system … initiates a TCP connection …, and changes
			// its state to Connect."
			if !f.config.Passive {
				return f.connect
			}
		case connected:
			// Events 16 and 17, as in Connect.
			return f.begin(ev.conn)
		case dialFailed:
			f.because(f.config.dialWords(ev.err))
		}
	}
}

// begin makes c the connection of the session to be.
func (f *fsm) begin(c *conn) state {
	f.conn = c
	f.start(c)
	c.greet()
	return f.openSent
}

// start has c send our OPEN when it is to, and reads what comes.
func (f *fsm) start(c *conn) {
	m, err := f.speaker.openFor(f.config, f.wasUp).message()
	if err != nil {
		f.log.Error("open cannot be encoded", "error", err)
	}
	c.greet = sync.OnceFunc(func() {
		c.greeted.Store(true)
		c.say(m)
	})
	f.speaker.tasks.Go(func() { c.serve(f.incoming) })
	f.speaker.tasks.Go(c.write)
}

// openSent waits for an OPEN from the peer.
func (f *fsm) openSent(ctx context.Context) state {
	f.enter("OpenSent")
	quiet := time.After(longQuiet)
	for {
		ev := f.next(ctx, quiet)
		if ev.what == timedOut {
			words := "connected, and no OPEN comes"
			if f.config.TTLSecurity > 0 {
				words += ": it is more hops away, or has no TTL security"
			}
			f.because(words)
			quiet = nil
			continue
		}
		if next, leave := f.common(ctx, ev, 1); leave {
			return next
		}
	}
}

// openConfirm waits for a KEEPALIVE or NOTIFICATION.
func (f *fsm) openConfirm(ctx context.Context) state {
	f.enter("OpenConfirm")
	for {
		ev := f.next(ctx, nil)
		if ev.what == received && ev.in.conn == f.conn && ev.in.kind == codec.BGP_MSG_KEEPALIVE {
			// "If the local system receives a KEEPALIVE message (KeepAliveMsg
			// (Event 26)), the local system … changes its state to Established."
			return f.established
		}
		if next, leave := f.common(ctx, ev, 2); leave {
			return next
		}
	}
}

// common handles what OpenSent and OpenConfirm have in common; subcode is the
// state's of RFC 6608.
func (f *fsm) common(ctx context.Context, ev event, subcode uint8) (next state, leave bool) {
	switch ev.what {
	case stopped:
		return nil, true
	case mustEnd:
		return f.down(ctx, ev.fault), true
	case connected:
		f.second(ctx, ev.conn)
	case lost:
		flt, words := endWords(ev.in.err)
		if flt == nil && ev.in.conn.open == nil {
			// Not an error of the peer: FRR closes the first connection
			// after a restart.
			words = "connection closed before OPEN"
		}
		return f.failed(ctx, ev.in.conn, flt, nil, words)
	case received:
		c := ev.in.conn
		switch ev.in.kind {
		case codec.BGP_MSG_OPEN:
			if c.open == nil {
				return f.opened(ctx, c, ev.in.body)
			}
		case codec.BGP_MSG_NOTIFICATION:
			got := notification(ev.in.body)
			return f.failed(ctx, c, nil, got, got.words)
		}
		// "In response to any other event …, the local system sends the
		// NOTIFICATION with the Error Code Finite State Machine Error".
		flt := &fault{codeFSM, subcode, nil, spell(codeFSM, subcode, nil)}
		return f.failed(ctx, c, flt, nil, flt.words)
	}
	return nil, false
}
