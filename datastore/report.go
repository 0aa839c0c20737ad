package datastore

import (
	"net/netip"
	"strings"
	"time"
)

// The roles that report.
const (
	ReportAgent   = "agent"
	ReportSpeaker = "speaker"
)

// Kind returns KindReport.
func (*Report) Kind() Kind { return KindReport }

// Meta implements Object.
func (r *Report) Meta() *Metadata { return &r.Metadata }

// SetDefaults implements Object; a report has none.
func (*Report) SetDefaults() {}

// Validate implements Object.
func (r *Report) Validate() error { return checkMeta(r) }

// ReportName is the name of the report of a node's role.
func ReportName(node, role string) string { return node + "/" + role }

// SessionStatus is one BGP session as its node sees it.
type SessionStatus struct {
	// Peer is the neighbour's address, zero if an interface's is not known; Interface is
	// what such a peer is called by.
	Peer   netip.Addr `json:"peer"`
	Type   string     `json:"type"` // "node-to-node mesh", "global", "node-specific", …
	State  string     `json:"state"`
	Since  time.Time  `json:"since"`
	Reason string     `json:"reason,omitempty"`
	// Off says that it is down because somebody wants it so.
	Off bool `json:"off,omitempty"`
	// BFD says in words how BFD is, where it is asked for: "up", "down: …".
	BFD       string `json:"bfd,omitempty"`
	Interface string `json:"interface,omitempty"`
}

// Name is what people call the peer: by its address, or by its interface.
func (s SessionStatus) Name() string {
	if s.Interface != "" {
		return s.Interface
	}
	return s.Peer.String()
}

// Of is the node and the role that the report is of.
func (r *Report) Of() (node, role string) {
	node, role, _ = strings.Cut(r.Metadata.Name, "/")
	return node, role
}

func checkReportName(name string) error {
	node, role, _ := strings.Cut(name, "/")
	if role != ReportAgent && role != ReportSpeaker {
		return &FieldError{Value: name, Reason: "is no name of a report, like node1/" + ReportAgent + " or node1/" + ReportSpeaker}
	}
	return CheckName(node)
}
