package datastore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// LabelRestoring marks a pool that a restore disabled and enables at its end.
const LabelRestoring = "netctl/restoring"

// backupFormat and backupVersion are in the first line of a backup.
const (
	backupFormat  = "netctl backup"
	backupVersion = 1
)

// Backup is what a store held at one revision. Encode and DecodeBackup say how it is
// written.
type Backup struct {
	Cluster  Cluster // zero: the store had no identity
	Revision int64
	Model    int       // the ModelVersion that a netctl needs to read it
	Version  string    // of the netctl that made it
	Time     time.Time // when
	Entries  []Entry   // objects, sorted by key
}

type backupHead struct {
	Format   string    `json:"format"`
	Version  int       `json:"version"`
	Cluster  *Cluster  `json:"cluster"`
	Revision int64     `json:"revision"`
	Model    int       `json:"model"`
	Netctl   string    `json:"netctl"`
	Time     time.Time `json:"time"`
}

type backupLine struct {
	Key      string          `json:"key"`
	Revision int64           `json:"revision"`
	Value    json.RawMessage `json:"value"`
}

type backupTail struct {
	Objects *int   `json:"objects"`
	SHA256  string `json:"sha256"`
}

// NewBackup makes a backup of a listing of everything. Entries that cannot be read are
// left out, and returned as errors.
func NewBackup(s Snapshot, version string, now time.Time) (*Backup, []error) {
	var left []error
	c, _, err := s.Cluster()
	if err != nil {
		left = append(left, err)
	}
	b := &Backup{Revision: s.Revision, Model: ModelVersion, Version: version, Time: now.UTC().Truncate(time.Second)}
	if c != nil {
		b.Cluster = *c
	}
	for _, e := range s.Entries {
		if e.Key == ClusterKey || e.Key == PoolsKey {
			continue
		}
		if _, err := Decode(e.Key, e.Value); err != nil {
			needs := needsOf(e.Value)
			if needs <= ModelVersion {
				left = append(left, err)
				continue
			}
			b.Model = max(b.Model, needs)
		}
		b.Entries = append(b.Entries, e)
	}
	slices.SortFunc(b.Entries, func(x, y Entry) int { return strings.Compare(x.Key, y.Key) })
	return b, left
}

// BackupOf makes a backup of objects as they were read from a cluster's store. Those
// without a revision are in no store, and left out; those that cannot be written are
// returned as errors.
func BackupOf(objects []Object, cluster Cluster, revision int64, version string, now time.Time) (*Backup, []error) {
	var left []error
	b := &Backup{Cluster: cluster, Revision: revision, Model: ModelVersion, Version: version, Time: now.UTC().Truncate(time.Second)}
	for _, o := range objects {
		if o.Meta().Revision == 0 {
			continue
		}
		key, err := KeyOf(o)
		var value []byte
		if err == nil {
			value, err = Encode(o)
		}
		if err != nil {
			left = append(left, err)
			continue
		}
		b.Entries = append(b.Entries, Entry{Key: key, Value: value, Revision: o.Meta().Revision})
	}
	slices.SortFunc(b.Entries, func(x, y Entry) int { return strings.Compare(x.Key, y.Key) })
	return b, left
}

// BackupCluster reads which cluster a backup is of, and no further.
func BackupCluster(r io.Reader) (Cluster, error) {
	var head backupHead
	if err := json.NewDecoder(io.LimitReader(r, maxClusterSize)).Decode(&head); err != nil || head.Format != backupFormat || head.Cluster == nil {
		return Cluster{}, fmt.Errorf("is no backup of a cluster: %w", ErrInvalid)
	}
	return *head.Cluster, nil
}

// Newer says whether a backup was made after another one of the same cluster.
func (b *Backup) Newer(o *Backup) bool {
	if b.Cluster.Generation != o.Cluster.Generation {
		return b.Cluster.Generation > o.Cluster.Generation
	}
	return b.Revision > o.Revision
}

// needsOf is the model that a stored value says it needs; 0: none.
func needsOf(value []byte) int {
	_, needs, err := readHead(value)
	if err != nil {
		return 0
	}
	return needs
}

// Encode returns the backup as lines of JSON: what it is of, each object as it is
// stored with its key and revision, and the number of objects with the SHA-256 of all
// lines before.
func (b *Backup) Encode() ([]byte, error) {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	head := backupHead{Format: backupFormat, Version: backupVersion, Revision: b.Revision, Model: b.Model, Netctl: b.Version, Time: b.Time}
	if b.Cluster.UUID != "" {
		head.Cluster = &b.Cluster
	}
	if err := enc.Encode(head); err != nil {
		return nil, err
	}
	for _, e := range b.Entries {
		if err := enc.Encode(backupLine{e.Key, e.Revision, e.Value}); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Key, err)
		}
	}
	n, sum := len(b.Entries), sha256.Sum256(out.Bytes())
	err := enc.Encode(backupTail{Objects: &n, SHA256: hex.EncodeToString(sum[:])})
	return out.Bytes(), err
}

// DecodeBackup reads what Encode wrote. A text that is no backup, that is cut short or
// altered, or that a newer netctl must read is an ErrInvalid.
func DecodeBackup(text []byte) (*Backup, error) {
	var head backupHead
	first, _, _ := bytes.Cut(text, []byte("\n"))
	if err := json.Unmarshal(first, &head); err != nil || head.Format != backupFormat {
		return nil, fmt.Errorf("is no backup that `netctl backup` made: %w", ErrInvalid)
	}
	if head.Version != backupVersion {
		return nil, fmt.Errorf("is a backup of format %d, this netctl reads %d: use netctl %s or newer: %w", head.Version, backupVersion, head.Netctl, ErrInvalid)
	}
	body, n, err := checkedBody(text)
	if err != nil {
		return nil, err
	}
	if head.Model > ModelVersion {
		return nil, fmt.Errorf("needs version %d of the model, this netctl knows %d: use netctl %s or newer: %w", head.Model, ModelVersion, head.Netctl, ErrInvalid)
	}
	b := &Backup{Revision: head.Revision, Model: head.Model, Version: head.Netctl, Time: head.Time}
	if head.Cluster != nil {
		b.Cluster = *head.Cluster
	}
	for i, lines := 2, body[len(first)+1:]; len(lines) > 0; i++ {
		var one []byte
		one, lines, _ = bytes.Cut(lines, []byte("\n"))
		var l backupLine
		err := json.Unmarshal(one, &l)
		if err == nil {
			_, err = Decode(l.Key, l.Value)
		}
		if n := len(b.Entries); err == nil && n > 0 && l.Key <= b.Entries[n-1].Key {
			err = fmt.Errorf("%s: keys must ascend: %w", l.Key, ErrInvalid)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", i, err)
		}
		b.Entries = append(b.Entries, Entry{Key: l.Key, Value: l.Value, Revision: l.Revision})
	}
	if len(b.Entries) != n {
		return nil, fmt.Errorf("holds %d objects and says that there are %d: %w", len(b.Entries), n, ErrInvalid)
	}
	return b, nil
}

// checkedBody is everything before the last line, whose checksum is right.
func checkedBody(text []byte) (body []byte, objects int, err error) {
	cut := fmt.Errorf("is cut short: its last line is not the checksum: %w", ErrInvalid)
	whole, ended := bytes.CutSuffix(text, []byte("\n"))
	at := bytes.LastIndexByte(whole, '\n') + 1
	var tail backupTail
	if err := json.Unmarshal(whole[at:], &tail); !ended || err != nil || tail.Objects == nil || at == 0 {
		return nil, 0, cut
	}
	sum := sha256.Sum256(text[:at])
	if hex.EncodeToString(sum[:]) != tail.SHA256 {
		return nil, 0, fmt.Errorf("was altered or damaged: its checksum does not fit: %w", ErrInvalid)
	}
	return text[:at], *tail.Objects, nil
}
