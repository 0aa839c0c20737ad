package embed

import (
	"bytes"
	"log/slog"
	"testing"
	"time"
)

// TestHistoryByTime walks through a day: what is compacted is always at least
// historyTime old and never much older.
func TestHistoryByTime(t *testing.T) {
	k := newKeeper(1<<30, slog.New(slog.DiscardHandler))
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	k.past = []mark{{begin, 1}}
	for s := 1; s < 86400; s += 7 { // one revision a second
		now, revision := begin.Add(time.Duration(s)*time.Second), int64(1+s)
		to := k.byTime(now, revision)
		if s < int(historyTime/time.Second) {
			if to != 0 {
				t.Fatalf("after %d s: compacts to %d", s, to)
			}
			continue
		}
		age := time.Duration(revision-to) * time.Second
		if age < historyTime || age > historyTime+lookEvery+10*time.Second {
			t.Fatalf("after %d s: keeps %v", s, age)
		}
		if most := int(historyTime/lookEvery) + 2; len(k.past) > most {
			t.Fatalf("after %d s: %d marks", s, len(k.past))
		}
	}
}

// TestWorth: a full file is shrunk when that ends the alarm, however little it wins.
func TestWorth(t *testing.T) {
	k := newKeeper(1000, slog.New(slog.DiscardHandler))
	now := time.Now()
	for _, c := range []struct {
		size, inUse int64
		alarmed     bool
		want        bool
	}{
		{1000, 950, true, false}, {1000, 930, true, true}, {930, 901, true, false}, {930, 899, true, true}, {930, 899, false, false},
		{890, 880, true, false}, {760, 690, false, true}, {740, 600, false, false}, {600, 290, false, true},
	} {
		if got := k.worth(c.size, c.inUse, c.alarmed, now); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

func TestPageQuota(t *testing.T) {
	const mib = 1 << 20
	for file, want := range map[int64]int64{16 * mib: 14 * mib, 17 * mib: 14 * mib, 32 * mib: 14 * mib, 33 * mib: 15 * mib, 2048 * mib: 2030 * mib} {
		if got := pageQuota(file); got != want {
			t.Errorf("%d MiB: %d MiB, want %d", file/mib, got/mib, want/mib)
		}
	}
}

// TestFullIsSaidOnce: not with every look, and again when it is full once more.
func TestFullIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	k := newKeeper(1000, slog.New(slog.NewTextHandler(&log, nil)))
	for want := 1; want <= 2; want++ {
		for range 3 {
			k.sayFull(990, 980)
		}
		if n := bytes.Count(log.Bytes(), []byte("datastore full")); n != want {
			t.Fatalf("said %d times, want %d:\n%s", n, want, &log)
		}
		k.full = false
	}
}
