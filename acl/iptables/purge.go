package iptables

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/coreos/go-iptables/iptables"
)

// Count counts the rules of netctl's in the current network namespace.
func Count() (int, error) { return purge(false) }

// Purge removes them, and returns how many there were. It is for a host whose roles have
// ended for good.
func Purge() (int, error) { return purge(true) }

func purge(remove bool) (count int, err error) {
	var errs []error
	for _, f := range flavours() {
		n, err := f.purge(remove)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s rules of netctl: %w", f.binary, err))
		}
		count += n
	}
	return count, errors.Join(errs...)
}

func (f flavour) purge(remove bool) (count int, err error) {
	path, err := exec.LookPath(f.binary)
	if err != nil {
		return 0, err
	}
	ipt, err := iptables.New(iptables.IPFamily(f.protocol), iptables.Path(path), iptables.Timeout(10))
	if err != nil {
		return 0, err
	}
	for _, chain := range []string{forward, dockerUser} {
		there, err := ipt.ChainExists(table, chain)
		if err != nil || !there {
			if err != nil {
				return count, err
			}
			continue
		}
		rules, err := ipt.List(table, chain)
		if err != nil {
			return count, err
		}
		for _, line := range rules {
			words := strings.Fields(line)
			if !strings.Contains(line, "--comment "+comment+" ") || len(words) < 3 {
				continue
			}
			count++
			if remove {
				if err := ipt.DeleteIfExists(table, chain, words[2:]...); err != nil {
					return count, err
				}
			}
		}
	}
	return count, nil
}
