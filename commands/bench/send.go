package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Place calls fn on a thread in a network namespace: sockets made by it are in there, and
// stay so.
type Place func(fn func() error) error

// Here is the namespace of the caller.
func Here(fn func() error) error { return fn() }

// Sender measures the path from a place to a receiver.
type Sender struct {
	From Place
	To   netip.AddrPort
}

// patience bounds the wait for a connection.
const patience = 5 * time.Second

// Run makes one test for a time. A receiver that cannot be reached is an error, and so is
// a path that lets TCP through and no UDP.
func (s *Sender) Run(ctx context.Context, t Test, size int, length time.Duration) (Result, error) {
	res := Result{Test: t, Size: size}
	q := request{t, size, length}
	if err := q.check(); err != nil {
		return res, err
	}
	c, err := s.dial(ctx, "tcp")
	if err != nil {
		return res, err
	}
	defer c.Close()
	c.limit(length + grace)
	c.noDelay(t.latency())
	if err := writeLine(c, q); err != nil {
		return res, err
	}
	a, err := s.answer(c)
	if err != nil {
		return res, err
	}
	switch t {
	case TCPBandwidth:
		return res, s.stream(c, q, &res)
	case TCPLatency:
		err = pingPong(c, q, &res, false)
		return res, err
	}
	u, err := s.dial(ctx, "udp")
	if err != nil {
		return res, err
	}
	defer u.Close()
	if err := s.introduce(c, u, a.Token); err != nil {
		return res, err
	}
	if t == UDPLatency {
		u.limit(lostAfter)
		if err := pingPong(u, q, &res, true); err != nil {
			return res, err
		}
		return res, nil
	}
	return res, s.shower(c, u, q, &res)
}

// answer reads what the receiver says.
func (s *Sender) answer(c io.Reader) (a answer, err error) {
	if err := readLine(c, &a); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) {
			err = errors.New("it does not answer as a receiver of `netctl bench` does")
		}
		return a, fmt.Errorf("%s: %w", s.To, err)
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", s.To, a.Error)
	}
	return a, nil
}

func (s *Sender) dial(ctx context.Context, network string) (*conn, error) {
	dialing, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var c net.Conn
	err := s.From(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(false)
		c, err = d.DialContext(dialing, network, s.To.String())
		return err
	})
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("nobody listens at %s: run `netctl bench serve` there", s.To)
	case ctx.Err() == nil && isTimeout(err):
		return nil, fmt.Errorf("no answer from %s within %s: do the rules of both ends let TCP and UDP to port %d through?", s.To, patience, s.To.Port())
	case err != nil:
		return nil, err
	}
	if t, ok := c.(*net.TCPConn); ok {
		return take(ctx, t)
	}
	return take(ctx, c.(*net.UDPConn))
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// stream sends messages until the time is over.
func (s *Sender) stream(c *conn, q request, res *Result) error {
	message := make([]byte, q.Size)
	for end := time.Now().Add(q.Time); time.Now().Before(end); {
		if _, err := c.Write(message); err != nil {
			return fmt.Errorf("send to %s: %w", s.To, err)
		}
	}
	if err := c.closeWrite(); err != nil {
		return err
	}
	a, err := s.answer(c)
	if err == nil && a.Time > 0 {
		res.Bandwidth = float64(a.Bytes) / a.Time.Seconds()
	}
	return err
}

// lostAfter is when an echo of UDP is taken for lost.
const lostAfter = 200 * time.Millisecond

// pingPong sends a message and waits for its echo, until the time is over.
func pingPong(c *conn, q request, res *Result, lossy bool) error {
	message, back := make([]byte, q.Size), make([]byte, q.Size)
	var times []time.Duration
	sent, lost := 0, 0
	// On a machine that has no time the first echo may come after all the time there was.
	for end := time.Now().Add(q.Time); time.Now().Before(end) || len(times) == 0 && time.Now().Before(end.Add(grace)); sent++ {
		number(message, sent)
		began := time.Now()
		if _, err := c.Write(message); err != nil {
			return err
		}
		err := echoed(c, back, message)
		if lossy && errors.Is(err, os.ErrDeadlineExceeded) {
			lost++
			continue
		}
		if err != nil {
			return err
		}
		times = append(times, time.Since(began))
	}
	res.Lost = share(lost, sent)
	if len(times) == 0 {
		return errors.New("no message came back")
	}
	slices.Sort(times)
	half := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 2000 }
	res.Latency, res.Latency99 = half(times[len(times)/2]), half(times[len(times)*99/100])
	return nil
}

// number marks a message as far as it has room, so that the late echo of another is not
// taken for its own.
func number(message []byte, n int) {
	if len(message) >= 4 {
		binary.BigEndian.PutUint32(message, uint32(n))
	}
}

// echoed waits for a message to come back.
func echoed(c io.Reader, back, message []byte) error {
	for {
		if _, err := io.ReadFull(c, back); err != nil {
			return err
		}
		if n := min(len(back), 4); bytes.Equal(back[:n], message[:n]) {
			return nil
		}
	}
}

func share[N int | int64](part, of N) float64 {
	if of <= 0 || part <= 0 {
		return 0
	}
	return float64(part) / float64(of)
}

// introduce tells the receiver which port the datagrams come from.
func (s *Sender) introduce(c, u *conn, token []byte) error {
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			_, _ = u.Write(token) // one that is lost is sent again
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	_, err := s.answer(c)
	return err
}

// shower sends datagrams until the time is over, and asks what arrived.
func (s *Sender) shower(c, u *conn, q request, res *Result) error {
	message := make([]byte, q.Size)
	var sent int64
	for end := time.Now().Add(q.Time); time.Now().Before(end); {
		if _, err := u.Write(message); err != nil {
			if errors.Is(err, unix.ENOBUFS) {
				continue // the interface's queue is full
			}
			return fmt.Errorf("send to %s: %w", s.To, err)
		}
		sent++
	}
	if err := writeLine(c, answer{Messages: sent}); err != nil {
		return err
	}
	a, err := s.answer(c)
	if err == nil && a.Time > 0 {
		res.Bandwidth = float64(a.Bytes) / a.Time.Seconds()
	}
	res.Lost = share(sent-a.Messages, sent)
	return err
}
