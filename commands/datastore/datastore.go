// Package datastore is the datastore role: this node's member of the embedded
// etcd, its certificates if it was given none, and the lock on its folder.
//
// It never looks at what is stored. An external etcd needs no such role.
//
// There are two builds of it. In the plain one (serve.go) the etcd server is part
// of the program. The other, with the tag bundled (bundled.go, what make build
// makes), carries the plain build compressed and becomes it when the role starts:
// the etcd server takes longer to initialise than everything else together, and
// Go does that at every start of the program, CNI calls included.
package datastore

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
	QuotaBytes                int64  // default embed.DefaultQuotaBytes
	Ready                     func() // called once when clients are served; may be nil
}
