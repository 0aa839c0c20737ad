package commands

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"netctl/commands/control"
)

// tapText says how many virtual machines run, and which do not: that is no problem.
func (r *nodeReport) tapText() string {
	if r.Taps == 0 {
		return ""
	}
	text := fmt.Sprintf("%s, %d open by a virtual machine", count(r.Taps, "TAP"), r.Taps-len(r.Closed))
	if n := len(r.Closed); n > mostRefused {
		text += fmt.Sprintf("; not %s and %d more", strings.Join(r.Closed[:mostRefused], ", "), n-mostRefused)
	} else if n > 0 {
		text += "; not " + strings.Join(r.Closed, ", ")
	}
	return text + "\n"
}

// refusedText names what peers announced and the import guard refused. That is no
// problem of this node's.
func (r *nodeReport) refusedText() string {
	total := max(r.RefusedCount, len(r.Refused))
	if total == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\nRefused routes\n")
	named := r.Refused[:min(len(r.Refused), mostRefused)]
	for _, line := range named {
		b.WriteString(line + "\n")
	}
	if more := total - len(named); more > 0 && len(named) > 0 {
		fmt.Fprintf(&b, "and %d more\n", more)
	} else if more > 0 {
		fmt.Fprintf(&b, "%s; netctl status on node %s names them\n", count(more, "route"), r.Node)
	}
	return b.String()
}

func (r *nodeReport) familyText(v6, wide bool, now time.Time) string {
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	text := family + " BGP status\n"
	own := "link-local" // of peers of interfaces
	if i := slices.IndexFunc(r.Addresses, func(a netip.Addr) bool { return a.Is6() == v6 }); i >= 0 {
		own = r.Addresses[i].String()
	} else if !v6 || !slices.ContainsFunc(r.Sessions, func(s control.Session) bool { return s.Interface != "" }) {
		return text + "No " + family + " address configured.\n"
	}
	text += fmt.Sprintf("IP: %s    AS Number: %s\n", own, r.AS)
	header := []string{"Peer address", "Peer type", "State", "Since", "Info"}
	if wide = wide && !r.remote; wide {
		header = append(header, "Received", "Accepted", "Sent")
	}
	var rows [][]string
	for _, s := range r.Sessions {
		if (s.Peer.Is6() || s.Interface != "") != v6 {
			continue
		}
		state := "down"
		if s.State == established {
			state = "up"
		}
		row := []string{s.Name(), s.Type, state, clock(s.Since, now), sessionInfo(s)}
		if wide {
			row = append(row, strconv.Itoa(s.Received), strconv.Itoa(s.Accepted), strconv.Itoa(s.Sent))
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 && len(r.Sessions) > 0 {
		other := map[bool]string{false: "IPv6", true: "IPv4"}[v6]
		return text + fmt.Sprintf("No %s sessions: %s routes go over the %s ones.\n", family, family, other)
	}
	if len(rows) == 0 {
		return text + "No " + family + " peers found.\n"
	}
	return text + table(header, rows)
}
