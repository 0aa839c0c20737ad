// Package ra finds who is at the other end of links, as routers do that speak BGP
// without configured addresses: each sends router advertisements (RFC 4861, section
// 4.2), and the sender's link-local address is where the other one speaks to it.
//
// It owns one ICMPv6 socket for each link that it was told to look at, and none without.
// It changes nothing of a link: what the kernel makes of advertisements (accept_ra) is as
// it was, and its own say that this host is nobody's default router.
//
// Invariants: one goroutine, Run's, owns all state but what Ends returns; a neighbour
// stays until its link goes down, or another one speaks and it has been silent.
package ra

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"netctl/routing"
)

const (
	// interval is between two advertisements: as FRR's where they are for BGP.
	interval = 10 * time.Second
	// firstOnes follow each other by pause, which is also the least between any two.
	firstOnes = 4
	pause     = time.Second
	// silence is after how long another neighbour may take a silent one's place.
	silence = 3 * interval
	// retry is how long a link rests that could not be spoken on, calm one that came up: it
	// does so for the neighbour, too, and FRR loses one that it hears while it still ends
	// the session before.
	retry = time.Second
	calm  = time.Second
)

// Finder looks for neighbours. Its methods are safe for concurrent use.
type Finder struct {
	log     *slog.Logger
	changed chan struct{}
	wake    chan struct{}

	mu    sync.Mutex
	look  func(link string) bool // nil: nowhere
	ends  []routing.End
	known map[string]netip.Addr // neighbours by link, of before
}

// New is a Finder that looks nowhere yet.
func New(log *slog.Logger) *Finder {
	return &Finder{log: log, changed: make(chan struct{}, 1), wake: make(chan struct{}, 1), known: map[string]netip.Addr{}}
}

// Recall takes who was found before: they are believed to be there still. Call it before
// Look.
func (f *Finder) Recall(ends []routing.End) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range ends {
		f.known[e.Link] = e.Remote
	}
}

// Look says at which links to look; nil: at none.
func (f *Finder) Look(at func(link string) bool) {
	f.mu.Lock()
	f.look = at
	f.mu.Unlock()
	signal(f.wake)
}

// Changed is heard of when Ends may be others.
func (f *Finder) Changed() <-chan struct{} { return f.changed }

// Ends are the links that are looked at, by name.
func (f *Finder) Ends() []routing.End {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ends
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// link is one that is looked at.
type link struct {
	state
	socket *socket // nil: it cannot be spoken on
	wrong  string  // why
	stop   context.CancelFunc
	remote netip.Addr // without zone
	heard  time.Time  // zero: remote is of before
	other  netip.Addr
	strays time.Time // when other was heard
	sent   time.Time
	count  int       // advertisements since the link is up
	due    time.Time // of the next one
}

// heard is a message on a link.
type heard struct {
	socket *socket
	from   netip.Addr
	asks   bool // a router solicitation
}

// run is the state of Run.
type run struct {
	*Finder
	links map[int]*link // by index
	in    chan heard
	begun bool // what was up at the start is
}

// Run looks until ctx ends.
func (f *Finder) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		f.mu.Lock()
		look := f.look
		f.mu.Unlock()
		if look != nil {
			if err := f.attend(ctx); err != nil {
				return fmt.Errorf("look for neighbours: %w", err)
			}
		}
	}
}

// attend looks until there is nothing to look at any more.
func (f *Finder) attend(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	r := &run{Finder: f, links: map[int]*link{}, in: make(chan heard)}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer func() {
		cancel()
		for _, l := range r.links {
			l.close()
		}
	}()
	w, err := watchLinks()
	if err != nil {
		return err
	}
	news := make(chan error)
	readers.Go(func() { w.run(ctx, news) })
	defer w.close()
	for again := true; ; {
		f.mu.Lock()
		look := f.look
		f.mu.Unlock()
		if again {
			r.settle(ctx, w.links(), look, &readers)
		}
		again = true
		r.send(time.Now())
		r.tell()
		if look == nil {
			return nil
		}
		timer := time.NewTimer(r.next(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-f.wake:
		case err := <-news:
			if err != nil {
				timer.Stop()
				return err
			}
		case h := <-r.in:
			r.hear(h, time.Now())
			again = false
		case <-timer.C:
		}
		timer.Stop()
	}
}

// settle makes the links that are looked at those that are there.
func (r *run) settle(ctx context.Context, there map[int]state, look func(string) bool, readers *sync.WaitGroup) {
	for i, l := range r.links {
		now, ok := there[i]
		if !ok || look == nil || !look(now.name) || now.name != l.name {
			r.lose(l)
			delete(r.links, i)
		}
	}
	for i, now := range there {
		if look == nil || !look(now.name) {
			continue
		}
		l := r.links[i]
		if l == nil {
			l = &link{}
			r.links[i] = l
		}
		was := l.state
		if l.state = now; l.socket != nil && (!now.up || now.local != was.local) {
			r.lose(l)
		}
		if r.begun && now.up && !was.up {
			l.wrong, l.due = "interface "+now.name+" came up a moment ago", time.Now().Add(calm)
		}
		if l.socket != nil || !now.up || !now.local.IsValid() || time.Now().Before(l.due) {
			continue
		}
		s, err := open(i, now.local)
		if err != nil {
			if l.wrong != err.Error() {
				r.log.Warn("no router advertisements", "link", now.name, "error", err)
			}
			l.wrong, l.due = err.Error(), time.Now().Add(retry)
			continue
		}
		reading, stop := context.WithCancel(ctx)
		l.socket, l.stop, l.wrong, l.count, l.sent, l.due = s, stop, "", 0, time.Time{}, time.Time{}
		if known := r.known[now.name].WithZone(""); known.IsValid() && known != now.local {
			l.remote, l.heard = known, time.Time{}
		}
		readers.Go(func() { s.run(reading, r.in) })
	}
	r.begun = true
}

// lose forgets who is at the end of a link that went.
func (r *run) lose(l *link) {
	l.close()
	l.remote, l.other, l.due = netip.Addr{}, netip.Addr{}, time.Time{}
}

func (l *link) close() {
	if l.socket != nil {
		l.stop()
		l.socket.close()
		l.socket = nil
	}
}

// send sends what is due.
func (r *run) send(now time.Time) {
	for _, l := range r.links {
		if l.other.IsValid() && now.Sub(l.strays) > silence {
			l.other = netip.Addr{}
		}
		if l.socket == nil || now.Before(l.due) {
			continue
		}
		err := l.socket.advertise()
		if err == nil && l.heard.IsZero() && l.count < firstOnes {
			err = l.socket.solicit()
		}
		if err != nil {
			r.log.Debug("router advertisement not sent", "link", l.name, "error", err)
		}
		l.sent = now
		if l.count++; l.count < firstOnes {
			l.due = now.Add(pause)
		} else {
			l.due = now.Add(interval)
		}
	}
}

// next is how long nothing is due. What a link waits for that has no socket and whose
// rest is over, an address, is heard of.
func (r *run) next(now time.Time) time.Duration {
	wait := time.Hour
	for _, l := range r.links {
		if due := l.due.Sub(now); l.socket != nil || due > 0 {
			wait = min(wait, due)
		}
	}
	return max(wait, 0)
}

// hear takes a message. Whoever asks, and a neighbour that speaks after a while, which may
// have started anew, is answered.
func (r *run) hear(h heard, now time.Time) {
	for _, l := range r.links {
		if l.socket != h.socket {
			continue
		}
		answer := h.asks || now.Sub(l.sent) > 3*pause
		switch {
		case h.asks:
		case h.from == l.remote:
			l.heard = now
		case !l.remote.IsValid() || now.Sub(l.heard) > silence:
			r.log.Info("neighbour found", "link", l.name, "neighbour", h.from)
			if l.other == h.from {
				l.other = netip.Addr{}
			}
			l.remote, l.heard, answer = h.from, now, true
		default:
			if l.other != h.from {
				r.log.Warn("a second neighbour on a link, left alone", "link", l.name, "neighbour", h.from, "first", l.remote)
			}
			l.other, l.strays = h.from, now
		}
		if due := l.sent.Add(pause); answer && due.Before(l.due) {
			l.due = due
		}
	}
}

// tell publishes the ends if they are others.
func (r *run) tell() {
	ends := []routing.End{}
	for _, l := range r.links {
		e := routing.End{Link: l.name, Local: l.local.WithZone(l.name)}
		switch {
		case !l.up:
			e.Why = "interface " + l.name + " is down"
		case !l.local.IsValid():
			e.Why = "interface " + l.name + " has no link-local address"
		case l.wrong != "":
			e.Why = l.wrong
		case !l.remote.IsValid():
			e.Why = "no router advertisement from the other end of " + l.name
		default:
			e.Remote, e.Other = l.remote.WithZone(l.name), l.other.WithZone(l.name)
		}
		ends = append(ends, e)
	}
	slices.SortFunc(ends, func(a, b routing.End) int { return strings.Compare(a.Link, b.Link) })
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, e := range ends {
		if e.Remote.IsValid() {
			r.known[e.Link] = e.Remote
		}
		ends[i].Missed = !e.Remote.IsValid() && r.known[e.Link].IsValid()
	}
	if len(ends) == 0 {
		maps.DeleteFunc(r.known, func(string, netip.Addr) bool { return r.look == nil })
	}
	if !slices.Equal(ends, r.ends) || r.ends == nil {
		r.ends = ends
		signal(r.changed)
	}
}
