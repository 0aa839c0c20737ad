package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// Flavour is what one flavour of iptables has of one family in the current network
// namespace.
type Flavour struct {
	Binary string // such as iptables-nft
	Legacy bool
	IPv6   bool
	// Rules is how many there are but ours, in all tables and chains, and InUse whether
	// there are any, or a policy that drops.
	Rules int
	InUse bool
	// ForwardDrop says that the FORWARD chain drops what no rule decides about; Docker
	// that it asks DOCKER-USER first; Accepts that what comes from and goes to our links
	// is accepted in it, or there.
	ForwardDrop, Docker, Accepts bool
	// ForwardEnds is the target of a rule with which the FORWARD chain ends for every
	// packet, DROP or REJECT, if surely no rule before that accepts what begins a flow;
	// else "".
	ForwardEnds string
}

// Look reads every flavour that this machine has a program for, and creates nothing. A
// legacy table that is in the kernel without a program to read it is an error beside the
// others.
func Look(ctx context.Context, prefix string) (list []Flavour, err error) {
	var errs []error
	for _, f := range []struct {
		flavour Flavour
		tables  string
	}{
		{Flavour{Binary: "iptables-nft"}, ""},
		{Flavour{Binary: "ip6tables-nft", IPv6: true}, ""},
		{Flavour{Binary: "iptables-legacy", Legacy: true}, "/proc/thread-self/net/ip_tables_names"},
		{Flavour{Binary: "ip6tables-legacy", Legacy: true, IPv6: true}, "/proc/thread-self/net/ip6_tables_names"},
	} {
		if f.tables != "" {
			names, err := os.ReadFile(f.tables)
			if err != nil || len(bytes.TrimSpace(names)) == 0 {
				continue // no such table in this namespace
			}
		}
		save := f.flavour.Binary + "-save"
		path, err := exec.LookPath(save)
		if err != nil {
			if f.tables != "" {
				errs = append(errs, fmt.Errorf("the kernel has tables of %s, and there is no %s to read them with: install iptables", f.flavour.Binary, save))
			}
			continue
		}
		out, err := exec.CommandContext(ctx, path).Output()
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = errors.New(strings.TrimSpace(string(exit.Stderr)))
			}
			errs = append(errs, fmt.Errorf("%s: %w", save, err))
			continue
		}
		f.flavour.read(string(out), prefix)
		list = append(list, f.flavour)
	}
	return list, errors.Join(errs...)
}

// read takes the output of iptables-save(8).
func (f *Flavour) read(text, prefix string) {
	in, out := map[string]bool{}, map[string]bool{}
	own := " -m comment --comment " + comment + " -j ACCEPT"
	said := regexp.MustCompile(` -m comment --comment ("(\\.|[^"])*"|\S+)`)
	current, judged := "", false
	ended, opens := false, false // FORWARD, by a rule for every packet; it may accept
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "*"):
			current = line[1:]
		case strings.HasPrefix(line, ":") && len(words) > 1 && words[1] == "DROP":
			f.InUse = true
			if current == table && words[0] == ":"+forward {
				f.ForwardDrop = true
			}
		case ended && current == table && len(words) > 1 && words[1] == forward: // nothing comes here
			f.Rules++
		case current == table && line == "-A "+forward+" "+hookRule(forward):
			judged = true
		case strings.HasPrefix(line, "-A ") && (strings.Contains(line, " "+chainPrefix) || strings.Contains(line, "-j "+chainPrefix)):
		case strings.HasPrefix(line, "-A ") && strings.Contains(line, own):
			if current == table && slices.Contains(words, prefix+"+") {
				in[words[1]] = in[words[1]] || words[2] == "-i"
				out[words[1]] = out[words[1]] || words[2] == "-o"
			}
		case strings.HasPrefix(line, "-A "):
			f.Rules++
			f.InUse = true
			if current != table || words[1] != forward {
				continue
			}
			if line == "-A "+forward+" -j "+dockerUser {
				f.Docker = true
			}
			words = strings.Fields(said.ReplaceAllString(line, ""))
			if ended = len(words) > 3 && words[2] == "-j" && (words[3] == "DROP" || words[3] == "REJECT"); ended && !opens {
				f.ForwardEnds = words[3]
			}
			opens = opens || mayAccept(words)
		}
	}
	chain := forward
	if f.Docker {
		chain = dockerUser
	}
	f.Accepts = in[chain] && out[chain] || judged
}

// mayAccept says whether a rule may let a packet go on that begins a flow: by itself, or in
// another chain.
func mayAccept(rule []string) bool {
	target := ""
	for i, word := range rule[:len(rule)-1] {
		switch word {
		case "-j", "-g":
			target = rule[i+1]
		case "--ctstate", "--state":
			if i > 0 && rule[i-1] != "!" && !strings.Contains(rule[i+1], "NEW") {
				return false
			}
		}
	}
	return !slices.Contains([]string{"", "DROP", "REJECT", "LOG", "NFLOG", "TCPMSS"}, target)
}
