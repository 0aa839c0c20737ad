package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"netctl/acl"
	"netctl/commands/control"
	"netctl/datastore"
)

// filtering is what the packet filter should hold, and what of it the kernel has
// refused. Its owner is the loop.
type filtering struct {
	index   *acl.Index
	options acl.Options
	filter  filter
	journal *acl.Journal
	path    string // of the journal
	log     *slog.Logger
	// established is what becomes of flows that are denied by a change.
	established datastore.Established
	// tightened is whose flows the changes in the kernel may deny, and are not cut yet.
	tightened acl.Scope
	version   atomic.Uint64 // of what the kernel holds
	judged    judged        // what that is
	// repaired is told what holds, after a time in which it may not have.
	repaired func(*acl.Ruleset)
	// wired says whether this host may have endpoints.
	wired func() bool
	debt  *debt

	keepAt  time.Time         // when the journal, which failed, is tried again
	resync  bool              // what the kernel holds is not known
	behind  bool              // it was not compared with the index since the start or putBack
	shut    bool              // nothing was there, nor known, so that no endpoint is let through
	held    bool              // putBack made the kernel what it was last
	bounded bool              // it holds what it should, but for another bound of flows
	refused *acl.RefusedError // nil: it has everything
	err     error             // why it has not
}

func newFiltering(node string, o acl.Options, f filter, path string, log *slog.Logger) *filtering {
	return &filtering{
		index: acl.NewIndex(node, o), options: o, filter: f, journal: acl.NewJournal(path), path: path, log: log,
		repaired: func(*acl.Ruleset) {}, wired: func() bool { return false }, debt: newDebt("", log), resync: true, behind: true,
	}
}

// flush brings the packet filter up to date. whole says that it was compared as a
// whole. After an error that is no RefusedError nothing is known of it.
func (f *filtering) flush(ctx context.Context) (whole bool, err error) {
	delta := f.index.Flush()
	f.judged.follow(delta)
	f.keep(delta)
	f.tighten(f.index.Tightened())
	if f.resync || f.behind || !delta.Empty() {
		f.version.Add(1)
	}
	lacked, wrote := f.refused != nil, false
	switch {
	case f.resync || f.behind:
		whole, f.refused = true, nil
		rules := f.index.Ruleset()
		// What the kernel held was right for its time, if it was held: what a rule of today
		// denies is as if the rule changed before our eyes.
		wrote, err = f.sync(ctx, rules, f.resync || !f.held, lacked)
	case !delta.Empty():
		if lacked {
			f.debt.owe()
		}
		f.refused = f.refused.Without(delta)
		err = f.filter.Apply(ctx, delta)
	}
	var refused *acl.RefusedError
	switch {
	case errors.As(err, &refused):
		f.refuse(refused)
		f.resync, f.behind, f.shut, f.bounded, f.err = false, false, false, false, f.refused
		return whole, f.refused
	case err != nil:
		f.resync, f.err = true, err
		return whole, err
	}
	f.resync, f.behind, f.shut, f.bounded = false, false, false, false
	if f.refused == nil {
		f.err = nil
		if lacked && !wrote {
			f.repaired(f.index.Ruleset())
		}
	}
	return whole, nil
}

// establish says what becomes of flows that are denied by a change from now on.
func (f *filtering) establish(e datastore.Established) {
	f.established = e
	if strict := e == datastore.EstablishedStrict; strict != f.options.Strict {
		f.setStrict(strict)
		f.restated()
	}
}

// restated notes that the static part is to be another one; what the kernel holds was right
// until now.
func (f *filtering) restated() {
	f.held, f.behind, f.bounded = f.held || !f.resync && f.refused == nil, true, false
}

func (f *filtering) setStrict(strict bool) {
	f.options.Strict = strict
	f.index.SetStrict(strict)
	f.judged.drop() // no delta tells of it
}

// setFailsafes says which ports no policy closes to host endpoints.
func (f *filtering) setFailsafes(in, out []acl.HostPort) {
	f.options.FailsafeInbound, f.options.FailsafeOutbound = in, out
	f.index.SetFailsafes(in, out)
}

// heardMembers keeps the ports of the datastore's members open, as the cluster says where they are.
func (l *loop) heardMembers(value []byte) {
	var m datastore.Members
	if value == nil || json.Unmarshal(value, &m) != nil {
		return // who follows them tells
	}
	l.post(func() { l.filtering.setFailsafes(l.cfg.failsafes(m)) })
}

// tighten takes note of whose flows a change may deny.
func (f *filtering) tighten(s acl.Scope) {
	if s.Empty() || f.established == datastore.EstablishedKeep {
		return
	}
	f.debt.owe()
	f.tightened.Add(s)
}

// sync makes the kernel hold rules. doubted says that, where it held others, those may
// have been of somebody else's making; lacked, that they lacked something before.
func (f *filtering) sync(ctx context.Context, rules *acl.Ruleset, doubted, lacked bool) (wrote bool, err error) {
	heir := f.debt.owe()
	sync := f.filter.Adjust
	if doubted || lacked {
		sync = f.filter.Sync
	}
	wrote, err = sync(ctx, rules)
	switch {
	case heir || (wrote || f.shut) && doubted:
		f.repaired(rules)
	case wrote && f.established != datastore.EstablishedKeep && !f.bounded: // what, nobody has noted
		f.tighten(acl.Scope{All: true})
	case err == nil && !lacked && f.tightened.Empty():
		f.debt.free()
	}
	return wrote, err
}

// putBack makes the kernel hold what it held last, by the journal, while the view is
// not what this node should be. Without a journal nothing is known: what is there stays,
// and where nothing is no endpoint is let through.
func (f *filtering) putBack(ctx context.Context) error {
	f.behind, f.held, f.bounded = true, false, false
	rules, err := f.journal.Read()
	if err != nil {
		var wrote bool
		var shut error
		if f.wired() {
			wrote, shut = f.filter.Shut(ctx, acl.Static(f.options))
		}
		f.shut = f.shut || wrote
		if shut != nil || !errors.Is(err, datastore.ErrNotFound) {
			return errors.Join(shut, err)
		}
		f.resync = false // until somebody changes something
		return nil
	}
	if f.established == "" { // the view will tell
		f.setStrict(rules.Strict())
	}
	rules = rules.WithStatic(f.options)
	_, err = f.sync(ctx, rules, true, false)
	f.resync, f.held = err != nil, err == nil
	return err
}

// keep notes a change of the index that is about to be made, for putBack.
func (f *filtering) keep(d acl.Delta) {
	var err error
	switch {
	case f.journal.Due() || !d.Empty() && f.journal.Lost():
		if time.Now().Before(f.keepAt) {
			return // it costs as much as all there is
		}
		if err = f.journal.Whole(f.index.Ruleset()); err != nil {
			f.keepAt = time.Now().Add(retryMax)
		}
	case !d.Empty():
		err = f.journal.Add(d)
	}
	if err != nil {
		f.log.Warn("packet filter not kept for the next start", "error", err)
	}
}

// folder is where the journal is, which comes back when somebody removes it; failed is
// told why it could not.
func (f *filtering) folder(failed func(error)) control.Folder {
	return control.Folder{Dir: filepath.Dir(f.path), Look: func(name string) error {
		if name != "" && name != filepath.Base(f.path) {
			return nil
		}
		err := f.journal.Restore()
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return err
		}
		failed(err)
		return nil
	}}
}

// refuse books what the kernel refused, beside what it refused before.
func (f *filtering) refuse(e *acl.RefusedError) {
	all := &acl.RefusedError{}
	if f.refused != nil {
		all.Refusals = slices.Clone(f.refused.Refusals)
	}
	for _, r := range e.Refusals {
		all.Refusals = append(all.Refusals, f.index.Name(r))
	}
	f.refused = all
}

// why says why the ACLs of a link are not in the kernel; nil: they are.
func (f *filtering) why(link string) error {
	if err := f.index.Concerning(link, f.refused); err != nil {
		return err
	}
	return f.err
}

// covers says whether nothing that a link needs was refused.
func (f *filtering) covers(link string) bool { return f.index.Concerning(link, f.refused) == nil }

// apply takes a change of the store.
func (f *filtering) apply(c datastore.Change) { f.index.Apply(c) }
