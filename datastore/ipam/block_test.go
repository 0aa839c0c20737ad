package ipam

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"testing"
	"time"

	"netctl/datastore"
)

func TestBitmapClear(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		size := 1 << rng.IntN(maxBlockBits+1)
		m, taken := new(bitmap), map[int]bool{}
		for range rng.IntN(size + 1) {
			i := rng.IntN(size)
			m.set(i)
			taken[i] = true
		}
		if rng.IntN(10) == 0 {
			m.setRange(0, size-1)
			for i := range size {
				taken[i] = true
			}
		}
		start := rng.IntN(size)
		want, found := 0, false
		for i := range size {
			if o := (start + i) % size; !taken[o] {
				want, found = o, true
				break
			}
		}
		if got, ok := m.clear(start, size); ok != found || got != want {
			t.Fatalf("size %d from %d: got %d, %v; want %d, %v", size, start, got, ok, want, found)
		}
		if got := m.count(size); got != len(taken) {
			t.Fatalf("size %d: count %d, want %d", size, got, len(taken))
		}
	}
}

func TestOrdinals(t *testing.T) {
	for _, s := range []string{"10.0.0.0/26", "10.255.240.0/22", "10.0.0.7/32", "255.255.255.192/26", "fd80::/122", "fd80:24e2:f998:72d6:ffff:ffff:ffff:fc00/118"} {
		p := netip.MustParsePrefix(s)
		a := p.Addr()
		for i := range 1 << (a.BitLen() - p.Bits()) {
			if got := addressOf(p, i); got != a || ordinalOf(p, a) != i {
				t.Fatalf("%s: ordinal %d is %s (%d), want %s", s, i, got, ordinalOf(p, a), a)
			}
			if next := a.Next(); !p.Contains(next) && datastore.LastAddr(p) != a {
				t.Fatalf("%s: last is %s, want %s", s, datastore.LastAddr(p), a)
			}
			a = a.Next()
		}
	}
}

// model is a block as plainly as possible: the oracle of space.
type model struct {
	holder map[int]string
	left   map[int]time.Duration // when it was released
	next   int
}

// want is the ordinal a request without a wish must get.
func (m *model) want(size int, now time.Duration) (int, bool) {
	for i := range size {
		o := (m.next + i) % size
		at, rests := m.left[o]
		if m.holder[o] == "" && (!rests || now >= at+Quarantine) {
			return o, true
		}
	}
	oldest, found := 0, false
	for o := range size {
		if at, rests := m.left[o]; rests && m.holder[o] == "" && (!found || at < m.left[oldest]) {
			oldest, found = o, true
		}
	}
	return oldest, found
}

// TestBlockAgainstModel runs random histories of one owner on a block and on the
// model; each plan works on what the last one wrote, as stored.
func TestBlockAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 60 {
		bits := 27 + rng.IntN(5)
		b := &datastore.Block{Spec: datastore.BlockSpec{CIDR: netip.PrefixFrom(netip.MustParseAddr("10.0.0.0"), bits), Affinity: "n1"}}
		m := &model{holder: map[int]string{}, left: map[int]time.Duration{}}
		now := time.Hour
		for step := range 300 {
			now += time.Duration(rng.IntN(8000)) * time.Millisecond
			b = history(t, rng, b, m, now, "h"+strconv.Itoa(step))
		}
	}
}

func history(t *testing.T, rng *rand.Rand, b *datastore.Block, m *model, now time.Duration, handle string) *datastore.Block {
	t.Helper()
	s := open(b, "n1", clock{boot: "b", now: now, rest: Quarantine})
	size := b.Size()
	switch rng.IntN(5) {
	case 0, 1: // a request without a wish
		want, ok := m.want(size, now)
		got, fresh := s.free(new(bitmap))
		if !fresh {
			r, rests := s.resting(new(bitmap))
			if rests != ok {
				t.Fatalf("%v at %s: found %v, want %v", b.Spec, now, rests, ok)
			}
			got = r.Ordinal
		}
		if !ok {
			break
		}
		if got != want {
			t.Fatalf("%+v at %s: got %d, want %d", b.Spec, now, got, want)
		}
		if fresh {
			s.block.Spec.Next = (got + 1) % size
			m.next = s.block.Spec.Next
		}
		s.take(datastore.Allocation{Ordinal: got, Handle: handle, Node: "n1"})
		m.holder[got] = handle
		delete(m.left, got)
	case 2: // a wish
		o := rng.IntN(size)
		if h := s.holder(o); (h == nil) != (m.holder[o] == "") {
			t.Fatalf("holder of %d is %v, want %q", o, h, m.holder[o])
		} else if h == nil {
			s.take(datastore.Allocation{Ordinal: o, Handle: handle, Node: "n1"})
			m.holder[o] = handle
			delete(m.left, o)
		}
	default:
		o := rng.IntN(size)
		if h := m.holder[o]; h != "" {
			if got := s.give(h, -1); !slices.Equal(got, []netip.Addr{addressOf(b.Spec.CIDR, o)}) {
				t.Fatalf("released %v, want ordinal %d", got, o)
			}
			m.left[o] = now
			delete(m.holder, o)
		}
	}
	if s.dirty {
		s.settle()
	}
	s.block.SetDefaults()
	if err := s.block.Validate(); err != nil {
		t.Fatalf("%+v: %v", s.block.Spec, err)
	}
	if held := s.used().count(size); held != len(m.holder) {
		t.Fatalf("%d allocated, want %d", held, len(m.holder))
	}
	return s.block
}

// FuzzBlock reads a block as it could be stored and works on it: whatever it
// holds, what is written back is valid and nobody loses an address.
func FuzzBlock(f *testing.F) {
	head := `{"apiVersion":"netctl/v1","kind":"Block","metadata":{"name":"10.0.0.0-30"},"spec":{"cidr":"10.0.0.0/30","affinity":"n1"`
	f.Add([]byte(head+`}}`), int64(0))
	f.Add([]byte(head+`,"next":3,"allocations":[{"ordinal":0,"handle":"a","node":"n1","time":"2026-01-01T00:00:00Z"}],"released":[{"ordinal":1,"boot":"b","at":5000},{"ordinal":2,"boot":"","at":0}]}}`), int64(61))
	f.Add([]byte(head+`,"released":[{"ordinal":0,"boot":"b","at":9223372036854775807},{"ordinal":1,"boot":"x","at":-1}]}}`), int64(-1))
	f.Add([]byte(head+`,"allocations":[{"ordinal":1,"handle":"a","node":"n2","time":"2026-01-01T00:00:00Z"}],"released":[{"ordinal":1,"boot":"b","at":1}]}}`), int64(7))
	f.Fuzz(func(t *testing.T, value []byte, now int64) {
		o, err := datastore.DecodeManifest(value)
		b, ok := o.(*datastore.Block)
		if err != nil || !ok {
			return
		}
		for _, boot := range []string{"", "b"} {
			s := open(b, "n1", clock{boot: boot, now: time.Duration(now), rest: Quarantine})
			before := slices.Clone(s.block.Spec.Allocations)
			ordinal, ok := s.free(new(bitmap))
			if !ok {
				var r datastore.Released
				if r, ok = s.resting(new(bitmap)); ok {
					ordinal = r.Ordinal
				}
			}
			if ok != (len(before) < b.Size()) {
				t.Fatalf("%d of %d allocated, found one: %v", len(before), b.Size(), ok)
			}
			if ok {
				s.take(datastore.Allocation{Ordinal: ordinal, Handle: "fuzz", Node: "n1"})
			}
			s.settle()
			if err := s.block.Validate(); err != nil {
				t.Fatal(err)
			}
			s.give("fuzz", ordinal)
			s.settle()
			if err := s.block.Validate(); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.block.Spec.Allocations, before) && !slices.ContainsFunc(before, func(a datastore.Allocation) bool { return a.Handle == "fuzz" }) {
				t.Fatalf("allocations %v became %v", before, s.block.Spec.Allocations)
			}
		}
	})
}
