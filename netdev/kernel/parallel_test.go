package kernel

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
)

// TestParallel attaches and detaches from many goroutines while links are deleted
// and watched.
func TestParallel(t *testing.T) {
	h := newHost(t)
	ctx, cancel := context.WithCancel(context.Background())
	var background, workers sync.WaitGroup
	ready := make(chan struct{})
	background.Go(func() { _ = h.Run(ctx) })
	background.Go(func() {
		err := h.Watch(ctx, func(ev Event) {
			if ev.Change == Resync {
				select {
				case <-ready:
				default:
					close(ready)
				}
			}
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Watch: %v", err)
		}
	})
	<-ready
	const goroutines, rounds = 8, 6
	for g := range goroutines {
		inside := newNetns(t)
		workers.Go(func() {
			w := Wire{Netns: inside, Interface: "eth0", Link: fmt.Sprintf("nc%d", g), Addresses: addrs(fmt.Sprintf("10.0.0.%d", g), fmt.Sprintf("fd80::%d", g))}
			for round := range rounds {
				if _, err := h.Create(w); err != nil {
					t.Errorf("%s, round %d: %v", w.Link, round, err)
					return
				}
				if err := errors.Join(h.Up(w.Link), h.Check(w)); err != nil {
					t.Errorf("%s, round %d: %v", w.Link, round, err)
				}
				if round == rounds-1 {
					return
				}
				if err := h.Detach(w.Link, 0); err != nil {
					t.Errorf("%s, round %d: %v", w.Link, round, err)
				}
			}
		})
	}
	workers.Wait()
	if links, err := h.Links(); err != nil || len(links) != goroutines {
		t.Errorf("Links = %v, %v", links, err)
	}
	cancel()
	background.Wait()
}
