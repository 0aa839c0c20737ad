package agent

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestAwaitCut: a filter that is closed stays so until flows are cut, for a second at most,
// and no longer than until somebody takes it away again.
func TestAwaitCut(t *testing.T) {
	for name, c := range map[string]struct {
		cut, gone, want time.Duration // cut or gone 0: never
	}{
		"cut":           {cut: 41 * time.Millisecond, want: 41 * time.Millisecond},
		"not cut":       {want: closedFor},
		"flushed again": {gone: 22 * time.Millisecond, want: 25 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, done := time.Now(), make(chan struct{})
				if c.cut > 0 {
					time.AfterFunc(c.cut, func() { close(done) })
				}
				if awaitCut(done, func() bool { return c.gone == 0 || time.Since(began) < c.gone }) != (c.want != closedFor) {
					t.Error("it does not tell whether it waited for as long as it may")
				}
				if took := time.Since(began); took != c.want {
					t.Errorf("waited %s, want %s", took, c.want)
				}
			})
		})
	}
}
