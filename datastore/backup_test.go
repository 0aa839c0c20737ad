package datastore

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestBackup(t *testing.T) {
	value := []byte(`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"web"},"spec":{"tags":["a&b<c>"],"inbound":[],"outbound":[],"later":1}}`)
	value = bytes.ReplaceAll(value, []byte("a&b<c>"), []byte("web"))
	s := Snapshot{Revision: 9, Entries: []Entry{
		{Key: ClusterKey, Value: []byte(`{"uuid":"u","created":"2026-01-02T03:04:05Z","generation":3}`), Revision: 1},
		{Key: PoolsKey, Value: []byte("{}"), Revision: 2},
		{Key: Prefix + "profiles/bad", Value: []byte("{"), Revision: 4},
		{Key: Prefix + "profiles/web", Value: value, Revision: 5},
		{Key: ReportPrefix + "n1/agent", Value: []byte(`{"apiVersion":"netctl/v1","kind":"Report","metadata":{"name":"n1/agent"}}`), Revision: 6},
	}}
	b, left := NewBackup(s, "1.2.3", time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC))
	if len(left) != 1 || !strings.Contains(left[0].Error(), "profiles/bad") {
		t.Errorf("left out: %v", left)
	}
	text, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeBackup(text)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(b, again) || again.Cluster.Generation != 3 || len(again.Entries) != 2 || !bytes.Equal(again.Entries[1].Value, value) {
		t.Errorf("%+v\n%+v", b, again)
	}
	// Cut anywhere or with any byte changed it is refused.
	for i := range text {
		if _, err := DecodeBackup(text[:i]); err == nil {
			t.Errorf("cut at %d of %d: taken", i, len(text))
		}
		other := bytes.Clone(text)
		other[i] ^= 1
		if got, err := DecodeBackup(other); err == nil {
			t.Errorf("byte %d changed: taken as %+v", i, got)
		}
	}
	if _, err := DecodeBackup(append(bytes.Clone(text), text...)); err == nil {
		t.Error("two backups: taken")
	}
	b.Entries = append(b.Entries, b.Entries[1])
	if text, err = b.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeBackup(text); err == nil || !strings.Contains(err.Error(), "line 4: /netctl/v1/profiles/web: keys must ascend") {
		t.Errorf("a key twice: %v", err)
	}
}

// TestBackupOfNewer: an object that only a newer netctl can read is in the backup, and
// the backup is one for that.
func TestBackupOfNewer(t *testing.T) {
	value := []byte(`{"apiVersion":"netctl/v1","kind":"Profile","metadata":{"name":"web","needs":99},"spec":{"later":1}}`)
	b, left := NewBackup(Snapshot{Entries: []Entry{{Key: Prefix + "profiles/web", Value: value}}}, "1", time.Now())
	if len(left) > 0 || len(b.Entries) != 1 || b.Model != 99 {
		t.Fatalf("%+v %v", b, left)
	}
	text, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeBackup(text); err == nil || !strings.Contains(err.Error(), "needs version 99 of the model") {
		t.Error(err)
	}
}

func FuzzBackup(f *testing.F) {
	b := Backup{Model: ModelVersion, Version: "1"}
	text, err := b.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("{}\n"))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(_ *testing.T, text []byte) { _, _ = DecodeBackup(text) })
}
