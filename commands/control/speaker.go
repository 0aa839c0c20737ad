package control

import (
	"net/netip"

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
	Sessions  []Session    `json:"sessions"`
	// Refused names prefixes that the import guard turned down, up to 100 a
	// session; what a session has received and not accepted counts them.
	Refused  []string `json:"refused,omitempty"`
	Detached string   `json:"detached,omitempty"`
	Store    string   `json:"store,omitempty"`
	Problems []string `json:"problems,omitempty"`
}

// Session is a BGP session with its numbers of prefixes.
type Session struct {
	datastore.SessionStatus
	Received int `json:"received"`
	Accepted int `json:"accepted"`
	Sent     int `json:"sent"`
	// Stale counts the received prefixes that are kept for a restart (RFC 4724).
	Stale int `json:"stale,omitempty"`
}
