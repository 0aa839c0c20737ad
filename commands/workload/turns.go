package workload

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// turns gives each endpoint to one caller at a time.
type turns struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder is done
}

// take waits until name is free. The returned function gives it back.
func (t *turns) take(ctx context.Context, name string) (release func(), err error) {
	for {
		t.mu.Lock()
		busy, ok := t.held[name]
		if !ok {
			mine := make(chan struct{})
			t.held[name] = mine
			t.mu.Unlock()
			return func() {
				t.mu.Lock()
				delete(t.held, name)
				t.mu.Unlock()
				close(mine)
			}, nil
		}
		t.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("endpoint %s is being changed: %w", name, ctx.Err())
		}
	}
}

// under lists the names that are taken and start with prefix.
func (t *turns) under(prefix string) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for n := range t.held {
		if strings.HasPrefix(n, prefix) {
			names = append(names, n)
		}
	}
	return names
}
