package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"netctl/acl"
	"netctl/acl/iptables"
	"netctl/acl/nft"
	"netctl/datastore"
)

// The settings of agent.backend: what filters packets.
const (
	backendAuto     = "auto"     // nftables where the kernel has it, else iptables
	backendNFT      = "nftables" //
	backendIPTables = "iptables" // of the flavour of the host's own iptables
	iptablesLegacy  = "iptables-legacy"
	iptablesNFT     = "iptables-nft"
)

// CheckBackend says what is wrong with the setting agent.backend.
func CheckBackend(s string) error {
	if !slices.Contains([]string{backendAuto, backendNFT, backendIPTables, iptablesLegacy, iptablesNFT}, s) {
		return fmt.Errorf("%q: must be auto, nftables, iptables, iptables-legacy or iptables-nft: %w", s, datastore.ErrInvalid)
	}
	return nil
}

// backend is the packet filter that the agent works with.
type backend struct {
	packetFilter
	name string
	// lacks is what it does less than nftables, one line each.
	lacks []string
	// track has connections tracked while the filter is gone, where it can.
	track func() error
}

// packetFilter is what the role asks of a back end.
type packetFilter interface {
	filter
	Block(ctx context.Context, static *acl.Ruleset) (wrote bool, err error)
	Watch(ctx context.Context, fn func()) error
	WatchOthers(ctx context.Context, fn func()) error
	Denied(ctx context.Context) (map[string]uint64, error)
	Counts(ctx context.Context, rules []acl.Rule) ([]acl.Count, error)
	Dropped(ctx context.Context, chain string) (uint64, error)
	Cut(ctx context.Context, flows []acl.Flow) error
	IsCut(f acl.Flow) bool
	Doubt(ctx context.Context) error
	leftover
}

// leftover is a back end that the agent does not work with any more.
type leftover interface {
	// Standing says that it judges packets; Delete removes it.
	Standing(ctx context.Context) (bool, error)
	Delete(ctx context.Context) error
	Close() error
}

// openBackends opens the packet filter that the settings name, and looks for what another one
// left. That stays in force until this one is whole.
func (a *agent) openBackends(ctx context.Context) error {
	name, err := a.openFiltering()
	if err != nil {
		return err
	}
	a.filter.name = name
	a.closers = append(a.closers, a.filter.Close)
	if name != backendNFT && len(a.cfg.Adopt) > 0 {
		return fmt.Errorf("agent.adopt: %s does not filter interfaces of others: nftables does (agent.backend)", name)
	}
	if last, err := os.ReadFile(a.cfg.backendFile()); err == nil && string(last) == name {
		return nil // nobody else's rules are there, and looking for them takes longer than closing
	}
	_ = os.Remove(a.cfg.backendFile()) // what Guard goes by
	for _, other := range a.others() {
		stands, err := other.Standing(ctx)
		if err != nil || !stands {
			if err != nil {
				a.unread = true
				a.log.Warn("another packet filter cannot be read, so that nobody closes this one while the agent is away", "error", err)
			}
			_ = other.Close()
			continue // what cannot be read holds nothing up
		}
		a.left = append(a.left, other)
		a.closers = append(a.closers, other.Close)
	}
	a.moves.Store(len(a.left) > 0)
	return nil
}

func (a *agent) openFiltering() (name string, err error) {
	want := cmp.Or(a.cfg.Backend, backendAuto)
	if want == backendAuto || want == backendNFT {
		if err = a.openNFT(); err == nil || want == backendNFT {
			return backendNFT, err
		}
	}
	mode := iptables.Mode(strings.TrimPrefix(want, "iptables-"))
	if want == backendAuto || want == backendIPTables {
		host, hostErr := iptables.HostMode()
		if hostErr != nil {
			return "", fmt.Errorf("agent.backend %s: %w", want, errors.Join(err, hostErr))
		}
		mode = host
	}
	t, openErr := iptables.Open(a.log, mode, a.cfg.LinkPrefix)
	if openErr != nil {
		return "", fmt.Errorf("agent.backend %s: %w", want, errors.Join(err, openErr))
	}
	t.OnClosed, t.Beside = a.closed, a.moves.Load
	a.filter = backend{packetFilter: t, lacks: iptables.Lacks(), track: func() error { return nil }}
	return backendIPTables + "-" + string(mode), nil
}

func (a *agent) openNFT() error {
	t, err := nft.Open(a.log)
	if err != nil {
		return err
	}
	if _, err := t.Families(); err != nil { // the kernel has no nf_tables
		return errors.Join(err, t.Close())
	}
	t.OnClosed, t.Beside = a.closed, a.moves.Load
	a.filter = backend{packetFilter: t, track: t.KeepTracking}
	if can, err := t.JudgesPaths(); err != nil {
		a.log.Warn("whether the kernel can judge by which way packets come is not known", "error", err)
	} else if !can {
		a.cfg.pathless, a.filter.lacks = true, []string{"other machines: that they send with the address of a member (agent.reversePath) is not checked: Linux 5.19 and later can"}
	}
	return nil
}

// others are the back ends but that which the agent works with, as far as the host has them.
func (a *agent) others() (list []leftover) {
	if a.filter.name != backendNFT {
		if t, err := nft.Open(a.log); err == nil {
			list = append(list, t)
		}
	}
	for _, mode := range []iptables.Mode{iptables.Legacy, iptables.NFT} {
		if a.filter.name == backendIPTables+"-"+string(mode) {
			continue
		}
		if t, err := iptables.Open(a.log, mode, a.cfg.LinkPrefix); err == nil {
			list = append(list, t)
		}
	}
	return list
}

// move takes away what another back end left, once this one is whole.
func (a *agent) move(ctx context.Context) error {
	defer func() {
		if a.moves.Load() || a.unread {
			return // the next start looks again
		}
		if err := datastore.WriteFile(a.cfg.backendFile(), []byte(a.filter.name), datastore.FileOptions{Volatile: true}); err != nil {
			a.log.Warn("which packet filter it is not kept for the next start", "error", err)
		}
	}()
	if len(a.left) == 0 {
		return nil
	}
	whole := func() (bool, error) {
		f := a.loop.filtering
		return !f.behind && !f.resync && f.err == nil && f.index.Whole(), nil
	}
	if a.loop.await(ctx, whole) != nil {
		return nil // ctx ended; the next start goes on
	}
	for _, other := range a.left {
		for wait := retryMin; ; wait = min(2*wait, retryMax) {
			err := other.Delete(ctx)
			text := ""
			if err != nil {
				text = "what is left of another packet filter: " + oneLine(err.Error())
			}
			a.loop.post(func() { a.loop.problems.note("backend", text) })
			if err == nil || !pause(ctx, wait) {
				break
			}
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	a.moves.Store(false)
	a.log.Info("packet filter moved", "table", a.filter.name)
	return nil
}
