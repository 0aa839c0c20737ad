// Package bench owns the measuring of a path through the network: bandwidth and latency of
// TCP and UDP by size of message, as qperf measures them, with a sender and a receiver of
// our own.
//
// A message is what one write passes to the kernel. Bandwidth is what reached the receiver,
// in bytes a second; latency is half the time of a message and its echo.
//
// Invariants: one TCP and one UDP port serve everything, so that one rule lets it through;
// every wait has a bound; nothing is sent to anybody who did not ask for it over TCP.
package bench

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultPort is the receiver's, TCP and UDP.
const DefaultPort = 19765

// Test is one way to measure, by qperf's name of it.
type Test string

// The tests.
const (
	TCPBandwidth Test = "tcp_bw"
	TCPLatency   Test = "tcp_lat"
	UDPBandwidth Test = "udp_bw"
	UDPLatency   Test = "udp_lat"
)

// Tests are all of them.
func Tests() []Test { return []Test{TCPBandwidth, TCPLatency, UDPBandwidth, UDPLatency} }

// ParseTests reads a list of names.
func ParseTests(names []string) (list []Test, err error) {
	for _, name := range names {
		if !slices.Contains(Tests(), Test(name)) {
			return nil, fmt.Errorf("test %q: want %s", name, joined(Tests()))
		}
		if !slices.Contains(list, Test(name)) {
			list = append(list, Test(name))
		}
	}
	return list, nil
}

func joined(tests []Test) string {
	var names []string
	for _, t := range tests {
		names = append(names, string(t))
	}
	return strings.Join(names, ", ")
}

func (t Test) udp() bool     { return t == UDPBandwidth || t == UDPLatency }
func (t Test) latency() bool { return t == TCPLatency || t == UDPLatency }

// unit is what a test's figures are shown in.
func (t Test) unit() string {
	if t.latency() {
		return "us"
	}
	return "MB/s"
}

// Sizes of messages, in bytes.
const (
	MaxSize     = 1 << 20
	MaxDatagram = 65507 // of UDP over IPv4
)

// Result is what one test with one size of message came to.
type Result struct {
	Test Test `json:"test"`
	Size int  `json:"size"` // bytes
	// Bandwidth is in bytes a second.
	Bandwidth float64 `json:"bandwidth,omitempty"`
	// Latency is in microseconds, the median; Latency99 the 99th percentile.
	Latency   float64 `json:"latency,omitempty"`
	Latency99 float64 `json:"latency99,omitempty"`
	// Lost is the share of datagrams that did not arrive or were not answered, 0 to 1.
	Lost float64 `json:"lost,omitempty"`
}

// figure is the result in the unit of its test.
func (r Result) figure() float64 {
	if r.Test.latency() {
		return r.Latency
	}
	return r.Bandwidth / 1e6
}

// ParseSizes reads sizes as qperf has them: one, a list, or FIRST:LAST:*FACTOR or
// FIRST:LAST:STEP, with K and M for 1,024 and its square.
func ParseSizes(text string) (sizes []int, err error) {
	for _, part := range strings.Split(text, ",") {
		words := strings.Split(part, ":")
		switch len(words) {
		case 1:
			n, err := parseSize(words[0])
			if err != nil {
				return nil, err
			}
			sizes = append(sizes, n)
		case 3:
			more, err := series(words[0], words[1], words[2])
			if err != nil {
				return nil, err
			}
			sizes = append(sizes, more...)
		default:
			return nil, fmt.Errorf("size %q: want a size like 64K, or FIRST:LAST:*FACTOR like 1:64K:*2", part)
		}
	}
	slices.Sort(sizes)
	return slices.Compact(sizes), nil
}

// mostSizes bounds a series.
const mostSizes = 64

func series(first, last, step string) (sizes []int, err error) {
	from, err := parseSize(first)
	if err != nil {
		return nil, err
	}
	to, err := parseSize(last)
	if err != nil {
		return nil, err
	}
	number, times := strings.CutPrefix(step, "*")
	by, err := parseSize(number)
	if err != nil || times && by < 2 {
		return nil, fmt.Errorf("step %q: want a size, or a factor like *2", step)
	}
	for n := from; n <= to; {
		if sizes = append(sizes, n); len(sizes) > mostSizes {
			return nil, fmt.Errorf("sizes %s:%s:%s: more than %d", first, last, step, mostSizes)
		}
		if times {
			n *= by
		} else {
			n += by
		}
	}
	if len(sizes) == 0 {
		return nil, fmt.Errorf("sizes %s:%s:%s: the first is above the last", first, last, step)
	}
	return sizes, nil
}

func parseSize(text string) (int, error) {
	number, factor := strings.ToUpper(text), 1
	for suffix, f := range map[string]int{"K": 1 << 10, "M": 1 << 20} {
		if n, ok := strings.CutSuffix(number, suffix); ok {
			number, factor = n, f
			break
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > MaxSize/factor {
		return 0, fmt.Errorf("size %q: want 1 to 1M bytes", text)
	}
	return n * factor, nil
}

// sizeText is a size as people write it.
func sizeText(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return strconv.Itoa(n>>20) + "M"
	case n >= 1<<10 && n%(1<<10) == 0:
		return strconv.Itoa(n>>10) + "K"
	}
	return strconv.Itoa(n)
}

// The bounds of one test's time.
const (
	shortest = 50 * time.Millisecond
	longest  = time.Hour
)

// CheckTime refuses what no test can last.
func CheckTime(d time.Duration) error {
	if d < shortest || d > longest {
		return fmt.Errorf("%s: want %s to %s", d, shortest, longest)
	}
	return nil
}

// request is what a sender asks a receiver for, one line of JSON on a TCP connection.
type request struct {
	Test Test          `json:"test"`
	Size int           `json:"size"`
	Time time.Duration `json:"time"` // nanoseconds
}

func (r request) check() error {
	if !slices.Contains(Tests(), r.Test) {
		return fmt.Errorf("test %q: want %s", r.Test, joined(Tests()))
	}
	if r.Size < 1 || r.Size > MaxSize || r.Test.udp() && r.Size > MaxDatagram {
		return fmt.Errorf("size %d: too large", r.Size)
	}
	return CheckTime(r.Time)
}

// answer is what a receiver says to a request, and at its end.
type answer struct {
	Error string `json:"error,omitempty"`
	// Token names a test of UDP: whoever sends it from a port is the one who asked.
	Token []byte `json:"token,omitempty"`
	// Known: the token was seen.
	Known    bool          `json:"known,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"`
	Messages int64         `json:"messages,omitempty"`
	Time     time.Duration `json:"time,omitempty"` // until the last byte
}

var errBusy = errors.New("the receiver serves as many tests as it can: wait for their end")
