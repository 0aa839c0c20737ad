package bgp

import (
	"context"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// What is logged of a peer's malformed input: so many lines in so long, each with so
// many bytes of what it is about.
const (
	complaintLines = 5
	complaintEvery = 10 * time.Second
	complaintBytes = 256
)

// complaints logs what a peer sends that is malformed, over all its connections, at a
// limited rate; what is left out is counted.
type complaints struct {
	log *slog.Logger

	mu    sync.Mutex
	begun time.Time // of the interval
	lines int       // in it
	left  int       // out, in it
}

// say logs one line about input: what, a key, are its bytes.
func (c *complaints) say(level slog.Level, msg, what string, input []byte, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.begun) >= complaintEvery && c.left == 0 {
		c.begun, c.lines = time.Now(), 0
	}
	if c.lines < complaintLines {
		c.lines++
		c.log.Log(context.Background(), level, msg, append(args, what, shorten(input))...)
		return
	}
	if c.left++; c.left == 1 {
		time.AfterFunc(time.Until(c.begun.Add(complaintEvery)), c.count)
	}
}

// count says how much was left out, and begins anew.
func (c *complaints) count() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log.Warn("more malformed input, not logged", "messages", c.left)
	c.begun, c.lines, c.left = time.Now(), 0, 0
}

// shorten is input in hex as far as it is of use.
func shorten(input []byte) string {
	if len(input) <= complaintBytes {
		return hex.EncodeToString(input)
	}
	return fmt.Sprintf("%x and %d bytes", input[:complaintBytes], len(input)-complaintBytes)
}
