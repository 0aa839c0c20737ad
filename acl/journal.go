package acl

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/gob"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"netctl/datastore"
)

// journalVersion is of the file's form; another one is not read.
const journalVersion = 3

// Journal keeps on disk what a packet filter should hold, so that it can be put back
// while nobody knows what the datastore says: once the whole, then each change. It
// survives the process; after a crash of the machine, whose kernel is empty, its end
// may be missing. What was read or written stays at hand when somebody removes the file, and
// what was read when somebody writes into it.
// It is safe for concurrent use.
type Journal struct {
	path string

	mu      sync.Mutex
	file    *os.File // what is kept; nil: nothing that is known
	encoder *gob.Encoder
	record  bytes.Buffer // what the encoder makes of one
	written int64
	whole   int64 // bytes of the last whole; 0: it has to be written first

	sum  uint32   // of the bytes that were written, or read
	read *Ruleset // what was read; nil: this process has written since
}

// ErrDamaged says that somebody wrote into the file of a Journal, whose writer alone knows
// what was in it.
var ErrDamaged = errors.New("somebody wrote into the record of the packet filter")

// entry is one record of the file: its length and CRC-32 (IEEE), both big endian, are
// before what gob makes of it.
type entry struct {
	Version int      // of the first
	Words   []string // of the first: what the numbers in rules and sets mean
	Delta   Delta
	Edits   []chainEdit
}

// chainEdit is a change of a few rules of a chain.
type chainEdit struct {
	Name string
	Edit Edit
}

const recordHead = 8

// words are the names of fields, set types and verdicts, in the order of their numbers.
func words() (list []string) {
	for f := NFProto; f.String() != unknown; f++ {
		list = append(list, f.String())
	}
	for t := Addr4; t.String() != unknown; t++ {
		list = append(list, t.String(), strconv.FormatBool(t.Interval()), strconv.FormatBool(t.Meter()))
	}
	for k := Continue; k <= Untrack; k++ {
		list = append(list, Verdict{Kind: k}.String())
	}
	return list
}

// NewJournal is a journal at path; it touches nothing.
func NewJournal(path string) *Journal { return &Journal{path: path} }

// Due says whether Whole is to be called before the next Add: at first, after an
// error, and when the changes have outgrown the whole.
func (j *Journal) Due() bool {
	const least = 1 << 20
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.whole == 0 || j.written > 2*max(j.whole, least)
}

// Lost says that somebody removed the file, or put another one in its place: what is
// added to it nobody will read.
func (j *Journal) Lost() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.lost()
}

func (j *Journal) lost() bool {
	if j.file == nil {
		return true
	}
	is, err := os.Stat(j.path)
	if err != nil {
		return true
	}
	was, err := j.file.Stat()
	return err != nil || !os.SameFile(is, was) || is.Size() != j.written
}

// damaged says that the file, whatever it is called now, does not hold what it did.
func (j *Journal) damaged() bool {
	sum, n, err := sumOf(j.file)
	return err != nil || n != j.written || sum != j.sum
}

func sumOf(f *os.File) (sum uint32, n int64, err error) {
	h := crc32.NewIEEE()
	n, err = io.Copy(h, io.NewSectionReader(f, 0, math.MaxInt64))
	return h.Sum32(), n, err
}

// Restore makes the file again, as it was, if it is lost or somebody wrote into it.
// ErrDamaged: that takes Remake.
func (j *Journal) Restore() (err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.file == nil:
		return nil
	case j.damaged() && j.read == nil:
		return ErrDamaged
	case j.damaged():
		return j.remake(j.read)
	case !j.lost():
		return nil
	}
	f, err := j.begin()
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, io.NewSectionReader(j.file, 0, math.MaxInt64)); err == nil {
		err = os.Rename(f.Name(), j.path)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return fmt.Errorf("keep the packet filter: %w", err)
	}
	_ = j.file.Close()
	j.file = f
	return nil
}

// begin opens what is to become the file.
func (j *Journal) begin() (*os.File, error) {
	err := os.MkdirAll(filepath.Dir(j.path), 0o700)
	if err != nil {
		return nil, fmt.Errorf("keep the packet filter: %w", err)
	}
	f, err := os.OpenFile(j.path+".new", os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("keep the packet filter: %w", err)
	}
	return f, nil
}

// Whole begins the file anew with everything there is to hold. After an error, of Add
// too, there is none: an outdated one would have its state put back.
func (j *Journal) Whole(r *Ruleset) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.begun(r)
}

// Remake is Whole out of turn, with what may be ahead of the changes that were added:
// before the next Add it is due again.
func (j *Journal) Remake(r *Ruleset) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.remake(r)
}

func (j *Journal) remake(r *Ruleset) error {
	was := j.read
	err := j.begun(r)
	j.whole, j.read = 0, was
	return err
}

// begun makes the file, once more where its folder went meanwhile.
func (j *Journal) begun(r *Ruleset) (err error) {
	for range mostBegins {
		if err = j.beginWith(r); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

const mostBegins = 10

func (j *Journal) beginWith(r *Ruleset) (err error) {
	j.close()
	defer func() {
		if err != nil {
			_ = os.Remove(j.path)
		}
	}()
	first := entry{Version: journalVersion, Words: words()}
	for _, name := range sortedKeys(r.Chains) {
		c := r.Chains[name]
		first.Delta.Chains = append(first.Delta.Chains, ChainChange{Name: name, New: true, Hook: c.Hook, Rules: c.Rules})
	}
	for _, name := range sortedKeys(r.Sets) {
		s := r.Sets[name]
		first.Delta.Sets = append(first.Delta.Sets, SetChange{Name: name, Type: s.Type, Comment: s.Comment, New: true, Add: s.Sorted()})
	}
	if j.file, err = j.begin(); err != nil {
		return err
	}
	j.written, j.sum, j.read = 0, 0, nil
	j.encoder = gob.NewEncoder(&j.record)
	if err = j.append(first); err == nil {
		err = os.Rename(j.path+".new", j.path)
	}
	if err != nil {
		j.close()
		return fmt.Errorf("keep the packet filter: %w", err)
	}
	j.whole = j.written
	return nil
}

// append writes one record.
func (j *Journal) append(e entry) error {
	j.record.Reset()
	j.record.Write(make([]byte, recordHead))
	if err := j.encoder.Encode(e); err != nil {
		return err
	}
	b := j.record.Bytes()
	binary.BigEndian.PutUint32(b, uint32(len(b)-recordHead))
	binary.BigEndian.PutUint32(b[4:], crc32.ChecksumIEEE(b[recordHead:]))
	n, err := j.file.Write(b)
	j.written, j.sum = j.written+int64(n), crc32.Update(j.sum, crc32.IEEETable, b[:n])
	return err
}

// Add appends a change, before it is made.
func (j *Journal) Add(d Delta) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := entry{Delta: Delta{Sets: d.Sets}}
	for _, c := range d.Chains {
		if !c.New && !c.Gone {
			e.Edits = append(e.Edits, chainEdit{c.Name, c.Edit()})
			continue
		}
		c.Before = nil
		e.Delta.Chains = append(e.Delta.Chains, c)
	}
	if err := j.append(e); err != nil {
		j.close()
		_ = os.Remove(j.path)
		return fmt.Errorf("keep the packet filter: %w", err)
	}
	return nil
}

// Close ends the writing; Whole begins it again.
func (j *Journal) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.close()
}

func (j *Journal) close() {
	if j.file != nil {
		_ = j.file.Close()
	}
	j.file, j.encoder, j.whole = nil, nil, 0
}

// Read returns what is kept, which nobody changes; without a file, or with one of another
// version of the program, datastore.ErrNotFound. A record that was cut off ends it.
func (j *Journal) Read() (r *Ruleset, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		j.file, err = os.Open(j.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", j.path, datastore.ErrNotFound)
		}
		if err != nil {
			return nil, err
		}
	} else if j.damaged() {
		if j.read == nil {
			return nil, ErrDamaged
		}
		return j.read, nil
	}
	if r, err = readRecords(io.NewSectionReader(j.file, 0, math.MaxInt64)); err != nil {
		j.close()
		return nil, fmt.Errorf("%s: %w", j.path, err)
	}
	if j.whole == 0 { // nothing is added to it
		if j.sum, j.written, err = sumOf(j.file); err != nil {
			j.close()
			return nil, fmt.Errorf("%s: %w", j.path, err)
		}
		j.read = r
	}
	return r, nil
}

func readRecords(from io.Reader) (*Ruleset, error) {
	r, in := &Ruleset{Sets: map[string]*Set{}, Chains: map[string]*Chain{}}, bufio.NewReader(from)
	var record bytes.Buffer
	dec := gob.NewDecoder(&record)
	for n := 0; ; n++ {
		var e entry
		err := readRecord(in, &record)
		if err == nil {
			err = dec.Decode(&e)
		}
		switch {
		case n == 0 && (err != nil || e.Version != journalVersion || !slices.Equal(e.Words, words())):
			return nil, fmt.Errorf("not of this version: %w", datastore.ErrNotFound)
		case err != nil || !r.takes(e):
			return r, nil
		}
		r.Apply(e.Delta)
		for _, c := range e.Edits {
			chain, at := *r.Chains[c.Name], c.Edit.At
			chain.Rules = slices.Concat(chain.Rules[:at], c.Edit.Insert, chain.Rules[at+c.Edit.Delete:])
			r.Chains[c.Name] = &chain
		}
	}
}

// readRecord appends the next record to what gob reads from.
func readRecord(in io.Reader, to *bytes.Buffer) error {
	var head [recordHead]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return err
	}
	to.Reset()
	if _, err := io.CopyN(to, in, int64(binary.BigEndian.Uint32(head[:]))); err != nil {
		return err
	}
	if crc32.ChecksumIEEE(to.Bytes()) != binary.BigEndian.Uint32(head[4:]) {
		return errors.New("damaged")
	}
	return nil
}

// takes says whether what e changes is there: it is not behind a hole in the file.
func (r *Ruleset) takes(e entry) bool {
	for _, c := range e.Delta.Chains {
		if !c.New && r.Chains[c.Name] == nil {
			return false
		}
	}
	for _, c := range e.Edits {
		if chain := r.Chains[c.Name]; chain == nil || c.Edit.At < 0 || c.Edit.Delete < 0 || c.Edit.At+c.Edit.Delete > len(chain.Rules) {
			return false
		}
	}
	for _, c := range e.Delta.Sets {
		if !c.New && r.Sets[c.Name] == nil {
			return false
		}
	}
	return true
}

// WithStatic is r with the static part of options o; what it says of endpoints stays.
func (r *Ruleset) WithStatic(o Options) *Ruleset {
	out, static := r.Clone(), Static(o)
	maps.DeleteFunc(out.Sets, func(_ string, s *Set) bool { return s.Type.Meter() }) // their names go by options
	for name, c := range static.Chains {
		out.Chains[name] = c
	}
	for name, s := range static.Sets {
		if old := out.Sets[name]; old == nil || !s.Type.OfEndpoints() {
			out.Sets[name] = s
		}
	}
	return out
}
