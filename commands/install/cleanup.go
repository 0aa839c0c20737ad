package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"netctl/acl/iptables"
	"netctl/acl/nft"
	"netctl/commands/workload"
	"netctl/netdev"
	"netctl/netdev/kernel"
	"netctl/routing/fib"
)

// Host says where the roles of a machine keep what they have, and how they mark it.
type Host struct {
	StateDir, RunDir string
	Protocols        []int // of routes
}

// Running is a role that runs.
type Running struct {
	Role string
	PID  int // 0: unknown
}

// String names it as people do.
func (r Running) String() string {
	if r.PID == 0 {
		return r.Role
	}
	return fmt.Sprintf("%s (PID %d)", r.Role, r.PID)
}

// Survey is what a host has of netctl.
type Survey struct {
	Running []Running
	// Endpoints are those whose interface is there, by name.
	Endpoints []string
	// Links are the host sides of endpoints, retired ones, and tunnels.
	Links, Tunnels []string
	Retired        int
	Routes         map[int]fib.Held // by protocol
	Tables         []string         // of nftables, by family
	Forward        int              // rules in the host's iptables
	IPTables       map[string]int   // chains and sets there, by flavour
	Files          []string         // that go with the boot
}

// Lines say what there is, one a line.
func (s *Survey) Lines() (lines []string) {
	add := func(n int, format string, args ...any) {
		if n > 0 {
			lines = append(lines, fmt.Sprintf(format, args...))
		}
	}
	add(len(s.Links), "links of endpoints: %s", strings.Join(s.Links, " "))
	add(s.Retired, "links that wait for their deletion: %d", s.Retired)
	add(len(s.Tunnels), "tunnels: %s", strings.Join(s.Tunnels, " "))
	protocols := make([]int, 0, len(s.Routes))
	for p := range s.Routes {
		protocols = append(protocols, p)
	}
	slices.Sort(protocols)
	for _, p := range protocols {
		h := s.Routes[p]
		add(h.Routes, "routes of protocol %d: %d", p, h.Routes)
		add(h.Rules, "ip rules of protocol %d: %d", p, h.Rules)
		add(h.Objects, "next-hop objects of protocol %d: %d", p, h.Objects)
	}
	for _, family := range s.Tables {
		lines = append(lines, "nftables table "+family+" netctl")
	}
	add(s.Forward, "rules in the host's iptables: %d", s.Forward)
	for _, flavour := range slices.Sorted(maps.Keys(s.IPTables)) {
		add(s.IPTables[flavour], "chains and sets of %s: %d", flavour, s.IPTables[flavour])
	}
	add(len(s.Files), "files below /run: %d", len(s.Files))
	return lines
}

// LookAt reads what there is in the network namespace of the calling thread; it changes
// nothing.
func (h Host) LookAt(ctx context.Context) (s Survey, err error) {
	s.Routes = map[int]fib.Held{}
	s.Running = h.Roles()
	k, err := kernel.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return s, err
	}
	defer k.Close()
	links, err := k.Links()
	if err != nil {
		return s, err
	}
	records := workload.NewRecords(h.records())
	for _, l := range links {
		s.Links = append(s.Links, l.Name)
		name := l.Name
		if rec, err := records.Read(l.Name); err == nil {
			name = rec.Endpoint.Metadata.Name
		}
		s.Endpoints = append(s.Endpoints, name)
	}
	if s.Retired, err = k.Retired(); err != nil {
		return s, err
	}
	if s.Tunnels, err = k.Tunnels(); err != nil {
		return s, err
	}
	for _, p := range h.Protocols {
		held, err := fib.Count(ctx, p)
		if err != nil {
			return s, err
		}
		if held.Any() {
			s.Routes[p] = held
		}
	}
	table, err := nft.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return s, err
	}
	defer table.Close()
	if s.Tables, err = table.Families(); err != nil {
		return s, err
	}
	if s.Forward, err = iptables.Count(); err != nil {
		return s, err
	}
	s.IPTables = map[string]int{}
	for _, table := range ipTables() {
		n, err := table.Objects(ctx)
		_ = table.Close()
		if err != nil {
			return s, err
		}
		if n > 0 {
			s.IPTables["iptables-"+string(table.Mode())] = n
		}
	}
	s.Files = h.volatile()
	return s, nil
}

// ipTables are the flavours of iptables that the host has.
func ipTables() (list []*iptables.Table) {
	for _, mode := range []iptables.Mode{iptables.Legacy, iptables.NFT} {
		if t, err := iptables.Open(slog.New(slog.DiscardHandler), mode, netdev.DefaultPrefix); err == nil {
			list = append(list, t)
		}
	}
	return list
}

func (h Host) records() string { return filepath.Join(h.RunDir, "endpoints") }

// volatile are the files that go with the boot: they say what the kernel has.
func (h Host) volatile() (files []string) {
	patterns := []string{"endpoints/*", "pending/*", "flows-followed", "*.sock", "watch/*.sock"}
	for _, role := range Roles() { // what it remembers for this boot
		patterns = append(patterns, role+"/*.json")
	}
	for _, pattern := range patterns {
		found, _ := filepath.Glob(filepath.Join(h.RunDir, pattern)) // the pattern is right
		files = append(files, found...)
	}
	return files
}

// Clean takes everything off the host that LookAt finds. The roles must have ended: they
// would put it back.
func (h Host) Clean(ctx context.Context) error {
	if running := h.Roles(); len(running) > 0 {
		return fmt.Errorf("%s runs", running[0])
	}
	k, err := kernel.Open(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer k.Close()
	var errs []error
	records := workload.NewRecords(h.records())
	links, err := k.Links()
	errs = append(errs, err)
	for _, l := range links {
		// What a second interface left inside of a namespace outlives its link.
		if rec, err := records.Read(l.Name); err == nil {
			at := rec.Place()
			errs = append(errs, k.DropRules(at.Path, at.Dev, at.Ino, rec.Endpoint.Spec.Addresses, rec.Destinations))
		}
	}
	// The packet filter goes last: while packets find a way they are judged.
	errs = append(errs, k.Purge())
	for _, p := range h.Protocols {
		_, err := fib.Purge(ctx, p)
		errs = append(errs, err)
	}
	_, err = iptables.Purge()
	errs = append(errs, err)
	table, err := nft.Open(slog.New(slog.DiscardHandler))
	if errs = append(errs, err); err == nil {
		defer table.Close()
		errs = append(errs, table.Delete(ctx))
	}
	for _, table := range ipTables() {
		errs = append(errs, table.Delete(ctx), table.Close())
	}
	for _, file := range h.volatile() {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Roles are those that run, in the order in which they are to end: they hold the locks of
// the state folder. A reflector has the speaker's.
func (h Host) Roles() (list []Running) {
	roles := append(Roles(), "node") // which would start the others again
	slices.Reverse(roles)
	for _, role := range roles {
		f, err := os.Open(filepath.Join(h.StateDir, role+".lock"))
		if err != nil {
			continue
		}
		if errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK) {
			text := make([]byte, 32)
			n, _ := f.ReadAt(text, 0)
			pid, _ := strconv.Atoi(strings.TrimSpace(string(text[:n])))
			list = append(list, Running{role, pid})
		}
		f.Close()
	}
	return list
}

// endPatience is how long roles may take to end.
const endPatience = 30 * time.Second

// End ends the roles that run, netctl node first, and waits until they have.
func (h Host) End(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	told := map[int]bool{}
	for {
		running := h.Roles()
		if len(running) == 0 {
			return nil
		}
		if first := running[0]; first.PID > 0 && !told[first.PID] {
			told[first.PID] = true
			if err := syscall.Kill(first.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("end %s: %w", first, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not end: %w", running[0], ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
