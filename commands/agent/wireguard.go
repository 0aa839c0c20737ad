package agent

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"netctl/commands/control"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev/kernel"
	"netctl/routing"
)

// wireguard is this node's key and what the device of WireGuard tunnels has to know of
// the other nodes. Its owner is the loop.
//
// An end is told to others before they may send by it (datastore.Tunnel.Pending): they
// become peers first, shake hands, and only then routes lead through the tunnel.
type wireguard struct {
	kernel wireguardLinks

	key  kernel.WireGuardKey // the device's; zero: none was read or made
	next kernel.WireGuardKey // what takes its place once others know of it; zero: none

	peers    map[string]kernel.WireGuardPeer  // in the kernel, by node
	borrowed map[string]map[netip.Addr]string // by block: addresses in it and which other node has them
	behind   map[string]behind                // by endpoint of another node: networks behind it
	changed  map[string]bool                  // nodes that may be other peers now
	own      bool                             // this node's object changed
	resync   bool                             // what peers the kernel has is not known
	pending  bool                             // others are not to send by it yet
	silent   map[string]*handshake            // peers that have not shaken hands yet
	waits    bool                             // it is looked again whether they have
	told     time.Time                        // since when others know of it; zero: they do not

	paths map[string]*wgPath // by node: the ways to those that have two
	look  bool               // they are looked at
	looks bool               // they will be
	// routed and echoes are outside's.
	routed, echoes func(from, to netip.Addr) bool
}

// handshake is one that is waited for.
type handshake struct {
	since, again time.Time
	wait         time.Duration // between again and the try before
}

// The time in which peers have to answer before others are told to send by the tunnel
// all the same, how often that is looked at, and when they are asked a second time: the
// kernel does that only after five seconds, also where the first try was no use since
// the other node did not know this one.
const (
	answerWithin = 10 * time.Second
	answerEvery  = 50 * time.Millisecond
	askAgain     = 200 * time.Millisecond
)

// ask waits for a handshake with a peer from now on.
func (w *wireguard) ask(name string) {
	now := time.Now()
	w.silent[name] = &handshake{now, now.Add(askAgain), askAgain}
}

// wireguardLinks is what wireguard asks of netdev/kernel.
type wireguardLinks interface {
	SetWireGuardPeers(device string, peers []kernel.WireGuardPeer, nobodys []netip.Prefix, remove []kernel.WireGuardKey) error
	WireGuardPeers(device string) (map[kernel.WireGuardKey]kernel.WireGuardState, error)
}

func newWireguard(k wireguardLinks) *wireguard {
	return &wireguard{
		kernel: k, peers: map[string]kernel.WireGuardPeer{}, borrowed: map[string]map[netip.Addr]string{}, behind: map[string]behind{}, changed: map[string]bool{},
		silent: map[string]*handshake{}, resync: true, pending: true, paths: map[string]*wgPath{},
	}
}

// keyFile is the name of the private key's file in the state folder; its form is that
// of `wg genkey`.
const keyFile = "wireguard.key"

// whatKey names what may be wrong with it.
const whatKey = "wireguard key"

// ready says whether there is a key.
func (w *wireguard) ready() bool { return w.key != kernel.WireGuardKey{} }

// public is the key that others are told.
func (w *wireguard) public() string {
	switch {
	case w.next != (kernel.WireGuardKey{}):
		return publicKey(w.next)
	case w.ready():
		return publicKey(w.key)
	}
	return ""
}

// gone is for a device that is.
func (w *wireguard) gone() {
	clear(w.peers)
	clear(w.silent)
	w.resync, w.pending, w.told = true, true, time.Time{}
}

// lookAtKey takes over the key of the state folder. Before a device with another one
// changes, the other nodes are told: they take the new one when this node does.
func (l *loop) lookAtKey() {
	w := l.wireguard
	key, err := readKey(l.cfg.StateDir)
	if err != nil {
		l.problems.failed(whatKey, err)
		return
	}
	l.problems.solved(whatKey)
	switch {
	case key == w.key:
		w.next = kernel.WireGuardKey{}
	case key == w.next:
		return
	case !w.ready() || l.tunnels.there[datastore.TunnelWireGuard].Name == "":
		w.key = key
	default:
		w.next = key
		l.log.Info("wireguard: new key, others are told of it first")
		l.changedHost()
	}
	l.tunnels.changed = true
}

// asksForWireGuard says whether a pool does.
func (l *loop) asksForWireGuard() bool {
	return slices.ContainsFunc(l.view.Pools(), func(p *datastore.Pool) bool {
		kinds, _ := p.Spec.Encap.Tunnels()
		return slices.Contains(kinds, datastore.TunnelWireGuard)
	})
}

// block takes a change of a block.
func (w *wireguard) block(name string, old, b *datastore.Block) {
	for _, o := range w.borrowed[name] {
		w.changed[o] = true
	}
	delete(w.borrowed, name)
	for _, x := range []*datastore.Block{old, b} {
		if x != nil && (old == nil || b == nil || old.Spec.Affinity != b.Spec.Affinity || old.Spec.CIDR != b.Spec.CIDR) {
			w.changed[x.Spec.Affinity] = true
		}
	}
	if b == nil {
		return
	}
	if list := ipam.Borrowed(b); len(list) > 0 {
		w.borrowed[name] = list
		for _, o := range list {
			w.changed[o] = true
		}
	}
}

// peer is another node as a peer; false: it is none.
func (l *loop) peer(self *datastore.Node, name string) (p kernel.WireGuardPeer, ok bool) {
	n := l.view.Node(name)
	if n == nil || self == nil || n == self {
		return p, false
	}
	end, _ := n.TunnelOf(datastore.TunnelWireGuard)
	key, err := parseKey(end.Key)
	remote := routing.Between(self, n)
	if bothFamilies(self, n) {
		remote = l.wireguard.pathTo(n)
	}
	if err != nil || !remote.IsValid() {
		return p, false
	}
	p = kernel.WireGuardPeer{Key: key, Asks: l.cfg.Node < name, Endpoint: netip.AddrPortFrom(remote, l.cfg.WireGuardPort)}
	for _, a := range n.Spec.Addresses {
		p.Allowed = append(p.Allowed, single(a.Addr()))
	}
	for _, b := range l.view.BlocksOf(name) {
		p.Allowed = append(p.Allowed, b.Spec.CIDR)
	}
	for _, of := range l.wireguard.borrowed {
		for a, node := range of {
			if node == name {
				p.Allowed = append(p.Allowed, single(a))
			}
		}
	}
	for _, of := range l.wireguard.behind {
		if of.node == name {
			p.Allowed = append(p.Allowed, of.prefixes...)
		}
	}
	slices.SortFunc(p.Allowed, datastore.ComparePrefix)
	return p, true
}

func samePeer(a, b kernel.WireGuardPeer) bool {
	return a.Key == b.Key && a.Endpoint == b.Endpoint && slices.Equal(a.Allowed, b.Allowed)
}

// flushKey brings this node's key up to date.
func (l *loop) flushKey() {
	w := l.wireguard
	_, there := l.tunnels.there[datastore.TunnelWireGuard]
	again := l.problems.again.Again(whatKey)
	switch {
	case w.ready() && !again:
	case !there && !l.asksForWireGuard():
		l.problems.drop(whatKey)
	case l.problems.due(whatKey):
		l.lookAtKey()
	}
	self := l.view.Node(l.cfg.Node)
	if !w.ready() || self == nil || !w.own && !again {
		return
	}
	w.own = false
	l.retireKey(self)
	l.takeKey(self)
}

// flushWireGuard brings the peers up to date, and has others told when they may send.
func (l *loop) flushWireGuard() {
	w := l.wireguard
	what := "wireguard peers"
	device, there := l.tunnels.there[datastore.TunnelWireGuard]
	if l.filtering.index.SetWireGuard(device.Port) {
		l.again()
	}
	if !there || device.Port == 0 {
		l.problems.drop(what)
		return
	}
	self := l.view.Node(l.cfg.Node)
	w.resync = w.resync || l.problems.again.Again(what)
	if !l.problems.due(what) {
		return
	}
	var err error
	if w.resync || len(w.changed) > 0 {
		err = l.setPeers(self, device.Name)
	}
	if err == nil {
		err = l.lookAtPaths(self, device.Name)
	}
	if len(w.silent) > 0 && err == nil && !w.waits {
		err = l.listen(device.Name)
		l.lookSoon()
	}
	if err != nil {
		w.resync = true
		l.problems.failed(what, err)
		return
	}
	l.problems.solved(what)
	if w.pending && self != nil {
		l.awaitPeers(self)
	}
}

// retireKey makes another key if the one that the others know is not to be used any more.
func (l *loop) retireKey(self *datastore.Node) {
	if self.Spec.RetiredKey == "" || self.Spec.RetiredKey != l.wireguard.public() {
		return
	}
	if _, err := makeKey(l.cfg.StateDir); err != nil {
		l.problems.failed(whatKey, err)
		return
	}
	l.lookAtKey()
}

// takeKey gives the device the key that the others know by now, and finds out after a
// start whether they may send already.
func (l *loop) takeKey(self *datastore.Node) {
	w := l.wireguard
	end, _ := self.TunnelOf(datastore.TunnelWireGuard)
	switch {
	case end.Key == "":
	case w.next != (kernel.WireGuardKey{}) && end.Key == publicKey(w.next):
		w.key, w.next = w.next, kernel.WireGuardKey{}
		l.log.Info("wireguard: new key taken")
		for name := range w.peers {
			w.ask(name)
		}
		l.tunnels.changed = true
	case end.Key == publicKey(w.key):
		if w.told.IsZero() {
			w.told = time.Now()
		}
		w.pending = w.pending && end.Pending
	}
}

// setPeers writes what of the peers changed, or where the kernel's are not known all.
func (l *loop) setPeers(self *datastore.Node, device string) error {
	w := l.wireguard
	now := maps.Clone(w.peers)
	var was, lost []netip.Prefix // that may be nobody's now; that a peer has no more
	var remove []kernel.WireGuardKey
	shaken := map[kernel.WireGuardKey]bool{}
	if w.resync {
		have, err := w.kernel.WireGuardPeers(device)
		if err != nil {
			return err
		}
		clear(now)
		for _, n := range l.view.Nodes() {
			w.changed[n.Metadata.Name] = true
		}
		for name := range w.changed {
			if p, ok := l.peer(self, name); ok {
				w.keepPath(l.view.Node(name), have[p.Key].Endpoint.Addr())
				was = append(was, have[p.Key].Allowed...)
				shaken[p.Key] = !have[p.Key].Answered.IsZero()
				delete(have, p.Key)
			}
		}
		remove = slices.Collect(maps.Keys(have))
	}
	var set []kernel.WireGuardPeer
	for name := range w.changed {
		old, had := now[name]
		p, ok := l.peer(self, name)
		switch {
		case had && (!ok || old.Key != p.Key):
			remove = append(remove, old.Key)
			delete(now, name)
			delete(w.silent, name)
		case had:
			was = append(was, old.Allowed...)
		}
		for _, a := range old.Allowed {
			if !ok || !slices.Contains(p.Allowed, a) {
				lost = append(lost, a)
			}
		}
		if ok {
			if now[name] = p; !had || !samePeer(old, p) {
				if had && old.Key == p.Key && old.Endpoint == p.Endpoint {
					p.Endpoint = netip.AddrPort{} // the kernel may know better by now
				}
				set = append(set, p)
			}
			if (!had || old.Key != p.Key) && !shaken[p.Key] {
				w.ask(name)
			}
		}
	}
	nobodys := slices.DeleteFunc(was, func(a netip.Prefix) bool {
		for _, p := range now {
			if slices.Contains(p.Allowed, a) {
				return true
			}
		}
		return false
	})
	// What one peer has lost and another has too the kernel may have given to the first, and
	// gives to the other only when it is told again.
	for _, p := range now {
		isLost := func(a netip.Prefix) bool { return slices.Contains(p.Allowed, a) }
		if slices.ContainsFunc(lost, isLost) && !slices.ContainsFunc(set, func(o kernel.WireGuardPeer) bool { return o.Key == p.Key }) {
			set = append(set, p)
		}
	}
	if len(set) > 0 || len(nobodys) > 0 || len(remove) > 0 {
		if err := w.kernel.SetWireGuardPeers(device, set, nobodys, remove); err != nil {
			return err
		}
	}
	w.peers, w.resync = now, false
	clear(w.changed)
	return nil
}

// listen finds out who has shaken hands, and asks those again that this node has to ask.
func (l *loop) listen(device string) error {
	w := l.wireguard
	have, err := w.kernel.WireGuardPeers(device)
	if err != nil {
		return err
	}
	var again []kernel.WireGuardPeer
	var keys []kernel.WireGuardKey
	now := time.Now()
	for name, h := range w.silent {
		p, is := w.peers[name]
		switch {
		case !is, have[p.Key].Answered.After(h.since), now.Sub(h.since) > answerWithin:
			delete(w.silent, name)
		case p.Asks && now.After(h.again):
			h.wait *= 2
			h.again = now.Add(h.wait)
			again, keys = append(again, p), append(keys, p.Key)
		}
	}
	if len(again) == 0 {
		return nil
	}
	// Only a peer that is new is asked at once.
	if err := w.kernel.SetWireGuardPeers(device, nil, nil, keys); err != nil {
		return err
	}
	return w.kernel.SetWireGuardPeers(device, again, nil, nil)
}

// awaitPeers has others told to send by the tunnel once every peer has answered: one that
// is away costs answerWithin.
func (l *loop) awaitPeers(self *datastore.Node) {
	w := l.wireguard
	switch {
	case w.told.IsZero(): // others do not know of it
		return
	case len(w.silent) > 0:
		return
	case time.Since(w.told) < answerWithin && slices.ContainsFunc(l.view.Nodes(), func(n *datastore.Node) bool { return n != self && l.lacksKey(n) }):
		l.lookSoon()
		return
	}
	w.pending = false
	l.changedHost()
}

// lookSoon has the loop look at handshakes again.
func (l *loop) lookSoon() {
	if w := l.wireguard; !w.waits {
		w.waits = true
		time.AfterFunc(answerEvery, func() { l.post(func() { w.waits = false }) })
	}
}

// lacksKey says whether a node with an agent has not told its key yet, though it will.
func (l *loop) lacksKey(n *datastore.Node) bool {
	end, _ := n.TunnelOf(datastore.TunnelWireGuard)
	return n.Status.Host != "" && end.Key == ""
}

// keyFolder is where the key of WireGuard is: somebody who removes or replaces it wants
// another one.
func (a *agent) keyFolder() control.Folder {
	return control.Folder{Dir: a.cfg.StateDir, Look: func(name string) error {
		if name == keyFile || name == "" {
			a.loop.post(func() {
				if a.loop.wireguard.ready() {
					a.loop.lookAtKey()
				}
			})
		}
		return nil
	}}
}
