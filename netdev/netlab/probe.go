package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Flood sends one echo request after the other and counts the answers.
type Flood struct {
	conn    net.PacketConn
	to      netip.Addr
	data    int // bytes of a request, after the IP header
	stop    chan struct{}
	sender  chan struct{} // closed when the last request is out
	reader  chan struct{}
	mu      sync.Mutex
	answers []bool // by number
	sendErr int
}

// FloodResult is what became of a flood.
type FloodResult struct {
	Sent, Received int
	// Refused is how many requests the sender's own kernel did not take; they
	// count as lost.
	Refused int
	// Lost are the numbers of the requests without an answer.
	Lost []int
}

// String is a line for a test's message.
func (r FloodResult) String() string {
	return fmt.Sprintf("%d sent, %d lost (%d refused)%s", r.Sent, len(r.Lost), r.Refused, r.holes())
}

// holes are where the most was lost in a row, in words.
func (r FloodResult) holes() (text string) {
	for i := 0; i < len(r.Lost); {
		first, n := r.Lost[i], 1
		for i+n < len(r.Lost) && r.Lost[i+n] == first+n {
			n++
		}
		if i += n; n >= shownHole {
			text += fmt.Sprintf(", %d from number %d on", n, first)
		}
	}
	return text
}

// shownHole is how many requests lost in a row are worth a word.
const shownHole = 50

// StartFlood sends echo requests (RFC 792, RFC 4443 section 4.1) from a place, one
// each interval.
func StartFlood(from Place, to netip.Addr, interval time.Duration) (*Flood, error) {
	return StartLargeFlood(from, to, interval, 0)
}

// StartLargeFlood is StartFlood with packets of size bytes, which routers may cut up if
// they are of IPv4.
func StartLargeFlood(from Place, to netip.Addr, interval time.Duration, size int) (*Flood, error) {
	network, any := "ip4:icmp", "0.0.0.0"
	if to.Is6() {
		network, any = "ip6:ipv6-icmp", "::"
	}
	header := 20
	if to.Is6() {
		header = 40
	}
	f := &Flood{to: to, data: max(size-header, 12), stop: make(chan struct{}), sender: make(chan struct{}), reader: make(chan struct{})}
	err := from.Do(func() (err error) { // a socket stays in the namespace it was made in
		may := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			if to.Is4() {
				control := c.Control(func(fd uintptr) {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
				})
				err = errors.Join(control, err)
			}
			return err
		}}
		f.conn, err = may.ListenPacket(context.Background(), network, any)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("flood to %s: %w", to, err)
	}
	go f.send(interval)
	go f.receive()
	return f, nil
}

// floodID is the identifier of a flood's requests.
const floodID = 0x6e63

func (f *Flood) send(interval time.Duration) {
	defer close(f.sender)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	dst := &net.IPAddr{IP: f.to.AsSlice()}
	for n := uint32(0); ; n++ {
		select {
		case <-f.stop:
			return
		case <-tick.C:
		}
		f.mu.Lock()
		f.answers = append(f.answers, false)
		f.mu.Unlock()
		if _, err := f.conn.WriteTo(echo(f.to.Is6(), n, f.data), dst); err != nil {
			f.mu.Lock()
			f.sendErr++
			f.mu.Unlock()
		}
	}
}

// echo is an echo request of size bytes whose number is in the data, since 16 bits wrap.
func echo(v6 bool, n uint32, size int) []byte {
	b := make([]byte, size)
	b[0] = 8
	if v6 {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], floodID)
	binary.BigEndian.PutUint16(b[6:], uint16(n))
	binary.BigEndian.PutUint32(b[8:], n)
	if !v6 { // the kernel does it for ICMPv6
		binary.BigEndian.PutUint16(b[2:], Checksum(b))
	}
	return b
}

// Checksum is that of RFC 1071.
func Checksum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func (f *Flood) receive() {
	defer close(f.reader)
	reply := byte(0)
	if f.to.Is6() {
		reply = 129
	}
	b := make([]byte, 1500)
	for {
		n, from, err := f.conn.ReadFrom(b)
		if err != nil {
			return
		}
		addr, ok := from.(*net.IPAddr)
		if !ok || n < 12 || b[0] != reply || binary.BigEndian.Uint16(b[4:]) != floodID || !addr.IP.Equal(f.to.AsSlice()) {
			continue
		}
		f.mu.Lock()
		if i := binary.BigEndian.Uint32(b[8:]); int64(i) < int64(len(f.answers)) {
			f.answers[i] = true
		}
		f.mu.Unlock()
	}
}

// Answered is how many requests were answered so far.
func (f *Flood) Answered() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, ok := range f.answers {
		if ok {
			n++
		}
	}
	return n
}

// Sent is how many requests were sent so far.
func (f *Flood) Sent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.answers)
}

// Stop ends the flood, waits up to two seconds for answers that are on their way,
// and counts.
func (f *Flood) Stop() FloodResult {
	close(f.stop)
	<-f.sender
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline) && f.Answered() < len(f.answers); {
		pause(5 * time.Millisecond)
	}
	_ = f.conn.Close()
	<-f.reader
	r := FloodResult{Sent: len(f.answers), Refused: f.sendErr}
	for i, ok := range f.answers {
		if ok {
			r.Received++
		} else {
			r.Lost = append(r.Lost, i)
		}
	}
	return r
}

// Stream is one TCP connection over which numbers go there and back.
type Stream struct {
	listener net.Listener
	conn     net.Conn
	done     chan struct{}
	mu       sync.Mutex
	result   StreamResult
	last     time.Time
	stopping bool
}

// StreamResult is what became of a stream.
type StreamResult struct {
	// Echoed is how many numbers came back, in order.
	Echoed int64
	// Stall is the longest time between two of them.
	Stall time.Duration
	// Err is why the connection ended before it was stopped.
	Err error
}

// StartStream opens a connection from one place to an address of another and keeps
// it busy: a number goes to and fro, then the next.
func StartStream(from, at Place, to netip.Addr) (*Stream, error) {
	s := &Stream{done: make(chan struct{}), last: time.Now()}
	err := at.Do(func() (err error) {
		s.listener, err = net.Listen("tcp", netip.AddrPortFrom(to, 0).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stream to %s: %w", to, err)
	}
	go s.answer()
	const patience = 10 * time.Second
	err = from.Do(func() (err error) {
		s.conn, err = (&net.Dialer{Timeout: patience}).Dial("tcp", s.listener.Addr().String())
		return err
	})
	if err != nil {
		_ = s.listener.Close()
		return nil, fmt.Errorf("stream to %s: %w", to, err)
	}
	go s.drive()
	return s, nil
}

// answer sends back what comes, on the one connection there is.
func (s *Stream) answer() {
	c, err := s.listener.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = io.Copy(c, c)
}

func (s *Stream) drive() {
	defer close(s.done)
	var b [8]byte
	for n := uint64(1); ; n++ {
		binary.BigEndian.PutUint64(b[:], n)
		_, err := s.conn.Write(b[:])
		if err == nil {
			clear(b[:])
			_, err = io.ReadFull(s.conn, b[:])
		}
		if got := binary.BigEndian.Uint64(b[:]); err == nil && got != n {
			err = fmt.Errorf("number %d came back as %d", n, got)
		}
		s.mu.Lock()
		if s.stopping {
			s.mu.Unlock()
			return
		}
		if err == nil {
			s.result.Echoed++
			s.result.Stall = max(s.result.Stall, time.Since(s.last))
			s.last = time.Now()
		} else {
			s.result.Err = err
		}
		s.mu.Unlock()
		if err != nil {
			return
		}
		pause(time.Millisecond)
	}
}

// Echoed is how many numbers came back so far.
func (s *Stream) Echoed() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.result.Echoed
}

// Stop ends the stream. A stall that still lasts counts.
func (s *Stream) Stop() StreamResult {
	s.mu.Lock()
	s.stopping = true
	s.result.Stall = max(s.result.Stall, time.Since(s.last))
	s.mu.Unlock()
	_ = errors.Join(s.conn.Close(), s.listener.Close())
	<-s.done
	return s.result
}
