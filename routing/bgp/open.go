package bgp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	codec "github.com/osrg/gobgp/v3/pkg/packet/bgp"
)

// asTrans stands for an AS number of four bytes in OPEN (RFC 6793, section 9).
const asTrans = codec.AS_TRANS

// capExtended is the Extended Message capability (RFC 8654), which the codec does not know.
const capExtended codec.BGPCapabilityCode = 6

// graceful is a Graceful Restart capability (RFC 4724, section 3).
type graceful struct {
	restarting   bool // R
	notification bool // N (RFC 8538)
	time         time.Duration
	listed       [2]bool // by Family
	forwarding   [2]bool // F
}

// lists reports whether a family is in the capability; nil: there is none.
func (g *graceful) lists(f Family) bool { return g != nil && g.listed[f] }

// open is an OPEN: ours to be sent or the peer's.
type open struct {
	as       uint32
	hold     time.Duration
	id       netip.Addr
	families [2]bool
	as4      bool
	refresh  bool
	enhanced bool // route refresh (RFC 7313)
	// extended: messages may be longer than 4096 bytes (RFC 8654).
	extended bool
	// paths says by Family whether several paths are taken or sent (RFC 7911).
	paths [2]codec.BGPAddPathMode
	// crossing: IPv4 prefixes may have IPv6 next hops (RFC 8950, section 4).
	crossing bool
	gr       *graceful
	long     *longLived // stands only beside gr
	// named: it tells its host name (draft-walton-bgp-hostname-capability), as FRR does.
	named bool
}

// routeFamily is the codec's word for a family.
func (f Family) routeFamily() codec.RouteFamily {
	if f == IPv4 {
		return codec.RF_IPv4_UC
	}
	return codec.RF_IPv6_UC
}

// afi is the family's number (RFC 4760).
func (f Family) afi() uint8 {
	if f == IPv4 {
		return codec.AFI_IP
	}
	return codec.AFI_IP6
}

// familyFrom maps AFI and SAFI (RFC 4760).
func familyFrom(afi uint16, safi uint8) (Family, bool) {
	switch {
	case safi != codec.SAFI_UNICAST:
	case afi == codec.AFI_IP:
		return IPv4, true
	case afi == codec.AFI_IP6:
		return IPv6, true
	}
	return 0, false
}

// message is o on the wire.
func (o *open) message() ([]byte, error) {
	var caps []codec.ParameterCapabilityInterface
	for f, on := range o.families {
		if on {
			caps = append(caps, codec.NewCapMultiProtocol(Family(f).routeFamily()))
		}
	}
	caps = append(caps, codec.NewCapRouteRefresh(), codec.NewCapFourOctetASNumber(o.as))
	if o.named { // a test's peer
		caps = append(caps, codec.NewCapFQDN("tor1", ""))
	}
	if o.enhanced {
		caps = append(caps, codec.NewCapEnhancedRouteRefresh())
	}
	if o.extended {
		caps = append(caps, codec.NewCapUnknown(capExtended, nil))
	}
	var several []*codec.CapAddPathTuple
	for f, mode := range o.paths {
		if mode != 0 {
			several = append(several, codec.NewCapAddPathTuple(Family(f).routeFamily(), mode))
		}
	}
	if several != nil {
		caps = append(caps, codec.NewCapAddPath(several))
	}
	if o.crossing {
		caps = append(caps, codec.NewCapExtendedNexthop([]*codec.CapExtendedNexthopTuple{codec.NewCapExtendedNexthopTuple(codec.RF_IPv4_UC, codec.AFI_IP6)}))
	}
	if o.gr != nil {
		var tuples []*codec.CapGracefulRestartTuple
		for f, on := range o.gr.listed {
			if on {
				tuples = append(tuples, codec.NewCapGracefulRestartTuple(Family(f).routeFamily(), o.gr.forwarding[f]))
			}
		}
		caps = append(caps, codec.NewCapGracefulRestart(o.gr.restarting, o.gr.notification, uint16(o.gr.time/time.Second), tuples))
	}
	if o.long != nil {
		caps = append(caps, o.long.capability())
	}
	as := uint16(asTrans)
	if o.as <= 0xffff {
		as = uint16(o.as)
	}
	b, err := codec.NewBGPOpenMessage(as, uint16(o.hold/time.Second), o.id.String(),
		[]codec.OptionParameterInterface{codec.NewOptionParameterCapability(caps)}).Serialize()
	if err != nil {
		return nil, fmt.Errorf("encode OPEN: %w", err)
	}
	return b, nil
}

// parseOpen takes an OPEN's body apart (RFC 4271, section 4.2; parameters
// longer than 255 bytes: RFC 9072).
func parseOpen(b []byte) (*open, *fault) {
	if len(b) < 10 {
		return nil, &fault{codeOpen, 0, nil, "OPEN is too short"}
	}
	// "If the version number in the Version field of the received OPEN
	// message is not supported, then the Error Subcode MUST be set to
	// Unsupported Version Number" (section 6.2).
	if b[0] != 4 {
		return nil, &fault{codeOpen, 1, []byte{0, 4}, fmt.Sprintf("unsupported BGP version %d", b[0])}
	}
	o := &open{
		as:   uint32(binary.BigEndian.Uint16(b[1:])),
		hold: time.Duration(binary.BigEndian.Uint16(b[3:])) * time.Second,
		id:   netip.AddrFrom4([4]byte(b[5:9])),
	}
	params, wide := b[10:], false
	// The short length, unless it is 0, "MUST be disregarded on receipt" where the
	// first parameter's type is 255 (RFC 9072, section 2).
	if len(params) > 0 && b[9] != 0 && params[0] == 255 {
		wide = true
		if len(params) < 3 {
			return nil, &fault{codeOpen, 0, nil, "OPEN has a bad parameter length"}
		}
		n := int(binary.BigEndian.Uint16(params[1:]))
		params = params[3:]
		if n != len(params) {
			return nil, &fault{codeOpen, 0, nil, "OPEN has a bad parameter length"}
		}
	} else if int(b[9]) != len(params) {
		return nil, &fault{codeOpen, 0, nil, "OPEN has a bad parameter length"}
	}
	multiprotocol := false
	for len(params) > 0 {
		head := 2
		if wide {
			head = 3
		}
		if len(params) < head {
			return nil, &fault{codeOpen, 0, nil, "OPEN has a cut parameter"}
		}
		n := int(params[1])
		if wide {
			n = int(binary.BigEndian.Uint16(params[1:]))
		}
		if len(params) < head+n {
			return nil, &fault{codeOpen, 0, nil, "OPEN has a cut parameter"}
		}
		// "If one of the Optional Parameters in the OPEN message is not
		// recognized, then the Error Subcode MUST be set to Unsupported
		// Optional Parameters" (section 6.2).
		if params[0] != codec.BGP_OPT_CAPABILITY {
			return nil, &fault{codeOpen, 4, nil, fmt.Sprintf("unknown OPEN parameter %d", params[0])}
		}
		if f := o.capabilities(params[head:head+n], &multiprotocol); f != nil {
			return nil, f
		}
		params = params[head+n:]
	}
	if !multiprotocol {
		o.families[IPv4] = true
	}
	if o.gr == nil {
		o.long = nil // means nothing alone (RFC 9494, section 3.1)
	}
	return o, nil
}

// capabilities reads one Capabilities parameter (RFC 5492). A capability whose
// inside the codec cannot read is as good as not there.
func (o *open) capabilities(b []byte, multiprotocol *bool) *fault {
	for len(b) > 0 {
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return &fault{codeOpen, 0, nil, "OPEN has a cut capability"}
		}
		one := b[:2+int(b[1])]
		b = b[len(one):]
		c := decodeCapability(one)
		switch c := c.(type) {
		case *codec.CapMultiProtocol:
			*multiprotocol = true
			if f, ok := familyFrom(codec.RouteFamilyToAfiSafi(c.CapValue)); ok {
				o.families[f] = true
			}
		case *codec.CapFourOctetASNumber:
			o.as, o.as4 = c.CapValue, true
		case *codec.CapRouteRefresh:
			o.refresh = true
		case *codec.CapEnhancedRouteRefresh:
			o.enhanced = true
		case *codec.CapUnknown:
			o.extended = o.extended || c.CapCode == capExtended && len(c.CapValue) == 0
		case *codec.CapAddPath:
			for _, t := range c.Tuples {
				// Other modes are to be ignored (RFC 7911, section 4).
				if f, ok := familyFrom(codec.RouteFamilyToAfiSafi(t.RouteFamily)); ok && t.Mode > 0 && t.Mode <= codec.BGP_ADD_PATH_BOTH {
					o.paths[f] = t.Mode
				}
			}
		case *codec.CapExtendedNexthop:
			for _, t := range c.Tuples {
				o.crossing = o.crossing || *t == codec.CapExtendedNexthopTuple{NLRIAFI: codec.AFI_IP, NLRISAFI: codec.SAFI_UNICAST, NexthopAFI: codec.AFI_IP6}
			}
		case *codec.CapGracefulRestart:
			g := &graceful{
				restarting: c.Flags&0x08 != 0, notification: c.Flags&0x04 != 0,
				time: time.Duration(c.Time) * time.Second,
			}
			for _, t := range c.Tuples {
				if f, ok := familyFrom(t.AFI, t.SAFI); ok {
					g.listed[f], g.forwarding[f] = true, t.Flags&0x80 != 0
				}
			}
			o.gr = g
		case *codec.CapLongLivedGracefulRestart:
			o.long = longLivedFrom(c)
		case *codec.CapFQDN:
			o.named = true
		}
	}
	return nil
}

// decodeCapability is the codec behind a wall: nil for what it cannot read.
func decodeCapability(b []byte) (c codec.ParameterCapabilityInterface) {
	defer func() {
		if recover() != nil {
			c = nil
		}
	}()
	c, err := codec.DecodeCapability(b)
	if err != nil {
		return nil
	}
	return c
}

// words are the capabilities of an OPEN.
func (o *open) words() (list []string) {
	for f, on := range o.families {
		if on {
			list = append(list, Family(f).String()+" unicast")
		}
	}
	if o.as4 {
		list = append(list, "4-byte AS numbers")
	}
	if o.refresh {
		list = append(list, "route refresh")
	}
	if o.enhanced {
		list = append(list, "enhanced route refresh")
	}
	if o.extended {
		list = append(list, "extended messages")
	}
	for f, mode := range o.paths {
		if mode != 0 {
			list = append(list, fmt.Sprintf("several paths of %v: %s", Family(f), []string{"takes", "sends", "takes and sends"}[mode-1]))
		}
	}
	if o.crossing {
		list = append(list, "ipv6 next hops of ipv4")
	}
	if o.gr == nil {
		return list
	}
	text := fmt.Sprintf("graceful restart of %d s", o.gr.time/time.Second)
	for f, on := range o.gr.listed {
		if on && o.gr.forwarding[f] {
			text += ", " + Family(f).String() + " kept"
		} else if on {
			text += ", " + Family(f).String()
		}
	}
	if o.gr.restarting {
		text += ", restarting"
	}
	if list = append(list, text); o.gr.notification {
		list = append(list, "graceful restart after notifications")
	}
	if o.long != nil {
		list = append(list, o.long.words())
	}
	return list
}

// accept checks the peer's OPEN against ours (RFC 4271, section 6.2) and
// returns why not; peerAS 0: any external one.
func (o *open) accept(mine *open, peerAS uint32) *fault {
	switch {
	case peerAS == 0 && (o.as == 0 || o.as == asTrans):
		return &fault{codeOpen, 2, nil, fmt.Sprintf("bad peer AS %d: reserved", o.as)}
	case peerAS == 0 && o.as == mine.as:
		return &fault{codeOpen, 2, nil, fmt.Sprintf("bad peer AS %d: this side's, and not an external one", o.as)}
	case peerAS != 0 && o.as != peerAS:
		return &fault{codeOpen, 2, nil, fmt.Sprintf("bad peer AS %d", o.as)}
	}
	// "An implementation MUST reject Hold Time values of one or two seconds."
	if o.hold != 0 && o.hold < 3*time.Second {
		return &fault{codeOpen, 6, nil, fmt.Sprintf("unacceptable hold time %v", o.hold)}
	}
	// RFC 6286, section 2.2: not zero, and different within an AS.
	if o.id.IsUnspecified() || o.as == mine.as && o.id == mine.id {
		return &fault{codeOpen, 3, nil, fmt.Sprintf("bad BGP identifier %v", o.id)}
	}
	if !(o.families[IPv4] && mine.families[IPv4]) && !(o.families[IPv6] && mine.families[IPv6]) {
		return &fault{codeOpen, 7, nil, "no common address family"}
	}
	return nil
}

// openFor is our OPEN to a peer.
func (s *Speaker) openFor(p PeerConfig, wasUp bool) *open {
	s.mu.Lock()
	started := s.started
	s.mu.Unlock()
	o := &open{as: p.localAS(&s.config), hold: p.hold(), id: s.config.RouterID, as4: true, refresh: true, enhanced: true, extended: true}
	o.gr = &graceful{
		// Not to whom we are back already: who restarts then waits for us (FRR 8.4 deletes
		// what its kernel has as soon as one neighbour says R).
		restarting:   s.config.Restarting && !wasUp && time.Since(started) < s.config.RestartTime,
		notification: true, time: s.config.RestartTime,
	}
	if p.LongLived > 0 {
		o.long = &longLived{}
	}
	for _, f := range p.families() {
		o.families[f] = true
		o.crossing = o.crossing || f == IPv4
		if p.ReceivePaths {
			o.paths[f] |= codec.BGP_ADD_PATH_RECEIVE
		}
		if p.SendPaths != 0 {
			o.paths[f] |= codec.BGP_ADD_PATH_SEND
		}
		o.gr.listed[f] = true
		o.gr.forwarding[f] = wasUp || s.config.ForwardingPreserved[f]
		if o.long != nil {
			o.long.time[f], o.long.forwarding[f] = p.LongLived, o.gr.forwarding[f]
		}
	}
	return o
}
