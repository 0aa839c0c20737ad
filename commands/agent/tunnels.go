package agent

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"netctl/commands/workload"
	"netctl/datastore"
	"netctl/datastore/ipam"
	"netctl/netdev"
	"netctl/netdev/kernel"
)

// tunnels are the devices at this node's end of the tunnels to others. Its owner is
// the loop.
//
// A device is there before others are told of it, and stays for a while after the last
// pool that asked for it does not any more: until then others may send by it.
type tunnels struct {
	kernel tunnelLinks
	names  map[datastore.TunnelKind]string
	rest   time.Duration // how long a device stays that nobody asks for

	there   map[datastore.TunnelKind]kernel.Tunnel // as they were set
	indexes map[int]bool                           // of the devices
	until   map[datastore.TunnelKind]time.Time     // they are not asked for, and go then
	held    map[string][]netip.Addr                // this node's addresses in tunnels, by block
	only6   map[string]bool                        // the nodes that have an IPv6 address alone
	six     map[string]bool                        // those that have one

	changed bool // another may be wanted
	resync  bool // what is there is not known
	known   bool // it was at least once
}

// tunnelLinks is what tunnels asks of netdev/kernel.
type tunnelLinks interface {
	SetTunnel(t kernel.Tunnel) (index int, err error)
	RemoveTunnel(name string) error
	Tunnels() ([]string, error)
}

// tunnelRest is how long a device stays that no pool asks for: far longer than others
// take to hear of that.
const tunnelRest = 5 * time.Minute

func newTunnels(k tunnelLinks, cfg Config) *tunnels {
	return &tunnels{
		kernel: k, names: cfg.Tunnels, rest: cmp.Or(cfg.tunnelRest, tunnelRest), there: map[datastore.TunnelKind]kernel.Tunnel{}, indexes: map[int]bool{},
		until: map[datastore.TunnelKind]time.Time{}, held: map[string][]netip.Addr{}, only6: map[string]bool{}, six: map[string]bool{}, resync: true,
	}
}

// overhead in bytes is what a tunnel puts around a packet: an IPv4 header; with VXLAN
// an IPv4 or IPv6, a UDP, a VXLAN and an Ethernet header (RFC 7348, section 5); with
// WireGuard an IPv4 or IPv6 (v6), a UDP and its own header, and the tag.
func overhead(k datastore.TunnelKind, v6 bool) int {
	switch k {
	case datastore.TunnelIPIP:
		return 20
	case datastore.TunnelVXLAN:
		return 20 + 8 + 8 + 14
	case datastore.TunnelVXLAN6:
		return 40 + 8 + 8 + 14
	}
	const header, tag = 16, 16
	if v6 {
		return 40 + 8 + header + tag
	}
	return 20 + 8 + header + tag
}

// takes is how much of the MTU a kind takes on a node: WireGuard by the larger header if
// some node is reached over IPv6.
func (t *tunnels) takes(own *datastore.Node, k datastore.TunnelKind) int {
	return overhead(k, !own.Address(false).IsValid() || len(t.only6) > 0 && own.Address(true).IsValid())
}

// block takes a change of a block (nil: it is gone) and says whether addresses of this
// node's tunnels came or went with it.
func (t *tunnels) block(name, handle string, b *datastore.Block) bool {
	var now []netip.Addr
	if b != nil {
		now = ipam.Held(b, handle)
	}
	if slices.Equal(t.held[name], now) {
		return false
	}
	if t.held[name] = now; len(now) == 0 {
		delete(t.held, name)
	}
	t.changed = true
	return true
}

// node takes a change of another node's addresses (nil: it is gone).
func (t *tunnels) node(name string, n *datastore.Node) {
	only6, six := len(t.only6), len(t.six)
	if delete(t.only6, name); n != nil && n.Address(true).IsValid() && !n.Address(false).IsValid() {
		t.only6[name] = true
	}
	if delete(t.six, name); n != nil && n.Address(true).IsValid() {
		t.six[name] = true
	}
	t.changed = t.changed || (only6 == 0) != (len(t.only6) == 0) || (six == 0) != (len(t.six) == 0)
}

// event takes a change of one of the host's own interfaces.
func (t *tunnels) event(e kernel.Event) {
	for _, name := range t.names {
		t.resync = t.resync || e.Link == name
	}
	t.resync = t.resync || t.indexes[e.Index]
}

// addresses are this node's in tunnels, sorted.
func (t *tunnels) addresses() (list []netip.Addr) {
	for _, of := range t.held {
		list = append(list, of...)
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return list
}

// ends are what others are told.
func (l *loop) ends(mac string) (list []datastore.Tunnel) {
	t := l.tunnels
	for _, k := range netdev.TunnelKinds() {
		if _, ok := t.there[k]; !ok {
			continue
		}
		end := datastore.Tunnel{Kind: k}
		if k != datastore.TunnelIPIP {
			end.MAC = mac
		}
		if k == datastore.TunnelWireGuard {
			end.Key, end.Pending = l.wireguard.public(), l.wireguard.pending
		}
		list = append(list, end)
	}
	return list
}

// spare says whether a kind of tunnel is for the time that IPv4 does not get through:
// nothing is made smaller for it.
func (t *tunnels) spare(own *datastore.Node, k datastore.TunnelKind) bool {
	return k == datastore.TunnelVXLAN6 && own.Address(false).IsValid() && len(t.only6) == 0
}

// usable are the kinds of tunnels that this node can have of those that a pool asks
// for; VXLAN over IPv6 only if some node can be reached so.
func (t *tunnels) usable(own *datastore.Node, e datastore.Encap) (list []datastore.TunnelKind) {
	v4, v6 := own.Address(false).IsValid(), own.Address(true).IsValid()
	kinds, _ := e.Tunnels()
	for _, k := range kinds {
		if k != datastore.TunnelVXLAN6 && v4 || k == datastore.TunnelVXLAN6 && v6 && (!v4 || len(t.six) > 0) || k == datastore.TunnelWireGuard && v6 {
			list = append(list, k)
		}
	}
	return list
}

// wantedTunnels are the devices that pools ask for.
func (l *loop) wantedTunnels() map[datastore.TunnelKind]kernel.Tunnel {
	want := map[datastore.TunnelKind]kernel.Tunnel{}
	own := l.view.Node(l.cfg.Node)
	if own == nil {
		return want
	}
	mtu, addrs := l.uplink().MTU, l.tunnels.addresses()
	for _, p := range l.view.Pools() {
		for _, k := range l.tunnels.usable(own, p.Spec.Encap) {
			if k == datastore.TunnelWireGuard && !l.wireguard.ready() {
				continue
			}
			d := kernel.Tunnel{Name: l.tunnels.names[k], Kind: k, Local: own.Address(k == datastore.TunnelVXLAN6)}
			if mtu > 0 {
				d.MTU = mtu - l.tunnels.takes(own, k)
			}
			switch k {
			case datastore.TunnelVXLAN, datastore.TunnelVXLAN6:
				d.MAC = netdev.TunnelMAC(l.host)
			case datastore.TunnelWireGuard:
				d.Local, d.Private, d.Port = netip.Addr{}, l.wireguard.key, l.cfg.WireGuardPort
			}
			for _, a := range addrs {
				if k != datastore.TunnelIPIP || a.Is4() {
					d.Addresses = append(d.Addresses, a)
				}
			}
			want[k] = d
		}
	}
	return want
}

// flushTunnels brings the devices up to date, and has others told of them.
func (l *loop) flushTunnels() {
	t := l.tunnels
	for _, k := range netdev.TunnelKinds() {
		t.resync = t.resync || l.problems.again.Again("tunnel "+t.names[k])
	}
	t.resync = t.resync || l.problems.again.Again("tunnels")
	if !t.changed && !t.resync || !l.problems.due("tunnels") {
		return
	}
	if t.resync {
		if err := l.readTunnels(); err != nil {
			l.problems.failed("tunnels", err)
			return
		}
		l.problems.solved("tunnels")
	}
	before, resync := l.ends(""), t.resync
	want := l.wantedTunnels()
	t.changed, t.resync = false, false
	for _, k := range netdev.TunnelKinds() {
		if d, wanted := want[k]; wanted {
			delete(t.until, k)
			if was, ok := t.there[k]; !ok || resync || !sameTunnel(was, d) {
				l.setTunnel(k, d)
			}
		} else if was, ok := t.there[k]; ok {
			l.leaveTunnel(k, was, resync)
		} else {
			l.problems.drop("tunnel " + t.names[k])
		}
	}
	if first := !t.known; first || !slices.Equal(before, l.ends("")) {
		t.known = true
		l.changedHost()
	}
}

// readTunnels finds those that are there already, and removes the ones that are called
// by a name that no tunnel has any more.
func (l *loop) readTunnels() error {
	t := l.tunnels
	names, err := t.kernel.Tunnels()
	if err != nil {
		return err
	}
	clear(t.indexes)
	for _, name := range names {
		found := false
		for k, n := range t.names {
			if _, known := t.there[k]; n == name {
				found = true
				if !known {
					t.there[k] = kernel.Tunnel{Name: name, Kind: k}
				}
			}
		}
		if !found {
			l.log.Info("tunnel of another name removed", "link", name)
			if err := t.kernel.RemoveTunnel(name); err != nil {
				return err
			}
		}
	}
	for k, n := range t.names {
		if !slices.Contains(names, n) {
			delete(t.there, k)
		}
	}
	return nil
}

func (l *loop) setTunnel(k datastore.TunnelKind, d kernel.Tunnel) {
	what := "tunnel " + d.Name
	if !l.problems.due(what) {
		return
	}
	index, err := l.tunnels.kernel.SetTunnel(d)
	if err != nil {
		delete(l.tunnels.there, k)
		l.problems.failed(what, err)
		return
	}
	l.problems.solved(what)
	if _, had := l.tunnels.there[k]; !had {
		l.log.Info("tunnel set up", "link", d.Name, "addresses", d.Addresses, "mtu", d.MTU)
		if k == datastore.TunnelWireGuard {
			l.wireguard.resync = true // whoever took the device away took its peers along
		}
	}
	l.tunnels.there[k], l.tunnels.indexes[index] = d, true
}

// guardVXLAN has the packet filter keep strangers out of the VXLAN tunnels that there are.
func (l *loop) guardVXLAN() {
	id := uint32(0)
	for _, k := range []datastore.TunnelKind{datastore.TunnelVXLAN, datastore.TunnelVXLAN6} {
		if _, there := l.tunnels.there[k]; there {
			id = kernel.VXLANID
		}
	}
	if l.filtering.index.SetVXLAN(id) {
		l.again()
	}
}

// leaveTunnel lets a device go that is not asked for any more, once it has rested;
// until then it stays what it is.
func (l *loop) leaveTunnel(k datastore.TunnelKind, d kernel.Tunnel, resync bool) {
	t := l.tunnels
	now := time.Now()
	switch until, resting := t.until[k]; {
	case !resting:
		t.until[k] = now.Add(t.rest)
		time.AfterFunc(t.rest, func() { l.post(func() { t.changed = true }) })
		return
	case now.Before(until):
		if resync && (d.Local.IsValid() || d.Port != 0) { // else it is of a life before
			l.setTunnel(k, d)
		}
		return
	}
	if err := t.kernel.RemoveTunnel(d.Name); err != nil {
		l.problems.failed("tunnel "+d.Name, err)
		return
	}
	if k == datastore.TunnelWireGuard {
		l.wireguard.gone()
	}
	l.log.Info("tunnel removed", "link", d.Name)
	l.problems.drop("tunnel " + d.Name)
	delete(t.there, k)
	delete(t.until, k)
	l.sizes.changed, l.sizes.rested = true, true
	l.changedTunnels()
}

func sameTunnel(a, b kernel.Tunnel) bool {
	return a.Name == b.Name && a.Local == b.Local && a.MAC == b.MAC && a.MTU == b.MTU && a.Private == b.Private && a.Port == b.Port && slices.Equal(a.Addresses, b.Addresses)
}

// tunnelled are the pools whose packets to other nodes may go through a tunnel, each
// with what has room for them there.
func (l *loop) tunnelled() (list []workload.PoolUplink) {
	u, own := l.uplink(), l.view.Node(l.cfg.Node)
	if own == nil || u.MTU == 0 {
		return nil
	}
	for _, p := range l.view.Pools() {
		of := workload.PoolUplink{CIDR: p.Spec.CIDR}
		for _, k := range l.tunnels.usable(own, p.Spec.Encap) {
			if room := u.MTU - l.tunnels.takes(own, k); !l.tunnels.spare(own, k) && (of.MTU == 0 || room < of.MTU) {
				of.Uplink = workload.Uplink{Link: l.tunnels.names[k], MTU: room}
			}
		}
		if of.MTU > 0 {
			list = append(list, of)
		}
	}
	return list
}

// tunnelNeeds is what the node's addresses in tunnels should be: of each family one in
// a pool that asks for a tunnel, so that what the host itself sends to an endpoint
// elsewhere is answered through it too.
type tunnelNeeds struct {
	release []netip.Addr
	assign  [][]netip.Prefix // the pools of a family to draw from
}

func (l *loop) tunnelNeeds() (n tunnelNeeds) {
	t := l.tunnels
	own := l.view.Node(l.cfg.Node)
	if own == nil {
		return n
	}
	var from, in [2][]netip.Prefix // pools to draw from, and to have one in
	for _, p := range l.view.Pools() {
		if p.Spec.Removed || len(t.usable(own, p.Spec.Encap)) == 0 {
			continue
		}
		f := 0
		if p.Spec.CIDR.Addr().Is6() {
			f = 1
		}
		in[f] = append(in[f], p.Spec.CIDR)
		if sel, err := datastore.ParseSelector(p.Spec.NodeSelector); !p.Spec.Disabled && err == nil && sel.Matches(own.Metadata.Labels) {
			from[f] = append(from[f], p.Spec.CIDR)
		}
	}
	var has [2]bool
	for _, a := range t.addresses() {
		f := 0
		if a.Is6() {
			f = 1
		}
		inside := slices.ContainsFunc(in[f], func(p netip.Prefix) bool { return p.Contains(a) })
		switch resting := len(in[f]) == 0 && len(t.there) > 0; {
		case !has[f] && (inside || resting):
			has[f] = true
		default:
			n.release = append(n.release, a)
		}
	}
	for f := range from {
		if !has[f] && len(from[f]) > 0 {
			n.assign = append(n.assign, from[f])
		}
	}
	return n
}
