package datastore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Where the replacement of the cluster's authorities is kept: what nodes follow, and what
// is the members' alone.
const (
	// AuthorityKey holds a Rotation. Nodes read it, members alone write it.
	AuthorityKey = "/netctl/authority"
	// SealedKey holds SealedKeys until every member has them.
	SealedKey = rotationPrefix + "sealed"
	// TurnKey holds a Turn: members start again one at a time.
	TurnKey        = rotationPrefix + "turn"
	rotationPrefix = JoinPrefix + "authority/"
	ackPrefix      = rotationPrefix + "members/"
)

// Phase is how far the replacement of the authorities is.
type Phase string

// The phases. Old certificates are good until the last.
const (
	PhaseMembers Phase = "members" // members learn the new authorities and their keys
	PhaseNodes   Phase = "nodes"   // nodes trust the new one too, and have certificates of it
	PhaseServers Phase = "servers" // members show certificates of the new ones
	PhaseDone    Phase = "done"    // the old ones are good for nothing
)

func phases() []Phase { return []Phase{PhaseMembers, PhaseNodes, PhaseServers, PhaseDone} }

// Reached says whether p is that phase or a later one.
func (p Phase) Reached(other Phase) bool {
	return slices.Index(phases(), p) >= slices.Index(phases(), other)
}

// Succession is an authority that replaces another, both certificates in PEM.
type Succession struct {
	Old []byte `json:"old"`
	New []byte `json:"new"`
}

// Trusted are the authorities that are good in a phase, in PEM, the one that is replaced
// first.
func (s Succession) Trusted(p Phase) []byte {
	if p == PhaseDone {
		return s.New
	}
	return append(slices.Clone(s.Old), s.New...)
}

// Rotation is how the authorities of clients and of members are replaced, or were last.
type Rotation struct {
	ID      string     `json:"id"` // the new authority of the clients: pki.Hash
	Phase   Phase      `json:"phase"`
	Clients Succession `json:"clients"`
	Peers   Succession `json:"peers"`
	Began   time.Time  `json:"began"`
	Since   time.Time  `json:"since"` // of the phase
	// Without are nodes that are not waited for.
	Without []string `json:"without,omitempty"`
}

// Underway says whether an authority is being replaced.
func (r *Rotation) Underway() bool { return r.Phase != "" && r.Phase != PhaseDone }

// SealedKeys are the private keys of the new authorities, each sealed by the old one's.
type SealedKeys struct {
	Clients []byte `json:"clients"`
	Peers   []byte `json:"peers"`
}

// Turn is whose turn it is to start again.
type Turn struct {
	Member string `json:"member"`
}

// Ack is how far a member has followed a Rotation.
type Ack struct {
	ID    string `json:"id"`
	Phase Phase  `json:"phase"`
}

// AckKey is the key of a member's Ack.
func AckKey(member string) (string, error) {
	if err := CheckName(member); err != nil {
		return "", err
	}
	return ackPrefix + member, nil
}

// Awaited are those that a rotation waits for before its next phase, sorted: members of
// the datastore, or nodes. members are all that there are.
func (r *Rotation) Awaited(ctx context.Context, s Store, members []string) ([]string, error) {
	snap, err := s.List(ctx, JoinPrefix, KindPrefix(KindNode))
	if err != nil {
		return nil, err
	}
	awaited := map[string]bool{}
	if r.Phase != PhaseNodes {
		for _, m := range members {
			awaited[m] = true
		}
	}
	for _, e := range snap.Entries { // who joined comes first
		switch {
		case r.Phase == PhaseNodes && strings.HasPrefix(e.Key, KindPrefix(KindNode)):
			name := strings.TrimPrefix(e.Key, KindPrefix(KindNode))
			if _, joined := awaited[name]; !joined { // its certificate was made by hand
				awaited[name] = true
			}
		case r.Phase == PhaseNodes && strings.HasPrefix(e.Key, joinedPrefix):
			var n JoinedNode
			if err := decodeRecord(e, &n); err != nil {
				return nil, err
			}
			awaited[n.Name] = n.Removed.IsZero() && n.Authority != r.ID
		case r.Phase != PhaseNodes && strings.HasPrefix(e.Key, ackPrefix):
			var a Ack
			if err := decodeRecord(e, &a); err != nil {
				return nil, err
			}
			if a.ID == r.ID && a.Phase.Reached(r.Phase) {
				delete(awaited, strings.TrimPrefix(e.Key, ackPrefix))
			}
		}
	}
	var names []string
	for name, waits := range awaited {
		if waits && !slices.Contains(r.Without, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Advance begins the next phase if nobody is awaited any more, and says who is. That
// another member was faster is no error.
func (r *Rotation) Advance(ctx context.Context, s Store, revision int64, members []string, now time.Time) ([]string, error) {
	names, err := r.Awaited(ctx, s, members)
	if err != nil || len(names) > 0 || r.Phase == PhaseDone {
		return names, err
	}
	next := *r
	next.Phase, next.Since = phases()[slices.Index(phases(), r.Phase)+1], now.UTC().Truncate(time.Second)
	op, err := RecordOp(AuthorityKey, next)
	if err != nil {
		return nil, err
	}
	_, err = s.Commit(ctx, Txn{If: []Condition{{Key: AuthorityKey, Revision: revision}}, Then: []Op{op, {Key: SealedKey}}})
	if err != nil && !errors.Is(err, ErrConflict) {
		return nil, fmt.Errorf("phase %s: %w", next.Phase, err)
	}
	return nil, nil
}
