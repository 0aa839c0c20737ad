package datastore

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"
)

// Identity is what a node remembers of the store it followed.
type Identity struct {
	UUID       string `json:"uuid"`
	Generation int64  `json:"generation"`
	// Store is Store.ID: etcd's own cluster ID.
	Store uint64 `json:"store"`
	// Revision is a lower bound of what was seen.
	Revision int64 `json:"revision"`
}

// maxClusterSize bounds what is parsed, in bytes.
const maxClusterSize = 4 << 10

// NewCluster returns a cluster of generation 1 with a random UUID (RFC 9562,
// section 5.4).
func NewCluster(now time.Time) Cluster {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	return Cluster{UUID: uuid, Created: now.UTC().Truncate(time.Second), Generation: 1}
}

// Encode returns the value to store under ClusterKey.
func (c Cluster) Encode() ([]byte, error) { return json.Marshal(c) }

// DecodeCluster parses the value of ClusterKey; keys of a newer netctl are passed over.
func DecodeCluster(value []byte) (Cluster, error) {
	var c Cluster
	err := decodeSmall(value, &c)
	if err == nil && (c.UUID == "" || c.Generation < 1) {
		err = fmt.Errorf("uuid %q, generation %d", c.UUID, c.Generation)
	}
	if err != nil {
		return Cluster{}, fmt.Errorf("%s: %w: %w", ClusterKey, err, ErrInvalid)
	}
	return c, nil
}

// DecodeIdentity parses an Identity; keys of a newer netctl are passed over.
func DecodeIdentity(value []byte) (Identity, error) {
	var i Identity
	err := decodeSmall(value, &i)
	if err == nil && (i.UUID == "" || i.Generation < 1 || i.Revision < 0) {
		err = fmt.Errorf("uuid %q, generation %d, revision %d", i.UUID, i.Generation, i.Revision)
	}
	if err != nil {
		return Identity{}, fmt.Errorf("cluster identity: %w: %w", err, ErrInvalid)
	}
	return i, nil
}

func decodeSmall(value []byte, into any) error {
	if len(value) > maxClusterSize {
		return fmt.Errorf("%d bytes", len(value))
	}
	d := decoder{tolerant: true}
	return d.read(value, into)
}

// Cluster finds the cluster in a snapshot, with the revision of its last
// change; nil if it is not there.
func (s Snapshot) Cluster() (*Cluster, int64, error) {
	for _, e := range s.Entries {
		if e.Key == ClusterKey {
			c, err := DecodeCluster(e.Value)
			if err != nil {
				return nil, e.Revision, err
			}
			return &c, e.Revision, nil
		}
	}
	return nil, 0, nil
}

// Judge reports whether a store is the one that i remembers: c is its cluster
// (nil: none), id its own identity, revision where it is. The error wraps
// ErrDetached and says what differs. A higher generation of the same cluster was
// adopted by somebody: it is right, whatever the rest.
func (i Identity) Judge(c *Cluster, id uint64, revision int64) error {
	switch {
	case c == nil:
		return detached("it holds no cluster identity: it is empty, was made anew, or is another's; this node belongs to cluster %s; if it was lost, run `netctl datastore rebuild` on one node", i.UUID)
	case c.UUID != i.UUID:
		return detached("it holds cluster %s, this node belongs to cluster %s", c.UUID, i.UUID)
	case c.Generation > i.Generation:
		return nil
	case c.Generation < i.Generation:
		return detached("its generation went back from %d to %d: it was restored from an old backup", i.Generation, c.Generation)
	case id != i.Store:
		return detached("it is another etcd (cluster ID %x, not %x) with our cluster's identity: it was restored from a backup", id, i.Store)
	case revision < i.Revision:
		return detached("its revision went back from %d to %d: it was restored from a backup", i.Revision, revision)
	}
	return nil
}

func detached(format string, args ...any) error {
	return fmt.Errorf("%w: "+format+"; if it is the right one, run `netctl datastore adopt` on one node", append([]any{ErrDetached}, args...)...)
}
