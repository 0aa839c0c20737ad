package bgp

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// batchLimit bounds how much is taken in before a decision, so that peers
// that never stop cannot put it off.
const batchLimit = 256

// Speaker is a BGP speaker. Its methods are safe for concurrent use.
type Speaker struct {
	config Config
	log    *slog.Logger
	// rib belongs to Run's goroutine.
	rib     *rib
	started time.Time
	work    chan func()
	wake    chan struct{}
	ended   chan struct{}
	dial    func(context.Context, PeerConfig) (net.Conn, error)
	open    func(context.Context, netip.AddrPort) (net.Listener, error)
	tasks   sync.WaitGroup
	gate    *portGate
	keys    *keyring

	mu       sync.Mutex
	running  bool
	queued   []func()
	machines map[netip.Addr]*fsm
	spares   map[netip.Addr]*fsm // by PeerConfig.Spare
	problems map[string]string
	// listening ends the listeners that peers need beside Config.Listen.
	listening map[netip.AddrPort]context.CancelFunc
}

// New checks the configuration; nothing is opened before Run.
func New(c Config) (*Speaker, error) {
	if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
		return nil, fmt.Errorf("speaker: router ID %v: not an IPv4 address", c.RouterID)
	}
	if !c.ClusterID.IsValid() {
		c.ClusterID = c.RouterID
	}
	if !c.ClusterID.Is4() {
		return nil, fmt.Errorf("speaker: cluster ID %v: not an IPv4 address", c.ClusterID)
	}
	if c.AS == 0 || c.AS == asTrans {
		return nil, fmt.Errorf("speaker: AS %d: reserved", c.AS)
	}
	if c.RestartTime == 0 {
		c.RestartTime = DefaultRestartTime
	}
	if c.RestartTime < time.Second || c.RestartTime > 4095*time.Second {
		return nil, fmt.Errorf("speaker: restart time %v: not within 1 s and 4095 s", c.RestartTime)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Speaker{
		config: c, log: c.Log, started: time.Now(), dial: dial, open: openListener,
		work: make(chan func(), 64), wake: make(chan struct{}, 1), ended: make(chan struct{}),
		gate: newPortGate(), keys: newKeyring(), machines: map[netip.Addr]*fsm{}, problems: map[string]string{}, listening: map[netip.AddrPort]context.CancelFunc{},
	}
	s.rib = newRIB(&s.config, func(d time.Duration, run func()) *time.Timer {
		return time.AfterFunc(d, func() { s.post(run) })
	})
	s.rib.gone = func() { s.order(func() {}) }
	return s, nil
}

// Run speaks until ctx ends. It then closes every connection without a
// NOTIFICATION, on purpose not RFC 4271, section 8.2.2: a Cease would end
// graceful restart at the peer at once.
func (s *Speaker) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if s.running {
		s.mu.Unlock()
		return fmt.Errorf("speaker: runs already")
	}
	s.running, s.started = true, time.Now()
	s.mu.Unlock()
	s.commands(ctx)
	s.rib.await()
	s.rib.flush()
	for _, a := range s.config.Listen {
		s.tasks.Go(func() { s.listen(ctx, a) })
	}
	s.rib.after(s.config.RestartTime, s.rib.abandon)
	s.loop(ctx)
	cancel()
	close(s.ended)
	s.tasks.Wait()
	return nil
}

// loop is the RIB's goroutine: whatever has arrived is taken in, then decided
// about as one batch. A lone change goes out at once.
func (s *Speaker) loop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case f := <-s.work:
			f()
		}
		s.commands(ctx)
	more:
		for range batchLimit {
			select {
			case f := <-s.work:
				f()
			default:
				break more
			}
		}
		s.rib.flush()
	}
}

// commands runs what was asked for through the methods.
func (s *Speaker) commands(ctx context.Context) {
	s.mu.Lock()
	queued := s.queued
	s.queued = nil
	s.mu.Unlock()
	if len(queued) == 0 {
		return
	}
	for _, f := range queued {
		f()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var started []*fsm
	for _, p := range s.rib.peers {
		if s.machines[p.config.Address] != p.fsm {
			s.machines[p.config.Address] = p.fsm
			started = append(started, p.fsm)
		}
	}
	for a := range s.machines {
		if s.rib.peers[a] == nil {
			delete(s.machines, a)
		}
	}
	s.spares = map[netip.Addr]*fsm{}
	admitted, keys := map[netip.Addr]uint8{}, map[netip.Addr]string{}
	admit := func(a netip.Addr, p *peer) {
		admitted[a] = p.config.leastTTL()
		if p.config.Password != "" {
			keys[a] = p.config.Password
		}
	}
	for _, p := range s.rib.peers {
		for _, ends := range p.config.Spare {
			if s.rib.peers[ends.Remote] == nil {
				s.spares[ends.Remote] = p.fsm
				admit(ends.Remote, p)
			}
		}
	}
	for a, p := range s.rib.peers {
		admit(a, p)
	}
	s.keys.set(keys)
	err := s.gate.admit(admitted)
	if err != nil && len(s.spares) > 0 { // too many: then without what they are seldom known by
		for a := range s.spares {
			delete(admitted, a)
		}
		err = s.gate.admit(admitted)
	}
	if err != nil {
		s.log.Warn("the port is open to everybody", "error", err)
	}
	s.listenFor(ctx)
	for _, f := range started {
		s.tasks.Go(func() { f.run(ctx) })
	}
}

// listenFor has the peers' local addresses listened on that Config.Listen lacks, and no
// others. The caller holds mu.
func (s *Speaker) listenFor(ctx context.Context) {
	wanted := map[netip.AddrPort]bool{}
	for _, p := range s.rib.peers {
		a := p.config.LocalAddress
		listened := slices.ContainsFunc(s.config.Listen, func(l netip.AddrPort) bool { return l.Addr() == a || l.Addr().IsUnspecified() && a.Zone() == "" })
		if a.IsValid() && len(s.config.Listen) > 0 && !listened {
			wanted[netip.AddrPortFrom(a, s.config.Listen[0].Port())] = true
		}
	}
	for a, end := range s.listening {
		if !wanted[a] {
			end()
			delete(s.listening, a)
		}
	}
	for a := range wanted {
		if s.listening[a] == nil {
			ctx, end := context.WithCancel(ctx)
			s.listening[a] = end
			s.tasks.Go(func() { s.listen(ctx, a) })
		}
	}
}

// order queues a command for the RIB's goroutine; before Run it waits there.
func (s *Speaker) order(f func()) {
	s.mu.Lock()
	s.queued = append(s.queued, f)
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// ask runs a question in the RIB's goroutine and waits; without Run it does not. What has
// arrived before is decided about first: until then the best paths are those of before.
func (s *Speaker) ask(f func()) {
	s.mu.Lock()
	running := s.running
	s.mu.Unlock()
	if !running {
		return
	}
	done := make(chan struct{})
	s.order(func() { s.rib.flush(); f(); close(done) })
	select {
	case <-done:
	case <-s.ended:
	}
}

// post hands an event to the RIB's goroutine.
func (s *Speaker) post(f func()) {
	select {
	case s.work <- f:
	case <-s.ended:
	}
}

// do is post that waits until f has run; false if it never will.
func (s *Speaker) do(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	s.post(func() { f(); close(done) })
	select {
	case <-done:
		return true
	case <-s.ended:
	case <-ctx.Done():
	}
	return false
}

// sessionChanged tells the owner.
func (s *Speaker) sessionChanged() {
	if s.config.OnSessionChange != nil {
		s.config.OnSessionChange()
	}
}

// Configure makes peers the whole set of neighbours. New ones start, missing
// ones are ended by Cease/Peer De-configured, changed ones go on with the new
// settings, or are reset where ResetBy says so; HoldTime and KeepaliveTime count from
// the next session on. Call it before Run, together with Originate, when routes are
// adopted: the first call gives them their owners.
func (s *Speaker) Configure(peers []PeerConfig) error {
	seen := map[netip.Addr]bool{}
	for _, p := range peers {
		if err := p.check(); err != nil {
			return err
		}
		if seen[p.Address] {
			return fmt.Errorf("peer %v: configured twice", p.Address)
		}
		seen[p.Address] = true
	}
	peers = slices.Clone(peers)
	s.order(func() { s.configure(peers, seen) })
	return nil
}

// check refuses what cannot work.
func (p PeerConfig) check() error {
	switch {
	case !p.Address.IsValid() || p.Address.IsUnspecified() || p.Address.IsMulticast() || p.Address.Is4In6():
		return fmt.Errorf("peer %v: not an address to connect to", p.Address)
	case p.Address.IsLinkLocalUnicast() && (p.Address.Zone() == "" || p.LocalAddress.Zone() != p.Address.Zone()):
		return fmt.Errorf("peer %v: link-local, and its link or this side's address there is not known", p.Address)
	case p.External != (p.AS == 0) || p.AS == asTrans:
		return fmt.Errorf("peer %v: AS %d: reserved", p.Address, p.AS)
	case p.LocalAS == asTrans:
		return fmt.Errorf("peer %v: local AS %d: reserved", p.Address, p.LocalAS)
	case len(p.Password) > maxKey:
		return fmt.Errorf("peer %v: password: longer than %d bytes", p.Address, maxKey)
	case p.TTLSecurity < 0 || p.TTLSecurity >= farTTL:
		return fmt.Errorf("peer %v: TTL security of %d hops: not from 1 to %d", p.Address, p.TTLSecurity, farTTL-1)
	case p.TTL < 0 || p.TTL > farTTL:
		return fmt.Errorf("peer %v: TTL %d: not from 0 to %d", p.Address, p.TTL, farTTL)
	case p.HoldTime >= 0 && p.HoldTime != 0 && p.HoldTime < 3*time.Second:
		return fmt.Errorf("peer %v: hold time %v: neither 0 nor at least 3 s", p.Address, p.HoldTime)
	case p.HoldTime > 65535*time.Second || p.HoldTime > 0 && p.HoldTime%time.Second != 0:
		return fmt.Errorf("peer %v: hold time %v: not whole seconds up to 65535", p.Address, p.HoldTime)
	case p.LongLived < 0 || p.LongLived > MaxLongLived || p.LongLived%time.Second != 0:
		return fmt.Errorf("peer %v: long-lived time %v: not whole seconds up to %v", p.Address, p.LongLived, MaxLongLived)
	case p.LocalAddress.IsValid() && p.LocalAddress.Is4() != p.Address.Is4():
		return fmt.Errorf("peer %v: local address %v: of another family", p.Address, p.LocalAddress)
	}
	return nil
}

// configure is Configure in the RIB's goroutine.
func (s *Speaker) configure(peers []PeerConfig, wanted map[netip.Addr]bool) {
	r := s.rib
	for a, p := range r.peers {
		if !wanted[a] {
			p.config.Leaving = false // who is no peer at all is told so
			r.dismiss(p)
		}
	}
	for _, c := range peers {
		p := r.peers[c.Address]
		c.Client = c.Client && c.AS == r.config.AS
		if p == nil && c.Leaving {
			continue
		}
		if p == nil {
			p = &peer{config: c, fsm: newFSM(s, c)}
			p.fsm.peer = p
			r.peers[c.Address] = p
			continue
		}
		was := p.config
		if was.AS != c.AS || was.External != c.External {
			r.forget(p)
		}
		if c.Leaving && !p.config.Leaving {
			p.leaving = time.Now()
			// Whoever is waited for may never come.
			r.after(r.config.RestartTime, func() { r.moved = true })
		}
		client := c.Client
		c.Client = p.config.Client
		p.config = c
		p.fsm.want(c, false)
		r.employ(p, client)
		if was.Outside != c.Outside || was.Blackhole != c.Blackhole || was.ImportFilter != c.ImportFilter {
			for d, path := range p.all() {
				r.judge(p, d, path)
				r.mark(d)
			}
		}
		if p.session != nil && was.ResetBy(c) == "" {
			look := p.session.lookFor(c)
			look.client, look.clusterID = p.session.look.client, p.session.look.clusterID
			r.regroup(p.session, look)
		}
		r.fill(p)
	}
	r.moved = true
	r.adopt()
}

// dismiss removes a peer.
func (r *rib) dismiss(p *peer) {
	p.fsm.want(p.config, true)
	r.forget(p)
	delete(r.peers, p.config.Address)
}

// employ makes a peer a client at once, or ends that in a while: until then it may
// have nobody else.
func (r *rib) employ(p *peer, client bool) {
	if p.unclient != nil && client {
		p.unclient.Stop()
		p.unclient = nil
	}
	switch {
	case client == p.config.Client:
	case client:
		r.setClient(p, true)
	case p.unclient == nil:
		var t *time.Timer
		t = r.after(r.config.RestartTime, func() {
			if p.unclient == t && r.peers[p.config.Address] == p {
				p.unclient = nil
				r.setClient(p, false)
			}
		})
		p.unclient = t
	}
}

// setClient changes who the peer's routes are for, and what it is told, in place.
func (r *rib) setClient(p *peer, client bool) {
	p.config.Client = client
	for d := range p.all() {
		r.mark(d)
	}
	if p.session != nil {
		look := p.session.look
		look.client = client
		r.regroup(p.session, look)
	}
}

// forget removes everything that came from a peer.
func (r *rib) forget(p *peer) {
	if p.session != nil {
		r.leave(p.session)
		p.session = nil
	}
	if p.clock != nil {
		p.clock.Stop()
		p.clock, p.renewed = nil, false
	}
	for f := range p.aging {
		p.aging[f].stop()
	}
	for d, path := range p.all() {
		r.remove(p, d, path)
	}
}

// ResetBy says what of next, against p, ends a running session; "" means that
// the change is made in place.
func (p PeerConfig) ResetBy(next PeerConfig) string {
	switch {
	case p.AS != next.AS || p.External != next.External:
		return "AS"
	case p.LocalAS != next.LocalAS:
		return "local AS"
	case (p.Password == "") != (next.Password == ""):
		return "password"
	case p.LocalAddress != next.LocalAddress:
		return "local address"
	case !slices.Equal(p.families(), next.families()):
		return "families"
	case (p.SendPaths != 0) != (next.SendPaths != 0) || p.ReceivePaths != next.ReceivePaths:
		return "several paths"
	case !slices.Equal(p.NextHopSelf, next.NextHopSelf):
		return "next hop"
	}
	return ""
}

// localAS is the AS number of this side.
func (p PeerConfig) localAS(c *Config) uint32 { return cmp.Or(p.LocalAS, c.AS) }

// families are those to be offered.
func (p PeerConfig) families() []Family {
	if len(p.Families) == 0 {
		return []Family{FamilyOf(p.Address)}
	}
	return p.Families
}

// Originate adds and withdraws own prefixes. What is there before Run is sent
// ahead of the first End-of-RIB; after a restart that must be everything that
// was announced before.
func (s *Speaker) Originate(add, withdraw []netip.Prefix) {
	add, withdraw = masked(add), masked(withdraw)
	s.order(func() { s.rib.originate(add, withdraw) })
}

// masked copies prefixes without host bits.
func masked(list []netip.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = p.Masked()
	}
	return out
}

// Retag asks Tags again about all that Originate named.
func (s *Speaker) Retag() { s.order(s.rib.retag) }

// Reimport asks Import and SinglePath again about everything that is held.
func (s *Speaker) Reimport() { s.order(s.rib.reimport) }

// Reinstall has the Installer told again of every best path over one of the next hops:
// Was and Now are equal then.
func (s *Speaker) Reinstall(nextHops map[netip.Addr]bool) {
	s.order(func() { s.rib.reinstall(nextHops) })
}
