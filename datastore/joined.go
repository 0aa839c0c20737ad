package datastore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// What the cluster keeps of who may join and who did lies beside what roles follow: the
// certificates of nodes do not reach it.
const (
	JoinPrefix   = "/netctl/join/v1/"
	tokensPrefix = JoinPrefix + "tokens/"
	joinedPrefix = JoinPrefix + "nodes/"
)

// MembersKey holds Members. Nodes read it, members alone write it.
const MembersKey = "/netctl/members"

// JoinToken is what the cluster keeps of a Token.
type JoinToken struct {
	ID      string    `json:"id"`
	Hash    string    `json:"hash"`
	Member  bool      `json:"member,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	// UsedBy is the node that came in with it, Key its public key's hash.
	UsedBy string    `json:"usedBy,omitempty"`
	Key    string    `json:"key,omitempty"`
	Used   time.Time `json:"used,omitzero"`
}

// JoinedNode says whose a name is in certificates: of who has the private key, until the
// node is removed. That stays written: where nothing is (a datastore that was lost and
// made anew) a certificate is good for what it says.
type JoinedNode struct {
	Name   string    `json:"name"`
	Key    string    `json:"key"` // hex SHA-256 of the public key (DER, SubjectPublicKeyInfo)
	Member bool      `json:"member,omitempty"`
	Since  time.Time `json:"since"`
	// Authority is the hash of the authority of the certificate that the node showed last
	// while that was replaced (Rotation.ID).
	Authority string `json:"authority,omitempty"`
	// User says that a user of an external etcd was made for it, which goes with it.
	User bool `json:"user,omitempty"`
	// Removed is when; its certificates are good for nothing, and the name is free.
	Removed time.Time `json:"removed,omitzero"`
}

// Members is where the datastore's members are reached.
type Members struct {
	// Endpoints are https URLs for clients.
	Endpoints []string `json:"endpoints"`
	// JoinPort is where each of them lets nodes in and renews certificates; 0: nowhere.
	JoinPort int `json:"joinPort,omitempty"`
}

// Record returns what the cluster keeps of t.
func (t Token) Record(now time.Time) JoinToken {
	return JoinToken{ID: t.Name(), Hash: t.Hash(), Member: t.Member, Created: now.UTC().Truncate(time.Second), Expires: t.Expires}
}

// TokenKey is the key of a token's record; id is hexadecimal.
func TokenKey(id string) (string, error) {
	if id == "" || len(id) > 64 || strings.Trim(id, "0123456789abcdef") != "" {
		return "", &FieldError{Value: id, Reason: "is no name of a token (netctl token list shows them)"}
	}
	return tokensPrefix + id, nil
}

// JoinedKey is the key of a node's JoinedNode.
func JoinedKey(name string) (string, error) {
	if err := CheckName(name); err != nil {
		return "", err
	}
	return joinedPrefix + name, nil
}

// Record reads one of the records of this file, with the revision of its last change; 0
// and no error if it is not there.
func Record(ctx context.Context, s Store, key string, into any) (int64, error) {
	e, err := s.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	if err == nil {
		err = decodeRecord(e, into)
	}
	return e.Revision, err
}

func decodeRecord(e Entry, into any) error {
	if err := json.Unmarshal(e.Value, into); err != nil {
		return fmt.Errorf("%s: %w: %w", e.Key, err, ErrInvalid)
	}
	return nil
}

// RecordOp writes a record of this file.
func RecordOp(key string, record any) (Op, error) {
	value, err := json.Marshal(record)
	return Op{Key: key, Value: value}, err
}

// ListTokens returns every token's record.
func ListTokens(ctx context.Context, s Store) ([]JoinToken, error) {
	snap, err := s.List(ctx, tokensPrefix)
	if err != nil {
		return nil, err
	}
	var list []JoinToken
	for _, e := range snap.Entries {
		var t JoinToken
		if err := decodeRecord(e, &t); err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}
