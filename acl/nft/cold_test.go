package nft

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"
)

// used is the CPU time of this process, or of its children that have ended.
func used(t testing.TB, who int) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkColdSync puts 10,000 rules into an empty kernel, beside `nft -f` with the same
// ruleset as text: CPU and wall milliseconds.
func BenchmarkColdSync(b *testing.B) {
	rules := thousandProfiles(b).Ruleset()
	text := rules.String()
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	var ours, theirs, oursWall, theirsWall time.Duration
	var commits uint32
	for b.Loop() {
		table, other := open(b, newNetns(b)), newNetns(b)
		cpu, start := used(b, unix.RUSAGE_SELF), time.Now()
		if _, err := table.Sync(b.Context(), rules); err != nil {
			b.Fatal(err)
		}
		oursWall += time.Since(start)
		ours += used(b, unix.RUSAGE_SELF) - cpu
		g, err := table.Generation()
		if err != nil {
			b.Fatal(err)
		}
		commits = g - 1 // it begins at 1
		cpu, start = used(b, unix.RUSAGE_CHILDREN), time.Now()
		if out, err := other.input(text, "nft", "-f", "-"); err != nil {
			b.Fatalf("%v\n%.300s", err, out)
		}
		theirsWall += time.Since(start)
		theirs += used(b, unix.RUSAGE_CHILDREN) - cpu
	}
	n := time.Duration(b.N)
	b.ReportMetric(ms(ours/n), "ms-cpu")
	b.ReportMetric(ms(oursWall/n), "ms")
	b.ReportMetric(ms(theirs/n), "nft-ms-cpu")
	b.ReportMetric(ms(theirsWall/n), "nft-ms")
	b.ReportMetric(float64(commits), "transactions")
}

// TestABatchIsAnsweredOnce: of a batch of any size the kernel is asked for one answer,
// that to the last change, and for no echo. What it refuses it says unasked, and that
// is the error.
func TestABatchIsAnsweredOnce(t *testing.T) {
	rules := everything(t).Ruleset()
	tx := newTransaction()
	compare(tx, rules, &kernel{}, handles{})
	batch, err := encode(tx.ops())
	if err != nil {
		t.Fatal(err)
	}
	if len(batch) < 100 {
		t.Fatalf("only %d messages", len(batch))
	}
	answer := func(to netlink.Message, errno int32) netlink.Message {
		h := to.Header
		h.Type = netlink.Error
		return netlink.Message{Header: h, Data: append(binary.NativeEndian.AppendUint32(nil, uint32(-errno)), make([]byte, 16)...)}
	}
	for what, c := range map[string]struct {
		refused []int // numbers of messages
		want    error
	}{
		"all is well":                  {nil, nil},
		"one in the middle":            {[]int{50}, unix.ENOENT},
		"the last":                     {[]int{len(batch) - 2}, unix.ENOENT},
		"the commit, at the beginning": {[]int{0}, unix.ENOENT},
	} {
		asked := 0
		conn := nltest.Dial(func(sent []netlink.Message) (answers []netlink.Message, _ error) {
			for i, m := range sent {
				switch {
				case m.Header.Flags&netlink.Echo != 0:
					t.Errorf("%s: message %d asks for an echo", what, i)
				case slices.Contains(c.refused, i):
					answers = append(answers, answer(m, int32(unix.ENOENT)))
				case m.Header.Flags&netlink.Acknowledge != 0:
					answers = append(answers, answer(m, 0))
				}
				if m.Header.Flags&netlink.Acknowledge != 0 {
					asked++
				}
			}
			return answers, nil
		})
		if err := transmit(conn, slices.Clone(batch)); !isError(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		if asked != 1 {
			t.Errorf("%s: %d answers were asked for", what, asked)
		}
	}
	if err := transmit(nil, nil); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
}

func isError(err, want error) bool {
	if want == nil {
		return err == nil
	}
	return errors.Is(err, want)
}
