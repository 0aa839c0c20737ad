package datastore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// HistoryPrefix is the root of the history: one record for each transaction that changed
// what people write, written by that transaction, so that a record's revision is the
// change's. It lies beside Prefix: no role acts on it, and no backup holds it.
const HistoryPrefix = "/netctl/history/v1/"

// The history keeps so many records, of so many bytes, for so long, the newest. netctl's
// own etcd sees to that; for another one a command looks now and then, so that there may
// be some more.
const (
	HistoryRecords = 1000
	HistoryBytes   = 8 << 20
	HistoryAge     = 90 * 24 * time.Hour
	tidyEvery      = 32 // records of commands
)

// FullHistory is how many bytes the history keeps in a datastore that is full, of those
// that it keeps otherwise.
func FullHistory(bytes int64) int64 { return bytes / 8 }

// maxRecorded bounds a transaction with its record, in bytes: what etcd takes, less what
// keys cost. One that would be larger is recorded without what it changed.
const maxRecorded = MaxTxnBytes + MaxTxnBytes/4

// maxAfter bounds an object that is kept as it was after a change, in bytes.
const maxAfter = 64 << 10

// maxCommand bounds a recorded command line, in bytes.
const maxCommand = 500

// HistoryRecord says who changed what.
type HistoryRecord struct {
	Time time.Time `json:"time"`
	// User is a user of Host, as far as that host knows; Node is the node's name there.
	User string `json:"user"`
	Host string `json:"host"`
	Node string `json:"node"`
	// Command is the command line, or the role.
	Command string          `json:"command"`
	Changes []HistoryChange `json:"changes"`
	// Revision is that of the change; it is not in the value.
	Revision int64 `json:"revision,omitempty"`
}

// HistoryChange is an object before and after a change, as it is stored; nil: it was not
// there. Sum is in the place of a large After: its SHA-256 in hex, which is enough to undo
// the change. Omitted says that nothing is kept, for its size or because it was no JSON.
type HistoryChange struct {
	Key     string          `json:"key"`
	Before  json.RawMessage `json:"before,omitempty"`
	After   json.RawMessage `json:"after,omitempty"`
	Sum     string          `json:"sum,omitempty"`
	Omitted bool            `json:"omitted,omitempty"`
}

// Deleted says that the change took the object away.
func (c HistoryChange) Deleted() bool { return c.After == nil && c.Sum == "" && !c.Omitted }

// HistorySum is Sum of a stored object.
func HistorySum(value []byte) string {
	sum := sha256.Sum256(value)
	return hex.EncodeToString(sum[:])
}

// HasHistory says whether changes of a kind are recorded: those that people write.
func HasHistory(k Kind) bool {
	return k != "" && k != KindEndpoint && k != KindBlock && k != KindReport
}

// recordedKey says whether changes of a key are recorded.
func recordedKey(key string) bool {
	kind, _, err := ParseKey(key)
	return err == nil && HasHistory(kind)
}

// DecodeHistory reads a record.
func DecodeHistory(e Entry) (HistoryRecord, error) {
	var r HistoryRecord
	err := json.Unmarshal(e.Value, &r)
	if err == nil && len(r.Changes) == 0 {
		err = errors.New("it names no change")
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w: %w", e.Key, ErrInvalid, err)
	}
	r.Revision = e.Revision
	lines(&r.User, &r.Host, &r.Node, &r.Command)
	for i := range r.Changes {
		lines(&r.Changes[i].Key)
	}
	return r, nil
}

// History is the records that a store has, oldest first. What cannot be read is reported
// beside them.
func History(ctx context.Context, s Store) (list []HistoryRecord, err error) {
	snap, err := s.List(ctx, HistoryPrefix)
	if err != nil {
		return nil, err
	}
	var bad []error
	for _, e := range snap.Entries {
		r, err := DecodeHistory(e)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b HistoryRecord) int { return int(a.Revision - b.Revision) })
	return list, errors.Join(bad...)
}

// Recorder is a Store that records what is changed by it.
type Recorder struct {
	Store
	// Who is what the records say, but for time and changes.
	Who HistoryRecord
	// Except are kinds that are left out: their changes are nobody's wish.
	Except []Kind
	// Remember keeps what was read, which saves reading it again: for commands, which also
	// look after the history's size.
	Remember bool

	mu   sync.Mutex
	seen map[string]Entry
}

// Get implements Store.
func (r *Recorder) Get(ctx context.Context, key string) (Entry, error) {
	e, err := r.Store.Get(ctx, key)
	if err == nil {
		r.remember(e)
	}
	return e, err
}

// List implements Store.
func (r *Recorder) List(ctx context.Context, prefixes ...string) (Snapshot, error) {
	snap, err := r.Store.List(ctx, prefixes...)
	if err == nil {
		r.remember(snap.Entries...)
	}
	return snap, err
}

func (r *Recorder) remember(entries ...Entry) {
	if !r.Remember {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]Entry{}
	}
	for _, e := range entries {
		if recordedKey(e.Key) {
			r.seen[e.Key] = e
		}
	}
}

// Commit implements Store: a transaction that changes what people write gets a record.
// Where the store lets nobody write one, or has no room for it, it goes without.
func (r *Recorder) Commit(ctx context.Context, t Txn) (int64, error) {
	changes, err := r.changes(ctx, t)
	if err != nil || len(changes) == 0 {
		if err != nil {
			return 0, err
		}
		return r.Store.Commit(ctx, t)
	}
	with, err := r.recorded(t, changes)
	if err != nil {
		return 0, err
	}
	revision, err := r.Store.Commit(ctx, with)
	switch {
	case errors.Is(err, ErrFull):
		_ = TidyHistory(ctx, r.Store, FullHistory(HistoryBytes), time.Now()) // who may not leaves it to the store
		return r.Store.Commit(ctx, t)
	case errors.Is(err, ErrDenied):
		return r.Store.Commit(ctx, t)
	case err == nil && r.Remember && rand.N(tidyEvery) == 0:
		_ = TidyHistory(ctx, r.Store, HistoryBytes, time.Now()) // else another one does
	}
	return revision, err
}

// changes are what a transaction changes of what is recorded.
func (r *Recorder) changes(ctx context.Context, t Txn) (list []HistoryChange, err error) {
	for _, op := range t.Then {
		kind, _, err := ParseKey(op.Key)
		if err != nil || !HasHistory(kind) || slices.Contains(r.Except, kind) {
			continue
		}
		before, err := r.before(ctx, t, op.Key)
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(before, op.Value) {
			c := HistoryChange{Key: op.Key, Before: before, After: op.Value}
			switch {
			case before != nil && !json.Valid(before): // nobody wants that back
				c = HistoryChange{Key: op.Key, Omitted: true}
			case len(c.After) > maxAfter:
				c.After, c.Sum = nil, HistorySum(op.Value)
			}
			list = append(list, c)
		}
	}
	return list, nil
}

// before is the value of a key in the revision that a transaction expects.
func (r *Recorder) before(ctx context.Context, t Txn, key string) ([]byte, error) {
	i := slices.IndexFunc(t.If, func(c Condition) bool { return c.Key == key })
	if i >= 0 && t.If[i].Revision == 0 {
		return nil, nil
	}
	r.mu.Lock()
	e, seen := r.seen[key]
	r.mu.Unlock()
	if seen && i >= 0 && e.Revision == t.If[i].Revision {
		return e.Value, nil
	}
	e, err := r.Store.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return e.Value, err
}

// recorded is a transaction with the record of what it changes.
func (r *Recorder) recorded(t Txn, changes []HistoryChange) (Txn, error) {
	now := time.Now().UTC()
	rec := r.Who
	rec.Time, rec.Changes = now.Truncate(time.Millisecond), changes
	if len(rec.Command) > maxCommand {
		rec.Command = strings.ToValidUTF8(rec.Command[:maxCommand], "") + "…"
	}
	value, err := encodeHistory(rec)
	if err != nil {
		return t, fmt.Errorf("history: %w", err)
	}
	size := len(value)
	for _, op := range t.Then {
		size += len(op.Value)
	}
	if size > maxRecorded {
		for i := range rec.Changes {
			rec.Changes[i] = HistoryChange{Key: changes[i].Key, Omitted: true}
		}
		if value, err = encodeHistory(rec); err != nil {
			return t, fmt.Errorf("history: %w", err)
		}
	}
	key := recordKey(now)
	return Txn{If: append(slices.Clone(t.If), Condition{Key: key}), Then: append(slices.Clone(t.Then), Op{Key: key, Value: value})}, nil
}

// encodeHistory keeps what objects are stored as to the byte.
func encodeHistory(r HistoryRecord) ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	err := enc.Encode(r)
	return bytes.TrimRight(out.Bytes(), "\n"), err
}

// HistoryStore is what TidyHistory needs of a Store.
type HistoryStore interface {
	List(ctx context.Context, prefixes ...string) (Snapshot, error)
	Commit(ctx context.Context, t Txn) (int64, error)
}

// TidyHistory deletes the oldest records, until those that are left are no more than
// HistoryRecords, of at most so many bytes, and none older than HistoryAge.
func TidyHistory(ctx context.Context, s HistoryStore, bytes int64, now time.Time) error {
	snap, err := s.List(ctx, HistoryPrefix)
	if err != nil {
		return err
	}
	slices.SortFunc(snap.Entries, func(a, b Entry) int { return cmp.Compare(b.Revision, a.Revision) }) // newest first
	var gone []Op
	kept := 0
	for _, e := range snap.Entries {
		size := int64(len(e.Key) + len(e.Value))
		switch {
		case now.Sub(recordTime(e.Key)) > HistoryAge:
		case kept == HistoryRecords, size > bytes:
			kept = HistoryRecords // no older one, either
		default:
			kept, bytes = kept+1, bytes-size
			continue
		}
		gone = append(gone, Op{Key: e.Key})
	}
	for batch := range slices.Chunk(gone, MaxTxnOps) {
		if _, err := s.Commit(ctx, Txn{Then: batch}); err != nil {
			return err
		}
	}
	return nil
}

// recordKey is a new key for a record.
func recordKey(now time.Time) string {
	return fmt.Sprintf("%s%016x-%08x", HistoryPrefix, now.UnixNano(), rand.Uint32())
}

// recordTime is when a key was made by recordKey; of other keys long ago.
func recordTime(key string) time.Time {
	text, _, _ := strings.Cut(strings.TrimPrefix(key, HistoryPrefix), "-")
	nanos, err := strconv.ParseInt(text, 16, 64)
	if err != nil {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}
