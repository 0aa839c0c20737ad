// Package join owns how a machine becomes a node of a cluster and stays one: the words
// between who asks for a certificate and the member of the datastore that signs it, both
// ends of them, and the renewal that every node does by itself.
//
// Who asks knows the cluster by the hash of its authority, who answers knows the asker by
// a secret that is good once, or by the certificate that is to be renewed. Private keys
// stay where they were made, but for a new member of the datastore: that is trusted with
// everything, the authority's key included.
//
// It never writes outside of the files that it is told, and never starts a role.
package join

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// DefaultPort is where members of the datastore let nodes in.
const DefaultPort = 2378

// MaxSkew is how far the clocks of who joins and who lets in may be apart.
const MaxSkew = 30 * time.Minute

// maxBody bounds a request and an answer, in bytes.
const maxBody = 64 << 10

const (
	joinPath    = "/v1/join"
	renewPath   = "/v1/renew"
	confirmPath = "/v1/confirm"
)

// Request asks for a node's certificate.
type Request struct {
	// Token is a token's name, Secret its secret; empty where a certificate is renewed.
	Token  string `json:"token,omitempty"`
	Secret []byte `json:"secret,omitempty"`
	// CSR is a certificate request in PEM (RFC 2986); its common name is the node's.
	CSR []byte `json:"csr"`
	// PeerURL is where the other members shall reach this one; empty: a node that is no
	// member of the datastore.
	PeerURL string `json:"peerURL,omitempty"`
	// Trusts are the authorities that the asker takes while one replaces another (pki.Hash).
	Trusts []string `json:"trusts,omitempty"`
	// Time is what the asker's clock says.
	Time time.Time `json:"time"`
}

// Answer is what a node needs to be one.
type Answer struct {
	// Certificate and Authority are PEM. The first Authority signed the certificate.
	Certificate []byte `json:"certificate,omitempty"`
	Authority   []byte `json:"authority,omitempty"`
	// Endpoints are URLs of the datastore, JoinPort where its members renew certificates.
	Endpoints []string `json:"endpoints"`
	JoinPort  int      `json:"joinPort"`
	Member    *Member  `json:"member,omitempty"`
	// User is of a cluster whose etcd is external, and nil of others: that knows a node by
	// it, and not by the certificate.
	User *User `json:"user,omitempty"`
}

// User is how a node reaches an external etcd.
type User struct {
	Authority []byte `json:"authority"` // which signed etcd's certificate, PEM
	Name      string `json:"name"`
	Password  string `json:"password"`
}

// Member is what a member of the datastore needs besides.
type Member struct {
	AuthorityKey []byte `json:"authorityKey"` // PEM, as the following
	PeerCA       []byte `json:"peerCA"`
	PeerCAKey    []byte `json:"peerCAKey"`
	// Members are all members, NAME=PEERURL, the new one included; Voters is how many
	// of them vote once it does.
	Members []string `json:"members"`
	Voters  int      `json:"voters"`
}

// refusal is an answer that is no.
type refusal struct {
	Message string `json:"message"`
	// Later says that the same may be asked again.
	Later bool `json:"later,omitempty"`
}

// Refused is why a member of the datastore did not do what it was asked.
type Refused struct {
	Where, Message string
	later          bool
}

func (e *Refused) Error() string { return fmt.Sprintf("%s: %s", e.Where, e.Message) }

// decode reads one JSON value of a bounded size, and nothing behind it.
func decode(r io.Reader, into any) error {
	d := json.NewDecoder(io.LimitReader(r, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("not understood: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("not understood: more than one value, or more than %d bytes", maxBody)
	}
	return nil
}

// answer writes v, or err as a refusal.
func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		r := refusal{Message: err.Error()}
		status := http.StatusForbidden
		if later := new(laterError); asLater(err, &later) {
			r.Later, status = true, http.StatusServiceUnavailable
		}
		w.WriteHeader(status)
		v = r
	}
	_ = json.NewEncoder(w).Encode(v) // who does not read it asks again
}
