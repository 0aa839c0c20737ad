package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"netctl/acl"
)

// Mode is a flavour of iptables: whose tables it writes.
type Mode string

// The flavours.
const (
	Legacy Mode = "legacy" // the kernel's ip_tables
	NFT    Mode = "nft"    // nftables, in tables of its own
)

// HostMode is the flavour of the host's own `iptables`, which its other programs use.
func HostMode() (Mode, error) {
	path, err := exec.LookPath("iptables")
	if err != nil {
		return "", errors.New("there is no iptables on this host: install it (and ipset's kernel modules), or use the backend nftables")
	}
	out, err := exec.Command(path, "--version").Output()
	switch {
	case err != nil:
		return "", fmt.Errorf("%s --version: %w", path, err)
	case bytes.Contains(out, []byte("nf_tables")):
		return NFT, nil
	}
	return Legacy, nil // also of versions that know no other
}

// program is the path of one of a flavour's programs: of "-save" iptables-nft-save, or
// iptables-save where that is of the flavour.
func (m Mode) program(ipv6 bool, what string) (string, error) {
	name := "iptables"
	if ipv6 {
		name = "ip6tables"
	}
	path, err := exec.LookPath(name + "-" + string(m) + what)
	if err == nil {
		return path, nil
	}
	if host, of := HostMode(); of == nil && host == m {
		if path, of := exec.LookPath(name + what); of == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s-%s%s is missing: install iptables", name, m, what)
}

// held is what one table holds of ours.
type held struct {
	chains map[string]*heldChain
	// hooks are the built-in chains that have rules of ours, each with how many, and whether
	// the first rule is that.
	hooks map[string]hookState
}

type hookState struct {
	rules []string // ours
	first bool
}

type heldChain struct {
	text   []string
	counts []acl.Count
}

// legacyTables is the file that names those tables of the legacy flavour that are there; a look
// at another makes it.
func legacyTables(ipv6 bool) []string {
	file := "/proc/thread-self/net/ip_tables_names"
	if ipv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	names, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(names))
}

// read reads what there is of ours, in the current network namespace. Tables of which only
// says no are left out.
func (m Mode) read(ctx context.Context, only func(place) bool) (map[place]*held, error) {
	out := map[place]*held{}
	for _, ipv6 := range []bool{false, true} {
		if m == Legacy && len(legacyTables(ipv6)) == 0 || !slices.ContainsFunc(places(), func(p place) bool { return p.ipv6 == ipv6 && only(p) }) {
			continue
		}
		path, err := m.program(ipv6, "-save")
		if err != nil {
			return nil, err
		}
		text, err := exec.CommandContext(ctx, path, "-c").Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, withOutput(err))
		}
		parseSave(out, ipv6, string(text), only)
	}
	return out, nil
}

func withOutput(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(bytes.TrimSpace(exit.Stderr)) > 0 {
		return errors.New(strings.Join(strings.Fields(string(exit.Stderr)), " "))
	}
	return err
}

// parseSave takes the output of iptables-save(8) with counters.
func parseSave(out map[place]*held, ipv6 bool, text string, only func(place) bool) {
	var h *held
	numbers := protocolNumbers()
	last := "" // the chain of the rule before
	for s := range strings.Lines(text) {
		s = strings.TrimSuffix(s, "\n")
		switch {
		case strings.HasPrefix(s, "*"):
			h = nil
			if p := (place{ipv6, s[1:]}); only(p) {
				h = &held{chains: map[string]*heldChain{}, hooks: map[string]hookState{}}
				out[p] = h
			}
		case h == nil:
		case strings.HasPrefix(s, ":"+chainPrefix):
			name, _, _ := strings.Cut(s[1:], " ")
			h.chains[name] = &heldChain{}
		case strings.HasPrefix(s, "["):
			count, rule, _ := strings.Cut(s[1:], "] -A ")
			name, rule, _ := strings.Cut(rule, " ")
			rule = numbers.in(rule)
			first := name != last
			last = name
			if c := h.chains[name]; c != nil {
				c.text, c.counts = append(c.text, rule), append(c.counts, parseCount(count))
			} else if target := " -j " + chainPrefix; strings.Contains(" "+rule, target) {
				state := h.hooks[name]
				state.first = state.first || first && rule == hookRule(name)
				state.rules = append(state.rules, rule)
				h.hooks[name] = state
			}
		}
	}
}

// protocols are the numbers of protocols that iptables-save(8) names otherwise than we do.
type protocols map[string]string

func protocolNumbers() protocols {
	out := protocols{}
	text, _ := os.ReadFile("/etc/protocols") // without it numbers are printed
	for s := range strings.Lines(string(text)) {
		if words := strings.Fields(s); len(words) > 1 && words[0][0] != '#' {
			if n, err := strconv.ParseUint(words[1], 10, 8); err == nil {
				out[words[0]] = protoName(uint32(n))
			}
		}
	}
	return out
}

// in is a rule with the protocol as protoName has it.
func (p protocols) in(rule string) string {
	before, after, found := strings.Cut(" "+rule, " -p ")
	name, after, _ := strings.Cut(after, " ")
	if n, is := p[name]; found && is && !strings.Contains(before, `"`) {
		return strings.TrimSpace(before + " -p " + n + " " + after)
	}
	return rule
}

func parseCount(s string) (c acl.Count) {
	packets, bytes, _ := strings.Cut(s, ":")
	c.Packets, _ = strconv.ParseUint(packets, 10, 64)
	c.Bytes, _ = strconv.ParseUint(bytes, 10, 64)
	return c
}

// restore has one table changed as text says, in one transaction.
func (m Mode) restore(ctx context.Context, p place, text string, started func(pid int)) error {
	path, err := m.program(p.ipv6, "-restore")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, "--noflush", "--counters", "--wait", "10")
	cmd.Stdin = strings.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	started(cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		if text := strings.Join(strings.Fields(stderr.String()), " "); text != "" {
			err = errors.New(text)
		}
		return fmt.Errorf("%s, table %s: %w", path, p.table, err)
	}
	return nil
}

// tableChange is what makes a table hold what it should.
type tableChange struct {
	place
	write  map[string][]line
	remove []string
	hook   []string            // built-in chains whose first rule is to be ours
	unhook map[string][]string // rules of ours to take out of a built-in chain first
	want   *rendered           // what the table is to be
}

func (c *tableChange) empty() bool {
	return len(c.write)+len(c.remove)+len(c.hook)+len(c.unhook) == 0
}

// text is the change as iptables-restore(8) takes it, with what the rules have counted.
func (c *tableChange) text(counted counts) string {
	var b strings.Builder
	b.WriteString("*" + c.table + "\n")
	names := sortedKeys(c.write)
	for _, name := range slices.Concat(names, c.remove) {
		fmt.Fprintf(&b, ":%s - [0:0]\n", name)
	}
	for _, name := range names {
		for _, l := range c.write[name] {
			n := counted.take(l.counts)
			fmt.Fprintf(&b, "[%d:%d] -A %s %s\n", n.Packets, n.Bytes, name, l.text)
		}
	}
	for _, builtin := range sortedKeys(c.unhook) {
		for _, rule := range c.unhook[builtin] {
			fmt.Fprintf(&b, "-D %s %s\n", builtin, rule)
		}
	}
	for _, builtin := range c.hook {
		fmt.Fprintf(&b, "-I %s 1 %s\n", builtin, hookRule(builtin))
	}
	for _, name := range c.remove {
		fmt.Fprintf(&b, "-X %s\n", name)
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

// counts is what rules have counted, by their text. It is what a chain that is filled anew
// takes over; what is counted between the reading and the commit is lost.
type counts map[string]acl.Count

// take hands out what a rule has counted, once.
func (c counts) take(rule string) acl.Count {
	n := c[rule]
	delete(c, rule)
	return n
}

// tally adds up what the lines of a table have counted.
func tally(table *rendered, h *held, fn func(l line, n acl.Count)) {
	if table == nil || h == nil {
		return
	}
	for name, lines := range table.chains {
		c := h.chains[name]
		if c == nil {
			continue
		}
		at, whole := 0, len(c.counts) == len(lines)
		for i, l := range lines { // of a chain that somebody edited, what is found of it in this order
			if whole {
				at = i
			} else if next := slices.Index(c.text[at:], l.text); next >= 0 {
				at += next
			} else {
				continue
			}
			if l.counts != "" {
				fn(l, c.counts[at])
			}
			if at++; at > len(c.text) {
				break
			}
		}
	}
}
