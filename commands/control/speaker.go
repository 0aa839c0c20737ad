package control

import (
	"net/netip"

	"netctl/datastore"
)

// SpeakerSocket is where the speaker listens unless told otherwise.
const SpeakerSocket = "/run/netctl-node/speaker.sock"

// SpeakerStatus is the speaker's own view (GET /v1/status).
type SpeakerStatus struct {
	Version  string                    `json:"version"`
	Node     string                    `json:"node"`
	PID      int                       `json:"pid"`
	RouterID netip.Addr                `json:"routerID"`
	AS       uint32                    `json:"as"`
	ASSource string                    `json:"asSource"` // "inherited" or "node"
	Sessions []datastore.SessionStatus `json:"sessions"`
	// Refused counts and names prefixes that the import guard turned down.
	Refused  []string `json:"refused,omitempty"`
	Detached string   `json:"detached,omitempty"`
	Store    string   `json:"store,omitempty"`
	Problems []string `json:"problems,omitempty"`
}
