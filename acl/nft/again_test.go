package nft

import (
	"context"
	"log/slog"
	"testing"
)

// meddler takes the table away as often as it is to, each time that something is logged: that
// is between the reads and the writes of a repair.
type meddler struct {
	slog.Handler
	router *netns
	left   *int
}

func (m meddler) Enabled(context.Context, slog.Level) bool { return true }

func (m meddler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "packet filter differs" && *m.left > 0 {
		*m.left--
		m.router.Run("nft", "flush", "ruleset")
	}
	return nil
}

// TestTakenAwayWhileItIsRepaired: a table that somebody takes away again while it is put back is
// whole after that, and not left open until somebody looks again.
func TestTakenAwayWhileItIsRepaired(t *testing.T) {
	l, _ := wiredLab(t, onNFT)
	for _, times := range []int{1, 2} {
		left := times
		l.table.log = slog.New(meddler{slog.DiscardHandler, l.router, &left})
		l.router.Run("nft", "flush", "ruleset")
		if wrote, err := l.table.Sync(t.Context(), l.rules); !wrote || err != nil || left > 0 {
			t.Fatalf("taken away %d times more: %v, %v", times-left, wrote, err)
		}
		if wrote, err := l.table.Sync(t.Context(), l.rules); wrote || err != nil {
			t.Errorf("taken away %d times more, it is not whole: %v", times, err)
		}
		l.sync()
		l.expect(true, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.2", 99)))
		l.expect(false, "a", l.uniquePort(udp("10.0.0.1", "10.0.0.3", 7)))
	}
}
