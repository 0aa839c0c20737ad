package agent

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"netctl/netdev/tap"
)

// machines is what the agent asks of netdev/tap.
type machines interface {
	Serve(guests map[string]tap.Guest)
	Run(ctx context.Context) error
}

// flushGuests has the virtual machines told what they are attached as, if that changed.
func (l *loop) flushGuests() {
	if !l.links.guests {
		return
	}
	l.links.guests = false
	guests := map[string]tap.Guest{}
	var dns []netip.Addr
	for link, w := range l.links.wires {
		mac, err := net.ParseMAC(w.MAC)
		if !w.Tap.Is() || w.Index == 0 || err != nil {
			continue
		}
		g := tap.Guest{
			Link: link, Index: w.Index, MAC: mac, Addresses: w.Addresses, Gateway: w.Gateway4, MTU: w.HostMTU,
			Name: tap.HostName(strings.Split(w.endpoint, "/")[2]), DNS: w.Tap.DNS, Search: w.Tap.Search,
		}
		if len(g.DNS) == 0 {
			if dns == nil {
				dns = resolvers("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
			}
			g.DNS = dns
		}
		guests[link] = g
	}
	l.tellMachines(guests)
}

// remake has the TAP of an endpoint made again, if that is not under way.
func (l *loop) remake(lo *local) {
	l.locals.dirty[lo.name] = true // until it is there
	what := tapProblem(lo.name)
	if lo.remaking || !l.problems.due(what) {
		return
	}
	lo.remaking = true
	l.spawn(func(ctx context.Context) error {
		err := l.remade(ctx, lo.name)
		l.post(func() {
			lo.remaking = false
			if err != nil && ctx.Err() == nil {
				l.problems.failed(what, err)
			} else {
				l.problems.solved(what)
			}
		})
		return nil
	})
}

// tapProblem names that the TAP of an endpoint is gone.
func tapProblem(endpoint string) string { return "tap of " + endpoint }

// closed are the endpoints whose TAP no virtual machine has open, of so many.
func (l *loop) closed() (names []string, of int) {
	for link, w := range l.links.wires {
		if !w.Tap.Is() {
			continue
		}
		if of++; !l.links.present[link].Carrier {
			names = append(names, w.endpoint)
		}
	}
	slices.Sort(names)
	return names, of
}

// resolvers are the name servers of the first of these files (resolv.conf(5)) that has
// some that others than this host reach.
func resolvers(files ...string) (list []netip.Addr) {
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			word := strings.Fields(lines.Text())
			if len(word) < 2 || word[0] != "nameserver" {
				continue
			}
			if a, err := netip.ParseAddr(word[1]); err == nil && !a.IsLoopback() && a.Zone() == "" {
				list = append(list, a)
			}
		}
		_ = f.Close()
		if len(list) > 0 {
			break
		}
	}
	return list
}
