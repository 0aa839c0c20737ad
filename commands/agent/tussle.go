package agent

import (
	"errors"
	"time"
)

// A setting that is put back more often than tussleMax times within tussleSpan is
// tried again when it is due, and not at once.
const (
	tussleMax  = 20
	tussleSpan = 5 * time.Second
)

var errTussle = errors.New("another program changes it again each time it is put back: find that program and have it leave it alone")

// tussle counts how often something had to be put back. The zero value is ready.
type tussle struct {
	since time.Time
	times int
	said  string
}

// again counts one time more; an error says that it is too often.
func (t *tussle) again() error {
	if now := time.Now(); now.Sub(t.since) > tussleSpan {
		t.since, t.times, t.said = now, 0, ""
	}
	if t.times++; t.times > tussleMax {
		return errTussle
	}
	return nil
}

// news says whether what was put back is something else than last, or that was a while ago.
func (t *tussle) news(what string) bool {
	old := t.said
	t.said = what
	return what != old
}
