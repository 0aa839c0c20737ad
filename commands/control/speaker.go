package control

import (
	"net/netip"
	"time"

	"netctl/datastore"
)

// SpeakerSocket is where the speaker listens unless told otherwise.
const SpeakerSocket = "/run/netctl-node/speaker.sock"

// SpeakerStatus is the speaker's own view (GET /v1/status).
type SpeakerStatus struct {
	Version  string     `json:"version"`
	Node     string     `json:"node"`
	PID      int        `json:"pid"`
	RouterID netip.Addr `json:"routerID"`
	AS       uint32     `json:"as"`
	ASSource string     `json:"asSource"` // "inherited" or "node"
	// Bare: a reflector on a machine without an agent.
	Bare bool `json:"bare,omitempty"`
	// Addresses are this node's, as the speaker last knew them.
	Addresses []netip.Addr `json:"addresses"`
	// Nodes is how many nodes the sessions were planned for, this one among them.
	Nodes    int       `json:"nodes,omitempty"`
	Sessions []Session `json:"sessions"`
	// Refused names prefixes that the import guard turned down, up to 100 a
	// session; what a session has received and not accepted counts them.
	Refused  []string `json:"refused,omitempty"`
	Detached string   `json:"detached,omitempty"`
	Store    string   `json:"store,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

// BGPQuery asks the speaker for paths (POST /v1/bgp/routes).
type BGPQuery struct {
	// Prefix is the only one of interest, or Covers an address that it must hold.
	Prefix netip.Prefix `json:"prefix,omitzero"`
	Covers netip.Addr   `json:"covers,omitzero"`
	// Peer is a session's address, or the name of a node or Peer.
	Peer string `json:"peer,omitempty"`
	// View is "", "received", "advertised" or "rejected".
	View string `json:"view,omitempty"`
	// Refresh has the peer asked to tell everything again (RFC 2918).
	Refresh bool `json:"refresh,omitempty"`
}

// BGPPaths is the answer; More counts the paths that are left out.
type BGPPaths struct {
	Paths []BGPPath `json:"paths"`
	More  int       `json:"more,omitempty"`
}

// BGPPath is a way to a prefix. Without a peer it is this node's own.
type BGPPath struct {
	Prefix    netip.Prefix `json:"prefix"`
	Peer      netip.Addr   `json:"peer,omitzero"`
	Interface string       `json:"interface,omitempty"` // of a peer that is known by it
	// ID tells several paths of one peer, or to it, apart (RFC 7911).
	ID          uint32     `json:"pathID,omitempty"`
	NextHop     netip.Addr `json:"nextHop,omitzero"`
	ASPath      string     `json:"asPath,omitempty"`
	Origin      string     `json:"origin"`
	LocalPref   uint32     `json:"localPref"`
	MED         *uint32    `json:"med,omitempty"`
	Communities []string   `json:"communities,omitempty"`
	Best        bool       `json:"best,omitempty"`
	Used        bool       `json:"used,omitempty"`
	Stale       bool       `json:"stale,omitempty"`
	Why         string     `json:"why"`
}

// BGPSession is all about one session (POST /v1/bgp/session with a BGPQuery's Peer).
type BGPSession struct {
	Session
	Name        string     `json:"name"`
	Description string     `json:"description,omitempty"`
	AS          uint32     `json:"as"`
	RouterID    netip.Addr `json:"routerID,omitzero"`
	Local       netip.Addr `json:"local,omitzero"`
	// HoldTime is the agreed one in seconds.
	HoldTime int `json:"holdTime"`
	// Families are agreed; Offered and Heard are the capabilities of both sides.
	Families []string `json:"families,omitempty"`
	Offered  []string `json:"offered,omitempty"`
	Heard    []string `json:"heard,omitempty"`
	// Established counts how often the session came up.
	Established int    `json:"established"`
	MessagesIn  uint64 `json:"messagesIn"`
	MessagesOut uint64 `json:"messagesOut"`
	UpdatesIn   uint64 `json:"updatesIn"`
	UpdatesOut  uint64 `json:"updatesOut"`
	Limit       int    `json:"prefixLimit,omitempty"`
	// Burden is how many routes all nodes tell the peer, Budget how many it has room for.
	Burden      int       `json:"routes,omitempty"`
	Budget      int       `json:"routeBudget,omitempty"`
	LastError   string    `json:"lastError,omitempty"`
	LastErrorAt time.Time `json:"lastErrorAt,omitzero"`
	Notice      string    `json:"lastNotification,omitempty"`
	NoticeAt    time.Time `json:"lastNotificationAt,omitzero"`
	// BFDSession is set where BFD watches the path.
	BFDSession *BFDSession `json:"bfdSession,omitempty"`
}

// BFDSession is all about the BFD session with a peer. Times are in milliseconds.
type BFDSession struct {
	State       string    `json:"state"` // AdminDown, Down, Init or Up
	RemoteState string    `json:"remoteState"`
	Since       time.Time `json:"since"`
	// Ups counts how often it came up.
	Ups int `json:"ups"`
	// Interval is the agreed time between two of our packets, Detection how long the
	// neighbour may be silent.
	Interval  float64 `json:"interval"`
	Detection float64 `json:"detection"`
	// LastDiagnostic is why it was last not up any more.
	LastDiagnostic      string    `json:"lastDiagnostic,omitempty"`
	LastDiagnosticAt    time.Time `json:"lastDiagnosticAt,omitzero"`
	Discriminator       uint32    `json:"discriminator"`
	RemoteDiscriminator uint32    `json:"remoteDiscriminator"`
	In                  uint64    `json:"packetsIn"`
	Out                 uint64    `json:"packetsOut"`
}

// Session is a BGP session with its numbers of prefixes.
type Session struct {
	datastore.SessionStatus
	// Local is this end of a session that is up.
	Local    netip.Addr `json:"local,omitzero"`
	Received int        `json:"received"`
	Accepted int        `json:"accepted"`
	Sent     int        `json:"sent"`
	// Stale counts the received prefixes that are kept for a restart (RFC 4724).
	Stale int `json:"stale,omitempty"`
}
