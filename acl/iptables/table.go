package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"netctl/acl"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// Table is a Ruleset in the iptables of one network namespace: chains and sets whose names
// begin with nctl-, in the tables raw, mangle, filter and nat of one flavour, both families.
// Safe for concurrent use.
type Table struct {
	// OnClosed, if set, is called by Sync when tables that were open are closed, before they
	// are whole. It must not call Sync, Adjust, Shut or Apply.
	OnClosed func(want *acl.Ruleset)
	// Beside, if set, says that another back end holds the rules: while these are not whole
	// nothing is open.
	Beside func() bool

	log    *slog.Logger
	mode   Mode
	prefix string
	netns  int

	mu sync.Mutex // one transaction or read at a time
	// want is what the tables were made last; nil: nothing is known.
	want *acl.Ruleset
	// wrote is that as lines.
	wrote map[place]*rendered
	// printed is how iptables-save prints chains that it prints otherwise than they were
	// written, by what was written.
	printed map[string]string
	right   bool // they were as wanted once: what differs then is others' doing
	isShut  bool // nothing passes until they are whole
	doubts  bool // flows may have begun unseen then
	doubted time.Time
	cut     cutFlows
	mark    fingerprint
	// unverified is when something was written last that was not read back; zero: nothing.
	unverified time.Time
	// before is what rules have counted that iptables cannot be told of.
	before map[line]acl.Count
	pids   pids
}

// Open is for the flavour of iptables in the current network namespace; the caller is locked
// to its thread if that is not the process's own. prefix starts the names of the links of
// endpoints. It changes nothing. An error says what the host lacks.
func Open(log *slog.Logger, mode Mode, prefix string) (*Table, error) {
	for _, ipv6 := range []bool{false, true} {
		for _, what := range []string{"-save", "-restore"} {
			if _, err := mode.program(ipv6, what); err != nil {
				return nil, err
			}
		}
	}
	if _, err := countMembers(); err != nil {
		return nil, fmt.Errorf("the kernel has no ipset: %w", err)
	}
	netns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	t := &Table{log: log, mode: mode, prefix: prefix, netns: netns, printed: map[string]string{}, before: map[line]acl.Count{}, cut: newCutFlows()}
	return t, nil
}

// Close ends it; the tables stay.
func (t *Table) Close() error { return unix.Close(t.netns) }

// Mode is the flavour.
func (t *Table) Mode() Mode { return t.mode }

// inside runs fn in the network namespace, whichever the process's is.
func (t *Table) inside(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Setns(t.netns, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		done <- fn()
	}()
	return <-done
}

// Sync makes the tables what want says and writes only what differs: nothing at all if they
// are right already. Where they are open they are closed first. An *acl.RefusedError lists
// every object that is not as wanted; the others are.
func (t *Table) Sync(ctx context.Context, want *acl.Ruleset) (wrote bool, err error) {
	return t.sync(ctx, want, true)
}

// Adjust is Sync of tables that were right for their time, and are to be others.
func (t *Table) Adjust(ctx context.Context, want *acl.Ruleset) (wrote bool, err error) {
	return t.sync(ctx, want, false)
}

func (t *Table) sync(ctx context.Context, want *acl.Ruleset, doubted bool) (wrote bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.inside(func() error {
		have, err := t.mode.read(ctx, anyPlace)
		if err != nil {
			return err
		}
		found := doubted
		beside := t.Beside != nil && t.Beside()
		gone := !stands(have) && want.Endpoints() && !beside
		if gone { // before the time that all the rest takes
			if err := t.block(ctx, want, have); err != nil {
				return err
			}
			wrote, doubted, t.isShut = true, true, true
			t.tellClosed(want)
			t.isShut = false
		}
		did, err := t.settle(ctx, want, found)
		wrote = wrote || did
		t.right = err == nil
		if err == nil && wrote && (doubted && gone || t.doubts) {
			t.doubts = false
			err = t.doubt()
		}
		return err
	})
	return wrote, err
}

// settleTries is how often tables are looked at that others change while they are put right.
const settleTries = 4

// errChanged says that others changed the tables since they were written.
var errChanged = errors.New("packet filter: somebody else changed iptables meanwhile")

// settle writes until what is read is what is wanted: what others did before the last look is
// seen by that, and what they do later by how the tables look then.
func (t *Table) settle(ctx context.Context, want *acl.Ruleset, found bool) (wrote bool, err error) {
	var last []*tableChange
	for range settleTries {
		mark, err := look(t.mode)
		if err != nil {
			return wrote, err
		}
		have, err := t.mode.read(ctx, anyPlace)
		if err != nil {
			return wrote, err
		}
		t.learn(last, have)
		var differed bool
		last, differed, err = t.write(ctx, want, have, found && t.right)
		if !differed {
			t.mark, t.unverified = mark, time.Time{}
			return wrote, nil
		}
		if wrote = true; err != nil {
			t.mark.note(t.mode)
			return true, err
		}
	}
	return wrote, errChanged
}

func anyPlace(place) bool { return true }

// stands says that packets of endpoints come to our chains, in both families.
func stands(have map[place]*held) bool {
	for _, ipv6 := range []bool{false, true} {
		h := have[place{ipv6, "filter"}]
		if h == nil || !h.hooks["FORWARD"].first || h.chains[dispatcher("FORWARD")] == nil || len(h.chains[dispatcher("FORWARD")].text) == 0 {
			return false
		}
	}
	return true
}

// errUnknown says that Sync is to be called first.
var errUnknown = errors.New("packet filter: it is not known what iptables holds")

// Apply writes a delta without reading first, but for what is counted; one transaction for each
// table. An *acl.RefusedError lists every object that is not as wanted; after any other error
// Sync puts things right.
func (t *Table) Apply(ctx context.Context, d acl.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if d.Empty() {
		return nil
	}
	if t.want == nil {
		return errUnknown
	}
	return t.inside(func() error {
		now, err := look(t.mode)
		if err != nil {
			return err
		}
		clean := t.mark.same(now) // else it is others' doing, and stays to be seen
		next := t.want.With(d)
		members := setDelta(t.want, next, d)
		refused := prepare(members)
		wrote := t.wrote
		if len(d.Chains) > 0 || slices.ContainsFunc(d.Sets, func(c acl.SetChange) bool {
			return c.Type.Map() || next.Sets[c.Name] != nil && !hasMembers(next.Sets[c.Name].Type)
		}) {
			wrote = t.render(next)
			changes := t.differences(wrote, asHeld(t.wrote))
			have, err := t.countedBefore(ctx, changes)
			if err != nil {
				return err
			}
			refused = append(refused, t.commit(ctx, changes, counted(t.wrote, have))...)
		}
		t.want, t.wrote = next, wrote
		err = finish(members)
		now, lookErr := look(t.mode)
		if clean && lookErr == nil {
			t.mark = now
		}
		t.unverified = time.Now()
		if err != nil {
			return err
		}
		if len(refused) > 0 {
			return &acl.RefusedError{Refusals: refused}
		}
		return nil
	})
}

// hasMembers says that a set of the type is one of the kernel's.
func hasMembers(t acl.SetType) bool { return kindOf(t) != nil }

// setDelta are the changes of sets that a delta makes of what is.
func setDelta(is, next *acl.Ruleset, d acl.Delta) (list []setChange) {
	for _, c := range d.Sets {
		typ := c.Type
		if s := is.Sets[c.Name]; s != nil {
			typ = s.Type
		}
		kind := kindOf(typ)
		if kind == nil || strings.HasPrefix(c.Name, acl.ARPPrefix) {
			continue
		}
		names := []string{setName(c.Name)}
		if kind.kind == "hash:ip,port,ip" {
			names = nil
			for _, s := range cutSets(c.Name) {
				names = append(names, setName(s.name))
			}
		}
		for _, name := range names {
			change := setChange{name: name, destroy: c.Gone}
			if c.New {
				change.create = kind
			}
			switch {
			case kind.kept || c.Gone:
			case kind.kind == "bitmap:port":
				had := map[member]struct{}{}
				if s := is.Sets[c.Name]; s != nil {
					had = membersIn(typ, slices.Values(s.Sorted()))
				}
				change.add, change.del = portChange(membersIn(typ, slices.Values(next.Sets[c.Name].Sorted())), had)
			default:
				add, del := membersIn(typ, slices.Values(c.Add)), membersIn(typ, slices.Values(c.Del))
				change.add, change.del = entries(missing(add, nil)), entries(missing(del, add))
			}
			list = append(list, change)
		}
	}
	return list
}

// membersIn are elements of a set.
func membersIn(t acl.SetType, elements iter.Seq[acl.Element]) map[member]struct{} {
	out := map[member]struct{}{}
	for e := range elements {
		for _, m := range membersOf(t, e) {
			out[m] = struct{}{}
		}
	}
	return out
}

// Shut closes tables without any rule of ours: it makes them what want says, which is to hold
// no endpoint. Of others nothing is changed.
func (t *Table) Shut(ctx context.Context, want *acl.Ruleset) (wrote bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.inside(func() error {
		have, err := t.mode.read(ctx, anyPlace)
		if err != nil || len(have) > 0 && stands(have) && len(have[place{false, "filter"}].chains) > shutChains {
			return err
		}
		wrote, err = t.settle(ctx, want, false)
		return err
	})
	return wrote, err
}

// shutChains is how many chains the table filter has at most while nothing passes.
const shutChains = 8

// Block lets nothing pass from or to an endpoint, where there is no rule, until Sync, Adjust
// or Shut: before it is known what the tables are to be. Of others nothing is changed.
func (t *Table) Block(ctx context.Context, static *acl.Ruleset) (wrote bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.inside(func() error {
		have, err := t.mode.read(ctx, anyPlace)
		if err != nil || stands(have) {
			return err
		}
		wrote = true
		return t.block(ctx, static, have)
	})
	return wrote, err
}

// Standing says that packets of endpoints come to our chains.
func (t *Table) Standing(ctx context.Context) (is bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.inside(func() error {
		have, err := t.mode.read(ctx, anyPlace)
		is = stands(have)
		return err
	})
	return is, err
}

// Objects is how many chains and sets of ours there are.
func (t *Table) Objects(ctx context.Context) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.inside(func() error {
		have, err := t.mode.read(ctx, anyPlace)
		for _, h := range have {
			n += len(h.chains)
		}
		if n == 0 { // sets have no flavour
			return err
		}
		sets, setsErr := countMembers()
		n += len(sets)
		return errors.Join(err, setsErr)
	})
	return n, err
}

// Delete removes all that is ours. Sets that the other flavour uses stay.
func (t *Table) Delete(ctx context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inside(func() error {
		have, err := t.mode.read(ctx, anyPlace)
		if err != nil {
			return err
		}
		t.want, t.wrote = nil, nil
		if refused := t.commit(ctx, t.differences(nil, have), nil); len(refused) > 0 {
			return &acl.RefusedError{Refusals: refused}
		}
		other := Legacy
		if t.mode == Legacy {
			other = NFT
		}
		if have, err := other.read(ctx, anyPlace); err == nil && stands(have) {
			return nil // sets have no flavour
		}
		sets, err := countMembers()
		if err != nil {
			return err
		}
		for _, name := range sortedKeys(sets) {
			if err := destroyIPSet(name); err != nil && !busy(err) {
				return fmt.Errorf("destroy ipset %s: %w", name, err)
			}
		}
		return nil
	})
}

// block makes the hooks of the table filter drop what is of endpoints. Chains of ours that are
// there stay what they are, where nothing leads to them.
func (t *Table) block(ctx context.Context, want *acl.Ruleset, have map[place]*held) error {
	shut := render(want.Shut(), t.prefix, nil)
	var changes []*tableChange
	for _, c := range t.differences(shut, have) {
		c.remove = nil
		if c.table != "filter" {
			continue
		}
		for builtin := range c.unhook {
			if !slices.Contains(c.hook, builtin) {
				delete(c.unhook, builtin)
			}
		}
		changes = append(changes, c)
	}
	refused := t.commit(ctx, changes, nil)
	t.want, t.wrote = nil, nil
	if len(refused) > 0 {
		return &acl.RefusedError{Refusals: refused}
	}
	t.log.Warn("packet filter is not whole, closed first", "table", "iptables-"+string(t.mode))
	return nil
}

// tellClosed calls OnClosed. The caller holds t.mu, which is free meanwhile.
func (t *Table) tellClosed(want *acl.Ruleset) {
	if t.OnClosed == nil {
		return
	}
	t.mu.Unlock()
	defer t.mu.Lock()
	t.OnClosed(want)
}

// Doubt says that flows may have begun unseen until now: see acl.Unseen.
func (t *Table) Doubt(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isShut {
		t.doubts = true
		return nil
	}
	if time.Since(t.doubted) < time.Second {
		return nil
	}
	return t.inside(t.doubt)
}

func (t *Table) doubt() error {
	var errs []error
	for p, d := range acl.Unseen() {
		for _, ipv6 := range []bool{false, true} {
			var list []entry
			for _, half := range allAddresses(ipv6) {
				list = append(list, entry{member: member{prefix: half}, timeout: d})
			}
			errs = append(errs, changeIPSet(nl.IPSET_CMD_ADD, unseenSet(p, ipv6), list))
		}
	}
	t.doubted = time.Now()
	return errors.Join(errs...)
}

// Lacks is what a Ruleset says that iptables cannot do as nftables does, one line each
// (docs/policy.md, "iptables").
func Lacks() []string {
	return []string{
		"ARP: what workloads claim to be is not checked, nor whose MAC they send it with",
		"other machines: that they send with the address of a member (agent.reversePath), or into the VXLAN network as if they were nodes, is not checked",
		"limits of packets and connections: each family counts for itself, and maximums of connections count anew after each change of the table",
		"rates of what is logged, and of new flows: of each address, not of each interface",
		"reject by policies before DNAT, and untracked ones: drops",
		"flows without ports that were cut: their answers may begin others that the rules allow",
	}
}
