package acl

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"netctl/datastore"
)

// TestJournal replays random histories: at every step the file is what the deltas
// have come to, also where its last record was cut off.
func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "filter")
	if _, err := readJournal(path); !errors.Is(err, datastore.ErrNotFound) {
		t.Fatalf("no file: %v", err)
	}
	for seed := range uint64(4) {
		w, x := newWorld(t, 500+seed), NewIndex("node0", testOptions())
		j := NewJournal(path)
		if !j.Due() {
			t.Fatal("a new journal is not due")
		}
		if err := j.Whole(x.Ruleset()); err != nil {
			t.Fatal(err)
		}
		size := int64(0)
		for range 40 {
			before := x.Ruleset().String()
			x.Apply(w.step())
			x.Work()
			d := x.Flush()
			if d.Empty() {
				continue
			}
			if err := j.Add(d); err != nil {
				t.Fatal(err)
			}
			got, err := readJournal(path)
			if err != nil {
				t.Fatal(err)
			}
			sameRuleset(t, "the journal", got, x.Ruleset())
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 && w.rng.IntN(4) == 0 { // killed while it wrote
				cut := path + ".cut"
				text, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(cut, text[:size+1+w.rng.Int64N(st.Size()-size-1)], 0o600); err != nil {
					t.Fatal(err)
				}
				got, err := readJournal(cut)
				if err != nil || got.String() != before {
					t.Fatalf("cut off: %v\n%s", err, got)
				}
			}
			size = st.Size()
		}
		j.Close()
		if !j.Due() {
			t.Error("a closed journal is not due")
		}
	}
	if err := os.WriteFile(path, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readJournal(path); !errors.Is(err, datastore.ErrNotFound) {
		t.Errorf("another form: %v", err)
	}
}

// TestALostJournal: what was read or written is made again as it was, and goes on.
func TestALostJournal(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	path := filepath.Join(dir, "filter")
	w, x := newWorld(t, 900), NewIndex("node0", testOptions())
	j := NewJournal(path)
	if err := j.Whole(x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	for what, lose := range map[string]func() error{
		"removed":                 func() error { return os.Remove(path) },
		"removed with the folder": func() error { return os.RemoveAll(dir) },
		"another one":             func() error { return errors.Join(os.Remove(path), os.WriteFile(path, []byte("x"), 0o600)) },
		"cut off":                 func() error { return os.Truncate(path, 0) },
		"written into": func() error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte("x"), 100)
				err = errors.Join(err, f.Close())
			}
			return err
		},
	} {
		for range 10 {
			x.Apply(w.step())
			x.Work()
			d := x.Flush()
			if j.Due() {
				if err := j.Whole(x.Ruleset()); err != nil {
					t.Fatal(err)
				}
			} else if err := j.Add(d); err != nil {
				t.Fatal(err)
			}
		}
		reader := NewJournal(path) // of a process that has not written yet
		if _, err := reader.Read(); err != nil {
			t.Fatal(err)
		}
		for _, by := range []*Journal{j, reader} {
			if err := lose(); err != nil {
				t.Fatal(err)
			}
			err := by.Restore()
			if by == j && errors.Is(err, ErrDamaged) {
				if _, e := j.Read(); !errors.Is(e, ErrDamaged) {
					t.Errorf("%s: read all the same: %v", what, e)
				}
				if err = j.Remake(x.Ruleset()); !j.Due() {
					t.Errorf("%s: what is next would be added to what may be ahead", what)
				}
			}
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			got, err := readJournal(path)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			sameRuleset(t, what, got, x.Ruleset())
		}
		reader.Close()
		err := j.Restore() // the reader's is in its place
		if errors.Is(err, ErrDamaged) {
			err = j.Remake(x.Ruleset())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := NewJournal(path + "none").Restore(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path + "none"); err == nil {
		t.Error("a journal that holds nothing made a file")
	}
}

// TestADamagedJournal: a hole ends it, and no damage is a reason to panic.
func TestADamagedJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "filter")
	j, x := NewJournal(path), everyAddress(t)
	if err := j.Whole(x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	whole, e := j.written, addrElement(netip.MustParseAddr("10.0.0.1"))
	if err := j.Add(Delta{Sets: []SetChange{{Name: "tag4_x", Type: Addr4, New: true, Add: []Element{e}}}}); err != nil {
		t.Fatal(err)
	}
	hole := j.written
	if err := j.Add(Delta{Sets: []SetChange{{Name: "tag4_x", Type: Addr4, Del: []Element{e}}}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func(text []byte) (*Ruleset, error) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return readJournal(path)
	}
	holed := bytes.Clone(text)
	clear(holed[whole:hole])
	got, err := read(holed)
	if err != nil {
		t.Fatal(err)
	}
	sameRuleset(t, "before the hole", got, x.Ruleset())
	for i := range 2000 {
		bad := bytes.Clone(text)
		at := int64(i * 7919 % len(bad))
		bad[at] ^= 1 << (i % 8)
		switch got, err := read(bad); {
		case at < whole:
			if !errors.Is(err, datastore.ErrNotFound) {
				t.Fatalf("byte %d of the whole: %v", at, err)
			}
		case err != nil:
			t.Fatalf("byte %d: %v", at, err)
		case at < hole && got.Sets["tag4_x"] != nil || at >= hole && len(got.Sets["tag4_x"].Elements) != 1:
			t.Fatalf("byte %d is damaged, and read", at)
		}
	}
}

// TestJournalIsWrittenAnew: changes alone do not let it grow for ever.
func TestJournalIsWrittenAnew(t *testing.T) {
	x := everyAddress(t)
	j := NewJournal(filepath.Join(t.TempDir(), "filter"))
	if err := j.Whole(x.Ruleset()); err != nil {
		t.Fatal(err)
	}
	d := Delta{Sets: []SetChange{{Name: setSrc4, Type: LinkAddr4, Add: x.Ruleset().Sets[setSrc4].Sorted()}}}
	adds := 0
	for ; !j.Due(); adds++ {
		if err := j.Add(d); err != nil {
			t.Fatal(err)
		}
		if adds > 10000 {
			t.Fatal("never due")
		}
	}
	if err := j.Whole(x.Ruleset()); err != nil || j.Due() {
		t.Fatalf("%v, due %v", err, j.Due())
	}
}

func TestWithStatic(t *testing.T) {
	x := everyAddress(t)
	other := testOptions()
	other.FlowRate, other.WorkloadToHost = 7, nil
	y := NewIndex("node0", other)
	for name, p := range x.profiles {
		y.Apply(datastore.Change{Kind: datastore.KindProfile, Name: name, New: p})
	}
	for _, m := range x.members {
		y.Apply(datastore.Change{Kind: datastore.KindEndpoint, Name: m.endpoint.Metadata.Name, New: m.endpoint})
	}
	sameRuleset(t, "with other options", x.Ruleset().WithStatic(other), y.Ruleset())
}

// everyAddress is an index with some hundred local endpoints.
func everyAddress(t *testing.T) *Index {
	c := newCrowd(t, 0, 0)
	for i := range 300 {
		c.put(c.endpoint("node0", string(rune('a'+i%26))+string(rune('a'+i/26)), i, "web"))
	}
	return c.x
}

// readJournal is what a new process finds at path.
func readJournal(path string) (*Ruleset, error) {
	j := NewJournal(path)
	defer j.Close()
	return j.Read()
}
