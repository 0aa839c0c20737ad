package bench

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Way is one path that is measured beside others.
type Way struct {
	Name string
	Sender
}

// Plan is what is measured of each way.
type Plan struct {
	Tests []Test
	Sizes []int
	// Time is that of one test with one size of message.
	Time time.Duration
	// Rounds is how often that is done; the median counts.
	Rounds int
}

// Series is what one way came to.
type Series struct {
	Way     string   `json:"way"`
	Results []Result `json:"results"`
}

// of is the result of a test and a size; false: there is none.
func (s Series) of(t Test, size int) (Result, bool) {
	i := slices.IndexFunc(s.Results, func(r Result) bool { return r.Test == t && r.Size == size })
	if i < 0 {
		return Result{}, false
	}
	return s.Results[i], true
}

// Compare measures all ways, size by size in turn: whatever else the machine does meets
// all of them. progress takes a line for each test.
func Compare(ctx context.Context, ways []Way, p Plan, progress io.Writer) ([]Series, error) {
	all := make([]Series, len(ways))
	for i, w := range ways {
		all[i] = Series{w.Name, []Result{}}
	}
	for _, t := range p.Tests {
		fmt.Fprintf(progress, "%s: %s\n", t, strings.Join(names(ways), ", "))
		for _, size := range p.Sizes {
			if t.udp() && size > MaxDatagram {
				continue
			}
			tries := make([][]Result, len(ways))
			for range max(p.Rounds, 1) {
				for i, w := range ways {
					r, err := w.Run(ctx, t, size, p.Time)
					if err == nil {
						err = ctx.Err()
					}
					if err != nil {
						return nil, fmt.Errorf("%s, %s of %s: %w", w.Name, t, sizeText(size), err)
					}
					tries[i] = append(tries[i], r)
				}
			}
			for i, list := range tries {
				slices.SortFunc(list, func(a, b Result) int { return cmp.Compare(a.figure(), b.figure()) })
				all[i].Results = append(all[i].Results, list[len(list)/2])
			}
		}
	}
	return all, nil
}

func names(ways []Way) (list []string) {
	for _, w := range ways {
		list = append(list, w.Name)
	}
	return list
}

// title is what a test is called where people look at it.
func (t Test) title() string {
	switch t {
	case TCPBandwidth:
		return "TCP bandwidth, MB/s"
	case UDPBandwidth:
		return "UDP bandwidth that arrives, MB/s"
	case TCPLatency:
		return "TCP latency, µs (half of there and back, median)"
	}
	return "UDP latency, µs (half of there and back, median)"
}

// Text is the figures as tables, one a test: sizes down, ways across. The first way is what
// the others are held against.
func Text(p Plan, all []Series) string {
	var b strings.Builder
	for i, t := range p.Tests {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(t.title() + "\n")
		w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', tabwriter.AlignRight)
		fmt.Fprint(w, "bytes\t")
		for _, s := range all {
			fmt.Fprintf(w, "%s\t", s.Way)
		}
		fmt.Fprintln(w)
		for _, size := range p.Sizes {
			if t.udp() && size > MaxDatagram {
				continue
			}
			fmt.Fprintf(w, "%s\t", sizeText(size))
			for _, s := range all {
				fmt.Fprintf(w, "%s\t", cell(s, t, size))
			}
			fmt.Fprintln(w)
		}
		if row := relative(t, p.Sizes, all); row != "" {
			fmt.Fprintln(w, row)
		}
		_ = w.Flush() // to memory
	}
	return b.String()
}

func cell(s Series, t Test, size int) string {
	r, ok := s.of(t, size)
	if !ok {
		return "-"
	}
	text := fmt.Sprintf("%.*f", decimals(r.figure()), r.figure())
	if r.Lost >= 0.001 {
		text += fmt.Sprintf(" (%.1f %% lost)", 100*r.Lost)
	}
	return text
}

// decimals are those that a figure is shown with.
func decimals(v float64) int {
	if v < 10 {
		return 2
	}
	return 1
}

// relative is the row of each way's mean as a share of the first one's; "": there is one
// way alone, or one size.
func relative(t Test, sizes []int, all []Series) string {
	if len(all) < 2 || len(sizes) < 2 {
		return ""
	}
	first := mean(all[0], t, sizes)
	if first == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("mean\t")
	for _, s := range all {
		fmt.Fprintf(&b, "%.0f %%\t", 100*mean(s, t, sizes)/first)
	}
	return b.String()
}

func mean(s Series, t Test, sizes []int) float64 {
	sum, n := 0.0, 0
	for _, size := range sizes {
		if r, ok := s.of(t, size); ok {
			sum += r.figure()
			n++
		}
	}
	if n == 0 {
		return 0
	}
	return sum / float64(n)
}
