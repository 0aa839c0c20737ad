package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// mostTests bounds how many tests a receiver serves at once.
const mostTests = 16

// grace is how long a wait goes on behind the time of a test.
const grace = 5 * time.Second

// Receiver answers senders.
type Receiver struct {
	tcp  *net.TCPListener
	udp  *net.UDPConn
	slot chan struct{}

	mu      sync.Mutex
	waiting map[string]*session         // by token
	from    map[netip.AddrPort]*session // by where its datagrams come from
}

// session is one test of UDP.
type session struct {
	echo  bool
	known chan struct{} // closed once the token was seen

	mu          sync.Mutex
	addr        netip.AddrPort
	bytes, n    int64
	first, last time.Time
}

// Listen opens a receiver at an address, TCP and UDP, in the network namespace of the
// calling thread; port 0 takes any.
func Listen(at netip.AddrPort) (*Receiver, error) {
	var c net.ListenConfig
	c.SetMultipathTCP(false)
	for range 10 { // a port that is free for TCP may not be so for UDP
		l, err := c.Listen(context.Background(), "tcp", at.String())
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("port %d of %s is taken: end what listens there (ss -ltnp), or say another one with --port", at.Port(), at.Addr())
		}
		if err != nil {
			return nil, err
		}
		tcp := l.(*net.TCPListener)
		p, err := c.ListenPacket(context.Background(), "udp", tcp.Addr().String())
		if err == nil {
			udp := p.(*net.UDPConn)
			_ = udp.SetReadBuffer(4 << 20) // as much of it as the host allows
			if err := tellDestination(udp); err != nil {
				return nil, errors.Join(err, udp.Close(), tcp.Close())
			}
			return &Receiver{
				tcp: tcp, udp: udp, slot: make(chan struct{}, mostTests),
				waiting: map[string]*session{}, from: map[netip.AddrPort]*session{},
			}, nil
		}
		_ = tcp.Close()
		if at.Port() != 0 {
			return nil, err
		}
	}
	return nil, errors.New("no port is free for TCP and UDP")
}

// Addr is where it listens.
func (r *Receiver) Addr() netip.AddrPort { return r.tcp.Addr().(*net.TCPAddr).AddrPort() }

// Close ends it, and the tests that it serves.
func (r *Receiver) Close() error { return errors.Join(r.tcp.Close(), r.udp.Close()) }

// Serve answers until ctx ends or Close.
func (r *Receiver) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	go r.datagrams()
	var tests sync.WaitGroup
	defer tests.Wait()
	for {
		c, err := r.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		tests.Add(1)
		go func() {
			defer tests.Done()
			if c, err := take(ctx, c); err == nil {
				defer c.Close()
				r.serve(c)
			}
		}()
	}
}

// serve answers one sender.
func (r *Receiver) serve(c *conn) {
	c.limit(grace)
	var q request
	err := readLine(c, &q)
	if err == nil {
		err = q.check()
	}
	if err == nil {
		select {
		case r.slot <- struct{}{}:
			defer func() { <-r.slot }()
		default:
			err = errBusy
		}
	}
	if err != nil {
		_ = writeLine(c, answer{Error: err.Error()})
		return
	}
	c.limit(q.Time + grace)
	switch {
	case q.Test.udp():
		r.serveUDP(c, q)
	case q.Test.latency():
		c.noDelay(true)
		if writeLine(c, answer{}) == nil {
			_ = echo(c, q)
		}
	default:
		if writeLine(c, answer{}) == nil {
			if a, err := drain(c, q); err == nil {
				_ = writeLine(c, a)
			}
		}
	}
}

// drain counts what comes until the sender has closed its side.
func drain(c *conn, q request) (a answer, err error) {
	piece := make([]byte, max(q.Size, 256<<10))
	first := time.Now()
	last := first
	for {
		n, err := c.Read(piece)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return a, err
		}
		a.Bytes += int64(n)
		last = time.Now()
	}
	a.Time = last.Sub(first)
	return a, nil
}

// echo sends every message back.
func echo(c *conn, q request) error {
	message := make([]byte, q.Size)
	for {
		if _, err := io.ReadFull(c, message); err != nil {
			return err
		}
		if _, err := c.Write(message); err != nil {
			return err
		}
	}
}

// tokenSize is that of a token, and of the datagram that holds one.
const tokenSize = 16

// serveUDP lets the sender's datagrams in until it says that it is done.
func (r *Receiver) serveUDP(c *conn, q request) {
	token := make([]byte, tokenSize)
	_, _ = rand.Read(token) // it never fails
	s := &session{echo: q.Test.latency(), known: make(chan struct{})}
	r.mu.Lock()
	r.waiting[string(token)] = s
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.waiting, string(token))
		delete(r.from, s.addr)
		r.mu.Unlock()
	}()
	if writeLine(c, answer{Token: token}) != nil {
		return
	}
	select {
	case <-s.known:
	case <-time.After(grace):
		_ = writeLine(c, answer{Error: "no datagram arrives: does a rule let UDP through to the port of TCP?"})
		return
	}
	if writeLine(c, answer{Known: true}) != nil {
		return
	}
	var done answer
	if readLine(c, &done) != nil {
		return
	}
	_ = writeLine(c, s.sum(done.Messages))
}

// sum is what came, once all did that was sent, or nothing has for a while.
func (s *session) sum(sent int64) answer {
	for quiet := int64(-1); ; {
		s.mu.Lock()
		a := answer{Bytes: s.bytes, Messages: s.n, Time: s.last.Sub(s.first)}
		s.mu.Unlock()
		if a.Messages >= sent || a.Messages == quiet {
			return a
		}
		quiet = a.Messages
		time.Sleep(lostAfter)
	}
}

// datagrams counts or sends back what comes from those who asked.
func (r *Receiver) datagrams() {
	buf, about := make([]byte, MaxDatagram+1), make([]byte, 128)
	for {
		n, size, _, from, err := r.udp.ReadMsgUDPAddrPort(buf, about)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an error of ICMP, about somebody who is gone
		}
		if s := r.session(buf[:n], from); s != nil {
			s.count(n)
			if s.echo {
				_, _, _ = r.udp.WriteMsgUDPAddrPort(buf[:n], fromDestination(about[:size]), from)
			}
		}
	}
}

// tellDestination has the kernel say with each datagram which address it came to: the echo
// has to come from there.
func tellDestination(udp *net.UDPConn) error {
	raw, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	if e := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		if udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Is4() {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
	}); e != nil {
		return e
	}
	return err
}

// fromDestination makes what the kernel said of a datagram what its echo is sent with: the
// address stays, the interface is left to the routes.
func fromDestination(about []byte) []byte {
	head := unix.CmsgLen(0)
	switch len(about) {
	case unix.CmsgSpace(unix.SizeofInet6Pktinfo): // the address, and the interface
		clear(about[head+16 : head+20])
	case unix.CmsgSpace(unix.SizeofInet4Pktinfo): // the interface, and addresses
		clear(about[head : head+4])
	default:
		return nil
	}
	return about
}

// session is whose a datagram is; nil: nobody's, or it holds the token.
func (r *Receiver) session(b []byte, from netip.AddrPort) *session {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(b) == tokenSize {
		if s := r.waiting[string(b)]; s != nil {
			if !s.addr.IsValid() {
				s.addr, s.first, s.last = from, time.Now(), time.Now()
				r.from[from] = s
				close(s.known)
			}
			return nil
		}
	}
	return r.from[from]
}

func (s *session) count(n int) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.n, s.bytes = now, s.n+1, s.bytes+int64(n)
}

// readLine reads one line of JSON, and nothing behind it.
func readLine(c io.Reader, to any) error {
	var line []byte
	one := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, one); err != nil {
			return err
		}
		if one[0] == '\n' {
			break
		}
		if line = append(line, one[0]); len(line) > 4096 {
			return errors.New("not a line of netctl bench")
		}
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	if err := dec.Decode(to); err != nil {
		return fmt.Errorf("not a line of netctl bench: %w", err)
	}
	return nil
}

func writeLine(c io.Writer, from any) error {
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	_, err = c.Write(append(b, '\n'))
	return err
}
