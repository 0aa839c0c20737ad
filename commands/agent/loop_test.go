package agent

import (
	"context"
	"log/slog"
	"testing"

	"netctl/acl/nft"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing/fib"
)

// TestAwaitTellsWhatHappened: a caller that gives up at the very moment is told
// that its check was done, or it was not: Begin counts on it.
func TestAwaitTellsWhatHappened(t *testing.T) {
	l := newLoop(Config{Node: "n1", LinkPrefix: "nc", Gateway: netdev.Gateway4(), StateDir: t.TempDir()}, slog.New(slog.DiscardHandler), &kernel.Fake{}, fib.NewFake().Table(87), &nft.Fake{})
	ctx, stop := context.WithCancel(t.Context())
	go func() { _ = l.run(ctx) }()
	done, told := 0, 0
	for range 20000 {
		giveUp, cancel := context.WithCancel(ctx)
		go cancel()
		if l.await(giveUp, func() (bool, error) { done++; return true, nil }) == nil {
			told++
		}
	}
	if err := l.do(ctx, func() {
		if done != told || len(l.waiters) != 0 {
			t.Errorf("%d done, %d told, %d waiters", done, told, len(l.waiters))
		}
	}); err != nil {
		t.Fatal(err)
	}
	stop()
	<-l.ended
}
