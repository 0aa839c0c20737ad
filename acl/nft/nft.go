// Package nft keeps a Ruleset of package acl in the kernel, in the nftables
// table `inet netctl`, over netlink: it runs no binary.
//
// It never touches another table, never replaces its own as a whole, and
// flushes nothing that is right: Sync reads back and writes the difference,
// Apply writes a delta without reading. Every change of one object is atomic;
// changes that fit one transaction are atomic together.
//
// A rule carries a hash of itself beside its comment, and is compared by that.
// Everything written can be listed by nft 1.0.6 and later.
package nft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"netctl/acl"
	"netctl/datastore"
)

// socketBuffer in bytes, forced (SO_SNDBUFFORCE, SO_RCVBUFFORCE): a batch has to fit
// as a whole, and with the defaults one of some hundred rules does not.
const socketBuffer = 16 << 20

// syncTries is how often a table is worked out anew that others change while it is put back.
const syncTries = 4

// answerTime is how long the kernel may take for one transaction.
const answerTime = 30 * time.Second

// Table is the table in one network namespace. Safe for concurrent use.
type Table struct {
	// OnClosed, if set, is called by Sync when a table that was open is closed, before
	// it is whole. It must not call Sync, Adjust, Shut or Apply.
	OnClosed func(want *acl.Ruleset)
	// Beside, if set, says that another back end holds the rules: while this one is not whole
	// nothing is open.
	Beside func() bool

	log *slog.Logger

	mu    sync.Mutex // one transaction or read at a time
	write *netlink.Conn
	read  *netlink.Conn
	// right says that the table was as wanted once: what differs then is others' doing.
	right bool
	// port is the netlink port of write, by which Watch knows our own changes.
	port atomic.Uint32
	// doubted is when a transaction that doubts was committed last; nil: never.
	doubted atomic.Pointer[time.Time]
	// keeper is the socket that the tracking table is of; nil: there is none.
	keeper *netlink.Conn
	// untracked is why it could not be made last.
	untracked string
	// tracked says that connections were tracked without a break since the table was
	// last what it should be, whatever became of it.
	tracked bool
	cut     cutFlows
	// isShut says that nothing passes until the table is whole, and doubts that flows may
	// have begun unseen then.
	isShut, doubts bool
	// netns is the namespace the sockets are of.
	netns   int
	handles handles
	// at is the generation of what was read last, with what was written since; again says
	// that what is refused since others changed it is worked out anew.
	at    uint32
	again bool
	// sets are those that acl.Pack has to know, by name.
	sets map[string][]acl.Element
	// packed are the chains with runs that a delta wrote last, by name.
	packed map[string]packed
}

// Open connects to the kernel in the current network namespace; the caller is
// locked to its thread if that is not the process's own. It needs
// CAP_NET_ADMIN. It changes nothing.
func Open(log *slog.Logger) (*Table, error) {
	netns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	t := &Table{log: log, netns: netns, handles: handles{}, sets: map[string][]acl.Element{}, packed: map[string]packed{}, cut: cutFlows{set: map[string]map[acl.Flow]time.Time{}}}
	if t.read, err = t.dial(); err == nil {
		err = enlarge(t.read)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	if err := t.connect(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

func (t *Table) dial() (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: t.netns})
	if errors.Is(err, unix.EPERM) { // who may enter no namespace is in the process's own
		c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
	}
	if err != nil {
		return nil, fmt.Errorf("open netfilter socket: %w", err)
	}
	if err := errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer)); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("enlarge netfilter socket's buffers: %w", err)
	}
	return c, nil
}

// dumpSize in bytes is the largest message the kernel makes of a dump.
const dumpSize = 32 << 10

// enlarge makes the kernel answer dumps on c in messages of dumpSize: it goes by
// the largest buffer the socket has ever received with, and for each message it
// counts its way through the table anew.
func enlarge(c *netlink.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if _, err := c.Send(message(unix.NFT_MSG_GETGEN, 0, nil)); err != nil {
		return fmt.Errorf("read nftables generation: %w", err)
	}
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		_, _, recvErr = unix.Recvfrom(int(fd), make([]byte, dumpSize), 0)
		return !errors.Is(recvErr, unix.EAGAIN)
	})
	return errors.Join(err, recvErr)
}

// connect opens the connection for writes; without success there is the one from
// before.
func (t *Table) connect() error {
	c, err := t.dial()
	if err == nil {
		t.write = c
		t.port.Store(c.PID())
	}
	return err
}

// Close ends the connection; the table stays. Watches end by their context.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, c := range []*netlink.Conn{t.keeper, t.write, t.read} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(append(errs, unix.Close(t.netns))...)
}

// Sync makes the table what want says and writes only what differs: nothing at
// all if it is right already. Where it is open, and one transaction cannot make it
// whole, it is closed first. An *acl.RefusedError lists every object that is not as wanted; the
// others are. Where it wrote, flows may have begun, and unless connections were tracked all
// the time, unseen: see Doubt.
func (t *Table) Sync(ctx context.Context, want *acl.Ruleset) (wrote bool, err error) {
	return t.sync(ctx, want, true)
}

// Adjust is Sync of a table that was right for its time, and is to be another one: nothing
// began unseen, unless there is no rule at all.
func (t *Table) Adjust(ctx context.Context, want *acl.Ruleset) (wrote bool, err error) {
	return t.sync(ctx, want, false)
}

// sync tries again at once where others changed the table meanwhile: it may be open.
func (t *Table) sync(ctx context.Context, want *acl.Ruleset, doubted bool) (wrote bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer func() { t.again = false }()
	for try := range syncTries {
		t.again = try < syncTries-1
		did, failed := t.syncOnce(ctx, want, doubted)
		if wrote, err = wrote || did, failed; !errors.Is(err, errChanged) {
			break
		}
	}
	return wrote, err
}

// errChanged says that others changed the table since it was read.
var errChanged = errors.New("packet filter: somebody else changed it meanwhile")

func (t *Table) syncOnce(ctx context.Context, want *acl.Ruleset, doubted bool) (wrote bool, err error) {
	t.learnSets(want)
	t.tracked = t.tracked && t.tracking()
	defer func() {
		var refused *acl.RefusedError
		t.tracked = (err == nil || errors.As(err, &refused)) && t.track()
	}()
	have, err := t.snapshot()
	if err != nil {
		return false, err
	}
	found := doubted
	beside := t.Beside != nil && t.Beside()
	gone := !have.tracks() && want.Endpoints() && !beside
	doubted = doubted && !beside
	doubted = (doubted || gone) && want.Endpoints() && !t.tracked
	if gone { // before the time that all the rest takes
		if err = t.shut(ctx, want, have); err != nil {
			return true, err
		}
		doubted, t.doubts = doubted || t.doubts, false
		if have, err = t.snapshot(); err != nil {
			return true, err
		}
	}
	packed := want.Packed()
	tx := t.differences(packed, have)
	if tx.empty() {
		t.right = true
		return gone, nil
	}
	if first := closing(want, have); !first.empty() && !tx.single() && !beside {
		if doubted {
			t.doubt(first)
		}
		first.cut(t.cut.lost(have))
		t.log.Warn("packet filter is not whole, closed first", "table", acl.TableName, "objects", first.objects())
		err := t.commit(ctx, first)
		if refused := (*acl.RefusedError)(nil); err != nil && !errors.As(err, &refused) {
			return true, err
		}
		if !gone {
			t.tellClosed(want)
		}
		if have, err = t.snapshot(); err != nil {
			return true, err
		}
		if tx = t.differences(packed, have); tx.empty() {
			return true, nil
		}
	}
	said := []any{"table", acl.TableName, "objects", tx.objects()}
	if found && t.right {
		said = append(said, datastore.Drift(datastore.DriftFilter))
	}
	t.log.Info("packet filter differs", said...)
	if doubted {
		t.doubt(tx)
	}
	tx.cut(t.cut.lost(have))
	err = t.blameRuns(t.commit(ctx, tx), want)
	t.right = err == nil
	return true, err
}

// Shut closes a table without any rule: it makes it what want says, which is to hold no
// endpoint. Of one that holds something nothing is changed.
func (t *Table) Shut(ctx context.Context, want *acl.Ruleset) (wrote bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	have, err := t.snapshot()
	if err != nil || have.tracks() {
		return false, err
	}
	return true, t.commit(ctx, t.differences(want.Packed(), have))
}

// tracks tells whether rules are there that may need connections tracked: more than those
// that let nothing through, which have no set.
func (k *kernel) tracks() bool {
	inet := k.inet()
	return len(inet.chains) > 0 && len(inet.sets) > 0
}

// inet is what is there but for the chains and sets of frames.
func (k *kernel) inet() *kernel {
	of := *k
	of.chains, of.sets = maps.Clone(k.chains), maps.Clone(k.sets)
	maps.DeleteFunc(of.chains, func(name string, _ *kernelChain) bool { return strings.HasPrefix(name, acl.ARPPrefix) })
	maps.DeleteFunc(of.sets, func(name string, _ *kernelSet) bool { return strings.HasPrefix(name, acl.ARPPrefix) })
	return &of
}

// Block lets nothing pass from or to an endpoint, where there is no rule, until Sync, Adjust
// or Shut: before it is known what the table is to be. Of one that holds something nothing
// is changed, also where another process puts it back meanwhile.
func (t *Table) Block(ctx context.Context, static *acl.Ruleset) (wrote bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for range syncTries {
		have, err := t.snapshot()
		if err != nil || have.tracks() {
			return false, err
		}
		tx, want, inet := newTransaction(), static.Shut(), have.inet()
		if compare(tx, want, inet, learn(want, inet)); tx.empty() {
			return false, nil
		}
		switch err = t.sendAt(t.at, tx.ops()); {
		case err == nil:
			return true, nil
		case !errors.Is(err, unix.ERESTART): // what of it is refused keeps nothing else from being written
			return true, t.commit(ctx, tx)
		}
	}
	return false, errChanged
}

func (t *Table) block(ctx context.Context, want *acl.Ruleset, have *kernel) error {
	tx := newTransaction()
	compare(tx, want.Shut(), have.inet(), handles{})
	return t.commit(ctx, tx)
}

// shut lets nothing through where there is no rule. The kernel tracks connections from when
// the first rule that needs it is prepared, before any rule acts: a packet that passed
// just then could begin a flow that nobody judges. What began meanwhile, or was tracked all
// the time, it tells to OnClosed, before anything passes again.
func (t *Table) shut(ctx context.Context, want *acl.Ruleset, have *kernel) error {
	if err := t.block(ctx, want, have); err != nil {
		return err
	}
	t.doubted.Store(nil)
	t.isShut = true
	t.tellClosed(want)
	t.isShut = false
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

// Doubt says that flows may have begun unseen until now: see acl.Unseen. Sync says
// so itself when it writes anything, there are endpoints, and connections may not have
// been tracked.
func (t *Table) Doubt(ctx context.Context) error {
	if last := t.doubted.Load(); last != nil && time.Since(*last) < doubtRest {
		return nil // without waiting for a Sync that goes on for long
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.isShut {
		t.doubts = true
		return nil
	}
	tx := newTransaction()
	t.doubt(tx)
	return t.commit(ctx, tx)
}

// doubtRest is how long what a transaction said of doubt serves for another.
const doubtRest = time.Second

// doubt has tx say that flows may have begun unseen.
func (t *Table) doubt(tx *transaction) {
	tx.add(phaseElements, unseen(func() {
		now := time.Now()
		t.doubted.Store(&now)
	}))
}

// differences is what makes a table that was read what want, packed, says.
func (t *Table) differences(want *acl.Ruleset, have *kernel) *transaction {
	t.handles = learn(want, have)
	have.counts = t.countsOfWrong(have)
	tx := newTransaction()
	compare(tx, want, have, t.handles)
	return tx
}

// Apply writes a delta as one transaction without reading first. An
// *acl.RefusedError lists every object that is not as wanted; after any other
// error Sync puts things right.
func (t *Table) Apply(ctx context.Context, d acl.Delta) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	tx := newTransaction()
	var anew []acl.ChainChange
	var lists []*list
	before := t.changeSets(d)
	for _, c := range d.Chains {
		if l := t.list(c, before); l != nil {
			lists = append(lists, l)
			continue
		}
		if o, ok := t.edit(c); ok {
			tx.add(phaseChains, o)
		} else {
			anew = append(anew, c)
		}
		delete(t.handles, c.Name) // until the edit is through
	}
	counted := anew
	for _, l := range lists {
		if o, ok := t.edit(l.ChainChange); ok {
			l.edit = &o
		}
		delete(t.handles, l.Name)
		counted = append(counted, l.counted()...)
	}
	tx.counts = t.countsOfAnew(counted)
	for _, c := range anew {
		tx.chain(c)
	}
	for _, l := range lists {
		tx.list(l)
	}
	for _, c := range d.Sets {
		tx.set(c)
	}
	if tx.empty() {
		return nil
	}
	return blameList(t.commit(ctx, tx), lists)
}

// Generation is the kernel's count of commits to any nftables table of the
// namespace (NFT_MSG_GETGEN): while it stands still nothing has changed.
func (t *Table) Generation() (uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return generation(t.read)
}
