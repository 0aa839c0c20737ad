package datastore

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

// TestSaid: people read what is wrong, and not the kind of error behind it.
func TestSaid(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("the token is cut off: %w", ErrInvalid), "the token is cut off"},
		{errors.Join(fmt.Errorf("a: want b: %w", ErrInvalid), fmt.Errorf("c: %w: want d", ErrInvalid)), "a: want b; c: invalid: want d"},
		{fmt.Errorf("node a: %w", ErrNotFound), "node a: not found"},
		{ErrInvalid, "invalid"},
	} {
		if got := Said(c.err); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestAs: an outcome that is not said is found all the same, as is what it wraps.
func TestAs(t *testing.T) {
	err := fmt.Errorf("read: %w", As(ErrUnavailable, "the API does not answer: %w", io.EOF))
	if err.Error() != "read: the API does not answer: EOF" || !errors.Is(err, ErrUnavailable) || !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
