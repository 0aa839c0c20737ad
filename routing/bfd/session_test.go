package bfd

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

// end is a session at one end of a link, in a synctest bubble: time is exact.
type end struct {
	*session
	t       *testing.T
	cut     atomic.Bool // nothing of it arrives
	behind  atomic.Bool // what arrives is not read
	told    func(Packet)
	stop    func()
	mu      sync.Mutex
	packets []Packet // that it sent
	at      []time.Time
	downs   []string
	downAt  []time.Time
	heard   []time.Time
}

func newEnd(t *testing.T, address, peer string, interval time.Duration, multiplier uint8) *end {
	e := &end{t: t}
	c := &Config{Log: slog.New(slog.DiscardHandler), OnDown: func(_ netip.Addr, heard time.Time, words string) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.downs, e.downAt, e.heard = append(e.downs, words), append(e.downAt, time.Now()), append(e.heard, heard)
	}}
	p := Peer{Address: netip.MustParseAddr(peer), Local: netip.MustParseAddr(address), Interval: interval, Multiplier: multiplier}
	e.session = newSession(p, rand.Uint32()|1, c, e.transmit, e.behind.Load)
	return e
}

func (e *end) transmit(b []byte) error {
	p, err := Parse(b)
	if err != nil {
		e.t.Errorf("bad packet from us: %v", err)
	}
	e.mu.Lock()
	e.packets, e.at = append(e.packets, p), append(e.at, time.Now())
	told := e.told
	e.mu.Unlock()
	if !e.cut.Load() && told != nil {
		told(p)
	}
	return nil
}

// reach has what the end sends taken by f.
func (e *end) reach(f func(Packet)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = f
}

// sent are the packets since a time, and when they were sent.
func (e *end) since(from time.Time) (packets []Packet, at []time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i, _ := slices.BinarySearchFunc(e.at, from, time.Time.Compare)
	return slices.Clone(e.packets[i:]), slices.Clone(e.at[i:])
}

func (e *end) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); e.run(ctx) }()
	e.stop = func() { cancel(); <-done }
}

// is checks a state, once everybody waits.
func (e *end) is(want State) {
	e.t.Helper()
	synctest.Wait()
	if st := e.Status(); st.State != want {
		e.t.Errorf("%v is %v (%s), want %v", e.key.local, st.State, st.Words(), want)
	}
}

// alarms checks how often the path was said to be dead.
func (e *end) alarms(want ...string) {
	e.t.Helper()
	synctest.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	if !slices.Equal(e.downs, want) {
		e.t.Errorf("%v: alarms %q, want %q", e.key.local, e.downs, want)
	}
}

func join(a, b *end) {
	a.reach(b.deliver)
	b.reach(a.deliver)
}

// link runs act with two sessions that are up.
func link(t *testing.T, interval [2]time.Duration, multiplier [2]uint8, act func(a, b *end)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a, b := newEnd(t, "10.9.0.1", "10.9.0.2", interval[0], multiplier[0]), newEnd(t, "10.9.0.2", "10.9.0.1", interval[1], multiplier[1])
		join(a, b)
		a.start()
		b.start()
		defer func() { a.stop(); b.stop() }()
		time.Sleep(5 * time.Second)
		a.is(Up)
		b.is(Up)
		a.alarms()
		b.alarms()
		act(a, b)
	})
}

func alike(d time.Duration) [2]time.Duration { return [2]time.Duration{d, d} }

// A neighbour that is silent is dead after as many intervals as it said, to the instant,
// and never before: with the defaults after 300 ms.
func TestDetection(t *testing.T) {
	for name, c := range map[string]struct {
		interval   [2]time.Duration
		multiplier [2]uint8
		want       time.Duration // that b is missed by a
	}{
		"defaults":          {alike(100 * ms), [2]uint8{3, 3}, 300 * ms},
		"b is slower":       {[2]time.Duration{100 * ms, 250 * ms}, [2]uint8{3, 4}, 1000 * ms},
		"a is slower":       {[2]time.Duration{400 * ms, 50 * ms}, [2]uint8{9, 5}, 2000 * ms},
		"one":               {alike(100 * ms), [2]uint8{3, 1}, 100 * ms},
		"longer than a sec": {alike(3 * time.Second), [2]uint8{3, 3}, 9 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			link(t, c.interval, c.multiplier, func(a, b *end) {
				time.Sleep(20 * time.Second)
				a.is(Up)
				if got := a.Status().Detection; got != c.want {
					t.Errorf("detection time %v, want %v", got, c.want)
				}
				a.alarms()
				b.cut.Store(true)
				cut := time.Now()
				_, at := b.since(cut.Add(-10 * time.Second))
				last := at[len(at)-1]
				time.Sleep(time.Until(last.Add(c.want - 1)))
				a.is(Up)
				time.Sleep(time.Nanosecond)
				a.is(Down)
				a.alarms("control detection time expired")
				if !a.downAt[0].Equal(last.Add(c.want)) || !a.heard[0].Equal(last) {
					t.Errorf("down %v after the last packet, heard %v after it", a.downAt[0].Sub(last), a.heard[0].Sub(last))
				}
				// The other direction is whole: b hears of it at once.
				b.is(Down)
				b.alarms("neighbour signalled session down (control detection time expired)")
				if got := b.Status().Words(); got != "down: neighbour signalled session down (control detection time expired)" {
					t.Errorf("b says %q", got)
				}
				b.cut.Store(false)
				time.Sleep(30 * time.Second)
				a.is(Up)
				b.is(Up)
			})
		})
	}
}

// Up to as many packets less one may be lost in a row.
func TestLostPackets(t *testing.T) {
	link(t, alike(100*ms), [2]uint8{3, 3}, func(a, b *end) {
		n := 0
		b.reach(func(p Packet) {
			if n++; n%3 == 0 {
				a.deliver(p)
			}
		})
		time.Sleep(time.Minute)
		a.is(Up)
		a.alarms()
	})
}

// Packets go at the agreed interval less up to a quarter, or with a multiplier of one
// between a quarter and a tenth; a session that is not up sends one a second.
func TestJitter(t *testing.T) {
	for multiplier, most := range map[uint8]time.Duration{1: 90 * ms, 3: 100 * ms} {
		link(t, alike(100*ms), [2]uint8{multiplier, 3}, func(a, b *end) {
			begin := time.Now()
			time.Sleep(time.Minute)
			_, at := a.since(begin)
			shortest, longest := time.Hour, time.Duration(0)
			for i := range at[1:] {
				gap := at[i+1].Sub(at[i])
				shortest, longest = min(shortest, gap), max(longest, gap)
			}
			if shortest < 75*ms || longest > most || longest-shortest < 10*ms {
				t.Errorf("multiplier %d: intervals from %v to %v", multiplier, shortest, longest)
			}
			a.cut.Store(true)
			b.cut.Store(true)
			time.Sleep(2 * time.Second)
			a.is(Down)
			begin = time.Now()
			time.Sleep(time.Minute)
			if packets, _ := a.since(begin); len(packets) < 60 || len(packets) > 80 || packets[0].State != Down || packets[0].MinTx != time.Second || packets[0].Yours != 0 {
				t.Errorf("%d packets of a session that is down, %+v", len(packets), packets[0])
			}
		})
	}
}

// New timers are agreed on by a Poll Sequence, and none of them takes the session down.
func TestChangedTimers(t *testing.T) {
	link(t, alike(100*ms), [2]uint8{3, 3}, func(a, b *end) {
		now := func(interval time.Duration, multiplier uint8) {
			p := *a.wanted
			p.Interval, p.Multiplier = interval, multiplier
			a.want(&p)
			synctest.Wait()
		}
		check := func(every, detection, other time.Duration) {
			t.Helper()
			synctest.Wait()
			if s, o := a.Status(), b.Status(); s.Every != every || s.Detection != detection || o.Detection != other || a.machine.poll {
				t.Errorf("every %v, detection %v, the other's %v; poll %v", s.Every, s.Detection, o.Detection, a.machine.poll)
			}
		}
		check(100*ms, 300*ms, 300*ms)
		begin := time.Now()
		now(500*ms, 4)
		packets, _ := a.since(begin)
		if len(packets) == 0 || !packets[0].Poll || packets[0].MinTx != 500*ms {
			t.Errorf("no poll: %+v", packets)
		}
		check(500*ms, 1500*ms, 2000*ms)
		time.Sleep(10 * time.Second)
		now(20*ms, 5)
		check(100*ms, 300*ms, 500*ms)
		time.Sleep(10 * time.Second)
		a.alarms()
		b.alarms()
		// Without an answer the old ones stay in force, where that is safe: not to send less,
		// and not to expect more.
		now(400*ms, 3)
		time.Sleep(10 * time.Second)
		check(400*ms, 1200*ms, 1200*ms)
		b.cut.Store(true)
		now(200*ms, 3)
		if s := a.Status(); s.Every != 200*ms || s.Detection != 1200*ms || !a.machine.poll {
			t.Errorf("unanswered: %+v, poll %v", s, a.machine.poll)
		}
		now(600*ms, 3)
		if s := a.Status(); s.Every != 200*ms || s.Detection != 1800*ms || !a.machine.poll {
			t.Errorf("unanswered: %+v, poll %v", s, a.machine.poll)
		}
		// An answer to the first question is none to the second.
		b.cut.Store(false)
		time.Sleep(10 * time.Second)
		check(600*ms, 1800*ms, 1800*ms)
		a.alarms()
		b.alarms()
	})
}

// A session that is switched off, for the time being or with its process, is no dead path.
func TestSwitchedOff(t *testing.T) {
	link(t, alike(100*ms), [2]uint8{3, 3}, func(a, b *end) {
		p := *a.wanted
		begin := time.Now()
		a.want(nil)
		b.is(Down)
		if got := b.Status().Words(); got != "down: switched off by the neighbour" {
			t.Errorf("says %q", got)
		}
		time.Sleep(time.Second)
		a.is(AdminDown)
		if !a.want(&p) {
			t.Fatal("it has ended already")
		}
		time.Sleep(3 * time.Second)
		a.is(Up)
		b.is(Up)
		a.want(nil)
		time.Sleep(10 * time.Second)
		packets, _ := a.since(begin)
		packets = slices.DeleteFunc(packets, func(p Packet) bool { return p.State != AdminDown })
		if len(packets) < farewells || len(packets) > 3*farewells || packets[0].Diag != DiagAdmin {
			t.Errorf("%d packets say so: %+v", len(packets), packets)
		}
		if a.want(&p) {
			t.Error("it has not ended")
		}
		a.alarms()
		b.alarms()
	})
}

// A process that ends, or is killed, and comes again goes on with the session that the
// neighbour still has. So nobody raises an alarm, unless it was killed and is away for longer
// than the detection time, or than it said.
func TestRestart(t *testing.T) {
	silence := []string{"control detection time expired"}
	for name, c := range map[string]struct {
		killed    bool
		say, away time.Duration
		alarms    []string
		ups       int // of the neighbour
	}{
		"ends":               {say: 20 * time.Second, away: 19 * time.Second, ups: 1},
		"ends at once":       {say: 20 * time.Second, away: 0, ups: 1},
		"ends for long":      {say: 20 * time.Second, away: 25 * time.Second, alarms: silence, ups: 2},
		"ends for good":      {away: 10 * time.Second, ups: 2},
		"is killed":          {killed: true, say: 20 * time.Second, away: 190 * ms, ups: 1},
		"is killed at once":  {killed: true, say: 20 * time.Second, ups: 1},
		"is killed for long": {killed: true, say: 20 * time.Second, away: time.Second, alarms: silence, ups: 2},
	} {
		t.Run(name, func(t *testing.T) {
			link(t, alike(100*ms), [2]uint8{3, 3}, func(a, b *end) {
				p := *a.wanted
				p.Away = c.say
				a.want(&p)
				// The last packet was just sent.
				sent, _ := a.since(time.Time{})
				for n := len(sent); n == len(sent); {
					time.Sleep(ms)
					sent, _ = a.since(time.Time{})
				}
				a.cut.Store(c.killed)
				a.reach(nil)
				if !c.killed {
					a.reach(b.deliver)
				}
				b.reach(nil)
				a.stop()
				time.Sleep(c.away)
				next := newEnd(t, "10.9.0.1", "10.9.0.2", 100*ms, 3)
				join(next, b)
				next.start()
				a.stop = next.stop
				time.Sleep(5 * time.Second)
				next.is(Up)
				b.is(Up)
				b.alarms(c.alarms...)
				next.alarms()
				if got := b.Status(); got.Ups != c.ups || got.Detection != 300*ms || next.Status().Detection != 300*ms {
					t.Errorf("came up %d times, want %d: %+v", got.Ups, c.ups, got)
				}
				b.cut.Store(true)
				time.Sleep(time.Second)
				next.alarms(silence...)
			})
		})
	}
}

// Only the first packet may name a discriminator that is not ours, and only one of a
// session that is up.
func TestForeignDiscriminator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newEnd(t, "10.9.0.1", "10.9.0.2", 100*ms, 3)
		a.start()
		defer func() { a.stop() }()
		synctest.Wait()
		p := Packet{State: Init, Multiplier: 3, Mine: 1, Yours: 99, MinTx: 100 * ms, MinRx: 100 * ms}
		a.deliver(p)
		a.is(Down)
		p.State, p.Yours = Down, 0
		a.deliver(p)
		a.is(Init)
		p.State, p.Yours = Up, 99
		a.deliver(p)
		a.is(Init)
		if got := a.Status(); got.In != 1 || got.Mine == 99 {
			t.Errorf("%+v", got)
		}
	})
}

// A process that was late itself reads what has come before it raises an alarm, but not for ever.
func TestLateReader(t *testing.T) {
	link(t, alike(100*ms), [2]uint8{3, 3}, func(a, b *end) {
		b.reach(nil)
		a.behind.Store(true)
		time.Sleep(500 * ms)
		a.is(Up)
		a.deliver(b.machine.packet(false))
		a.behind.Store(false)
		time.Sleep(200 * ms)
		a.is(Up)
		a.behind.Store(true)
		time.Sleep(500 * ms)
		a.is(Down)
	})
}

// A neighbour that can take nothing gets nothing, and one that asks for silence while the
// session is up gets silence, but for answers to its questions.
func TestSilence(t *testing.T) {
	for name, change := range map[string]func(*Packet){
		"demand": func(p *Packet) { p.Demand = true },
		"no rx":  func(p *Packet) { p.MinRx = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			link(t, alike(100*ms), [2]uint8{3, 3}, func(a, b *end) {
				p := b.machine.packet(false)
				a.reach(nil)
				b.reach(nil)
				change(&p)
				a.deliver(p)
				synctest.Wait()
				begin := time.Now()
				for range 100 {
					time.Sleep(100 * ms)
					a.deliver(p)
				}
				a.is(Up)
				if packets, _ := a.since(begin.Add(1)); len(packets) > 0 {
					t.Errorf("%d packets", len(packets))
				}
				p.Poll = true
				a.deliver(p)
				synctest.Wait()
				if packets, _ := a.since(begin.Add(1)); len(packets) != 1 || !packets[0].Final || packets[0].Poll {
					t.Errorf("answer %+v", packets)
				}
			})
		})
	}
}

// A neighbour that wants to hear nothing does not keep a session that is to end.
func TestSwitchedOffUnheard(t *testing.T) {
	link(t, alike(100*ms), [2]uint8{3, 3}, func(a, b *end) {
		p := b.machine.packet(false)
		a.reach(nil)
		b.reach(nil)
		p.MinRx = 0
		a.deliver(p)
		synctest.Wait()
		was := *a.wanted
		a.want(nil)
		synctest.Wait()
		if a.want(&was) {
			t.Error("it has not ended")
		}
	})
}
