// Package iptables keeps a Ruleset of package acl in the host's iptables and ipset, of one
// flavour (Table), and a host's iptables from dropping what workloads forward where another back
// end filters (EnsureForward).
//
// A Table runs iptables-save and iptables-restore, writes sets over netlink, and touches nothing
// but chains and sets whose names begin with nctl-, and the rules that lead to them. Each
// table is changed in one transaction: new sets and members before, deletions after.
//
// EnsureForward: where an iptables FORWARD chain has policy DROP (Docker sets it when it
// enables forwarding) or Docker's DOCKER-USER chain is there, it owns one rule
// each way that accepts what comes from or goes to links of ours. That opens
// nothing: netctl's own table has dropped before what is not allowed, at a lower
// priority. It touches both flavours, legacy and nft, and both families.
//
// Invariants: a flavour whose filter table does not exist is left alone and not
// created; rules are known by their comment, and only those are changed.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// comment marks the rules that are ours.
const comment = "netctl"

const (
	table       = "filter"
	forward     = "FORWARD"
	dockerUser  = "DOCKER-USER"
	checkEvery  = 10 * time.Second       // iptables-legacy tells nobody of changes
	settleAfter = 100 * time.Millisecond // one check for a burst of changes
)

// flavour is one iptables binary.
type flavour struct {
	binary   string
	protocol iptables.Protocol
	// tables is the file that lists the tables of the legacy flavour; without
	// "filter" in it even a look by the binary would create the table.
	tables string
}

func flavours() []flavour {
	all := []flavour{
		{"iptables-nft", iptables.ProtocolIPv4, ""},
		{"ip6tables-nft", iptables.ProtocolIPv6, ""},
		{"iptables-legacy", iptables.ProtocolIPv4, "/proc/thread-self/net/ip_tables_names"},
		{"ip6tables-legacy", iptables.ProtocolIPv6, "/proc/thread-self/net/ip6_tables_names"},
	}
	return slices.DeleteFunc(all, func(f flavour) bool {
		if f.tables != "" {
			names, err := os.ReadFile(f.tables)
			if err != nil || !slices.Contains(strings.Fields(string(names)), table) {
				return true
			}
		}
		_, err := exec.LookPath(f.binary)
		return err != nil
	})
}

// EnsureForward puts the rules for links that start with prefix where they are
// needed in the current network namespace, and returns how many it added. It
// changes nothing if they are there.
func EnsureForward(prefix string) (added int, err error) {
	var errs []error
	for _, f := range flavours() {
		n, err := f.ensure(prefix)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s forwarding of %s*: %w", f.binary, prefix, err))
		}
		added += n
	}
	return added, errors.Join(errs...)
}

func (f flavour) ensure(prefix string) (int, error) {
	path, err := exec.LookPath(f.binary)
	if err != nil {
		return 0, err
	}
	ipt, err := iptables.New(iptables.IPFamily(f.protocol), iptables.Path(path), iptables.Timeout(10))
	if err != nil {
		return 0, err
	}
	rules, err := ipt.List(table, forward)
	if err != nil {
		return 0, err
	}
	switch {
	case slices.Contains(rules, "-A "+forward+" "+hookRule(forward)): // what is judged there is accepted there
		return 0, nil
	case slices.Contains(rules, "-A "+forward+" -j "+dockerUser):
		return ensureIn(ipt, dockerUser, prefix)
	case slices.Contains(rules, "-P "+forward+" DROP"):
		return ensureIn(ipt, forward, prefix)
	}
	return 0, nil
}

// ensureIn makes our two rules the first of the chain, unless they are in it,
// and removes rules of ours for another prefix.
func ensureIn(ipt *iptables.IPTables, chain, prefix string) (int, error) {
	have, err := ipt.List(table, chain)
	if err != nil {
		return 0, err
	}
	added := 0
	var want []string
	for _, direction := range []string{"-i", "-o"} {
		spec := []string{direction, prefix + "+", "-m", "comment", "--comment", comment, "-j", "ACCEPT"}
		line := "-A " + chain + " " + strings.Join(spec, " ")
		want = append(want, line)
		if slices.Contains(have, line) {
			continue
		}
		if err := ipt.Insert(table, chain, 1, spec...); err != nil {
			return added, err
		}
		added++
	}
	for _, line := range have {
		words := strings.Fields(line)
		if strings.Contains(line, "--comment "+comment+" ") && !slices.Contains(want, line) && len(words) > 2 {
			if err := ipt.DeleteIfExists(table, chain, words[2:]...); err != nil {
				return added, err
			}
		}
	}
	return added, nil
}

// Run keeps the rules in place until ctx ends, and returns its error. It checks
// at the start, after each value from changed (iptables-nft: somebody changed an
// nftables table), every ten seconds where the legacy flavour has a filter table,
// which tells nobody, and as often while it fails. Each check is reported. It
// runs in the network namespace of the calling thread.
func Run(ctx context.Context, prefix string, changed <-chan struct{}, report func(added int, err error)) error {
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	for {
		select {
		case <-changed: // the check below sees it
		default:
		}
		added, err := EnsureForward(prefix)
		report(added, err)
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed:
				if !settle(ctx, changed) {
					return ctx.Err()
				}
				due = true
			case <-ticker.C:
				due = err != nil || slices.ContainsFunc(flavours(), func(f flavour) bool { return f.tables != "" })
			}
		}
	}
}

// settle waits until a burst of changes is over; false: ctx ended.
func settle(ctx context.Context, changed <-chan struct{}) bool {
	timer := time.NewTimer(settleAfter)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		case <-timer.C:
			return true
		}
	}
}
