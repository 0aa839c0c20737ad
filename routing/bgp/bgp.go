// Package bgp speaks BGP-4: sessions, routing information base, best path,
// packing and graceful restart, for IPv4 and IPv6 unicast.
//
// It owns the sessions, what peers announced and what they were told. It
// knows neither the kernel nor the datastore: best paths leave through the
// Installer, own prefixes come in by Originate, policy is the Import function and
// the peers' filters.
//
// Invariants: one goroutine (Speaker.Run) owns the RIB, every peer's counters
// and the Adj-RIB-Out, and never waits for a peer. A goroutine per peer owns its state
// machine (RFC 4271, section 8), one per connection reads and decodes, one
// writes. Bytes from a peer are framed, checked and taken apart here; the codec
// sees single attributes and OPENs only, under recover. Types of the codec do
// not leave the package.
package bgp

import (
	"log/slog"
	"net/netip"
	"time"

	"netctl/routing"
)

// Port is where BGP speakers listen (RFC 4271, section 8.2.1).
const Port = 179

// Defaults of Config and PeerConfig.
const (
	DefaultHoldTime     = 90 * time.Second
	DefaultConnectRetry = 5 * time.Second
	DefaultRestartTime  = 120 * time.Second
)

// Family is an address family; the subsequent family is always unicast.
type Family uint8

// The families that the engine speaks.
const (
	IPv4 Family = iota
	IPv6
)

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// String returns "ipv4" or "ipv6".
func (f Family) String() string {
	if f == IPv4 {
		return "ipv4"
	}
	return "ipv6"
}

// Route is a best path as the kernel needs it. Several next hops are one
// multipath route; an unspecified one among them is a blackhole (RFC 7999). Next hops are sorted and not resolved; routes share the list,
// which must not be changed.
type Route struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
	// Peer is the session address of the peer whose path is the best one;
	// not set in Config.Stale, and of an aggregate.
	Peer netip.Addr
	// Stale says that the best path is kept for a restart (RFC 4724).
	Stale bool
}

// Change is a best path that became another one, as the kernel needs it. The lists of
// next hops are sorted, not resolved, and shared: they must not be changed. None is no
// route, an unspecified one a blackhole.
type Change struct {
	Prefix   netip.Prefix
	Was, Now []netip.Addr
}

// Installer takes changed best paths, many of them in several calls; own prefixes are
// never among them. Install is called in the RIB's goroutine and must hand the list,
// which belongs to it, on and return: no message of any peer is handled meanwhile,
// and a call of the Speaker would wait for itself.
type Installer interface {
	Install(changes []Change)
}

// Config is a speaker. RouterID and AS are fixed for its life.
type Config struct {
	RouterID netip.Addr // IPv4; RFC 4271, section 4.2
	AS       uint32     // RFC 6793
	// ClusterID names the cluster that the speaker reflects for (RFC 4456, section 7);
	// not valid: the router ID. IPv4.
	ClusterID netip.Addr
	// Listen holds the addresses to accept sessions on, usually the node's
	// BGP address and Port. An address that is not there yet is tried again
	// every second, see Speaker.Problems.
	Listen []netip.AddrPort
	// RestartTime is announced to peers (RFC 4724, at most 4095 s) and ends
	// the life of stale routes, counted from Run. 0 means DefaultRestartTime.
	RestartTime time.Duration
	// Restarting sets the R bit in the OPENs of the first RestartTime: the
	// speaker has run before and its peers may hold its routes.
	Restarting bool
	// ForwardingPreserved sets the F bit of a family (RFC 4724, section 3): the kernel
	// kept forwarding across the restart. To a peer that this Speaker was
	// Established with before, F is always set.
	ForwardingPreserved map[Family]bool
	// Stale are the routes found in the kernel under the speaker's protocol:
	// taken over as they are, each belongs to the peer that has its next hop
	// as address or alias, or to every peer that reflects.
	Stale []Route
	// Import decides whether a prefix is taken from a peer; the reason is
	// for `status`. Nil takes everything. Called in the RIB's goroutine.
	Import func(peer netip.Addr, prefix netip.Prefix, nextHop netip.Addr) (ok bool, reason string)
	// SinglePath says that a prefix never becomes a multipath route (one
	// inside a pool). Nil: equal best paths always become one.
	SinglePath func(netip.Prefix) bool
	// MaxPaths is how many next hops a route has at most; 0: as many as there are.
	MaxPaths int
	// Tags are the communities of an own prefix; nil: none. Called in the RIB's goroutine.
	Tags      func(netip.Prefix) Communities
	Installer Installer
	// OnSessionChange is called, if not nil, in goroutines of the speaker
	// whenever a session's state or reason changed; it must not block and
	// must not call the Speaker.
	OnSessionChange func()
	Log             *slog.Logger
}

// NextHopMode is what becomes of a learnt route's next hop towards a peer.
type NextHopMode uint8

// The modes.
const (
	NextHopUsual     NextHopMode = iota // kept within the AS, else this side (RFC 4271, section 5.1.3)
	NextHopThisSide                     // this side
	NextHopUnchanged                    // kept
)

// Ends are two addresses that a session can be between.
type Ends struct{ Local, Remote netip.Addr }

// PeerConfig is one neighbour; its Address is its identity. A link-local one has the name
// of its link as zone, and so has LocalAddress, which it needs then: the session is that
// link's, and next hops of it are taken.
type PeerConfig struct {
	Address netip.Addr
	// Port to dial; 0 means Port.
	Port uint16
	// AS is the peer's. With External, where it is 0, any but this side's is good.
	AS          uint32
	External    bool
	Description string
	// LocalAddress is bound when dialling; connections from the peer to
	// another address are refused. Not valid: the kernel's choice. One that is not
	// in Config.Listen is listened on as long as the peer is there.
	LocalAddress netip.Addr
	// Spare are further ends of the session, dialled in turn with Address while there is
	// no answer; the peer may come from there at any time.
	Spare []Ends
	// Families to offer; empty: the family of Address.
	Families []Family
	// NextHopSelf holds the addresses that own routes carry as next hop, one
	// for a family. A family without one uses the session's local address,
	// or is not sent at all if that is of the other family.
	NextHopSelf []netip.Addr
	// Aliases are further addresses that the peer's routes carry as next
	// hop; they find the owner of a stale route.
	Aliases []netip.Addr
	// HoldTime is 0 (none) or at least 3 s (RFC 4271, section 4.2); whole
	// seconds. Negative means DefaultHoldTime.
	HoldTime time.Duration
	// ConnectRetry is the longest wait between two dials; 0 means
	// DefaultConnectRetry.
	ConnectRetry time.Duration
	// Client makes this speaker a route reflector for the peer (RFC 4456); it has no
	// meaning for one of another AS. Set or taken back it resets nothing; who is no
	// client any more is reflected to for another RestartTime.
	Client bool
	// Reflects says that the peer is a reflector: a stale route whose next hop is no
	// peer may be from it.
	Reflects bool
	// Leaving has the peer removed by itself, and without a NOTIFICATION, once the
	// others carry what came from it, see leave.go. One that is not there is not added.
	Leaving bool
	// Heir is the address of the peer that one that leaves is from now on: nobody misses
	// what it carries of a family that the heir has not.
	Heir netip.Addr
	// Passive never dials.
	Passive bool
	// PrefixLimit ends the session when the peer sends more, or with LimitWarns only has
	// Session.Full say so; 0: no limit. PrefixWarning has it say so before.
	PrefixLimit, PrefixWarning int
	LimitWarns                 bool
	// LimitRest is how long a session rests that the limit ended; 0: 1 s, doubling to a
	// minute; negative: until one of these settings is another.
	LimitRest time.Duration
	// SendPaths announces up to so many paths to a prefix, < 0 all, to a peer that takes
	// several (RFC 7911); 0: the best one. ReceivePaths takes several.
	SendPaths    int
	ReceivePaths bool
	// LongLived, if > 0, keeps what the peer announced for so long behind its restart time,
	// or as long as the peer says if that is less, and asks the same of it (RFC 9494); whole
	// seconds up to MaxLongLived. It counts from the next session on.
	LongLived time.Duration
	// LocalAS is the AS number that this side has towards the peer, and the only one of
	// ours that it sees; 0: Config.AS.
	LocalAS uint32
	// TTL is that of our packets; 0: the system's.
	TTL int
	// TTLSecurity is how many hops the peer may be away, which its packets' TTL has to
	// prove, as ours do (RFC 5082); 0: whatever TTL is good.
	TTLSecurity int
	// Password, if not empty, signs every segment (TCP MD5, RFC 2385).
	Password string
	// Wrong, if not empty, keeps the session down and says why.
	Wrong string
	// KeepaliveTime is between two KEEPALIVEs, unless a third of the agreed hold time is
	// less; 0: that third.
	KeepaliveTime time.Duration
	// NextHop is the one of learnt routes.
	NextHop NextHopMode
	// ImportFilter and ExportFilter choose among what Import takes and what would be
	// announced, and change it; nil: nothing. The same pointer is the same filter.
	ImportFilter, ExportFilter *routing.Policy
	// OwnOnly announces what Originate named, and nothing learnt.
	OwnOnly bool
	// Aggregate tells the peer what Speaker.Aggregate named in place of what lies in it.
	Aggregate bool
	// Communities are added to all that the peer is told.
	Communities Communities
	// Draining tells the peer to prefer every other path (RFC 8326): all that it is told
	// has the community GRACEFUL_SHUTDOWN, and within the AS LOCAL_PREF 0.
	Draining bool
	// Blackhole takes what the peer announces with that community, to be discarded; else
	// such prefixes are refused.
	Blackhole bool
	// Outside says that the peer is no member of this network: what it announced, if of
	// another AS, is passed on to nobody, and a prefix that several such peers announce
	// may have several next hops whatever SinglePath says.
	Outside bool
	// Shutdown, if not empty, keeps the session down; an open one ends with
	// Cease/Administrative Shutdown and this text (RFC 9003, ≤ 255 bytes).
	Shutdown string
}

// Session is what `netctl status` shows of one peer.
type Session struct {
	Peer        netip.Addr
	Description string
	AS          uint32     // that of its OPEN, if PeerConfig has none
	RouterID    netip.Addr // of the peer, from its OPEN
	Local       netip.Addr
	// State is Idle, Connect, Active, OpenSent, OpenConfirm or Established.
	State string
	// Since is when the session last came up or went down.
	Since time.Time
	// Reason says why the session is not up, or what ended the one before;
	// empty if nothing ever failed.
	Reason   string
	ReasonAt time.Time
	// Retry is when an idle peer starts again; zero if nothing is waited for.
	Retry    time.Time
	HoldTime time.Duration // agreed
	Families []Family      // agreed
	// GracefulRestart: the peer keeps and names families (RFC 4724);
	// Notification: both said N (RFC 8538).
	GracefulRestart, Notification bool
	// Prefixes: held from the peer, of these passed by Import, and announced
	// to it. Stale counts those kept for its restart.
	Received, Accepted, Sent, Stale int
	Refused                         []Refused // at most 100
	MessagesIn, MessagesOut         uint64
	UpdatesIn, UpdatesOut           uint64
	// Full says that the peer sends as many prefixes as PeerConfig.PrefixWarning; Limit
	// is its PrefixLimit.
	Full  bool
	Limit int
	// Offered and Heard are the capabilities of both OPENs, in words.
	Offered, Heard []string
	// Notice is the last NOTIFICATION of either side, in words.
	Notice   string
	NoticeAt time.Time
	// Off says that PeerConfig.Shutdown keeps it down.
	Off bool
	// Established counts how often the session came up.
	Established int
}

// Refused is a prefix that Import turned down.
type Refused struct {
	Prefix  netip.Prefix
	NextHop netip.Addr
	Reason  string
}

// Conflict is a prefix that must have one next hop but is learnt with several.
type Conflict struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr
}
