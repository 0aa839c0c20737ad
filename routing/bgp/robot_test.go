package bgp

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"netctl/routing"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// stage is a speaker with scripted peers on pipes, in a synctest bubble: time
// is exact and passes only when everybody waits.
type stage struct {
	t       *testing.T
	s       *Speaker
	k       *kernel
	begun   time.Time
	mu      sync.Mutex
	dialsAt []time.Duration // since begun
	refuse  atomic.Bool
	changes atomic.Int32 // calls of OnSessionChange
	dialled chan *robot
	stop    func()
}

const (
	robotAS = 64511
	usID    = "10.9.0.10"
)

// pipe is a connection with addresses.
type pipe struct {
	net.Conn
	local, remote netip.Addr
}

func (p pipe) LocalAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.local, 179))
}

func (p pipe) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.remote, 179))
}

// robotPeer is the peer that most tests have.
func robotPeer(a string) PeerConfig {
	return PeerConfig{Address: addr(a), AS: robotAS, HoldTime: 9 * time.Second, ConnectRetry: 2 * time.Second}
}

// play runs act on a speaker with the given peers.
func play(t *testing.T, c Config, peers []PeerConfig, act func(*stage)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := &stage{t: t, k: &kernel{}, begun: time.Now(), dialled: make(chan *robot, 100)}
		c.RouterID, c.AS, c.Installer = addr(usID), 64511, g.k
		c.OnSessionChange = func() { g.changes.Add(1) }
		c.Log = slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		g.s = s
		s.dial = func(_ context.Context, p PeerConfig) (net.Conn, error) {
			g.mu.Lock()
			g.dialsAt = append(g.dialsAt, time.Since(g.begun))
			g.mu.Unlock()
			if g.refuse.Load() {
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
			}
			r, ours := g.connect(p.Address)
			g.dialled <- r
			return ours, nil
		}
		if err := s.Configure(peers); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		g.stop = func() { cancel(); synctest.Wait() }
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Run(ctx) }()
		defer func() { cancel(); <-done }()
		synctest.Wait()
		act(g)
	})
}

// dials are the times of all dials so far.
func (g *stage) dials() []time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.dialsAt)
}

// connect makes a connection between a peer and the speaker.
func (g *stage) connect(peer netip.Addr) (*robot, net.Conn) {
	a, b := net.Pipe()
	us := addr(usID)
	if peer.Is6() {
		us = addr("fd00:9::10")
	}
	return newRobot(g.t, a), pipe{b, us, peer}
}

// incoming is a connection that the peer opened.
func (g *stage) incoming(peer string) *robot {
	r, ours := g.connect(addr(peer))
	g.s.accept(context.Background(), ours, addr(peer).Zone())
	return r
}

// session returns the only session, once everybody waits.
func (g *stage) session() Session {
	synctest.Wait()
	return only(g.s)
}

// words checks state and reason.
func (g *stage) words(want string) {
	g.t.Helper()
	if got := g.session().Words(time.Now()); got != want {
		g.t.Errorf("session says %q, want %q", got, want)
	}
}

// has checks the installed routes.
func (g *stage) has(want ...string) {
	g.t.Helper()
	synctest.Wait()
	if got := g.k.text(); !slices.Equal(got, append([]string{}, want...)) {
		g.t.Errorf("installed %q, want %q", got, want)
	}
}

// robot is the other end of a connection; it reads all the time.
type robot struct {
	t  *testing.T
	c  net.Conn
	in chan incoming
	// pause stops the reading while it is held; a channel of one, since a
	// bubble does not wait for a mutex.
	pause latch
	as    uint32
	// ends counts the End-of-RIBs that heard saw.
	ends int
}

// latch is a lock that synctest can wait for.
type latch chan struct{}

func (g latch) Lock()   { g <- struct{}{} }
func (g latch) Unlock() { <-g }
func (g latch) wait()   { g <- struct{}{}; <-g }

func newRobot(t *testing.T, c net.Conn) *robot {
	r := &robot{t, c, make(chan incoming, 10000), make(latch, 1), robotAS, 0}
	go func() {
		defer close(r.in)
		var buf []byte
		chunk := make([]byte, 4096)
		for {
			r.pause.wait()
			n, err := c.Read(chunk)
			buf = append(buf, chunk[:n]...)
			for {
				n, kind, f := frame(buf, maxExtended)
				if f != nil {
					t.Errorf("bad message from us: %v", f)
					return
				}
				if n == 0 {
					break
				}
				r.in <- incoming{kind: kind, body: slices.Clone(buf[headerLen:n])}
				buf = buf[n:]
			}
			if err != nil {
				return
			}
		}
	}()
	return r
}

// next is the next message but KEEPALIVEs; ok is false at the end.
func (r *robot) next() (kind uint8, body []byte, ok bool) {
	synctest.Wait()
	for {
		select {
		case in, open := <-r.in:
			if open && in.kind == codec.BGP_MSG_KEEPALIVE {
				continue
			}
			return in.kind, in.body, open
		default:
			return 0, nil, true
		}
	}
}

// expect wants a message of a kind; 0 for none.
func (r *robot) expect(kind uint8) []byte {
	r.t.Helper()
	got, body, ok := r.next()
	if !ok || got != kind {
		r.t.Fatalf("message of type %d (%x), open %v; want type %d", got, body, ok, kind)
	}
	return body
}

// notified wants a NOTIFICATION and then the end.
func (r *robot) notified(code, subcode uint8) []byte {
	r.t.Helper()
	body := r.expect(codec.BGP_MSG_NOTIFICATION)
	if body[0] != code || body[1] != subcode {
		r.t.Errorf("notification %d/%d (%s), want %d/%d", body[0], body[1], spell(body[0], body[1], body[2:]), code, subcode)
	}
	r.over()
	return body[2:]
}

// over wants the connection to be closed.
func (r *robot) over() {
	r.t.Helper()
	time.Sleep(2 * lastWords)
	if kind, body, ok := r.next(); ok {
		r.t.Errorf("connection is open, message type %d %x", kind, body)
	}
}

func (r *robot) send(b ...[]byte) {
	r.t.Helper()
	for _, m := range b {
		_ = r.c.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := r.c.Write(m); err != nil && !errors.Is(err, os.ErrClosed) {
			r.t.Logf("robot writes: %v", err)
		}
	}
	synctest.Wait()
}

// theirOpen is an OPEN of the robot.
func theirOpen(change func(*open)) []byte {
	o := &open{as: robotAS, hold: 90 * time.Second, id: addr("10.9.0.2"), families: [2]bool{true, true}}
	if change != nil {
		change(o)
	}
	b, err := o.message()
	if err != nil {
		panic(err)
	}
	return b
}

// withGR gives the capability for both families.
func withGR(restarting, notification, forwarding bool) func(*open) {
	return func(o *open) {
		o.gr = &graceful{
			restarting: restarting, notification: notification, time: 20 * time.Second,
			listed: [2]bool{true, true}, forwarding: [2]bool{forwarding, forwarding},
		}
	}
}

// establish shakes hands and swallows the first messages of ours.
func (r *robot) establish(change func(*open)) {
	r.t.Helper()
	r.send(theirOpen(change)) // ours comes behind it on a second connection
	r.expect(codec.BGP_MSG_OPEN)
	r.send(keepalive())
}

// up establishes the connection that the speaker dials.
func (g *stage) up(change func(*open)) *robot {
	g.t.Helper()
	r := <-g.dialled
	r.establish(change)
	if st := g.session(); st.State != "Established" {
		g.t.Fatalf("session is %s", st.Words(time.Now()))
	}
	return r
}

// bare are prefixes whose paths have no IDs.
func bare(list []netip.Prefix) (out []nlri) {
	for _, p := range list {
		out = append(out, nlri{prefix: routing.Pack(p)})
	}
	return out
}

// announce is an UPDATE with IPv4 routes as an internal peer sends them.
func announce(hop string, list ...string) []byte {
	look := outlook{as4: true, families: [2]bool{true, true}}
	var out []byte
	for _, p := range prefixes(list...) {
		b, _ := look.announce(&attrs{nextHop: addr(hop), localPref: 100}, bare([]netip.Prefix{p}), FamilyOf(p.Addr()))
		out = append(out, b.bytes...)
	}
	return out
}

func withdrawal(list ...string) []byte {
	var out []byte
	for _, p := range prefixes(list...) {
		out = append(out, (&outlook{}).withdraw(bare([]netip.Prefix{p}), FamilyOf(p.Addr())).bytes...)
	}
	return out
}

// message frames a body by hand.
func message(kind uint8, body ...byte) []byte {
	return finish(append(appendHeader(nil, kind), body...), 0)
}

// updateBody is an UPDATE's body from its three fields.
func updateBody(withdrawn, list, nlri []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(withdrawn)))
	b = append(b, withdrawn...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(list)))
	return append(append(b, list...), nlri...)
}
