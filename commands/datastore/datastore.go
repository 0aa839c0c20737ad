// Package datastore is the datastore role: this node's member of the embedded
// etcd, its certificates if it was given none, and the lock on its folder.
//
// It never looks at what is stored. Of a cluster whose etcd is external it is what lets
// nodes in, on the node that was the first, and runs no etcd.
//
// There are two builds of it. In the plain one (serve.go) the etcd server is part
// of the program. The other, with the tag bundled (bundled.go, what make build
// makes), carries the plain build compressed and becomes it when the role starts:
// the etcd server takes longer to initialise than everything else together, and
// Go does that at every start of the program, CNI calls included.
package datastore

import (
	"path/filepath"
	"time"

	"netctl/commands/telemetry"
	"netctl/datastore"
	"netctl/datastore/etcd"
)

// Config is what the role is told.
type Config struct {
	Node     string // the member's name
	StateDir string // holds etcd/, and etcd-tls/ with the peer port's certificate
	Socket   string // for this node's roles; in a folder that is root's alone
	// Listen are https URLs for other nodes; they need CA, Cert and Key.
	Listen  []string
	PeerURL string // default embed.DefaultPeerURL
	// Members and Token: see embed.Config.
	Members []string
	Token   string
	// CA, Cert and Key are the names of PEM files, all or none: clients need a
	// certificate of CA. PeerCA, PeerCert and PeerKey are for several members, of an
	// authority that signs nothing else; a single one makes its own.
	CA, Cert, Key             string
	PeerCA, PeerCert, PeerKey string
	QuotaBytes                int64 // default embed.DefaultQuotaBytes
	// JoinPort is where, on the addresses of Listen, nodes are let in and certificates
	// renewed; 0: nowhere. The authority's key is beside CA then, and the role makes and
	// renews Cert by itself.
	JoinPort int
	// External, if it names a user, is an external etcd, reached as one who may do
	// everything there: nodes are let in, and nothing is served.
	External etcd.Options
	// CertificateLife is how long the certificates hold that it signs.
	CertificateLife time.Duration
	Ready           func() // called once when clients are served; may be nil
	// Shares has the role share the machine's events with other nodes, as no other role of it does.
	Shares bool
	// Telemetry says what is shown of the role; without a role in it nothing is.
	Telemetry telemetry.Config
}

// Files of the state folder that are written before a member's first start.
const (
	// JoinsFile lists the members of the cluster that a new one joins, NAME=PEERURL each.
	JoinsFile = "etcd-joins.json"
	// joinedFile is JoinsFile once it has.
	joinedFile = "etcd-joined.json"
	// FirstFile holds a First, which goes into a new cluster's datastore.
	FirstFile = "etcd-first.json"
)

// peerFolder is where, in the state folder, the authority and certificate of the peer port
// are.
const peerFolder = "etcd-tls"

// PeerFolder is where a new member finds the members' authority.
func PeerFolder(stateDir string) string { return filepath.Join(stateDir, peerFolder) }

// First is what a new cluster begins with: its first node and the token for the second.
type First struct {
	Node  datastore.JoinedNode `json:"node"`
	Token datastore.JoinToken  `json:"token"`
}
