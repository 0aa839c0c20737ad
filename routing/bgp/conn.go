package bgp

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"golang.org/x/sys/unix"
)

const (
	// openHold is the hold timer until the peer's OPEN: "A HoldTimer value
	// of 4 minutes is suggested" (RFC 4271, section 8.2.2, OpenSent).
	openHold = 4 * time.Minute
	// queueLimit bounds what waits for a slow peer, in bytes.
	queueLimit = 1 << 20
	// readSize is how much is read, and so handed to the RIB, at a time.
	readSize = 64 << 10
	// lastWords is how long a NOTIFICATION may take to leave.
	lastWords = time.Second
	// maxLingering bounds how many connections of a peer wait for that.
	maxLingering = 8
)

// counters of a peer, over all its connections.
type counters struct {
	messagesIn, messagesOut, updatesIn, updatesOut atomic.Uint64
	// lingering connections are over but for their last words.
	lingering atomic.Int32
}

// conn is a TCP connection with a peer: a reader that frames and decodes, and a
// writer with a bounded queue.
type conn struct {
	net.Conn
	dialled bool
	born    time.Time
	// greet sends our OPEN, once, and greeted says that it did.
	greet   func()
	greeted atomic.Bool
	// open is the peer's OPEN, once the state machine accepted it.
	open *open
	// hold ends the connection when nothing comes, in nanoseconds; 0: never.
	hold atomic.Int64
	// proceed lets the reader go on behind a message that the state machine
	// had to see first.
	proceed chan struct{}
	count   *counters

	// established is set before the reader proceeds behind the KEEPALIVE that
	// ends OpenConfirm: from there UPDATEs go to the RIB.
	established *established

	once   sync.Once
	closed chan struct{} // nothing is handled any more
	quiet  chan struct{} // the reader has handed on its last message

	// socket is what queue writes to by itself; nil: the connection is none.
	socket syscall.RawConn

	mu      sync.Mutex
	waiting [][]byte
	size    int // of what waits, and of what write is sending
	full    bool
	over    bool          // nothing goes out at once any more
	beat    time.Duration // between KEEPALIVEs; 0: none
	wake    chan struct{}
	linger  bool
}

// established is what a reader needs for UPDATEs.
type established struct {
	decoder decoder
	// room is what the longest message may have.
	room int
	// enhanced: the markers of RFC 7313 mean something.
	enhanced bool
	// hand gives the RIB a batch and waits until it is taken; drained says
	// that the queue was full and is empty.
	hand    func([]change)
	drained func()
}

// incoming is a message, or the end, of a connection on its way to the state machine.
type incoming struct {
	conn *conn
	kind uint8
	body []byte
	err  error // the end: a *fault, or what the connection said
}

func newConn(c net.Conn, dialled bool, count *counters) *conn {
	n := &conn{
		Conn: c, dialled: dialled, born: time.Now(), count: count,
		proceed: make(chan struct{}), closed: make(chan struct{}), quiet: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	n.hold.Store(int64(openHold))
	if s, ok := c.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			n.socket = raw
		}
	}
	return n
}

// local is the address of our side; not valid if it has none.
func (c *conn) local() netip.Addr { return addrOf(c.LocalAddr()) }

func addrOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// serve reads until the connection ends; events takes what is not for the RIB.
func (c *conn) serve(events chan<- incoming) {
	err := c.read(events)
	closing := false
	select {
	case <-c.closed:
		closing = true
	default:
		select {
		case events <- incoming{conn: c, err: err}:
		case <-c.closed:
			closing = true
		}
	}
	close(c.quiet)
	if !closing {
		<-c.closed
	}
	if c.linger {
		// Data that is not read would turn the close into a reset, which
		// can overtake the NOTIFICATION.
		_ = c.SetReadDeadline(time.Now().Add(lastWords))
		_, _ = io.Copy(io.Discard, c.Conn)
		c.count.lingering.Add(-1)
	}
	_ = c.Conn.Close()
}

// read handles messages until the first error.
func (c *conn) read(events chan<- incoming) error {
	buf := make([]byte, 0, readSize)
	last := time.Now()
	for {
		var deadline time.Time
		if hold := time.Duration(c.hold.Load()); hold > 0 {
			deadline = last.Add(hold)
		}
		if err := c.SetReadDeadline(deadline); err != nil {
			return err
		}
		select {
		case <-c.closed:
			return net.ErrClosed
		default:
		}
		n, err := c.Conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		rest, f := c.messages(buf, events)
		if f != nil {
			return f
		}
		if len(rest) < len(buf) {
			last = time.Now()
		}
		buf = buf[:copy(buf[:cap(buf)], rest)]
		if err != nil {
			return err
		}
	}
}

// messages handles all messages of b and returns the incomplete rest. The
// UPDATEs among them reach the RIB as one batch.
func (c *conn) messages(b []byte, events chan<- incoming) (rest []byte, end error) {
	var batch []change
	var refresh [2]bool // asked for in b already
	flush := func() {
		if len(batch) > 0 {
			c.established.hand(batch)
			batch = nil
		}
	}
	defer flush()
	for {
		room := maxMessage
		if c.established != nil {
			room = c.established.room
		}
		n, kind, f := frame(b, room)
		if f != nil {
			return b, f
		}
		if n == 0 {
			return b, nil
		}
		body := b[headerLen:n]
		b = b[n:]
		c.count.messagesIn.Add(1)
		up := c.established
		switch {
		case up != nil && kind == codec.BGP_MSG_KEEPALIVE:
		case up != nil && kind == codec.BGP_MSG_UPDATE:
			c.count.updatesIn.Add(1)
			changes, f := up.decoder.update(body)
			if f != nil {
				return b, f
			}
			batch = append(batch, changes...)
		case up != nil && kind == codec.BGP_MSG_ROUTE_REFRESH:
			change, ok, f := up.refreshed(body)
			if f != nil {
				return b, f
			}
			if request := body[2] == refreshRequest; ok && !(request && refresh[change.family]) {
				refresh[change.family] = refresh[change.family] || request
				batch = append(batch, change)
			}
		default:
			flush()
			select {
			case events <- incoming{conn: c, kind: kind, body: append([]byte(nil), body...)}:
			case <-c.closed:
				return b, net.ErrClosed
			}
			select {
			case <-c.proceed:
			case <-c.closed:
				return b, net.ErrClosed
			}
		}
	}
}

// goOn lets the reader continue behind a message.
func (c *conn) goOn() {
	select {
	case c.proceed <- struct{}{}:
	case <-c.closed:
	}
}

// queue takes a blob for the writer, or none of it if too much is waiting. With now it
// goes out at once if nothing is in front of it and the socket has room: waking the writer
// takes as long as writing a message does.
func (c *conn) queue(b blob, now bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.size >= queueLimit {
		c.full = true
		return false
	}
	c.count.messagesOut.Add(uint64(b.messages))
	c.count.updatesOut.Add(uint64(b.messages))
	rest := b.bytes
	if now && c.size == 0 && !c.over {
		rest = rest[c.offer(rest):]
	}
	if len(rest) > 0 {
		c.waiting = append(c.waiting, rest)
		c.size += len(rest)
		c.ring()
	}
	return true
}

// offer writes what the socket has room for and never waits; what went wrong, the writer
// will see. The caller holds mu and knows that nobody else is writing.
func (c *conn) offer(b []byte) (n int) {
	if c.socket == nil {
		return 0
	}
	_ = c.socket.Control(func(fd uintptr) { n, _ = unix.Write(int(fd), b) })
	return max(n, 0)
}

// say queues a message of the state machine.
func (c *conn) say(message []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = append(c.waiting, message)
	c.size += len(message)
	c.count.messagesOut.Add(1)
	c.ring()
}

func (c *conn) ring() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// beatEvery starts KEEPALIVEs.
func (c *conn) beatEvery(d time.Duration) {
	c.mu.Lock()
	c.beat = d
	c.mu.Unlock()
	c.ring()
}

// write sends what is queued, and a KEEPALIVE when nothing was sent for its
// interval (RFC 4271, section 4.4).
func (c *conn) write() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		c.mu.Lock()
		bufs, beat, full := net.Buffers(c.waiting), c.beat, c.full && len(c.waiting) == 0
		c.waiting = nil
		if full {
			c.full = false
		}
		c.mu.Unlock()
		if full && c.established != nil {
			c.established.drained()
		}
		if len(bufs) > 0 {
			if err := c.send(&bufs); err != nil {
				return
			}
			continue
		}
		if beat > 0 {
			timer.Reset(beat)
		} else {
			timer.Reset(time.Hour)
		}
		select {
		case <-c.closed:
			return
		case <-c.wake:
		case <-timer.C:
			if beat > 0 {
				c.say(keepalive())
			}
		}
	}
}

// send writes all of bufs. A peer that takes nothing for long is given up (RFC
// 9687: "the larger of 8 minutes or two times the negotiated HoldTime").
func (c *conn) send(bufs *net.Buffers) error {
	size := 0
	for _, b := range *bufs {
		size += len(b)
	}
	if hold := time.Duration(c.hold.Load()); hold > 0 {
		_ = c.SetWriteDeadline(time.Now().Add(max(8*time.Minute, 2*hold)))
	}
	_, err := bufs.WriteTo(c.Conn)
	c.mu.Lock()
	c.size -= size
	c.over = c.over || err != nil // half a message may be out
	c.mu.Unlock()
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		_ = c.Conn.Close()
	}
	return err
}

// end closes the connection: with a NOTIFICATION if f is not nil. Nothing is
// handed on once quiet is closed.
func (c *conn) end(ctx context.Context, f *fault) {
	c.once.Do(func() {
		c.mu.Lock()
		c.over = true
		c.mu.Unlock()
		if f != nil && ctx.Err() == nil {
			if c.linger = c.count.lingering.Add(1) <= maxLingering; !c.linger {
				c.count.lingering.Add(-1)
			}
			_ = c.SetWriteDeadline(time.Now().Add(lastWords))
			_, _ = c.Conn.Write(f.message())
			c.count.messagesOut.Add(1)
			if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
				_ = w.CloseWrite()
			}
		}
		close(c.closed)
		_ = c.SetReadDeadline(time.Unix(1, 0))
		if !c.linger {
			_ = c.Conn.Close()
		}
	})
}
