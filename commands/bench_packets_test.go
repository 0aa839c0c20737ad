//go:build bench

package commands_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"netctl/netdev/netlab"
)

// place is where one end of a connection runs.
type place func(func() error) error

// routedRows measures TCP between containers of two nodes beside the same between
// namespaces that are wired and routed alike by hand, without netctl.
func routedRows(t *testing.T, a, b *netlab.Host) []row {
	from, to := netlab.Attached(t, a, "sender", "bench", ""), netlab.Attached(t, b, "receiver", "bench", "IP=10.65.210.1")
	plainFrom, plainTo, plainAt := handmade(t)
	var ours, theirs rates
	for range 9 { // in turn, so that what the machine does besides meets both
		theirs.add(t, plainFrom, plainTo, plainAt)
		ours.add(t, from.Do, to.Do, netip.MustParseAddr("10.65.210.1"))
	}
	ourWidth, ourWait := ours.medians()
	width, wait := theirs.medians()
	return []row{
		// Seen: 1.15 and 1.16. With connection tracking and not a rule of policy the second
		// is 1.11; docs/policy.md, "What it costs", has the rest.
		{"TCP between nodes, time for 1 GiB", 1024 / ourWidth, 1024 / width, "s", "routed by hand", 1.2},
		{"TCP between nodes, 1 byte to and fro", ourWait, wait, "us", "routed by hand", 1.2},
	}
}

// rates are MiB a second and microseconds for one byte to and fro.
type rates struct{ width, wait []float64 }

func (r *rates) add(t *testing.T, from, to place, at netip.Addr) {
	t.Helper()
	var l net.Listener
	err := to(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dial := func() (c, s net.Conn) {
		err := from(func() (err error) {
			c, err = net.DialTimeout("tcp", l.Addr().String(), 5*time.Second)
			return err
		})
		if err == nil {
			s, err = l.Accept()
		}
		if err != nil {
			t.Fatal(err)
		}
		return c, s
	}
	const length = time.Second
	c, s := dial()
	began := time.Now()
	go func() {
		defer c.Close()
		piece := make([]byte, 128<<10)
		for time.Since(began) < length {
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	}()
	sum, piece := 0, make([]byte, 256<<10)
	for {
		n, err := s.Read(piece)
		sum += n
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	r.width = append(r.width, float64(sum)/(1<<20)/time.Since(began).Seconds())
	_ = s.Close()

	c, s = dial()
	go func() { _, _ = io.Copy(s, s) }()
	var waits []float64
	one := make([]byte, 1)
	for began = time.Now(); time.Since(began) < length/2; {
		sent := time.Now()
		if _, err := c.Write(one); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(one); err != nil {
			t.Fatal(err)
		}
		waits = append(waits, float64(time.Since(sent).Nanoseconds())/1000)
	}
	_, _ = c.Close(), s.Close()
	slices.Sort(waits)
	r.wait = append(r.wait, waits[len(waits)/2])
}

func (r *rates) medians() (width, wait float64) {
	slices.Sort(r.width)
	slices.Sort(r.wait)
	return r.width[len(r.width)/2], r.wait[len(r.wait)/2]
}

// handmade is what endpoints of two nodes are, without netctl.
func handmade(t *testing.T) (from, to place, at netip.Addr) {
	t.Helper()
	enter := func(n *netlab.Netns) place {
		return func(fn func() error) (err error) {
			n.Do(func() { err = fn() })
			return err
		}
	}
	h := netlab.RoutedByHand(t)
	return enter(h.From), enter(h.To), h.At
}
