package fib

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"netctl/netdev"
	"netctl/routing"
)

const (
	// answerBuffer is the receive buffer in bytes of the socket for requests: it
	// holds a refusal of every route of a batch. What finds it full is lost.
	answerBuffer = 2 << 20
	// eventBuffer is that of the socket for notifications; a burst beyond it costs
	// a full comparison but no correctness.
	eventBuffer = 4 << 20
	// burst is how many notifications are taken in before they are acted on.
	burst = 4096
)

// rtnetlink is the kernel of a network namespace. One socket takes requests, the
// other one notifications.
type rtnetlink struct {
	protocol         uint8
	table            uint32
	anywhere         bool // routes of every table are ours
	requests, events *socket
	names            linkNames
	out              []byte // requests being written
	sent             []sent // which change each of them is

	// Owned by whoever calls hear.
	ignore Ignore
	links  map[uint32]netdev.LinkMessage // as last heard
	poked  atomic.Bool
	// astray: with anywhere, a route was seen in another table; then what goes from one
	// may be in another.
	astray bool
}

func openKernel(c Config) (*rtnetlink, error) {
	requests, err := dial(answerBuffer)
	if err != nil {
		return nil, err
	}
	events, err := dial(eventBuffer)
	if err != nil {
		return nil, errors.Join(err, requests.close())
	}
	table := uint32(cmp.Or(c.Number, unix.RT_TABLE_MAIN))
	return &rtnetlink{protocol: uint8(c.Protocol), table: table, anywhere: c.Anywhere, requests: requests, events: events, names: linkNames{socket: requests}}, nil
}

func (n *rtnetlink) close() error { return errors.Join(n.requests.close(), n.events.close()) }

// write sends the changes in one message; the kernel works them off in order. It
// answers those that it refuses, and the last one in any case.
func (n *rtnetlink) write(changes []change, failed func(int, error)) {
	n.names.reset()
	n.out, n.sent = n.out[:0], n.sent[:0]
	last := 0
	var way encoded
	for i, c := range changes {
		if four := c.key.prefix.Is4(); c.op != opDelete && (c.action != way.action || four != way.four) {
			var err error
			if way, err = n.encode(c.action, four); err != nil {
				failed(i, err)
				way = encoded{}
				continue
			}
		}
		last = len(n.out)
		n.out = n.request(n.out, c, way)
		n.sent = append(n.sent, sent{n.requests.seq, i})
	}
	if len(n.sent) == 0 {
		return
	}
	flags := binary.NativeEndian.Uint16(n.out[last+6:])
	binary.NativeEndian.PutUint16(n.out[last+6:], flags|unix.NLM_F_ACK)
	err := n.requests.send(n.out)
	for done := false; err == nil && !done; {
		err = n.requests.read(func(m message) error {
			at := slices.IndexFunc(n.sent, func(s sent) bool { return s.seq == m.seq })
			if m.kind != unix.NLMSG_ERROR || at < 0 {
				return nil // of a batch that was given up
			}
			done = at == len(n.sent)-1
			i := n.sent[at].change
			if e := refusal(m); e != nil && !(changes[i].op == opDelete && errors.Is(e, unix.ESRCH)) {
				failed(i, e)
			}
			return nil
		})
	}
	if err != nil { // nobody knows what became of them
		for _, s := range n.sent {
			failed(s.change, err)
		}
	}
}

// sent is a request that was written: its sequence number, and which change it is.
type sent struct {
	seq    uint32
	change int
}

// encoded is an action as the kernel takes it for prefixes of a family.
type encoded struct {
	action      *action
	four        bool
	scope, kind uint8
	flags       uint32
	hops        []byte
}

func (n *rtnetlink) encode(a *action, four bool) (encoded, error) {
	if a.kind == routing.Blackhole {
		return encoded{action: a, four: four, kind: unix.RTN_BLACKHOLE}, nil
	}
	if len(a.hops) == 0 {
		return encoded{}, errors.New("no next hop")
	}
	e := encoded{action: a, four: four, kind: unix.RTN_UNICAST}
	if a.group != nil {
		e.hops = appendSource(appendNumber(nil, rtaNextHopID, a.group.id), a.from())
		return e, nil
	}
	hops := make([]hopMessage, 0, len(a.hops))
	for _, h := range a.hops {
		index, err := n.names.index(h.Link)
		if err != nil {
			return encoded{}, err
		}
		hops = append(hops, hopMessage{h.Addr, index, h.Onlink})
	}
	if len(hops) == 1 {
		e.flags = uint32(onlink(hops[0]))
	}
	if !hops[0].addr.IsValid() {
		e.scope = unix.RT_SCOPE_LINK // IPv6 does not look at it
	}
	e.hops = appendSource(appendHops(nil, four, hops), a.from())
	if a.mtu != 0 {
		e.hops = appendMTU(e.hops, uint32(a.mtu))
	}
	return e, nil
}

// request appends the message for one change.
func (n *rtnetlink) request(b []byte, c change, way encoded) []byte {
	start, p := len(b), c.key.prefix.Prefix()
	switch c.op {
	case opDelete:
		b = n.requests.begin(b, unix.RTM_DELROUTE, 0)
		b = appendRtMsg(b, p, unix.RT_TABLE_UNSPEC, n.protocol, unix.RT_SCOPE_NOWHERE, 0, 0)
	case opAdd:
		b = n.requests.begin(b, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
		b = appendRtMsg(b, p, unix.RT_TABLE_UNSPEC, n.protocol, way.scope, way.kind, way.flags)
	case opReplace:
		b = n.requests.begin(b, unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
		b = appendRtMsg(b, p, unix.RT_TABLE_UNSPEC, n.protocol, way.scope, way.kind, way.flags)
	}
	b = appendAddress(b, unix.RTA_DST, p.Addr())
	b = appendNumber(b, unix.RTA_TABLE, n.table)
	metric := c.key.metric
	if metric == 0 && !c.key.prefix.Is4() {
		metric = defaultMetric6
	}
	b = appendNumber(b, unix.RTA_PRIORITY, metric)
	if c.op != opDelete {
		b = append(b, way.hops...)
	}
	finish(b, start)
	return b
}

// dump reads the routes of a protocol, of both families: in our table, the kernel's in
// the main one. Routes with an equal next hop share its slice.
func (n *rtnetlink) dump(ctx context.Context, protocol uint8) ([]routing.Route, error) {
	table := n.table
	switch {
	case protocol != n.protocol:
		table = unix.RT_TABLE_MAIN
	case n.anywhere:
		table = unix.RT_TABLE_UNSPEC
	}
	tables, err := n.dumpTables(ctx, protocol, table)
	if err != nil {
		return nil, fmt.Errorf("read routes of protocol %d: %w", protocol, err)
	}
	if len(tables) == 1 {
		for _, routes := range tables {
			return routes, nil
		}
	}
	var out []routing.Route
	for _, routes := range tables {
		out = append(out, routes...)
	}
	return out, nil
}

// dumpTables is dump of one table, or of each (RT_TABLE_UNSPEC).
func (n *rtnetlink) dumpTables(ctx context.Context, protocol uint8, table uint32) (map[uint32][]routing.Route, error) {
	var grouped map[uint32][]routing.NextHop
	if protocol == n.protocol {
		var err error
		if grouped, err = n.grouped(ctx); err != nil {
			return nil, err
		}
	}
	n.names.reset()
	out := map[uint32][]routing.Route{}
	for _, all := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		lists := map[uint32]*routeList{}
		request := appendRtMsg(nil, all, unix.RT_TABLE_UNSPEC, protocol, 0, 0, 0)
		if table != unix.RT_TABLE_UNSPEC {
			request = appendNumber(request, unix.RTA_TABLE, table)
		}
		var m routeMessage
		err := n.requests.ask(ctx, unix.RTM_GETROUTE, unix.NLM_F_DUMP, request, func() { clear(lists) }, func(b []byte) {
			switch {
			case m.parse(b) != nil || m.protocol != protocol || m.cached() || table != unix.RT_TABLE_UNSPEC && m.table != table:
			case protocol == unix.RTPROT_KERNEL && m.prefix.Addr().IsLinkLocalUnicast():
				// Every link has one, and to ask for its name costs the kernel a look at all namespaces.
			default:
				list := lists[m.table]
				if list == nil {
					list = &routeList{shared: map[hopMessage][]routing.NextHop{}, grouped: grouped}
					lists[m.table] = list
				}
				list.add(&m)
			}
		})
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue // the family has no table yet, or is not in this kernel
		}
		if err != nil {
			return nil, err
		}
		for id, list := range lists {
			for _, h := range list.unnamed {
				h.hop.Link = n.names.name(h.link)
			}
			out[id] = append(out[id], list.routes...)
		}
	}
	return out, nil
}

// grouped are the next hops of our objects that are groups.
func (n *rtnetlink) grouped(ctx context.Context) (map[uint32][]routing.NextHop, error) {
	list, err := n.objects(ctx)
	if errors.Is(err, unix.EOPNOTSUPP) || len(list) == 0 {
		return nil, nil // the kernel has no objects, or none of ours
	}
	if err != nil {
		return nil, fmt.Errorf("read next-hop objects: %w", err)
	}
	byID := map[uint32]routing.NextHop{}
	for _, o := range list {
		byID[o.id] = o.hop
	}
	grouped := map[uint32][]routing.NextHop{}
	for _, o := range list {
		if len(o.members) == 0 {
			continue
		}
		hops := make([]routing.NextHop, len(o.members))
		for i, id := range o.members {
			hops[i] = byID[id]
		}
		grouped[o.id] = order(hops)
	}
	return grouped, nil
}

// routeList collects routes while they are read. The links of next hops are named
// afterwards, since that takes questions of their own.
type routeList struct {
	routes  []routing.Route
	shared  map[hopMessage][]routing.NextHop
	unnamed []unnamedHop
	// grouped are the next hops of our objects: of a route that names one the kernel may
	// say no more than its ID (net.ipv4.nexthop_compat_mode).
	grouped map[uint32][]routing.NextHop
}

type unnamedHop struct {
	hop  *routing.NextHop
	link uint32
}

func (l *routeList) add(m *routeMessage) {
	r := m.route()
	r.Object = m.object
	if hops, ok := l.grouped[m.object]; ok && m.object != 0 {
		r.NextHops = hops
	} else if r.Type == routing.Unicast {
		if r.NextHops = l.shared[m.hops[0]]; r.NextHops == nil || len(m.hops) > 1 {
			r.NextHops = m.nextHops()
			for i, h := range m.hops {
				l.unnamed = append(l.unnamed, unnamedHop{&r.NextHops[i], h.link})
			}
		}
		if len(m.hops) == 1 {
			l.shared[m.hops[0]] = r.NextHops
		}
	}
	l.routes = append(l.routes, r)
}

func (n *rtnetlink) resolve(ctx context.Context, addr netip.Addr) (routing.NextHop, netip.Addr, error) {
	n.names.reset()
	host := netip.PrefixFrom(addr, addr.BitLen())
	request := appendAddress(appendRtMsg(nil, host, 0, 0, 0, 0, 0), unix.RTA_DST, addr)
	var m routeMessage
	parsed := errRoute
	if err := n.requests.ask(ctx, unix.RTM_GETROUTE, 0, request, func() {}, func(b []byte) { parsed = m.parse(b) }); err != nil {
		return routing.NextHop{}, netip.Addr{}, fmt.Errorf("resolve %s: %w (%w)", addr, ErrUnreachable, err)
	}
	if parsed != nil {
		return routing.NextHop{}, netip.Addr{}, fmt.Errorf("resolve %s: %w", addr, parsed)
	}
	if m.kind != unix.RTN_UNICAST {
		return routing.NextHop{}, netip.Addr{}, fmt.Errorf("resolve %s: %w (an address of this machine)", addr, ErrUnreachable)
	}
	hop := routing.NextHop{Addr: m.hops[0].addr, Link: n.names.name(m.hops[0].link)}
	if !hop.Addr.IsValid() {
		hop.Addr = addr
	}
	return hop, m.source, nil
}

func (n *rtnetlink) listen(ctx context.Context, ignore Ignore) error {
	n.ignore = ignore
	if err := n.events.attach(filter(n.protocol, n.requests.port, ignore)); err != nil {
		return fmt.Errorf("filter notifications: %w", err)
	}
	for _, g := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE} {
		if err := n.events.join(g); err != nil {
			return fmt.Errorf("join group %d: %w", g, err)
		}
	}
	n.links = map[uint32]netdev.LinkMessage{}
	err := n.requests.ask(ctx, unix.RTM_GETLINK, unix.NLM_F_DUMP, linkRequest(0, ""), func() { clear(n.links) }, func(b []byte) {
		if l, err := netdev.ParseLink(b); err == nil && l.Family == unix.AF_UNSPEC {
			n.links[uint32(l.Index)] = l
		}
	})
	if err != nil {
		return fmt.Errorf("read links: %w", err)
	}
	return nil
}

func (n *rtnetlink) interrupt() {
	n.poked.Store(true)
	n.events.until(time.Unix(1, 0))
}

func (n *rtnetlink) hear(until time.Time) (heard, error) {
	n.events.until(until)
	if n.poked.Swap(false) {
		return heard{}, nil
	}
	var h heard
	err := n.events.readAll(burst, func(m message) error {
		switch m.kind {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			n.heardLink(m, &h)
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			n.heardRoute(m, &h)
		case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
			if o, _, _, ok := parseObject(m.body); ok && m.port != n.requests.port && ours(o.id, n.protocol) {
				h.objects = true
			}
		case unix.RTM_NEWRULE, unix.RTM_DELRULE:
			if _, protocol, ok := parseRule(m.body); ok && m.port != n.requests.port && protocol == n.protocol {
				h.rules = true
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		n.poked.Store(false)
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, errShort):
		h.lost = true
		for err = os.ErrDeadlineExceeded; errors.Is(err, os.ErrDeadlineExceeded); err = n.events.drain() {
			n.events.until(time.Time{}) // whom interrupt wakes is told the next time
		}
		if err != nil {
			return heard{}, err
		}
	case err != nil:
		return heard{}, err
	}
	return h, nil
}

func (n *rtnetlink) heardRoute(msg message, h *heard) {
	var m routeMessage
	if m.parse(msg.body) != nil || m.cached() {
		return
	}
	here := m.table == n.table
	if n.anywhere && m.protocol == n.protocol && !here {
		here, n.astray = true, true
	}
	switch {
	case m.protocol != n.protocol:
		if foreign(m.prefix) {
			h.foreign = append(h.foreign, m.prefix)
		}
		if msg.kind == unix.RTM_DELROUTE && m.kind == unix.RTN_LOCAL && m.prefix.Addr().Is4() {
			h.unaddressed = append(h.unaddressed, n.linkName(m.hops[0].link))
		}
		if m.kind == unix.RTN_LOCAL && m.prefix.IsSingleIP() {
			h.addresses = append(h.addresses, m.prefix.Addr())
		}
	case here && n.astray && msg.kind == unix.RTM_DELROUTE:
		h.lost = true
	case here:
		r := m.route()
		if r.Type == routing.Unicast {
			r.NextHops = m.nextHops()
			for i := range r.NextHops {
				r.NextHops[i].Link = n.linkName(m.hops[i].link)
			}
		}
		h.changes = append(h.changes, Change{r, msg.kind == unix.RTM_DELROUTE})
	}
	if here {
		h.touched = append(h.touched, keyOf(m.key()))
	}
}

// linkName is what a link was called when it was last heard of.
func (n *rtnetlink) linkName(index uint32) string {
	if index == 0 {
		return ""
	}
	if l, ok := n.links[index]; ok {
		return l.Name
	}
	return unknownLink(index)
}

func (n *rtnetlink) heardLink(m message, h *heard) {
	l, err := netdev.ParseLink(m.body)
	if err != nil || l.Family != unix.AF_UNSPEC || l.Name == "" {
		return
	}
	index := uint32(l.Index)
	old := n.links[index] // of one that is new: down, without a name
	up := l.Up()
	if m.kind == unix.RTM_DELLINK {
		delete(n.links, index)
		up = false
	} else {
		n.links[index] = l
	}
	if old.Running() != (up && l.Running()) && !n.ignore.link(l.Name) {
		h.carrier = append(h.carrier, l.Name)
	}
	if old.Up() && (!up || old.Name != l.Name) && !n.ignore.link(old.Name) {
		h.down = append(h.down, old.Name)
	}
	if up && (!old.Up() || old.Name != l.Name) && !n.ignore.link(l.Name) {
		h.up = append(h.up, l.Name)
	}
}
