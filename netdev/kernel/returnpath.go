package kernel

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
)

// ReturnPath is what the kernel makes of packets whose sender it would answer by another
// interface than the one they came in by (networking/ip-sysctl, rp_filter; IPv4 alone).
type ReturnPath struct {
	Dropped uint64 // such packets, on all interfaces, since the namespace began
	// Strict are the interfaces of those that were asked about that drop them by their own
	// setting, or "all", which has a say for each.
	Strict []string
}

// ReturnPath reads it. Interfaces that are not there are no error.
func (k *Kernel) ReturnPath(links ...string) (p ReturnPath, err error) {
	text, err := io.ReadAll(io.NewSectionReader(k.sys.netstat, 0, math.MaxInt64))
	if err == nil {
		p.Dropped, err = extended(string(text), "IPReversePathFilter")
	}
	if err != nil {
		return p, fmt.Errorf("read net/netstat: %w", err)
	}
	all, err := k.sys.read("ipv4/conf", "all/rp_filter")
	if err != nil {
		return p, err
	}
	for _, l := range links {
		own, err := k.sys.read("ipv4/conf", l+"/rp_filter")
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return p, err
		case max(all, own) != "1": // the greater one counts, and 2 is loose
		case all == "1":
			p.Strict = []string{"all"}
			return p, nil
		default:
			p.Strict = append(p.Strict, l)
		}
	}
	return p, nil
}

// extended is a counter of /proc/net/netstat: a line of names, then one of numbers.
func extended(text, name string) (uint64, error) {
	names, rest, _ := strings.Cut(text, "\n")
	numbers, _, _ := strings.Cut(rest, "\n")
	values := strings.Fields(numbers)
	for i, n := range strings.Fields(names) {
		if n == name && i < len(values) {
			return strconv.ParseUint(values[i], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: %w", name, os.ErrNotExist)
}
