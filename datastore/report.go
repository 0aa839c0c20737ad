package datastore

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The roles that report.
const (
	ReportAgent   = "agent"
	ReportSpeaker = "speaker"
)

// Report is what a role of a node tells people of itself; no role acts on it. Its
// name is ReportName(node, role), and that role alone writes it.
type Report struct {
	Metadata Metadata     `json:"metadata"`
	Status   ReportStatus `json:"status"`
}

// ReportStatus is the content of a Report.
type ReportStatus struct {
	// Seen is when the role wrote this, Started when it started.
	Seen    time.Time `json:"seen"`
	Started time.Time `json:"started,omitzero"`
	// Problems are what is wrong, one line each. Of the agent only.
	Problems []string `json:"problems,omitempty"`
	// Behind says that the kernel is not what the datastore says. Of the agent only.
	Behind bool `json:"behind,omitempty"`
	// Refusing are other programs' chains that refuse what no rule in them accepts, whatever
	// netctl allows, one line each. Of the agent only.
	Refusing []string `json:"refusing,omitempty"`
	// Endpoints is the number of endpoints of the node. Of the agent only.
	Endpoints int `json:"endpoints,omitempty"`
	// Runtimes are what the node's container runtimes have of the networks. Of the agent
	// only.
	Runtimes []RuntimeStatus `json:"runtimes,omitempty"`
	// Bare: a reflector on a machine without an agent. Of the speaker only.
	Bare bool `json:"bare,omitempty"`
	// Sessions are the BGP sessions, without their counters, which change all the
	// time. Of the speaker only.
	Sessions []SessionStatus `json:"sessions,omitempty"`
}

// Kind returns KindReport.
func (*Report) Kind() Kind { return KindReport }

// Meta implements Object.
func (r *Report) Meta() *Metadata { return &r.Metadata }

// SetDefaults implements Object: a report has none, but its texts are another node's, and
// people read each as a Line.
func (r *Report) SetDefaults() {
	st := &r.Status
	for i := range st.Problems {
		lines(&st.Problems[i])
	}
	for i := range st.Refusing {
		lines(&st.Refusing[i])
	}
	for i := range st.Sessions {
		s := &st.Sessions[i]
		lines(&s.Type, &s.State, &s.Reason, &s.BFD, &s.Interface)
	}
	for i := range st.Runtimes {
		rt := &st.Runtimes[i]
		lines(&rt.Runtime, &rt.Error)
		for j := range rt.Wrong {
			lines(&rt.Wrong[j].Network, &rt.Wrong[j].State, &rt.Wrong[j].Reason)
		}
	}
}

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

// The states of a network in a node's runtime.
const (
	NetworkPresent = "present"
	NetworkMissing = "missing"
	NetworkDiffers = "differs" // a person made or changed it, or it is in use as it was
	NetworkLeft    = "left"    // nobody wants it any more, and it cannot be taken away
	NetworkUnknown = "unknown"
)

// RuntimeStatus is what a container runtime of a node has of the networks: those that
// Wrong does not name are there, up to Revision.
type RuntimeStatus struct {
	Runtime string `json:"runtime"`
	// Networks is how many it has as they are to be.
	Networks int `json:"networks"`
	// Revision is the datastore's of the newest network that this is about.
	Revision int64 `json:"revision,omitempty"`
	// Error says why the runtime could not be looked at; the rest is from before.
	Error string         `json:"error,omitempty"`
	Wrong []NetworkState `json:"wrong,omitempty"`
	// More is how many others are wrong.
	More int `json:"more,omitempty"`
}

// NetworkState is a network in a runtime that is not as it is to be, and why.
type NetworkState struct {
	Network string `json:"network"`
	State   string `json:"state"`
	Reason  string `json:"reason,omitempty"`
}

// Of says how a network is in the runtime, and why that is not present.
func (s RuntimeStatus) Of(n *Network) (state, reason string) {
	at := slices.IndexFunc(s.Wrong, func(w NetworkState) bool { return w.Network == n.Metadata.Name })
	switch {
	case s.Error != "":
		return NetworkUnknown, s.Error
	case at >= 0:
		return s.Wrong[at].State, s.Wrong[at].Reason
	case n.Metadata.Revision > s.Revision:
		return NetworkMissing, "the node has not made it yet"
	case s.More > 0:
		return NetworkUnknown, "more networks are wrong on the node than it reports"
	}
	return NetworkPresent, ""
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
